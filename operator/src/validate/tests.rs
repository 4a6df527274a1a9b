//! Tables: a spec in YAML, and what is wrong with it or what becomes of it.

use super::*;

fn images() -> ImageDefaults {
    ImageDefaults {
        registry: Some("registry.example/mega".to_owned()),
        tag: "1.2.3".to_owned(),
        kubernetes_registry: "registry.k8s.io".to_owned(),
    }
}

fn object(spec: &str) -> MegaCluster {
    let mut object = MegaCluster::new("prod", serde_saphyr::from_str(spec).unwrap());
    object.metadata.namespace = Some("mc".to_owned());
    object.metadata.uid = Some("u-1".to_owned());
    object
}

fn check(spec: &str) -> Result<ValidatedCluster, InvalidSpec> {
    validate(&object(spec), &images(), Facts::default())
}

#[test]
fn a_version_alone_is_a_whole_cluster() {
    let cluster = check("version: v1.36.3").unwrap();
    assert_eq!(cluster.images.store, "registry.example/mega/megacluster-store:1.2.3");
    assert_eq!(cluster.images.api_server, "registry.k8s.io/kube-apiserver:v1.36.3");
    assert_eq!(cluster.networking.service_cidrs, vec!["10.96.0.0/12".parse().unwrap()]);
    assert!(cluster.networking.pod_cidrs.is_empty());
    assert_eq!(cluster.store.durability.default, DurabilityMode::Buffered);
    let prefixes: Vec<&str> =
        cluster.store.durability.rules.iter().map(|rule| rule.prefix.as_str()).collect();
    assert_eq!(prefixes, ["/registry/leases/", "/registry/events/"]);
    assert_eq!(cluster.api_servers.pools.len(), 1);
    assert_eq!(cluster.api_servers.pools[0].name, DEFAULT_POOL);
    assert_eq!(cluster.rotation.leaf_validity, SignedDuration::from_hours(2160));
    assert_eq!(cluster.endpoint_url().unwrap(), "https://prod-api.mc.svc:6443");
    assert_eq!(cluster.owner.controller, Some(true));
}

#[test]
fn an_empty_list_of_durability_rules_is_kept() {
    let cluster = check("version: v1.36.3\nstore: {durability: {rules: []}}").unwrap();
    assert!(cluster.store.durability.rules.is_empty());
}

#[test]
fn the_front_door_answers_what_it_can() {
    let spec = "
version: v1.36.3
watchCache: {cached: [{resource: pods}, {group: coordination.k8s.io, resource: leases}]}
";
    let cluster = check(spec).unwrap();
    assert_eq!(cluster.watch_cache.cached, ["pods", "leases.coordination.k8s.io"]);
    assert_eq!(cluster.watch_cache.built_in, cluster.watch_cache.cached);
    let spec = "
version: v1.36.3
watchCache: {cached: [{group: example.com, resource: widgets}, {resource: pods}]}
";
    let cluster = check(spec).unwrap();
    assert_eq!(cluster.watch_cache.cached, ["widgets.example.com", "pods"]);
    // Of a custom resource every kube-apiserver keeps what it keeps.
    assert_eq!(cluster.watch_cache.built_in, ["pods"]);
    for other in [
        "{resource: leases}",
        "{resource: persistentvolumeclaims}",
        "{resource: x}",
        "{group: example, resource: widgets}",
        "{group: example..com, resource: widgets}",
        "{group: coordination.k8s.io, resource: lease}",
    ] {
        let spec = format!("version: v1.36.3\nwatchCache: {{cached: [{other}]}}");
        let problems = check(&spec).unwrap_err().fields;
        assert_eq!(problems.len(), 1, "{other}");
    }
}

#[test]
fn what_is_cached_is_divided() {
    let parts = |rest: &str| check(&format!("version: v1.36.3\n{rest}"));
    let ok = |rest: &str| parts(rest).unwrap().watch_cache.parts;
    assert_eq!(ok(""), 1);
    assert_eq!(ok("watchCache: {cached: [{resource: pods}]}"), 1);
    assert_eq!(ok("watchCache: {cached: [{resource: pods}], parts: 64}"), 64);
    // Where nothing is cached in the end, there is nothing to divide.
    let audited = "watchCache: {cached: [{resource: pods}], parts: 4}\n\
                   apiServers: {extraArgs: [--audit-policy-file=/etc/policy.yaml]}";
    assert_eq!(ok(audited), 1);
    let problems = parts("watchCache: {parts: 2}").unwrap_err();
    assert_eq!(
        problems.to_string(),
        "spec.watchCache.parts: they divide what is cached, and spec.watchCache.cached is empty"
    );
    let labels = |of| (0..of).map(|index| Part { index, of }.label()).collect::<Vec<_>>();
    assert_eq!(labels(1), [None]);
    assert_eq!(labels(2), [Some("0-of-2".to_owned()), Some("1-of-2".to_owned())]);
}

