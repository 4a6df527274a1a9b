//! Certificates: good for their peers, renewed in time, mended.

use super::*;

/// Does something to one Secret.
type Damage = fn(&mut Stored, &str);

#[test]
fn every_certificate_is_accepted_under_its_own_authority_only() {
    for yaml in [SMALL, LARGE] {
        let cluster = cluster(yaml);
        let stored = fresh(&cluster);
        for leaf in leaves(&cluster) {
            for authority in Authority::ALL {
                let secret = format!("prod-{}", authority.suffix());
                assert_eq!(
                    accepted(&stored, &leaf, &secret, start()),
                    authority == leaf.authority,
                    "{} under {secret}",
                    leaf.secret
                );
            }
            let own = format!("prod-{}", leaf.authority.suffix());
            let ends = start() + cluster.rotation.leaf_validity;
            assert!(accepted(&stored, &leaf, &own, start() - SignedDuration::from_mins(4)));
            assert!(accepted(&stored, &leaf, &own, ends - DAY));
            assert!(!accepted(&stored, &leaf, &own, ends + DAY));
            assert_eq!(text(&stored, &leaf.secret, "ca.crt"), text(&stored, &own, "tls.crt"));
        }
    }
}

#[test]
fn serving_certificates_name_what_clients_call_them() {
    let cluster = cluster_with(
        "prod",
        LARGE,
        Found { endpoint_cluster_ip: Some("172.20.0.7".parse().unwrap()), ..Found::default() },
        |_| {},
    );
    let names = |secret: &str| -> BTreeSet<String> {
        leaves(&cluster).into_iter().find(|leaf| leaf.secret == secret).unwrap().names
    };
    let apiserver = names("prod-apiserver-tls");
    for expected in [
        "kubernetes",
        "kubernetes.default.svc.cluster.local",
        "10.96.0.1",
        "fd00:1::1",
        "prod-apiserver-default.mc.svc",
        "prod-apiserver-pods.mc.svc",
        "prod-apiserver-leases.mc.svc",
        "api.prod.example",
        "127.0.0.1",
    ] {
        assert!(apiserver.contains(expected), "{expected}");
    }
    let watchcache = names("prod-watchcache-tls");
    for expected in [
        "prod-api.mc.svc",
        "api.prod.example",
        "*.prod.example",
        "192.0.2.1",
        "172.20.0.7",
        "localhost",
        "::1",
        "10.96.0.1",
    ] {
        assert!(watchcache.contains(expected), "{expected}");
    }
    assert!(names("prod-store-tls").contains("*.prod-store.mc.svc"));
    assert!(names("prod-scheduler-shard-tls").contains("*.prod-scheduler-shard.mc.svc"));
    assert!(names("prod-scheduler-shard-tls").contains("*.mc.svc"));
}

#[test]
fn a_leaf_is_renewed_in_time_and_an_authority_never() {
    let cluster = cluster(SMALL); // 90 days, renewed 30 days before the end
    let stored = fresh(&cluster);
    for (after, expected) in [
        (SignedDuration::ZERO, None),
        (DAY * 59, None),
        (DAY * 60 - SignedDuration::from_secs(1), None),
        (DAY * 60, Some(Reason::Expiry)),
        (DAY * 89, Some(Reason::Expiry)),
        (DAY * 400, Some(Reason::Expiry)),
        (-DAY, Some(Reason::NotYetValid)),
    ] {
        let now = start() + after;
        let plan = plan_at(&cluster, &stored, now);
        let reasons: BTreeSet<String> =
            issued(&plan).iter().map(|(_, reason)| reason.to_string()).collect();
        let expected: BTreeSet<String> = expected.iter().map(ToString::to_string).collect();
        assert_eq!(reasons, expected, "after {after:#}");
        assert_eq!(authorities(&store(&plan)), authorities(&stored));
        for leaf in leaves(&cluster) {
            let authority = format!("prod-{}", leaf.authority.suffix());
            // A clock before the authorities were made trusts nothing; all else must be good.
            assert!(
                after < SignedDuration::ZERO || accepted(&store(&plan), &leaf, &authority, now)
            );
        }
    }
}

#[test]
fn a_shorter_validity_counts_at_once() {
    let stored = fresh(&cluster(SMALL));
    let shorter = cluster_with("prod", SMALL, Found::default(), |spec| {
        spec.pki =
            Some(serde_saphyr::from_str("rotation: {leafValidity: 24h, renewBefore: 8h}").unwrap());
    });
    let plan = plan_at(&shorter, &stored, start());
    assert_eq!(issued(&plan).len(), leaves(&shorter).len());
    assert!(issued(&plan).iter().all(|(_, reason)| *reason == Reason::Validity));
    assert_eq!(issued(&plan_at(&shorter, &store(&plan), start())), []);
}

