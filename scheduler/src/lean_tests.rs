use std::fmt::Write;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
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
    let term = json!({"topologyKey": "zone", "labelSelector": selector, "namespaces": ["other"]});
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
    *serde_json::from_value::<LeanPod>(pod.clone()).expect("a pod").0
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

#[test]
fn what_is_no_pod_is_refused() {
    for text in [
        r#"{"apiVersion":"v1","kind":"Status","metadata":{}}"#,
        r#"{"apiVersion":"v2","kind":"Pod","metadata":{}}"#,
        r#"{"kind":null}"#,
        // The fields in their order, as a list.
        "[{},{},{}]",
        r#"{"metadata":[null,null,null,"name",null,null,null,null]}"#,
        r#"{"spec":{"containers":[null]}}"#,
        "null",
        "\"\"",
        "",
    ] {
        assert!(serde_json::from_str::<Pod>(text).is_err(), "{text}");
        assert!(serde_json::from_str::<LeanPod>(text).is_err(), "{text}");
    }
}

#[test]
fn of_a_key_that_is_there_twice_the_last_counts() {
    let text =
        r#"{"spec":{"nodeName":"a","node\u004eame":"b"},"status":{"phase":"x"},"status":null}"#;
    let pod = serde_json::from_str::<LeanPod>(text).expect("a pod").0;
    assert_eq!(*pod, serde_json::from_str::<Pod>(text).expect("a pod"));
    assert_eq!(pod.spec.expect("a spec").node_name.as_deref(), Some("b"));
    assert_eq!(pod.status, None);
}

#[test]
fn a_watch_may_say_last_what_happened() {
    use kube::core::WatchEvent;
    let text = r#"{"object":{"apiVersion":"v1","kind":"Pod","metadata":{"na\u006de":"p"}},"type":"ADDED"}"#;
    let event = serde_json::from_str::<WatchEvent<LeanPod>>(text).expect("an event");
    let WatchEvent::Added(LeanPod(pod)) = event else { panic!("another event") };
    assert_eq!(pod.metadata.name.as_deref(), Some("p"));
}

#[test]
fn what_is_nested_deeply_overflows_nothing() {
    const DEEP: usize = 200_000;
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        for path in [
            r#"{"unheardOf":"#,
            r#"{"metadata":{"annotations":"#,
            r#"{"metadata":{"labels":"#,
            r#"{"spec":{"affinity":"#,
            r#"{"spec":{"containers":[{"env":"#,
            r#"{"spec":{"containers":"#,
        ] {
            let text = format!("{path}{}1{}", open.repeat(DEEP), close.repeat(DEEP));
            // Never closed, and so refused, whatever was skipped before.
            assert!(serde_json::from_str::<LeanPod>(&text).is_err());
        }
    }
}

/// The part of a pod that is read, said once more.
fn part_of(pod: Pod) -> Pod {
    let meta = pod.metadata;
    Pod {
        metadata: ObjectMeta {
            deletion_timestamp: meta.deletion_timestamp,
            generation: meta.generation,
            labels: meta.labels,
            name: meta.name,
            namespace: meta.namespace,
            owner_references: meta.owner_references,
            resource_version: meta.resource_version,
            uid: meta.uid,
            ..ObjectMeta::default()
        },
        spec: pod.spec.map(spec_part),
        status: pod.status.map(status_part),
    }
}

fn spec_part(spec: PodSpec) -> PodSpec {
    let container = |container: Container| Container {
        image: container.image,
        name: container.name,
        ports: container.ports,
        resources: container.resources,
        restart_policy: container.restart_policy,
        restart_policy_rules: container.restart_policy_rules,
        ..Container::default()
    };
    let containers = |all: Vec<Container>| all.into_iter().map(container).collect();
    let volume = |volume: Volume| Volume {
        aws_elastic_block_store: volume.aws_elastic_block_store,
        azure_disk: volume.azure_disk,
        cinder: volume.cinder,
        ephemeral: volume.ephemeral,
        gce_persistent_disk: volume.gce_persistent_disk,
        image: volume.image,
        iscsi: volume.iscsi,
        name: volume.name,
        persistent_volume_claim: volume.persistent_volume_claim,
        portworx_volume: volume.portworx_volume,
        rbd: volume.rbd,
        ..Volume::default()
    };
    PodSpec {
        affinity: spec.affinity,
        containers: containers(spec.containers),
        host_network: spec.host_network,
        host_users: spec.host_users,
        init_containers: spec.init_containers.map(containers),
        node_name: spec.node_name,
        node_selector: spec.node_selector,
        overhead: spec.overhead,
        preemption_policy: spec.preemption_policy,
        priority: spec.priority,
        resource_claims: spec.resource_claims,
        resources: spec.resources,
        scheduler_name: spec.scheduler_name,
        scheduling_gates: spec.scheduling_gates,
        scheduling_group: spec.scheduling_group,
        tolerations: spec.tolerations,
        topology_spread_constraints: spec.topology_spread_constraints,
        volumes: spec.volumes.map(|volumes| volumes.into_iter().map(volume).collect()),
        ..PodSpec::default()
    }
}

