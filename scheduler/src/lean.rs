//! Pods from the apiserver without what nobody here reads: who manages which field, environments,
//! probes, mounts, times of conditions. A watch shows a pod again and again, and reading all of it
//! costs more than placing it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::marker::PhantomData;

use k8s_openapi::api::core::v1::{
    AWSElasticBlockStoreVolumeSource, Affinity, AzureDiskVolumeSource, CinderVolumeSource,
    Container, ContainerPort, ContainerRestartRule, ContainerStatus, EphemeralVolumeSource,
    GCEPersistentDiskVolumeSource, ISCSIVolumeSource, ImageVolumeSource,
    PersistentVolumeClaimVolumeSource, Pod, PodCondition, PodResourceClaim, PodSchedulingGate,
    PodSchedulingGroup, PodSpec, PodStatus, PortworxVolumeSource, RBDVolumeSource,
    ResourceRequirements, Toleration, TopologySpreadConstraint, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use serde::{Deserialize, Deserializer};

/// A pod with its fields as far as the scheduler reads them; the others are as if they were not
/// set.
#[derive(Clone, Debug, Default)]
pub struct LeanPod(pub Pod);

impl<'de> Deserialize<'de> for LeanPod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        PodFields::deserialize(deserializer).map(|pod| Self(pod.into()))
    }
}

impl Resource for LeanPod {
    type DynamicType = ();
    type Scope = <Pod as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        Pod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        Pod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.0.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0.metadata
    }
}

type Quantities = BTreeMap<String, Quantity>;
type Labels = BTreeMap<String, String>;

