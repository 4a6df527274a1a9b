//! Random histories of pods.

use http::Method;
use serde_json::{Value, json};

use crate::cluster::User;

/// Numbers that follow from a seed (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    pub(crate) fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

pub(crate) const NAMESPACES: [&str; 3] = ["a", "b", "ab"];
pub(crate) const NODES: [&str; 3] = ["n0", "n1", "n2"];

/// Pods that are there, as namespace, name and whether they are on a node.
#[derive(Default)]
pub(crate) struct History {
    pods: Vec<(&'static str, String, bool)>,
    made: usize,
}

impl History {
    pub(crate) fn a_pod(&self, random: &mut Random) -> String {
        if self.pods.is_empty() {
            return "/api/v1/namespaces/a/pods/none".to_owned();
        }
        path(&self.pods[random.below(self.pods.len())])
    }

    /// One change.
    pub(crate) async fn step(&mut self, random: &mut Random, user: &mut User) {
        if self.pods.len() < 4 || random.below(3) == 0 && self.pods.len() < 60 {
            return self.create(random, user).await;
        }
        let place = random.below(self.pods.len());
        let at = path(&self.pods[place]);
        match random.below(6) {
            0 => {
                let body = json!({"gracePeriodSeconds": 0});
                user.write(Method::DELETE, &at, &body).await;
                self.pods.swap_remove(place);
            }
            2 if !self.pods[place].2 => {
                let node = json!({"metadata": {"name": self.pods[place].1},
                                  "target": {"kind": "Node", "name": random.choose(&NODES)}});
                user.write(Method::POST, &format!("{at}/binding"), &node).await;
                self.pods[place].2 = true;
            }
            3 => {
                // A pod on a node stays, to be ended there.
                let answer = user.write(Method::DELETE, &at, &json!({})).await;
                if answer["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0 {
                    self.pods.swap_remove(place);
                }
            }
            1 => {
                let phase = random.choose(&["Pending", "Running", "Succeeded", "Failed"]);
                let message = "m".repeat(random.below(300));
                let status =
                    json!({"status": {"phase": phase, "message": message, "podIP": "10.1.2.3"}});
                user.write(Method::PATCH, &format!("{at}/status"), &status).await;
            }
            _ => {
                let labels = json!({"metadata": {"labels": labels(random)}});
                user.write(Method::PATCH, &at, &labels).await;
            }
        }
    }

    async fn create(&mut self, random: &mut Random, user: &mut User) {
        self.made += 1;
        let namespace = random.choose(&NAMESPACES);
        let name = format!("p{}", self.made);
        let mut spec = json!({
            "containers": [{"name": "c", "image": format!("image-{}", random.below(9)),
                            "resources": {"requests": {"cpu": "10m", "memory": "1Gi"}},
                            "env": [{"name": "X", "value": "ä\u{1f600}"}]}],
            "tolerations": [{"operator": "Exists"}],
        });
        let bound = random.below(3) > 0;
        if bound {
            spec["nodeName"] = random.choose(&NODES).into();
        }
        if random.below(3) == 0 {
            spec["terminationGracePeriodSeconds"] = 0.into();
            spec["hostNetwork"] = true.into();
            spec["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
        }
        let pod = json!({
            "metadata": {"name": name, "labels": labels(random), "annotations": {"k": "x".repeat(random.below(400))}},
            "spec": spec,
        });
        user.write(Method::POST, &format!("/api/v1/namespaces/{namespace}/pods"), &pod).await;
        self.pods.push((namespace, name, bound));
    }
}

fn path((namespace, name, _): &(&str, String, bool)) -> String {
    format!("/api/v1/namespaces/{namespace}/pods/{name}")
}

/// In a merge patch null takes a label away.
fn labels(random: &mut Random) -> Value {
    let mut labels = json!({});
    for key in ["app", "tier", "x.example/y"] {
        match random.below(4) {
            0 => labels[key] = Value::Null,
            1 => {}
            _ => labels[key] = random.choose(&["web", "api", "db", ""]).into(),
        }
    }
    labels
}

/// A selector, as a part of a query.
pub(crate) fn selector(random: &mut Random) -> String {
    let node = match random.below(2) {
        0 => format!("&fieldSelector=spec.nodeName%3D{}", random.choose(&NODES)),
        _ => String::new(),
    };
    let labels = match random.below(2) {
        0 => random.choose(&[
            "&labelSelector=app%3Dweb",
            "&labelSelector=app!%3Dweb",
            "&labelSelector=app%20in%20(web,api)",
            "&labelSelector=app%20notin%20(web,api),tier",
            "&labelSelector=!tier",
            "&labelSelector=x.example/y",
            "&labelSelector=app%3Dweb,tier%3Ddb",
        ]),
        _ => "",
    };
    node + labels
}

/// All pods, or those of one namespace.
pub(crate) fn collection(random: &mut Random) -> String {
    match random.below(3) {
        0 => format!("/api/v1/namespaces/{}/pods", random.choose(&NAMESPACES)),
        _ => "/api/v1/pods".to_owned(),
    }
}
