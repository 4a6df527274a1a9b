//! Pods from the apiserver without what nobody here reads: who manages which field, environments,
//! probes, mounts, times of conditions. A watch shows a pod again and again, and reading all of it
//! costs more than placing it. What is read is read as `k8s-openapi` does: null is as missing, of a
//! key that is there twice the last counts, and what isn't a v1 Pod is refused.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, Pod, PodCondition, PodSpec, PodStatus, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::{Error, IgnoredAny, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

/// A pod with its fields as far as the scheduler reads them; the others are as if they were not
/// set. Boxed, since a watch hands it on from stage to stage.
#[derive(Clone, Debug, Default)]
pub struct LeanPod(pub Box<Pod>);

impl<'de> Deserialize<'de> for LeanPod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Lean::deserialize(deserializer).map(|Lean(pod)| Self(Box::new(pod)))
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

/// A type of which some fields are read.
trait Fields: Default {
    /// Reads the value of a key, if it is one of them.
    fn read<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error>;
}

/// An object of which some fields are read.
struct Lean<T>(T);

impl<'de, T: Fields> Deserialize<'de> for Lean<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Object(PhantomData))
    }
}

struct Object<T>(PhantomData<T>);

impl<'de, T: Fields> Visitor<'de> for Object<T> {
    type Value = Lean<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Lean<T>, A::Error> {
        let mut read = T::default();
        while let Some(Text(key)) = map.next_key()? {
            if !read.read(&key, &mut map)? {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Lean(read))
    }
}

/// A text, borrowed where it is there as it stands.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsText;

        impl<'de> Visitor<'de> for AsText {
            type Value = Text<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(AsText)
    }
}

/// A value as its type reads it: one that may be missing, or one that is always there.
fn all<'de, T: Deserialize<'de>, A: MapAccess<'de>>(map: &mut A) -> Result<T, A::Error> {
    map.next_value()
}

fn always<'de, T, A>(map: &mut A) -> Result<T, A::Error>
where
    T: Deserialize<'de> + Default,
    A: MapAccess<'de>,
{
    Ok(map.next_value::<Option<T>>()?.unwrap_or_default())
}

/// Some fields of an object.
fn part<'de, T: Fields, A: MapAccess<'de>>(map: &mut A) -> Result<Option<T>, A::Error> {
    Ok(map.next_value::<Option<Lean<T>>>()?.map(|Lean(part)| part))
}

/// Some fields of each object of a list.
fn parts<'de, T: Fields, A: MapAccess<'de>>(map: &mut A) -> Result<Option<Vec<T>>, A::Error> {
    let parts = map.next_value::<Option<Vec<Lean<T>>>>()?;
    Ok(parts.map(|parts| parts.into_iter().map(|Lean(part)| part).collect()))
}

fn is<'de, A: MapAccess<'de>>(map: &mut A, expected: &'static str) -> Result<(), A::Error> {
    let Text(found) = map.next_value()?;
    if found == expected {
        return Ok(());
    }
    Err(A::Error::invalid_value(Unexpected::Str(&found), &expected))
}

impl Fields for Pod {
    fn read<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        match key {
            "apiVersion" => is(map, <Self as k8s_openapi::Resource>::API_VERSION)?,
            "kind" => is(map, <Self as k8s_openapi::Resource>::KIND)?,
            "metadata" => self.metadata = part(map)?.unwrap_or_default(),
            "spec" => self.spec = part(map)?,
            "status" => self.status = part(map)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// The fields of a type that are read, and how.
macro_rules! fields {
    ($target:ident { $($key:literal => $field:ident: $how:ident,)* }) => {
        impl Fields for $target {
            fn read<'de, A: MapAccess<'de>>(
                &mut self,
                key: &str,
                map: &mut A,
            ) -> Result<bool, A::Error> {
                match key {
                    $($key => self.$field = $how(map)?,)*
                    _ => return Ok(false),
                }
                Ok(true)
            }
        }
    };
}

fields! { ObjectMeta {
    "deletionTimestamp" => deletion_timestamp: all,
    "generation" => generation: all,
    "labels" => labels: all,
    "name" => name: all,
    "namespace" => namespace: all,
    "ownerReferences" => owner_references: all,
    "resourceVersion" => resource_version: all,
    "uid" => uid: all,
} }

fields! { PodSpec {
    "affinity" => affinity: all,
    "containers" => containers: containers,
    "hostNetwork" => host_network: all,
    "hostUsers" => host_users: all,
    "initContainers" => init_containers: parts,
    "nodeName" => node_name: all,
    "nodeSelector" => node_selector: all,
    "overhead" => overhead: all,
    "preemptionPolicy" => preemption_policy: all,
    "priority" => priority: all,
    "resourceClaims" => resource_claims: all,
    "resources" => resources: all,
    "schedulerName" => scheduler_name: all,
    "schedulingGates" => scheduling_gates: all,
    "schedulingGroup" => scheduling_group: all,
    "tolerations" => tolerations: all,
    "topologySpreadConstraints" => topology_spread_constraints: all,
    "volumes" => volumes: parts,
} }

fn containers<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Vec<Container>, A::Error> {
    Ok(parts(map)?.unwrap_or_default())
}

fields! { Container {
    "image" => image: all,
    "name" => name: always,
    "ports" => ports: all,
    "resources" => resources: all,
    "restartPolicy" => restart_policy: all,
    "restartPolicyRules" => restart_policy_rules: all,
} }

fields! { Volume {
    "awsElasticBlockStore" => aws_elastic_block_store: all,
    "azureDisk" => azure_disk: all,
    "cinder" => cinder: all,
    "ephemeral" => ephemeral: all,
    "gcePersistentDisk" => gce_persistent_disk: all,
    "image" => image: all,
    "iscsi" => iscsi: all,
    "name" => name: always,
    "persistentVolumeClaim" => persistent_volume_claim: all,
    "portworxVolume" => portworx_volume: all,
    "rbd" => rbd: all,
} }

fields! { PodStatus {
    "allocatedResources" => allocated_resources: all,
    "conditions" => conditions: parts,
    "containerStatuses" => container_statuses: parts,
    "initContainerStatuses" => init_container_statuses: parts,
    "nominatedNodeName" => nominated_node_name: all,
    "phase" => phase: all,
    "resources" => resources: all,
    "startTime" => start_time: all,
} }

fields! { PodCondition {
    "message" => message: all,
    "reason" => reason: all,
    "status" => status: always,
    "type" => type_: always,
} }

fields! { ContainerStatus {
    "allocatedResources" => allocated_resources: all,
    "name" => name: always,
    "resources" => resources: all,
} }

#[cfg(test)]
#[path = "lean_tests.rs"]
mod tests;
