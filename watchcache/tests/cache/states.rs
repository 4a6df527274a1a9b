//! Objects in states that kubectl shows in cells of their own.

use http::Method;
use serde_json::{Value, json};

use crate::cluster::User;

fn template() -> Value {
    json!({"metadata": {"labels": {"app": "x", "tier": "c"}}, "spec": {
        "nodeSelector": {"b": "2", "a": "1"},
        "containers": [{"name": "c0", "image": "i:1"}, {"name": "c1", "image": "j@sha256:<x>"}]}})
}

fn selector() -> Value {
    json!({"matchLabels": {"app": "x"}, "matchExpressions": [
        {"key": "tier", "operator": "In", "values": ["d", "c"]},
        {"key": "app", "operator": "Exists"},
        {"key": "x.io/none", "operator": "DoesNotExist"},
        {"key": "b", "operator": "NotIn", "values": ["b"]}]})
}

fn job(more: &Value) -> Value {
    let mut spec = json!({"template": {"spec": {"restartPolicy": "Never",
        "containers": [{"name": "c", "image": "i"}]}}});
    for (name, value) in more.as_object().unwrap() {
        spec[name] = value.clone();
    }
    json!({"spec": spec})
}

/// Where it is, what it is and what is told of it later.
type State = (&'static str, &'static str, Value, Value);

fn workloads() -> Vec<State> {
    let replicas = json!({"replicas": 3, "readyReplicas": 2, "availableReplicas": 1,
                          "fullyLabeledReplicas": 3});
    let complete = json!({"succeeded": 1, "startTime": "2026-01-02T03:04:05Z",
        "completionTime": "2026-01-02T04:05:06Z", "uncountedTerminatedPods": {},
        "conditions": [{"type": "SuccessCriteriaMet", "status": "True"},
                       {"type": "Complete", "status": "True"}]});
    vec![
        (
            "/apis/apps/v1/namespaces/a/daemonsets",
            "d",
            json!({"metadata": {"annotations": {"z": "1", "a": "2"}},
                   "spec": {"selector": selector(), "template": template()}}),
            json!({"desiredNumberScheduled": 3, "currentNumberScheduled": 2, "numberReady": 1,
                   "updatedNumberScheduled": 2, "numberAvailable": 1, "numberMisscheduled": 4}),
        ),
        (
            "/apis/apps/v1/namespaces/a/deployments",
            "d",
            json!({"metadata": {"annotations": {"deprecated.deployment.rollback.to": "3"}},
                   "spec": {"replicas": 4, "selector": selector(), "template": template()}}),
            json!({"replicas": 3, "updatedReplicas": 2, "readyReplicas": 2, "availableReplicas": 1}),
        ),
        (
            "/apis/apps/v1/namespaces/a/replicasets",
            "r",
            json!({"spec": {"replicas": 4, "selector": selector(), "template": template()}}),
            replicas.clone(),
        ),
        (
            "/api/v1/namespaces/a/replicationcontrollers",
            "r",
            json!({"spec": {"replicas": 4, "selector": {"tier": "c", "app": "x"},
                            "template": template()}}),
            replicas,
        ),
        (
            "/apis/apps/v1/namespaces/a/controllerrevisions",
            "c",
            json!({"revision": 5_000_000_000_i64, "data": {}, "metadata": {"ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"},
                {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "v",
                 "controller": true}]}}),
            Value::Null,
        ),
        ("/api/v1/namespaces/a/podtemplates", "t", json!({"template": template()}), Value::Null),
        ("/apis/batch/v1/namespaces/a/jobs", "complete", job(&json!({})), complete),
        (
            "/apis/batch/v1/namespaces/a/jobs",
            "active",
            job(&json!({"parallelism": 3, "completions": 7})),
            json!({"active": 1, "startTime": "2026-01-02T03:04:05Z"}),
        ),
        (
            "/apis/batch/v1/namespaces/a/jobs",
            "suspended",
            job(&json!({"parallelism": 3, "suspend": true})),
            json!({"conditions": [{"type": "Suspended", "status": "True"}]}),
        ),
        (
            "/apis/batch/v1/namespaces/a/cronjobs",
            "c",
            json!({"spec": {"schedule": "1 2 * * *", "timeZone": "Etc/UTC", "suspend": true,
                            "jobTemplate": job(&json!({}))}}),
            json!({"lastScheduleTime": "2026-01-02T03:04:05Z",
                   "active": [{"kind": "Job", "name": "j"}]}),
        ),
        (
            "/apis/policy/v1/namespaces/a/poddisruptionbudgets",
            "most",
            json!({"spec": {"maxUnavailable": "50%", "selector": selector()}}),
            json!({"disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1,
                   "expectedPods": 2}),
        ),
        (
            "/apis/policy/v1/namespaces/a/poddisruptionbudgets",
            "least",
            json!({"spec": {"minAvailable": 2, "selector": {}}}),
            Value::Null,
        ),
    ]
}