#[test]
fn other_names_issue_only_the_certificates_that_carry_them() {
    let stored = fresh(&cluster(SMALL));
    let changed = cluster_with("prod", SMALL, Found::default(), |spec| {
        spec.networking.endpoint.cert_sans = vec!["api.other.example".to_owned()];
    });
    let plan = plan_at(&changed, &stored, start());
    assert_eq!(
        issued(&plan),
        [("prod-apiserver-tls", Reason::Names), ("prod-watchcache-tls", Reason::Names)]
    );
    assert_eq!(issued(&plan_at(&changed, &store(&plan), start())), []);

    let pool = cluster_with("prod", SMALL, Found::default(), |spec| {
        let pool = "{name: pods, match: [{resource: pods}]}";
        spec.api_servers.pools = vec![serde_saphyr::from_str(pool).unwrap()];
    });
    assert_eq!(issued(&plan_at(&pool, &stored, start())), [("prod-apiserver-tls", Reason::Names)]);
}

#[test]
fn a_damaged_leaf_is_issued_anew_and_no_other() {
    let cluster = cluster(SMALL);
    let stored = fresh(&cluster);
    let specs = leaves(&cluster);
    let certificate = Problem::Certificate("tls.crt");
    let kinds: [(Damage, Reason); 9] = [
        (|stored, secret| drop(stored.remove(secret)), Reason::Absent),
        (
            |stored, secret| stored.get_mut(secret).unwrap().data = None,
            Reason::Damaged(Problem::Missing("tls.crt")),
        ),
        (
            |stored, secret| unset(stored, secret, "tls.crt"),
            Reason::Damaged(Problem::Missing("tls.crt")),
        ),
        (
            |stored, secret| set(stored, secret, "tls.key", ""),
            Reason::Damaged(Problem::Missing("tls.key")),
        ),
        (
            |stored, secret| set(stored, secret, "tls.crt", "no certificate"),
            Reason::Damaged(certificate),
        ),
        (
            |stored, secret| {
                let half = text(stored, secret, "tls.crt");
                set(stored, secret, "tls.crt", &half[..half.len() / 2]);
            },
            Reason::Damaged(certificate),
        ),
        (
            |stored, secret| set(stored, secret, "tls.key", "no key"),
            Reason::Damaged(Problem::Key("tls.key")),
        ),
        (
            |stored, secret| {
                let other = text(stored, "prod-cluster-ca", "tls.key");
                set(stored, secret, "tls.key", &other);
            },
            Reason::Damaged(Problem::Mismatch),
        ),
        (
            |stored, secret| {
                for entry in ["tls.crt", "tls.key"] {
                    let other = text(stored, "prod-cluster-ca", entry);
                    set(stored, secret, entry, &other);
                }
            },
            // Self-signed by the cluster's authority: of another issuer or, under that one,
            // nobody's subject.
            Reason::Issuer,
        ),
    ];
    for leaf in &specs {
        for (damage, expected) in kinds {
            let mut damaged = stored.clone();
            damage(&mut damaged, &leaf.secret);
            let plan = plan_at(&cluster, &damaged, start());
            let expected = match expected {
                Reason::Issuer if leaf.authority == Authority::Cluster => Reason::Subject,
                expected => expected,
            };
            assert_eq!(issued(&plan), [(leaf.secret.as_str(), expected)]);
            assert_eq!(authorities(&store(&plan)), authorities(&stored));
            assert_eq!(issued(&plan_at(&cluster, &store(&plan), start())), []);
        }
    }
}

#[test]
fn what_was_added_to_a_leaf_or_taken_from_it_is_put_right_without_a_new_certificate() {
    let cluster = cluster(SMALL);
    let stored = fresh(&cluster);
    let mut changed = stored.clone();
    set(&mut changed, "prod-store-tls", "ca.crt", "not the authority");
    set(&mut changed, "prod-watchcache-tls", "more", "x");
    unset(&mut changed, "prod-scheduler-kubeconfig", "kubeconfig");
    set(&mut changed, "prod-admin-kubeconfig", "value", "not a kubeconfig");
    let plan = plan_at(&cluster, &changed, start());
    assert_eq!(issued(&plan), []);
    let updated: Vec<&str> =
        plan.secrets.iter().filter(|planned| planned.change == Change::Update).map(name).collect();
    assert_eq!(
        updated,
        [
            "prod-store-tls",
            "prod-watchcache-tls",
            "prod-scheduler-kubeconfig",
            "prod-admin-kubeconfig",
        ]
    );
    assert_eq!(store(&plan), stored);
}