/// The fields of a type that are read: those that it may lack, and those that it always has.
macro_rules! fields {
    ($name:ident of $target:ident
        may have { $($(#[$how:meta])* $field:ident: $type:ty,)* }
        has { $($(#[$how_always:meta])* $always:ident: $type_always:ty,)* }
    ) => {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct $name {
            $($(#[$how])* $field: Option<$type>,)*
            $($(#[$how_always])* $always: Option<$type_always>,)*
        }

        impl From<$name> for $target {
            #[allow(clippy::needless_update, reason = "all fields of some types are read")]
            fn from(read: $name) -> Self {
                Self {
                    $($field: read.$field,)*
                    $($always: read.$always.unwrap_or_default(),)*
                    ..Self::default()
                }
            }
        }
    };
}

fields! { PodFields of Pod
    may have {
        #[serde(default, deserialize_with = "one::<_, SpecFields, _>")]
        spec: PodSpec,
        #[serde(default, deserialize_with = "one::<_, StatusFields, _>")]
        status: PodStatus,
    }
    has {
        #[serde(default, deserialize_with = "one::<_, MetaFields, _>")]
        metadata: ObjectMeta,
    }
}

fields! { MetaFields of ObjectMeta
    may have {
        deletion_timestamp: Time,
        generation: i64,
        labels: Labels,
        name: String,
        namespace: String,
        owner_references: Vec<OwnerReference>,
        resource_version: String,
        uid: String,
    }
    has {}
}

fields! { SpecFields of PodSpec
    may have {
        affinity: Affinity,
        host_network: bool,
        host_users: bool,
        #[serde(default, deserialize_with = "each::<_, ContainerFields, _>")]
        init_containers: Vec<Container>,
        node_name: String,
        node_selector: Labels,
        overhead: Quantities,
        preemption_policy: String,
        priority: i32,
        resource_claims: Vec<PodResourceClaim>,
        resources: ResourceRequirements,
        scheduler_name: String,
        scheduling_gates: Vec<PodSchedulingGate>,
        scheduling_group: PodSchedulingGroup,
        tolerations: Vec<Toleration>,
        topology_spread_constraints: Vec<TopologySpreadConstraint>,
        #[serde(default, deserialize_with = "each::<_, VolumeFields, _>")]
        volumes: Vec<Volume>,
    }
    has {
        #[serde(default, deserialize_with = "each::<_, ContainerFields, _>")]
        containers: Vec<Container>,
    }
}

fields! { ContainerFields of Container
    may have {
        image: String,
        ports: Vec<ContainerPort>,
        resources: ResourceRequirements,
        restart_policy: String,
        restart_policy_rules: Vec<ContainerRestartRule>,
    }
    has {
        name: String,
    }
}

fields! { VolumeFields of Volume
    may have {
        aws_elastic_block_store: AWSElasticBlockStoreVolumeSource,
        azure_disk: AzureDiskVolumeSource,
        cinder: CinderVolumeSource,
        ephemeral: EphemeralVolumeSource,
        gce_persistent_disk: GCEPersistentDiskVolumeSource,
        image: ImageVolumeSource,
        iscsi: ISCSIVolumeSource,
        persistent_volume_claim: PersistentVolumeClaimVolumeSource,
        portworx_volume: PortworxVolumeSource,
        rbd: RBDVolumeSource,
    }
    has {
        name: String,
    }
}

fields! { StatusFields of PodStatus
    may have {
        allocated_resources: Quantities,
        #[serde(default, deserialize_with = "each::<_, ConditionFields, _>")]
        conditions: Vec<PodCondition>,
        #[serde(default, deserialize_with = "each::<_, ContainerStatusFields, _>")]
        container_statuses: Vec<ContainerStatus>,
        #[serde(default, deserialize_with = "each::<_, ContainerStatusFields, _>")]
        init_container_statuses: Vec<ContainerStatus>,
        nominated_node_name: String,
        phase: String,
        resources: ResourceRequirements,
        start_time: Time,
    }
    has {}
}

fields! { ConditionFields of PodCondition
    may have {
        message: String,
        reason: String,
    }
    has {
        status: String,
        #[serde(rename = "type")]
        type_: String,
    }
}

fields! { ContainerStatusFields of ContainerStatus
    may have {
        allocated_resources: Quantities,
        resources: ResourceRequirements,
    }
    has {
        name: String,
    }
}

/// Some of a `T`'s fields.
struct Part<F, T>(T, PhantomData<F>);

impl<'de, F: Deserialize<'de> + Into<T>, T> Deserialize<'de> for Part<F, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(F::deserialize(deserializer)?.into(), PhantomData))
    }
}

fn one<'de, D, F, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    F: Deserialize<'de> + Into<T>,
{
    Ok(Option::<Part<F, T>>::deserialize(deserializer)?.map(|part| part.0))
}

fn each<'de, D, F, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    F: Deserialize<'de> + Into<T>,
{
    let parts = Option::<Vec<Part<F, T>>>::deserialize(deserializer)?;
    Ok(parts.map(|parts| parts.into_iter().map(|part| part.0).collect()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::core::affinity::Identity;
    use crate::core::pod::PodRequest;
    use crate::core::resources;

    /// A pod with nearly every field that there is, and the part of it that is read.
    fn pods() -> (Value, Value) {
        let quantities = json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2"}});
        let container = json!({
            "name": "c", "image": "registry/c:1", "resources": quantities, "restartPolicy": "Always",
            "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": "10.0.0.1", "protocol": "UDP"}],
            "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}],
        });
        let mut whole_container = container.clone();
        let more = json!({
            "env": [{"name": "A", "value": "b"}], "command": ["x"], "terminationMessagePath": "/dev/log",
            "livenessProbe": {"httpGet": {"path": "/", "port": 80}}, "volumeMounts": [{"name": "v", "mountPath": "/"}],
        });
        merge(&mut whole_container, more);
        let selector = json!({"matchLabels": {"app": "a"}});
        let term =
            json!({"topologyKey": "zone", "labelSelector": selector, "namespaces": ["other"]});
        let volumes = json!([
            {"name": "claim", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}},
            {"name": "own", "ephemeral": {}},
            {"name": "gce", "gcePersistentDisk": {"pdName": "g", "readOnly": true}},
            {"name": "aws", "awsElasticBlockStore": {"volumeID": "vol-1"}},
            {"name": "azure", "azureDisk": {"diskName": "d", "diskURI": "u", "kind": "Managed"}},
            {"name": "cinder", "cinder": {"volumeID": "i"}},
            {"name": "portworx", "portworxVolume": {"volumeID": "i"}},
            {"name": "iscsi", "iscsi": {"iqn": "q", "lun": 1, "targetPortal": "p"}},
            {"name": "rbd", "rbd": {"monitors": ["m"], "image": "i", "pool": "p"}},
            {"name": "image", "image": {"reference": "registry/volume:1"}},
            {"name": "secret"},
        ]);
        let mut whole_volumes = volumes.clone();
        whole_volumes[10]["secret"] = json!({"secretName": "s"});
        let mut spec = json!({
            "affinity": {
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}]}},
                "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]},
                "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 3, "podAffinityTerm": term}]},
            },
            "hostNetwork": true, "hostUsers": false, "nodeName": "n", "nodeSelector": {"disk": "ssd"},
            "overhead": {"cpu": "10m"}, "preemptionPolicy": "Never", "priority": 7,
            "resourceClaims": [{"name": "r", "resourceClaimName": "x"}], "resources": quantities,
            "schedulerName": "mine", "schedulingGates": [{"name": "gate"}],
            "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoSchedule"}],
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
                "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector}],
            "containers": [container], "initContainers": [container], "volumes": volumes,
        });
        let meta = json!({
            "name": "p", "namespace": "d", "uid": "u", "resourceVersion": "5", "generation": 3,
            "labels": {"app": "a"}, "deletionTimestamp": "2026-01-01T00:00:00Z",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "v",
                "controller": true}],
        });
        let container_status = json!({
            "name": "c", "resources": quantities, "allocatedResources": {"cpu": "3"},
        });
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "why",
        });
        let mut status = json!({
            "phase": "Pending", "nominatedNodeName": "m", "startTime": "2026-01-01T00:00:00Z",
            "conditions": [condition], "containerStatuses": [container_status],
            "initContainerStatuses": [container_status], "resources": quantities,
            "allocatedResources": {"memory": "1Gi"},
        });
        let read = json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": status});

        spec["containers"] = json!([whole_container]);
        spec["initContainers"] = json!([whole_container]);
        spec["volumes"] = whole_volumes;
        let more = json!({
            "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "serviceAccountName": "default",
            "securityContext": {"runAsUser": 1}, "terminationGracePeriodSeconds": 30,
        });
        merge(&mut spec, more);
        let mut whole_meta = meta;
        let more = json!({
            "annotations": {"a": "b"}, "creationTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["f"],
            "managedFields": [{"manager": "m", "operation": "Update", "apiVersion": "v1",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {}}}}],
        });
        merge(&mut whole_meta, more);
        status["conditions"][0]["lastTransitionTime"] = "2026-01-01T00:00:00Z".into();
        status["conditions"][0]["observedGeneration"] = 3.into();
        for list in ["containerStatuses", "initContainerStatuses"] {
            let more = json!({
                "ready": true, "restartCount": 2, "image": "i", "imageID": "j",
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            });
            merge(&mut status[list][0], more);
        }
        status["podIPs"] = json!([{"ip": "10.0.0.2"}]);
        let whole = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": whole_meta, "spec": spec, "status": status,
            "unheardOf": [1],
        });
        (whole, read)
    }

    fn merge(value: &mut Value, more: Value) {
        if let (Value::Object(value), Value::Object(more)) = (value, more) {
            value.extend(more);
        }
    }

    fn lean(pod: &Value) -> Pod {
        serde_json::from_value::<LeanPod>(pod.clone()).expect("a pod").0
    }

    #[test]
    fn what_is_read_is_there_and_nothing_else() {
        let (whole, read) = pods();
        // By the whole type, so that what is always there is there in both.
        let expected: Pod = serde_json::from_value(read).expect("a pod");
        assert_eq!(lean(&whole), expected);
    }

    #[test]
    fn nothing_that_the_scheduler_reads_is_missed() {
        let (whole, _) = pods();
        let all: Pod = serde_json::from_value(whole.clone()).expect("a pod");
        let lean = lean(&whole);
        assert_eq!(PodRequest::compile(&lean), PodRequest::compile(&all));
        assert_eq!(Identity::of(&lean), Identity::of(&all));
        assert_eq!(resources::assigned(&lean), resources::assigned(&all));
    }

    #[test]
    fn what_is_null_or_missing_is_as_in_the_whole_type() {
        let pods = [
            json!({"metadata": {}}),
            json!({"metadata": {"labels": null, "name": null}, "spec": null, "status": null}),
            json!({"metadata": {"name": "p"}, "spec": {"containers": []}, "status": {}}),
            json!({"metadata": {}, "spec": {"containers": null, "volumes": null, "tolerations": null}}),
        ];
        for pod in pods {
            let all: Pod = serde_json::from_value(pod.clone()).expect("a pod");
            assert_eq!(lean(&pod), all, "{pod}");
        }
    }
}