fn autoscalers() -> Vec<State> {
    let metric = json!({"name": "m"});
    let of = json!({"kind": "Service", "name": "s"});
    let metrics = |all: &[Value]| {
        json!({"spec": {"maxReplicas": 9, "metrics": all,
                        "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}})
    };
    let path = "/apis/autoscaling/v2/namespaces/a/horizontalpodautoscalers";
    let cpu =
        |target: Value| json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
    vec![
        (
            path,
            "resources",
            metrics(&[
                cpu(json!({"type": "Utilization", "averageUtilization": 80})),
                json!({"type": "ContainerResource", "containerResource": {"name": "memory",
                    "container": "c", "target": {"type": "AverageValue", "averageValue": "1536Mi"}}}),
                cpu(json!({"type": "AverageValue", "averageValue": "1500m"})),
            ]),
            json!({"currentReplicas": 3, "desiredReplicas": 4, "currentMetrics": [
                {"type": "Resource", "resource": {"name": "cpu",
                    "current": {"averageValue": "0.5", "averageUtilization": 33}}},
                {"type": "ContainerResource", "containerResource": {"name": "memory",
                    "container": "c", "current": {"averageValue": "1Gi"}}}]}),
        ),
        (
            path,
            "others",
            metrics(&[
                json!({"type": "Pods", "pods": {"metric": metric,
                    "target": {"type": "AverageValue", "averageValue": "1k"}}}),
                json!({"type": "Object", "object": {"metric": metric, "describedObject": of,
                    "target": {"type": "Value", "value": "10"}}}),
            ]),
            json!({"currentReplicas": 0, "desiredReplicas": 0, "currentMetrics": [
                {"type": "Pods", "pods": {"metric": metric, "current": {"averageValue": "2"}}},
                {"type": "Object", "object": {"metric": metric, "describedObject": of,
                    "current": {"averageValue": "3"}}}]}),
        ),
        (
            path,
            "external",
            metrics(&[
                json!({"type": "External", "external": {"metric": metric,
                    "target": {"type": "AverageValue", "averageValue": "7"}}}),
                json!({"type": "External", "external": {"metric": metric,
                    "target": {"type": "Value", "value": "8"}}}),
            ]),
            Value::Null,
        ),
    ]
}

fn storage() -> Vec<State> {
    vec![
        (
            "/api/v1/persistentvolumes",
            "bound",
            json!({"metadata": {"annotations": {"volume.beta.kubernetes.io/storage-class": "beta"}},
                "spec": {"capacity": {"storage": "1536Mi"}, "storageClassName": "s",
                    "accessModes": ["ReadWriteMany", "ReadWriteOnce"], "hostPath": {"path": "/x"},
                    "claimRef": {"namespace": "a", "name": "claim"}}}),
            json!({"phase": "Failed", "reason": "R"}),
        ),
        (
            "/apis/storage.k8s.io/v1/storageclasses",
            "default",
            json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
                "provisioner": "x.io/y", "reclaimPolicy": "Retain", "allowVolumeExpansion": true,
                "volumeBindingMode": "WaitForFirstConsumer"}),
            Value::Null,
        ),
        (
            "/apis/storage.k8s.io/v1/volumeattachments",
            "v",
            json!({"spec": {"attacher": "x.io", "nodeName": "n",
                            "source": {"persistentVolumeName": "bound"}}}),
            json!({"attached": true}),
        ),
        (
            "/apis/storage.k8s.io/v1/csidrivers",
            "x.io",
            json!({"spec": {"attachRequired": false, "podInfoOnMount": true, "storageCapacity": true,
                "requiresRepublish": true, "volumeLifecycleModes": ["Persistent", "Ephemeral"],
                "tokenRequests": [{"audience": "a"}, {"audience": "b"}]}}),
            Value::Null,
        ),
        (
            "/apis/storage.k8s.io/v1/csinodes",
            "n",
            json!({"spec": {"drivers": [{"name": "x.io", "nodeID": "n", "topologyKeys": null},
                                        {"name": "y.io", "nodeID": "n", "topologyKeys": null}]}}),
            Value::Null,
        ),
        (
            "/apis/resource.k8s.io/v1/namespaces/a/resourceclaims",
            "reserved",
            json!({"spec": {"devices": {"requests": [{"name": "r",
                "exactly": {"deviceClassName": "c"}}]}}}),
            json!({"allocation": {"devices": {"results": [
                {"request": "r", "driver": "x.io", "pool": "p", "device": "d"}]}},
                "reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}]}),
        ),
    ]
}

fn others() -> Vec<State> {
    let host = |number: usize| json!({"host": format!("h{number}.example")});
    let subject = |kind: &str, name: &str| {
        let group = if kind == "ServiceAccount" { "" } else { "rbac.authorization.k8s.io" };
        let namespace = if kind == "ServiceAccount" { "a" } else { "" };
        json!({"kind": kind, "name": name, "apiGroup": group, "namespace": namespace})
    };
    let subjects = [("Group", "g"), ("User", "u"), ("ServiceAccount", "s"), ("User", "v")];
    let subjects: Vec<_> = subjects.iter().map(|(kind, name)| subject(kind, name)).collect();
    let role =
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"});
    vec![
        (
            "/apis/networking.k8s.io/v1/namespaces/a/ingresses",
            "many",
            json!({"spec": {"ingressClassName": "default", "tls": [{"hosts": ["h0.example"]}],
                            "rules": (0..5).map(host).collect::<Vec<_>>()}}),
            json!({"loadBalancer": {"ingress": [{"hostname": "z.example"}, {"ip": "192.0.2.7"}]}}),
        ),
        (
            "/apis/networking.k8s.io/v1/ingressclasses",
            "default",
            json!({"metadata": {"annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
                "spec": {"controller": "x.io/y", "parameters": {"apiGroup": "x.io", "kind": "P",
                    "name": "p", "scope": "Cluster"}}}),
            Value::Null,
        ),
        (
            "/apis/networking.k8s.io/v1/namespaces/a/networkpolicies",
            "n",
            json!({"spec": {"podSelector": selector()}}),
            Value::Null,
        ),
        (
            "/api/v1/namespaces/a/resourcequotas",
            "q",
            json!({"spec": {"hard": {"limits.cpu": "2", "pods": "10", "count/x.y": "1"}}}),
            json!({"hard": {"limits.cpu": "2", "pods": "10", "count/x.y": "1"},
                   "used": {"limits.cpu": "500m", "pods": "3"}}),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/namespaces/a/rolebindings",
            "b",
            json!({"roleRef": role, "subjects": subjects}),
            Value::Null,
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            "b",
            json!({"roleRef": role, "subjects": subjects}),
            Value::Null,
        ),
        (
            "/apis/scheduling.k8s.io/v1/priorityclasses",
            "p",
            json!({"value": -7, "preemptionPolicy": "Never"}),
            Value::Null,
        ),
    ]
}

/// Makes them all and gives their paths.
pub(crate) async fn make(user: &mut User) -> Vec<String> {
    let mut paths = Vec::new();
    for all in [workloads(), autoscalers(), storage(), others()] {
        for (collection, name, mut object, status) in all {
            object["metadata"]["name"] = name.into();
            user.write(Method::POST, collection, &object).await;
            let path = format!("{collection}/{name}");
            if !status.is_null() {
                let change = json!({"status": status});
                user.write(Method::PATCH, &format!("{path}/status"), &change).await;
            }
            paths.push(path);
        }
    }
    paths
}