#[test]
fn what_is_audited_is_read_from_kube_apiserver() {
    let cached = |args: &str| {
        let spec = format!(
            "version: v1.36.3\nwatchCache: {{cached: [{{resource: pods}}]}}\n\
             apiServers: {{extraArgs: [{args}]}}"
        );
        check(&spec).unwrap().watch_cache.cached
    };
    let policy = "--audit-log-path=-, --audit-policy-file=/etc/policy.yaml";
    assert!(cached(policy).is_empty());
    // By a webhook the front door sends nothing.
    let own = r#"auditPolicy: "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None}]""#;
    let with_policy = |args: &str| {
        let spec = format!(
            "version: v1.36.3\nwatchCache: {{cached: [{{resource: pods}}]}}\n\
             apiServers:\n  {own}\n  extraArgs: [{args}]"
        );
        check(&spec).unwrap().watch_cache
    };
    let watch_cache = with_policy("--audit-log-maxage=7");
    assert_eq!((&*watch_cache.cached, watch_cache.uncached), (&["pods".to_owned()][..], None));
    let watch_cache = with_policy("--audit-webhook-config-file=/etc/webhook.yaml");
    assert!(watch_cache.cached.is_empty() && watch_cache.uncached.is_some());
    assert_eq!(cached("--audit-webhook-config-file=/etc/webhook.yaml"), ["pods"]);
    // Without a policy nothing is audited.
    for none in ["", "--audit-log-path=-", "--audit-policy-file="] {
        assert_eq!(cached(none), ["pods"], "{none}");
    }
}

#[test]
fn an_audit_policy_is_looked_at() {
    let problems = |policy: &str, args: &str| {
        let policy = serde_json::to_string(policy).unwrap();
        let spec =
            format!("version: v1.36.3\napiServers: {{extraArgs: [{args}], auditPolicy: {policy}}}");
        match check(&spec) {
            Ok(_) => Vec::new(),
            Err(invalid) => {
                invalid.fields.into_iter().map(|problem| problem.message).collect::<Vec<_>>()
            }
        }
    };
    let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";
    let good = format!("{head}rules: [{{level: Metadata, more: 1}}]");
    assert_eq!(problems(&good, "--audit-log-path=-, --audit-log-maxage=7"), [""; 0]);
    assert_eq!(
        problems(&good, "--audit-policy-file=/x"),
        ["extraArgs has --audit-policy-file, too"]
    );
    for (bad, expected) in [
        (head.to_owned(), "must have rules"),
        (format!("{head}rules: []"), "must have rules"),
        (
            format!("{head}rules: [{{level: All}}]"),
            "must be None, Metadata, Request or RequestResponse",
        ),
        (
            "apiVersion: v1\nkind: Policy\nrules: [{level: None}]".to_owned(),
            "must be a Policy of audit.k8s.io/v1",
        ),
    ] {
        assert_eq!(problems(&bad, ""), [expected], "{bad}");
    }
    assert_eq!(problems("[", "").len(), 1);
}

#[test]
fn pools_inherit_resources_and_follow_the_default_pool() {
    let cluster = check(
        "
version: v1.36.3
apiServers:
  replicas: 3
  resources: {requests: {cpu: 2, memory: 4Gi}}
  pools:
  - {name: pods, replicas: 5, match: [{resource: pods}]}
  - {name: leases, match: [{group: coordination.k8s.io, resource: leases}], resources: {limits: {cpu: 500m}}}
",
    )
    .unwrap();
    let pools = &cluster.api_servers.pools;
    assert_eq!(
        pools.iter().map(|p| (p.name.as_str(), p.replicas)).collect::<Vec<_>>(),
        [("default", 3), ("pods", 5), ("leases", 2)]
    );
    assert_eq!(pools[1].resources, pools[0].resources);
    assert_eq!(pools[2].resources.requests, None);
}

#[test]
fn endpoints_resolve_by_type() {
    let node_port = "version: v1.36.3\nnetworking: {endpoint: {type: NodePort, host: 192.0.2.7}}";
    assert_eq!(check(node_port).unwrap().endpoint_url(), None, "the port is still to be chosen");
    let facts = Facts { assigned_node_port: Some(31234), ..Facts::default() };
    let cluster = validate(&object(node_port), &images(), facts).unwrap();
    assert_eq!(cluster.endpoint_url().unwrap(), "https://192.0.2.7:31234");

    let balancer = "version: v1.36.3\nnetworking: {endpoint: {type: LoadBalancer, port: 443}}";
    assert_eq!(check(balancer).unwrap().endpoint_url(), None, "the address is still to come");
    let facts = Facts { load_balancer: Some("2001:db8::1".to_owned()), ..Facts::default() };
    let cluster = validate(&object(balancer), &images(), facts).unwrap();
    assert_eq!(cluster.endpoint_url().unwrap(), "https://[2001:db8::1]:443");
}

