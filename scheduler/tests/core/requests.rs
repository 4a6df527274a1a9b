//! What a pod asks for, by the rules of `component-helpers/resource`.

use k8s_openapi::api::core::v1::Pod;
use megacluster_scheduler::core::pod::{PodRequest, Unsupported};
use megacluster_scheduler::core::resources::{self, CpuMemory, PodResources};
use serde_json::{Value, json};

use crate::build::pod;

const MIB: i64 = 1024 * 1024;

fn container(cpu: &str, memory: &str) -> Value {
    json!({"name": format!("c-{cpu}-{memory}"), "resources": {"requests": {"cpu": cpu, "memory": memory}}})
}

fn sidecar(cpu: &str, memory: &str) -> Value {
    let mut container = container(cpu, memory);
    container["restartPolicy"] = json!("Always");
    container
}

fn pending(spec: &Value) -> PodResources {
    resources::pending(&pod("p", json!({"spec": spec})))
}

fn cpu_memory(resources: &PodResources) -> (i64, i64) {
    (resources.requests.milli_cpu, resources.requests.memory / MIB)
}

#[test]
fn containers_add_up_and_initialisation_takes_its_widest_moment() {
    let both = json!([container("500m", "100Mi"), container("1", "50Mi")]);
    let resources = pending(&json!({"containers": both}));
    assert_eq!(cpu_memory(&resources), (1500, 150));

    let init = json!([container("2", "10Mi"), container("1", "300Mi")]);
    let resources = pending(&json!({"containers": both, "initContainers": init}));
    assert_eq!(cpu_memory(&resources), (2000, 300));
}

#[test]
fn sidecars_run_beside_containers_and_later_init_containers() {
    let containers = json!([container("1", "100Mi")]);
    // The first init container runs before the sidecar, the second beside it.
    let init = json!([container("2", "50Mi"), sidecar("500m", "20Mi"), container("2", "90Mi")]);
    let resources = pending(&json!({"containers": containers, "initContainers": init}));
    assert_eq!(cpu_memory(&resources), (2500, 120));
}

#[test]
fn overhead_and_scalars_count() {
    let resources = pending(&json!({
        "containers": [{"name": "c", "resources": {"requests": {
            "cpu": "1", "example.com/gpu": "2", "hugepages-2Mi": "4Mi", "ephemeral-storage": "1Gi",
            "unknown": "7",
        }}}],
        "overhead": {"cpu": "250m", "memory": "64Mi"},
    }));
    assert_eq!(cpu_memory(&resources), (1250, 64));
    assert_eq!(resources.requests.ephemeral_storage, 1024 * MIB);
    let scalars: Vec<_> = resources.requests.scalars.iter().map(|(n, v)| (&**n, *v)).collect();
    assert_eq!(scalars, [("example.com/gpu", 2), ("hugepages-2Mi", 4 * MIB)]);
}

#[test]
fn what_is_not_stated_is_defaulted_for_the_score_alone() {
    let containers = json!([
        {"name": "none"},
        {"name": "cpu", "resources": {"requests": {"cpu": "1"}}},
        {"name": "zero", "resources": {"requests": {"cpu": "0", "memory": "0"}}},
    ]);
    let resources = pending(&json!({"containers": containers, "overhead": {"cpu": "10m"}}));
    assert_eq!(cpu_memory(&resources), (1010, 0));
    let expected = CpuMemory { milli_cpu: 1110, memory: 400 * MIB };
    assert_eq!(resources.non_zero, expected);
    assert_eq!(resources.least_allocated, expected);
}

#[test]
fn pod_level_requests_replace_the_sum_for_the_filter_but_not_for_the_score() {
    let containers = json!([{"name": "c", "resources": {"requests": {"cpu": "1"}}}, {"name": "d"}]);
    let resources = pending(&json!({
        "containers": containers,
        "resources": {"requests": {"cpu": "3", "hugepages-2Mi": "2Mi", "example.com/gpu": "1"}},
    }));
    assert_eq!(cpu_memory(&resources), (3000, 0));
    assert_eq!(resources.requests.scalars, [("hugepages-2Mi".into(), 2 * MIB)]);
    // The pod states CPU, so only memory is defaulted in the accounting.
    assert_eq!(resources.non_zero, CpuMemory { milli_cpu: 3000, memory: 400 * MIB });
    assert_eq!(resources.least_allocated, CpuMemory { milli_cpu: 1100, memory: 400 * MIB });
}

