//! Objects of many resources.

use serde_json::{Value, json};

use crate::history::Random;

fn template() -> Value {
    json!({"metadata": {"labels": {"app": "x"}},
           "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn selected() -> Value {
    json!({"matchLabels": {"app": "x"}})
}

/// An object of a resource, less its metadata; none where the resource is not made here.
#[allow(clippy::too_many_lines, reason = "one line for each resource")]
pub(crate) fn object(resource: &str, random: &mut Random) -> Option<Value> {
    let number = random.below(250);
    let word = random.choose(&["web", "api", "db"]);
    let quantity = random.choose(&["1500m", "2", "0.5", "1Gi", "1000Mi"]);
    Some(match resource {
        "nodes" => {
            json!({"spec": {"unschedulable": number.is_multiple_of(2), "podCIDR": "10.1.2.0/24"}})
        }
        "events" => json!({
            "involvedObject": {"kind": "Pod", "namespace": "NAMESPACE", "name": word, "uid": format!("u-{word}"),
                               "apiVersion": "v1", "fieldPath": "spec.x"},
            "reason": word, "type": random.choose(&["Normal", "Warning"]), "message": "m",
            "source": if number.is_multiple_of(3) { json!({}) } else { json!({"component": word, "host": "h"}) },
            "reportingComponent": if number.is_multiple_of(3) { word } else { "" },
            "firstTimestamp": "2026-01-02T03:04:05Z", "count": number,
        }),
        "configmaps" => {
            json!({"data": {word: "x".repeat(number), "b": "ä"}, "binaryData": {"z": "AAEC"},
                               "immutable": false})
        }
        "secrets" => {
            json!({"type": random.choose(&["Opaque", "x.io/y"]), "stringData": {word: "s", "a": ""}})
        }
        "services" => match number % 3 {
            0 => json!({"spec": {"type": "ExternalName", "externalName": "x.example"}}),
            1 => {
                json!({"spec": {"clusterIP": "None", "ports": [{"port": 80}], "selector": {"a": word}}})
            }
            _ => {
                json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}], "selector": {"a": word}}})
            }
        },
        "endpoints" => json!({"subsets": [{"addresses": [{"ip": "10.1.2.3", "nodeName": "n"}],
                                            "ports": [{"port": 80}]}]}),
        "namespaces" => json!({}),
        "serviceaccounts" => json!({"automountServiceAccountToken": number.is_multiple_of(2)}),
        "persistentvolumes" => json!({"spec": {"capacity": {"storage": quantity},
            "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}, "storageClassName": word}}),
        "replicationcontrollers" => json!({"spec": {"replicas": number, "selector": {"app": "x"},
            "template": template()}}),
        "limitranges" => {
            json!({"spec": {"limits": [{"type": "Container", "default": {"cpu": quantity}}]}})
        }
        "resourcequotas" => {
            json!({"spec": {"hard": {"count/widgets.x.io": quantity.replace("1500m", "1").replace("0.5", "1")}}})
        }
        "podtemplates" => json!({"template": template()}),
        "deployments" | "replicasets" => {
            json!({"spec": {"replicas": number, "selector": selected(), "template": template()}})
        }
        "statefulsets" => {
            json!({"spec": {"serviceName": "s", "selector": selected(), "template": template()}})
        }
        "daemonsets" => json!({"spec": {"selector": selected(), "template": template()}}),
        "controllerrevisions" => json!({"revision": number, "data": {"a": {"b": [1, "x"]}}}),
        "horizontalpodautoscalers" => json!({"spec": {"maxReplicas": number + 1,
            "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}}),
        "jobs" => json!({"spec": {"template": {"spec": {"restartPolicy": "Never",
            "containers": [{"name": "c", "image": "i"}]}}}}),
        "cronjobs" => json!({"spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template":
            {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}}}),
        "leases" => json!({"spec": {"holderIdentity": word, "leaseDurationSeconds": number + 1,
            "renewTime": "2026-01-02T03:04:05.000006Z"}}),
        "endpointslices" => json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.1.2.3"],
            "conditions": {"ready": true}, "nodeName": "n", "zone": word}], "ports": [{"name": "p", "port": 80}]}),
        "ingresses" => {
            json!({"spec": {"rules": [{"host": "x.example", "http": {"paths": [{"path": "/",
            "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}})
        }
        "ingressclasses" => json!({"spec": {"controller": "x.io/y"}}),
        "networkpolicies" => json!({"spec": {"podSelector": {"matchLabels": {"a": word}},
            "ingress": [{"ports": [{"port": 80}]}]}}),
        "runtimeclasses" => json!({"handler": word}),
        "poddisruptionbudgets" => json!({"spec": {"minAvailable": "50%", "selector": selected()}}),
        "roles" | "clusterroles" => {
            json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]})
        }
        "rolebindings" | "clusterrolebindings" => json!({
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "User", "name": word, "apiGroup": "rbac.authorization.k8s.io"}]}),
        "priorityclasses" => json!({"value": number, "description": word}),
        "storageclasses" => json!({"provisioner": "x.io/y", "parameters": {"b": "1", "a": word}}),
        "volumeattachments" => json!({"spec": {"attacher": "x.io", "nodeName": "n",
            "source": {"persistentVolumeName": "pv"}}}),
        "csidrivers" => json!({"spec": {"attachRequired": number.is_multiple_of(2)}}),
        "csinodes" => {
            json!({"spec": {"drivers": [{"name": "x.io", "nodeID": word, "topologyKeys": ["a"]}]}})
        }
        "csistoragecapacities" => json!({"storageClassName": word, "capacity": quantity}),
        "resourceslices" => json!({"spec": {"driver": "x.io", "nodeName": word,
            "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": "d", "attributes": {"a": {"int": number}}}]}}),
        "resourceclaims" => json!({"spec": {"devices": {"requests": [{"name": "r",
            "exactly": {"deviceClassName": "c"}}]}}}),
        "deviceclasses" => json!({"spec": {"selectors": [{"cel": {"expression": "true"}}]}}),
        _ => return None,
    })
}