fn status_part(status: PodStatus) -> PodStatus {
    let condition = |condition: PodCondition| PodCondition {
        message: condition.message,
        reason: condition.reason,
        status: condition.status,
        type_: condition.type_,
        ..PodCondition::default()
    };
    let container = |status: ContainerStatus| ContainerStatus {
        allocated_resources: status.allocated_resources,
        name: status.name,
        resources: status.resources,
        ..ContainerStatus::default()
    };
    let containers = |all: Vec<ContainerStatus>| all.into_iter().map(container).collect();
    PodStatus {
        allocated_resources: status.allocated_resources,
        conditions: status.conditions.map(|all| all.into_iter().map(condition).collect()),
        container_statuses: status.container_statuses.map(containers),
        init_container_statuses: status.init_container_statuses.map(containers),
        nominated_node_name: status.nominated_node_name,
        phase: status.phase,
        resources: status.resources,
        start_time: status.start_time,
        ..PodStatus::default()
    }
}

/// Writes JSON as nobody would: with escapes, white space, keys twice, keys that nobody knows, and
/// now and then another value than there was.
struct Writer {
    random: SmallRng,
    /// One value in so many is another one.
    odd: u32,
    out: String,
}

/// Values that stand where others should.
const ODD: [&str; 16] = [
    "null",
    "true",
    "0",
    "-1",
    "1.5",
    "1e400",
    "123456789012345678901234567890",
    "2147483648",
    "\"\"",
    "\"7\"",
    "\"\\ud83d\\ude00\\u0000\\\\\"",
    "\"\\ud800\"",
    "[]",
    "{}",
    "[[[{\"a\":[]}]]]",
    "{\"requests\":{\"cpu\":\"\\u0031\"}}",
];

impl Writer {
    fn one_in(&mut self, count: u32) -> bool {
        self.random.random_range(0..count) == 0
    }

    fn odd(&mut self) {
        let odd = ODD[self.random.random_range(0..ODD.len())];
        self.out.push_str(odd);
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            if u32::from(character) < 0x80 && self.one_in(30) {
                write!(self.out, "\\u{:04X}", u32::from(character)).expect("a string takes all");
            } else {
                self.out.push(character);
            }
        }
        self.out.push('"');
    }

    fn value(&mut self, value: &Value) {
        if self.one_in(20) {
            self.out.push_str(" \t\r\n");
        }
        if self.one_in(self.odd) {
            return self.odd();
        }
        match value {
            Value::Object(entries) => {
                let mut keys: Vec<&String> = entries.keys().collect();
                for _ in 0..self.random.random_range(0..=keys.len()) {
                    let other = self.random.random_range(0..keys.len());
                    keys.swap(0, other);
                }
                self.out.push('{');
                for (place, key) in keys.into_iter().enumerate() {
                    if place > 0 {
                        self.out.push(',');
                    }
                    let more = match self.random.random_range(0..self.odd.max(200)) {
                        0 => Some("unheardOf"),
                        1 => Some(key.as_str()),
                        _ => None,
                    };
                    if let Some(more) = more {
                        self.text(more);
                        self.out.push(':');
                        self.odd();
                        self.out.push(',');
                    }
                    self.text(key);
                    self.out.push(':');
                    self.value(&entries[key]);
                }
                self.out.push('}');
            }
            Value::Array(values) => {
                self.out.push('[');
                for (place, value) in values.iter().enumerate() {
                    if place > 0 {
                        self.out.push(',');
                    }
                    self.value(value);
                }
                self.out.push(']');
            }
            Value::String(text) => self.text(text),
            other => self.out.push_str(&other.to_string()),
        }
    }
}

#[test]
fn any_text_is_read_as_by_the_whole_type_or_refused() {
    let (whole, _) = pods();
    let (mut read, mut refused) = (0, 0);
    for seed in 0..4000 {
        let random = SmallRng::seed_from_u64(seed);
        let odd = [100_000, 400, 100][usize::try_from(seed % 3).expect("small")];
        let mut writer = Writer { random, odd, out: String::new() };
        writer.value(&whole);
        let mut text = std::mem::take(&mut writer.out).into_bytes();
        let place = writer.random.random_range(0..text.len());
        match writer.random.random_range(0..5) {
            0 => text.truncate(place),
            1 => text[place] = writer.random.random(),
            _ => {}
        }
        let all = serde_json::from_slice::<Pod>(&text);
        let lean = serde_json::from_slice::<LeanPod>(&text);
        let shown = || String::from_utf8_lossy(&text).into_owned();
        match (all, lean) {
            (Ok(all), Ok(lean)) => {
                read += 1;
                assert_eq!(part_of(all), *lean.0, "seed {seed}: {}", shown());
            }
            (Ok(_), Err(error)) => panic!("seed {seed}: {error}: {}", shown()),
            // What is wrong may be in what isn't read.
            (Err(_), _) => refused += 1,
        }
    }
    assert!(read > 500 && refused > 500, "{read} read, {refused} refused");
}