#[test]
fn what_is_wrong_is_named_by_its_field() {
    let cases: &[(&str, &[&str])] = &[
        (
            "version: v1.35.1",
            &["spec.version: v1.35.1 is not supported: this operator runs v1.36.x"],
        ),
        (
            "version: v1.36.3\nnetworking: {serviceCIDRs: [10.96.0.0/12], podCIDRs: [10.0.0.0/8]}",
            &[
                "spec.networking.serviceCIDRs: 10.96.0.0/12 overlaps 10.0.0.0/8 of spec.networking.podCIDRs",
            ],
        ),
        (
            "version: v1.36.3\nnetworking: {serviceCIDRs: [10.96.0.1/12]}",
            &[
                "spec.networking.serviceCIDRs[0]: 10.96.0.1/12 has bits beyond its mask: write 10.96.0.0/12",
            ],
        ),
        (
            "version: v1.36.3\nnetworking: {serviceCIDRs: [10.0.0.0/8]}",
            &[
                "spec.networking.serviceCIDRs: 10.0.0.0/8 is too large for kube-apiserver: at most /12",
            ],
        ),
        (
            "version: v1.36.3\nnetworking: {serviceCIDRs: [10.0.0.0/31]}",
            &["spec.networking.serviceCIDRs: 10.0.0.0/31 is too small: at least /29"],
        ),
        (
            "version: v1.36.3\nnetworking: {serviceCIDRs: [10.96.0.0/16, 10.97.0.0/16]}",
            &["spec.networking.serviceCIDRs[1]: two ranges must be of different IP families"],
        ),
        (
            "version: v1.36.3\nnetworking: {serviceCIDRs: [nonsense]}",
            &["spec.networking.serviceCIDRs[0]: nonsense is not a CIDR such as 10.96.0.0/12"],
        ),
        (
            "version: v1.36.3\nnetworking: {endpoint: {host: 'a..b', certSANs: ['*.ok.example', '1.2.3.4.5']}}",
            &[
                "spec.networking.endpoint.host: a..b is neither a DNS name nor an IP address",
                "spec.networking.endpoint.certSANs[1]: 1.2.3.4.5 is neither a DNS name nor an IP address",
            ],
        ),
        (
            "version: v1.36.3\nstore: {durability: {rules: [{prefix: /registry//x/, mode: None}, {prefix: /registry/a/, mode: None}, {prefix: /registry/a/, mode: Fsync}]}}",
            &[
                "spec.store.durability.rules[0].prefix: /registry//x/ has an empty part",
                "spec.store.durability.rules[2].prefix: /registry/a/ is there twice",
            ],
        ),
        (
            "version: v1.36.3\npki: {rotation: {leafValidity: 1h}}",
            &["spec.pki.rotation.renewBefore: must be shorter than leafValidity"],
        ),
        (
            "version: v1.36.3\napiServers: {extraArgs: ['--etcd-servers=http://elsewhere', '--v=4', '--v=5']}",
            &[
                "spec.apiServers.extraArgs[0]: --etcd-servers belongs to the operator",
                "spec.apiServers.extraArgs[2]: --v is there twice",
            ],
        ),
        (
            "version: v1.36.3\ncontrollerManager: {extraArgs: ['--kubeconfig=/other']}",
            &["spec.controllerManager.extraArgs[0]: --kubeconfig belongs to the operator"],
        ),
        (
            "version: v1.36.3\napiServers: {pools: [{name: a, match: [{resource: pods}]}, {name: b, match: [{resource: pods}]}]}",
            &["spec.apiServers.pools[1].match: pods is matched by an earlier pool too"],
        ),
    ];
    for (spec, expected) in cases {
        let error = check(spec).unwrap_err();
        let found: Vec<String> =
            error.fields.iter().map(|f| format!("{}: {}", f.field, f.message)).collect();
        assert_eq!(found, *expected, "{spec}");
    }
}

#[test]
fn some_registry_must_be_known() {
    let none = ImageDefaults { registry: None, ..images() };
    let error = validate(&object("version: v1.36.3"), &none, Facts::default()).unwrap_err();
    assert_eq!(error.fields[0].field, "spec.images.registry");
    let given = object("version: v1.36.3\nimages: {registry: r.example/x, tag: t}");
    let cluster = validate(&given, &none, Facts::default()).unwrap();
    assert_eq!(cluster.images.scheduler, "r.example/x/megacluster-scheduler:t");
}

#[test]
fn everything_wrong_is_told_at_once() {
    let error = check("version: v1.30.0\nnetworking: {serviceCIDRs: [x], endpoint: {host: '-'}}");
    assert_eq!(error.unwrap_err().fields.len(), 3);
}