fn resizing(reason: Option<&str>) -> Pod {
    let conditions = reason
        .map(|reason| json!([{"type": "PodResizePending", "status": "True", "reason": reason}]));
    pod(
        "p",
        json!({
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "3", "memory": "1Gi"}}}]},
            "status": {
                "conditions": conditions,
                "containerStatuses": [{
                    "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "resources": {"requests": {"cpu": "1", "memory": "2Gi"}},
                    "allocatedResources": {"cpu": "2", "memory": "1Gi"},
                }],
            },
        }),
    )
}

#[test]
fn a_resize_in_flight_counts_the_largest_of_all() {
    let counted = |pod: &Pod| cpu_memory(&resources::assigned(pod));
    assert_eq!(counted(&resizing(None)), (3000, 2048));
    assert_eq!(counted(&resizing(Some("Deferred"))), (3000, 2048));
    assert_eq!(counted(&resizing(Some("Infeasible"))), (2000, 2048));
    // A pod that isn't bound asks for what its spec says.
    assert_eq!(cpu_memory(&resources::pending(&resizing(None))), (3000, 1024));
}

#[test]
fn a_pod_level_resize_counts_too() {
    let pod = pod(
        "p",
        json!({
            "spec": {"containers": [{"name": "c"}], "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}},
            "status": {
                "resources": {"requests": {"cpu": "2"}},
                "allocatedResources": {"memory": "3Gi"},
            },
        }),
    );
    assert_eq!(cpu_memory(&resources::assigned(&pod)), (2000, 3072));
    assert_eq!(cpu_memory(&resources::pending(&pod)), (1000, 1024));
}

#[test]
fn hard_wishes_that_are_not_supported_are_named() {
    let unsupported =
        |spec: Value| PodRequest::compile(&pod("p", json!({"spec": spec}))).unsupported;
    let operator = |operator: &str| {
        json!({"topologyKey": "zone", "labelSelector": {"matchExpressions": [
            {"key": "app", "operator": operator},
        ]}})
    };
    let hard = |term: Value| {
        json!({"affinity": {"podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [term],
        }}})
    };
    assert_eq!(unsupported(hard(operator("Exists"))), []);
    assert_eq!(unsupported(hard(operator("Like"))), [Unsupported::InvalidSelector]);
    assert_eq!(
        unsupported(json!({"volumes": [
            {"name": "a", "emptyDir": {}},
            {"name": "b", "configMap": {"name": "b"}},
            {"name": "c", "awsElasticBlockStore": {"volumeID": "aws://zone/c"}},
            {"name": "vol", "awsElasticBlockStore": {"volumeID": "aws://zone/vol-1"}},
            {"name": "gce", "gcePersistentDisk": {"pdName": "disk"}},
            {"name": "d", "persistentVolumeClaim": {"claimName": "d"}},
        ]})),
        [Unsupported::Volume("c".into())]
    );
    assert_eq!(
        unsupported(json!({"resourceClaims": [{"name": "gpu"}]})),
        [Unsupported::ResourceClaims]
    );
    assert_eq!(
        unsupported(json!({"containers": [
            {"name": "c", "restartPolicyRules": [{"action": "RestartAllContainers"}]},
        ]})),
        [Unsupported::NodeFeature("RestartAllContainersOnContainerExits".into())]
    );
    assert_eq!(
        unsupported(json!({"hostNetwork": true, "hostUsers": false})),
        [Unsupported::NodeFeature("UserNamespacesHostNetworkSupport".into())]
    );
    let preference = json!({"weight": 1, "preference": {"matchExpressions": [
        {"key": "zone", "operator": "In", "values": []},
    ]}});
    assert_eq!(
        unsupported(json!({"affinity": {"nodeAffinity":
            {"preferredDuringSchedulingIgnoredDuringExecution": [preference]},
        }})),
        [Unsupported::InvalidPreference]
    );
}

#[test]
fn equal_templates_compile_to_equal_requests() {
    let patch =
        || json!({"spec": {"nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}]}});
    assert_eq!(PodRequest::compile(&pod("a", patch())), PodRequest::compile(&pod("b", patch())));
    let request = PodRequest::compile(&pod("a", patch()));
    let text = serde_json::to_string(&request).unwrap();
    assert_eq!(serde_json::from_str::<PodRequest>(&text).unwrap(), request);
}

#[test]
fn a_pod_without_a_spec_is_no_trouble() {
    assert_eq!(PodRequest::compile(&Pod::default()).unsupported, []);
}
