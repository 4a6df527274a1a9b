//! What holds for every child, and snapshots of all of them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};
use serde_json::Value;

use super::fixtures::{LARGE, SMALL, cluster, cluster_with, validated};
use super::{apiserver, build, controller_manager};
use crate::api::v1alpha1::MegaCluster;
use crate::children::{Children, Object};
use crate::pki::{self, Digests, SystemKeys};
use crate::validate::{Facts, ValidatedCluster};

fn digests() -> Digests {
    Digests {
        apiserver: "a".to_owned(),
        controller_manager: "c".to_owned(),
        scheduler: "s".to_owned(),
    }
}

fn children(cluster: &ValidatedCluster) -> Children {
    build(cluster, &digests()).unwrap()
}

fn value(object: &Object) -> Value {
    match object {
        Object::Secret(object) => serde_json::to_value(object),
        Object::ConfigMap(object) => serde_json::to_value(object),
        Object::ServiceAccount(object) => serde_json::to_value(object),
        Object::Service(object) => serde_json::to_value(object),
        Object::NetworkPolicy(object) => serde_json::to_value(object),
        Object::PodDisruptionBudget(object) => serde_json::to_value(object),
        Object::StatefulSet(object) => serde_json::to_value(object),
        Object::Deployment(object) => serde_json::to_value(object),
    }
    .unwrap()
}

/// Name, selector and pod template of every workload.
fn workloads(children: &Children) -> Vec<(String, BTreeMap<String, String>, PodTemplateSpec)> {
    children
        .iter()
        .filter_map(|child| {
            let (selector, template) = match &child.object {
                Object::StatefulSet(set) => {
                    let spec = set.spec.clone().unwrap();
                    (spec.selector, spec.template)
                }
                Object::Deployment(deployment) => {
                    let spec = deployment.spec.clone().unwrap();
                    (spec.selector, spec.template)
                }
                _ => return None,
            };
            Some((child.object.name().to_owned(), selector.match_labels.unwrap(), template))
        })
        .collect()
}

fn pod(template: &PodTemplateSpec) -> &PodSpec {
    template.spec.as_ref().unwrap()
}

#[test]
fn children_of_the_samples() {
    for (sample, yaml) in [("small", SMALL), ("large", LARGE)] {
        for child in children(&cluster(yaml)).iter() {
            let object = &child.object;
            let name = format!("{sample}_{}_{}", object.kind(), object.name());
            insta::assert_json_snapshot!(name, value(object));
        }
    }
}

/// What users are given to begin with gives a whole cluster.
#[test]
fn published_samples_build() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/samples");
    let mut built = 0;
    for file in std::fs::read_dir(directory).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let object: MegaCluster = serde_saphyr::from_str(&text).unwrap();
        let cluster = validated(object, Facts::default());
        let plan = pki::plan(&cluster, &BTreeMap::new(), Timestamp::UNIX_EPOCH, &SystemKeys);
        let children = build(&cluster, &plan.unwrap().digests).unwrap();
        assert!(children.len() > 20);
        built += 1;
    }
    assert_eq!(built, 2);
}

#[test]
fn the_same_cluster_gives_the_same_children() {
    for yaml in [SMALL, LARGE] {
        assert_eq!(children(&cluster(yaml)), children(&cluster(yaml)));
    }
}

#[test]
fn scaling_changes_no_pod() {
    let before = workloads(&children(&cluster(LARGE)));
    let scaled = cluster_with("prod", LARGE, Facts::default(), |spec| {
        spec.api_servers.replicas = 9;
        spec.watch_cache.replicas = 1;
        spec.controller_manager.replicas = 1;
        spec.scheduler.relays.replicas = 5;
    });
    assert_eq!(before, workloads(&children(&scaled)));
}

/// Another pool makes other routers, so that it gets no request before it is ready; nothing else
/// that runs is touched.
#[test]
fn another_pool_replaces_the_routers_only() {
    let before = workloads(&children(&cluster(SMALL)));
    let more = cluster_with("prod", SMALL, Facts::default(), |spec| {
        let pool = "{name: pods, match: [{resource: pods}]}";
        spec.api_servers.pools = vec![serde_saphyr::from_str(pool).unwrap()];
    });
    let after = workloads(&children(&more));
    let changed: Vec<&str> = after
        .iter()
        .filter(|workload| !before.contains(workload))
        .map(|(name, _, _)| name.as_str())
        .collect();
    assert_eq!(changed, ["prod-apiserver-pods", "prod-watchcache"]);
}

/// Relays know each other once there are more shards than one of them may ask.
#[test]
fn many_shards_are_asked_through_a_tree() {
    let relays_of = |shards| {
        let cluster = cluster_with("prod", LARGE, Facts::default(), |spec| {
            spec.scheduler.shards = shards;
        });
        let relay =
            workloads(&children(&cluster)).into_iter().find(|(name, ..)| name.ends_with("relay"));
        let args = pod(&relay.unwrap().2).containers[0].args.clone().unwrap();
        args.into_iter().filter(|arg| arg.starts_with("--relay=")).collect::<Vec<_>>()
    };
    assert_eq!(relays_of(4), [""; 0]);
    assert_eq!(
        relays_of(5),
        [
            "--relay=prod-scheduler-relay-0=https://prod-scheduler-relay-0.mc.svc:7443",
            "--relay=prod-scheduler-relay-1=https://prod-scheduler-relay-1.mc.svc:7443",
        ]
    );
}

/// With a hot standby it is another program on another port, and pods are ready when warm.
#[test]
fn a_hot_standby_is_our_own_program() {
    let manager = |hot_standby| {
        let cluster = cluster_with("prod", LARGE, Facts::default(), |spec| {
            spec.controller_manager.hot_standby = hot_standby;
        });
        let children = children(&cluster);
        let all = workloads(&children);
        let (.., template) = all.iter().find(|(name, ..)| name.ends_with("manager")).unwrap();
        let container = pod(template).containers[0].clone();
        let policy = children.get("NetworkPolicy", "prod-controller-manager").unwrap();
        let rules = value(policy)["spec"]["ingress"].as_array().unwrap().len();
        let probe = container.readiness_probe.unwrap().http_get.unwrap().path.unwrap();
        let listens =
            container.args.unwrap().iter().any(|arg| arg.starts_with("--standby-listen-address="));
        (container.image.unwrap(), container.command, probe, listens, rules)
    };
    let hot = (
        "registry.example/mega/megacluster-controller-manager:9.9.9".to_owned(),
        None,
        "/readyz".to_owned(),
        true,
        2,
    );
    assert_eq!(manager(None), hot);
    assert_eq!(manager(Some(true)), hot);
    assert_eq!(
        manager(Some(false)),
        (
            "mirror.example/k8s/kube-controller-manager:v1.36.3".to_owned(),
            Some(vec!["kube-controller-manager".to_owned()]),
            "/healthz".to_owned(),
            false,
            1,
        )
    );
}

/// A standby runs under its shard's name, and relays know both addresses by it.
#[test]
fn a_standby_has_its_shard_s_name() {
    let args = |suffix: &str| {
        let all = workloads(&children(&cluster(LARGE)));
        let found = all.iter().find(|(name, ..)| name.ends_with(suffix));
        pod(&found.unwrap().2).containers[0].args.clone().unwrap()
    };
    let standby = args("scheduler-standby");
    assert!(standby.contains(&"--name=prod-scheduler-shard-$(POD_INDEX)".to_owned()));
    let shard = args("scheduler-shard");
    let names =
        |args: &[String]| args.iter().find(|arg| arg.starts_with("--shard-names=")).cloned();
    assert_eq!(names(&standby), names(&shard));
    let relay = args("scheduler-relay");
    let second: Vec<&String> =
        relay.iter().filter(|arg| arg.starts_with("--shard=prod-scheduler-shard-1=")).collect();
    assert_eq!(
        second,
        [
            "--shard=prod-scheduler-shard-1=https://prod-scheduler-shard-1.mc.svc:7443",
            "--shard=prod-scheduler-shard-1=https://prod-scheduler-standby-1.mc.svc:7443",
        ]
    );
}

/// A cluster whose cached objects are divided.
fn divided(parts: i32) -> ValidatedCluster {
    cluster_with("prod", LARGE, Facts::default(), |spec| spec.watch_cache.parts = Some(parts))
}

/// Each part has front doors of its own, which say what they hold and know where the rest is.
#[test]
fn parts_have_front_doors_of_their_own() {
    let (whole, parted) = (children(&cluster(LARGE)), children(&divided(3)));
    let doors = |children: &Children| -> Vec<(String, PodTemplateSpec)> {
        workloads(children)
            .into_iter()
            .filter(|(name, ..)| name.contains("watchcache"))
            .map(|(name, _, template)| (name, template))
            .collect()
    };
    let [(name, undivided)] = &doors(&whole)[..] else { panic!("one Deployment") };
    assert_eq!(name, "prod-watchcache");
    let args = |template: &PodTemplateSpec| pod(template).containers[0].args.clone().unwrap();
    let mut rest = Vec::new();
    for (part, (name, template)) in doors(&parted).into_iter().enumerate() {
        assert_eq!(name, format!("prod-watchcache-{part}-of-3"));
        let all = args(&template);
        let (same, added) = all.split_at(args(undivided).len());
        assert_eq!(same, args(undivided));
        assert_eq!(
            added,
            [
                "--cache-parts=3",
                &format!("--cache-part={part}"),
                "--cache-peer-server-name=prod-api.mc.svc",
                "--requestheader-client-ca-file=/etc/megacluster-watchcache/front-proxy/ca.crt",
                "--requestheader-allowed-names=front-proxy-client",
                "--cache-peer=0=prod-watchcache-0-of-3.mc.svc:6443",
                "--cache-peer=1=prod-watchcache-1-of-3.mc.svc:6443",
                "--cache-peer=2=prod-watchcache-2-of-3.mc.svc:6443",
            ]
        );
        // Nothing else of the pod differs, but its label.
        let mut same = template.clone();
        let pod = same.spec.as_mut().unwrap();
        pod.containers[0].args = Some(args(undivided));
        let text = serde_json::to_string(&same).unwrap();
        let label = format!(r#","megacluster.io/part":"{part}-of-3""#);
        assert_eq!(text.matches(&label).count(), 3, "labels, spread and affinity");
        assert_eq!(text.replace(&label, ""), serde_json::to_string(undivided).unwrap());
        rest.push(name);
    }
    assert_eq!(rest.len(), 3);
    // The other children are those of an undivided front door, and a Service for each part.
    for child in whole.iter().filter(|child| child.object.name() != "prod-watchcache") {
        let (kind, name) = (child.object.kind(), child.object.name());
        assert_eq!(parted.get(kind, name), Some(&child.object));
    }
    for kind in ["Service", "NetworkPolicy", "PodDisruptionBudget", "ServiceAccount"] {
        let found = |children: &Children| children.get(kind, "prod-watchcache").cloned();
        assert!(found(&whole).is_some() && found(&whole) == found(&parted), "{kind}");
    }
    assert_eq!(parted.len(), whole.len() + 2 + 3);
    for name in rest {
        let service = value(parted.get("Service", &name).unwrap());
        let part = name.strip_prefix("prod-watchcache-").unwrap();
        assert_eq!(service["spec"]["clusterIP"], "None");
        assert_eq!(service["spec"]["publishNotReadyAddresses"], true);
        assert_eq!(service["spec"]["selector"]["megacluster.io/part"], part);
        assert_eq!(service["spec"]["ports"][0]["port"], 6443);
    }
}

/// Clients, guards and the budget see all front doors, of whichever part.
#[test]
fn one_service_and_one_budget_are_for_all_parts() {
    let all = children(&divided(2));
    let api = value(all.get("Service", "prod-api").unwrap())["spec"]["selector"].clone();
    let guards = value(all.get("Service", "prod-watchcache").unwrap())["spec"]["selector"].clone();
    let budget = value(all.get("PodDisruptionBudget", "prod-watchcache").unwrap());
    let budget = budget["spec"]["selector"]["matchLabels"].clone();
    let mut doors = 0;
    for (name, _, template) in workloads(&all) {
        let labels = template.metadata.unwrap().labels.unwrap();
        for selector in [&api, &guards, &budget] {
            let selector = selector.as_object().unwrap();
            let found = selector.iter().all(|(key, value)| labels.get(key).unwrap() == value);
            assert_eq!(found, name.contains("watchcache"), "{name}");
        }
        doors += usize::from(name.contains("watchcache"));
    }
    assert_eq!(doors, 2);
    // One pod of each part is more than one pod.
    let single = cluster_with("prod", LARGE, Facts::default(), |spec| {
        (spec.watch_cache.parts, spec.watch_cache.replicas) = (Some(2), 1);
    });
    assert!(children(&single).get("PodDisruptionBudget", "prod-watchcache").is_some());
}

#[test]
fn a_selector_finds_its_own_pods_only() {
    let workloads = workloads(&children(&divided(2)));
    for (name, selector, _) in &workloads {
        let found: Vec<&str> = workloads
            .iter()
            .filter(|(_, _, template)| {
                let labels = template.metadata.clone().unwrap().labels.unwrap();
                selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            })
            .map(|(name, _, _)| name.as_str())
            .collect();
        assert_eq!(found, [name]);
    }
}

#[test]
fn no_pod_is_root_or_writes_its_image_or_holds_a_token() {
    for (name, _, template) in workloads(&children(&cluster(LARGE))) {
        let pod = pod(&template);
        assert_eq!(pod.automount_service_account_token, Some(false), "{name}");
        let security = pod.security_context.as_ref().unwrap();
        assert_eq!(security.run_as_non_root, Some(true), "{name}");
        assert_eq!(security.run_as_user, Some(65532), "{name}");
        assert_eq!(security.seccomp_profile.as_ref().unwrap().type_, "RuntimeDefault", "{name}");
        for container in &pod.containers {
            let security = container.security_context.as_ref().unwrap();
            assert_eq!(security.read_only_root_filesystem, Some(true), "{name}");
            assert_eq!(security.allow_privilege_escalation, Some(false), "{name}");
            let dropped = security.capabilities.as_ref().unwrap().drop.as_ref().unwrap();
            assert_eq!(dropped, &["ALL"], "{name}");
        }
    }
}

/// The files that a process is told of are files that its pod mounts, from Secrets that the PKI
/// plans, with entries that those have.
#[test]
fn every_file_of_an_argument_is_mounted() {
    let mut checked = 0;
    for cluster in [cluster(SMALL), cluster(LARGE), divided(2)] {
        let plan = pki::plan(&cluster, &BTreeMap::new(), Timestamp::UNIX_EPOCH, &SystemKeys);
        let entries: BTreeMap<String, BTreeSet<String>> = plan
            .unwrap()
            .secrets
            .into_iter()
            .map(|planned| {
                let data = planned.secret.data.unwrap();
                (planned.secret.metadata.name.unwrap(), data.into_keys().collect())
            })
            .collect();
        let all = children(&cluster);
        for (name, _, template) in workloads(&all) {
            let pod = pod(&template);
            let container = &pod.containers[0];
            let mut files = BTreeSet::new();
            for mount in container.volume_mounts.iter().flatten() {
                let volume = pod.volumes.iter().flatten().find(|volume| volume.name == mount.name);
                let mut mounted = BTreeSet::new();
                if let Some(source) = volume.and_then(|volume| volume.secret.as_ref()) {
                    let secret = source.secret_name.as_ref().unwrap();
                    let known = entries.get(secret).unwrap_or_else(|| panic!("{secret}"));
                    mounted.clone_from(known);
                    if let Some(items) = &source.items {
                        mounted = items.iter().map(|item| item.path.clone()).collect();
                        assert!(mounted.is_subset(known), "{name}: {mounted:?}");
                    }
                } else if let Some(source) = volume.and_then(|volume| volume.config_map.as_ref()) {
                    let map = value(all.get("ConfigMap", &source.name).unwrap());
                    mounted.extend(map["data"].as_object().unwrap().keys().cloned());
                }
                files.extend(mounted.iter().map(|file| format!("{}/{file}", mount.mount_path)));
            }
            for arg in container.args.iter().flatten() {
                if let Some(file) = arg.split('=').find(|part| part.starts_with("/etc/")) {
                    assert!(files.contains(file), "{name}: {arg}");
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 100, "{checked}");
}

#[test]
fn validation_refuses_every_flag_that_is_set_for_good() {
    for yaml in [SMALL, LARGE] {
        assert_eq!(apiserver::unlisted_flags(&cluster(yaml)), [""; 0]);
        assert_eq!(controller_manager::unlisted_flags(&cluster(yaml)), [""; 0]);
    }
}

#[test]
fn names_of_services_fit_into_a_dns_label() {
    let cluster = cluster_with(&"n".repeat(32), LARGE, Facts::default(), |spec| {
        spec.api_servers.pools[0].name = "p".repeat(20);
        spec.watch_cache.parts = Some(64);
    });
    for child in children(&cluster).iter() {
        let name = child.object.name();
        assert!(name.len() <= 63, "{name} has {} characters", name.len());
    }
}

#[test]
fn a_budget_guards_what_has_a_second_pod() {
    let names = |yaml| -> Vec<String> {
        let children = children(&cluster(yaml));
        let budgets = children.iter().filter(|child| child.object.kind() == "PodDisruptionBudget");
        budgets.map(|child| child.object.name().to_owned()).collect()
    };
    assert_eq!(names(SMALL), [""; 0]);
    assert_eq!(
        names(LARGE),
        [
            "prod-apiserver-default",
            "prod-apiserver-pods",
            "prod-watchcache",
            "prod-controller-manager",
            "prod-scheduler-shard",
            "prod-scheduler-standby",
            "prod-scheduler-relay",
        ]
    );
}

#[test]
fn every_child_is_labelled_and_owned() {
    for child in children(&cluster(LARGE)).iter() {
        let metadata = child.object.metadata();
        let labels = metadata.labels.as_ref().unwrap();
        assert_eq!(labels.get("megacluster.io/name").unwrap(), "prod");
        assert_eq!(labels.get("app.kubernetes.io/managed-by").unwrap(), "megacluster-operator");
        assert!(labels.contains_key("app.kubernetes.io/component"));
        assert_eq!(metadata.owner_references.as_ref().unwrap().len(), 1);
        assert_eq!(metadata.namespace.as_deref(), Some("mc"));
    }
}
