//! Plans against stored Secrets and the time, without a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::config::Kubeconfig;
use proptest::prelude::*;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::inventory::{LeafSpec, leaves};
use super::*;
use crate::build::fixtures::{LARGE, SMALL, cluster, cluster_with};
use crate::validate::Facts as Found;

const DAY: SignedDuration = SignedDuration::from_hours(24);

type Stored = BTreeMap<String, Secret>;

fn start() -> Timestamp {
    "2026-11-22T02:00:00Z".parse().unwrap()
}

fn plan_at(cluster: &ValidatedCluster, stored: &Stored, now: Timestamp) -> PkiPlan {
    plan(cluster, stored, now, &SystemKeys).unwrap()
}

fn refusal(cluster: &ValidatedCluster, stored: &Stored, now: Timestamp) -> PkiError {
    plan(cluster, stored, now, &SystemKeys).unwrap_err()
}

fn name(planned: &PlannedSecret) -> &str {
    planned.secret.metadata.name.as_deref().unwrap()
}

/// What is stored once a plan is carried out.
fn store(plan: &PkiPlan) -> Stored {
    plan.secrets.iter().map(|planned| (name(planned).to_owned(), planned.secret.clone())).collect()
}

fn fresh(cluster: &ValidatedCluster) -> Stored {
    store(&plan_at(cluster, &Stored::new(), start()))
}

/// The Secrets in which a certificate was issued, and why.
fn issued(plan: &PkiPlan) -> Vec<(&str, Reason)> {
    plan.secrets.iter().filter_map(|planned| Some((name(planned), planned.issued?))).collect()
}

fn text(stored: &Stored, secret: &str, entry: &str) -> String {
    String::from_utf8(stored[secret].data.as_ref().unwrap()[entry].0.clone()).unwrap()
}

fn set(stored: &mut Stored, secret: &str, entry: &str, value: &str) {
    let data = stored.get_mut(secret).unwrap().data.get_or_insert_default();
    data.insert(entry.to_owned(), ByteString(value.as_bytes().to_vec()));
}

fn unset(stored: &mut Stored, secret: &str, entry: &str) {
    stored.get_mut(secret).unwrap().data.as_mut().unwrap().remove(entry).unwrap();
}

fn authorities(stored: &Stored) -> Vec<Secret> {
    ["cluster-ca", "front-proxy-ca", "store-ca", "scheduler-ca", "service-account"]
        .map(|suffix| stored[&format!("prod-{suffix}")].clone())
        .to_vec()
}

/// Whether TLS peers that trust `authority` accept the certificate for its purpose and name.
fn accepted(stored: &Stored, leaf: &LeafSpec, authority: &str, at: Timestamp) -> bool {
    let certificate = |secret: &str| {
        CertificateDer::from_pem_slice(text(stored, secret, "tls.crt").as_bytes()).unwrap()
    };
    let mut roots = RootCertStore::empty();
    roots.add(certificate(authority)).unwrap();
    let (roots, provider) = (Arc::new(roots), Arc::new(rustls::crypto::ring::default_provider()));
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        u64::try_from(at.as_second()).unwrap(),
    ));
    let end_entity = certificate(&leaf.secret);
    let client = !leaf.client
        || WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .unwrap()
            .verify_client_cert(&end_entity, &[], at)
            .is_ok();
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build().unwrap();
    client
        && leaf.names.iter().all(|name| {
            let host = name.replace('*', "some-pod");
            let host = ServerName::try_from(host).unwrap();
            verifier.verify_server_cert(&end_entity, &[], &host, &[], at).is_ok()
        })
}

#[test]
fn the_first_plan_creates_everything_authorities_first() {
    for yaml in [SMALL, LARGE] {
        let plan = plan_at(&cluster(yaml), &Stored::new(), start());
        assert!(plan.secrets.iter().all(|planned| planned.change == Change::Create));
        let names: Vec<&str> = plan.secrets.iter().map(name).collect();
        assert_eq!(
            names,
            [
                "prod-cluster-ca",
                "prod-front-proxy-ca",
                "prod-store-ca",
                "prod-scheduler-ca",
                "prod-service-account",
                "prod-store-tls",
                "prod-apiserver-store-client-tls",
                "prod-apiserver-tls",
                "prod-apiserver-kubelet-client-tls",
                "prod-front-proxy-client-tls",
                "prod-watchcache-tls",
                "prod-scheduler-shard-tls",
                "prod-scheduler-relay-tls",
                "prod-controller-manager-kubeconfig",
                "prod-scheduler-kubeconfig",
                "prod-admin-kubeconfig",
            ]
        );
    }
}

#[test]
fn what_outlives_the_cluster_is_what_nobody_can_make_again() {
    let plan = plan_at(&cluster(LARGE), &Stored::new(), start());
    let kept: Vec<&str> = plan
        .secrets
        .iter()
        .filter(|planned| planned.lifetime == Lifetime::ByDeletionPolicy)
        .map(name)
        .collect();
    assert_eq!(
        kept,
        [
            "prod-cluster-ca",
            "prod-front-proxy-ca",
            "prod-store-ca",
            "prod-scheduler-ca",
            "prod-service-account",
            "prod-admin-kubeconfig",
        ]
    );
}

#[test]
fn the_second_plan_changes_nothing() {
    for yaml in [SMALL, LARGE] {
        let cluster = cluster(yaml);
        let stored = fresh(&cluster);
        let plan = plan_at(&cluster, &stored, start() + DAY);
        assert!(plan.secrets.iter().all(|planned| planned.change == Change::Keep));
        assert_eq!(store(&plan), stored);
    }
}

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
fn the_next_rotation_is_when_a_leaf_is_due_or_within_a_day() {
    let cluster = cluster(SMALL);
    let stored = fresh(&cluster);
    assert_eq!(plan_at(&cluster, &stored, start()).next_rotation, start() + DAY);
    let late = start() + DAY * 60 - SignedDuration::from_mins(10);
    assert_eq!(plan_at(&cluster, &stored, late).next_rotation, start() + DAY * 60);
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
fn another_endpoint_rewrites_the_kubeconfig_around_the_same_certificate() {
    let stored = fresh(&cluster(SMALL));
    let changed = cluster_with("prod", SMALL, Found::default(), |spec| {
        spec.networking.endpoint.host = Some("2001:db8::1".to_owned());
    });
    let plan = plan_at(&changed, &stored, start());
    let admin = plan.secrets.iter().find(|planned| name(planned) == "prod-admin-kubeconfig");
    let admin = admin.unwrap();
    assert_eq!((admin.change, admin.issued), (Change::Update, None));
    let now = store(&plan);
    assert_eq!(
        text(&now, "prod-admin-kubeconfig", "tls.crt"),
        text(&stored, "prod-admin-kubeconfig", "tls.crt")
    );
    assert!(text(&now, "prod-admin-kubeconfig", "value").contains("https://[2001:db8::1]:6443"));
}

#[test]
fn without_an_endpoint_there_is_no_admin_kubeconfig_yet() {
    let waiting = cluster_with("prod", LARGE, Found::default(), |spec| {
        spec.networking.endpoint.host = None;
    });
    let plan = plan_at(&waiting, &Stored::new(), start());
    assert!(!plan.secrets.iter().any(|planned| name(planned) == "prod-admin-kubeconfig"));
    let found = Found { load_balancer: Some("198.51.100.4".to_owned()), ..Found::default() };
    let ready = cluster_with("prod", LARGE, found, |spec| {
        spec.networking.endpoint.host = None;
    });
    let stored = store(&plan_at(&ready, &store(&plan), start()));
    let value = text(&stored, "prod-admin-kubeconfig", "value");
    assert!(value.contains("https://198.51.100.4:443"), "{value}");
}

#[test]
fn a_damaged_leaf_is_issued_anew_and_no_other() {
    let cluster = cluster(SMALL);
    let stored = fresh(&cluster);
    let specs = leaves(&cluster);
    let certificate = Problem::Certificate("tls.crt");
    type Damage = fn(&mut Stored, &str);
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

#[test]
fn a_lost_authority_is_an_error_while_anything_depends_on_it() {
    let cluster = cluster(SMALL);
    let stored = fresh(&cluster);
    for lost in ["cluster-ca", "front-proxy-ca", "store-ca", "scheduler-ca", "service-account"] {
        let lost = format!("prod-{lost}");
        let mut without = stored.clone();
        without.remove(&lost);
        let error = refusal(&cluster, &without, start());
        assert!(
            matches!(&error, PkiError::Lost { secret, .. } if *secret == lost),
            "{lost}: {error}"
        );
        assert_eq!(error.reason(), "AuthorityLost");
    }
    // With all that depended on it gone too, the cluster starts anew.
    let mut without = stored;
    for secret in ["prod-store-ca", "prod-store-tls", "prod-apiserver-store-client-tls"] {
        without.remove(secret);
    }
    let plan = plan_at(&cluster, &without, start());
    assert_eq!(issued(&plan).len(), 2);
}

#[test]
fn a_plan_cut_short_is_finished_by_the_next() {
    let cluster = cluster(LARGE);
    let whole = plan_at(&cluster, &Stored::new(), start());
    for written in 0..whole.secrets.len() {
        let part: Stored = whole.secrets[..written]
            .iter()
            .map(|planned| (name(planned).to_owned(), planned.secret.clone()))
            .collect();
        let plan = plan_at(&cluster, &part, start());
        let changed = plan.secrets.iter().filter(|planned| planned.change != Change::Keep).count();
        assert_eq!(changed, whole.secrets.len() - written);
    }
}

#[test]
fn a_damaged_authority_is_an_error() {
    let cluster = cluster(SMALL);
    let stored = fresh(&cluster);
    let problem = |edit: &dyn Fn(&mut Stored)| {
        let mut damaged = stored.clone();
        edit(&mut damaged);
        match refusal(&cluster, &damaged, start()) {
            PkiError::Damaged { secret, problem } => (secret, problem),
            other => panic!("{other}"),
        }
    };
    let secret = "prod-cluster-ca";
    let other = |entry| text(&stored, "prod-store-ca", entry);
    for (edit, expected) in [
        (
            Box::new(|stored: &mut Stored| unset(stored, secret, "tls.key"))
                as Box<dyn Fn(&mut Stored)>,
            Problem::Missing("tls.key"),
        ),
        (
            Box::new(|stored: &mut Stored| set(stored, secret, "tls.crt", "x")),
            Problem::Certificate("tls.crt"),
        ),
        (
            Box::new(|stored: &mut Stored| set(stored, secret, "tls.key", "x")),
            Problem::Key("tls.key"),
        ),
        (
            Box::new(|stored: &mut Stored| set(stored, secret, "tls.key", &other("tls.key"))),
            Problem::Mismatch,
        ),
        (
            Box::new(|stored: &mut Stored| {
                for entry in ["tls.crt", "tls.key"] {
                    let leaf = text(stored, "prod-watchcache-tls", entry);
                    set(stored, secret, entry, &leaf);
                }
            }),
            Problem::NotAnAuthority,
        ),
    ] {
        assert_eq!(problem(&*edit), (secret.to_owned(), expected));
    }
    assert_eq!(
        problem(&|stored| set(stored, "prod-service-account", "sa.key", "x")),
        ("prod-service-account".to_owned(), Problem::Key("sa.key"))
    );
}

#[test]
fn an_authority_of_the_users_own_is_taken_up() {
    let cluster = cluster(SMALL);
    let mut stored = fresh(&cluster);
    let others = fresh(&cluster);
    stored.insert("prod-cluster-ca".to_owned(), others["prod-cluster-ca"].clone());
    let plan = plan_at(&cluster, &stored, start());
    let own: Vec<String> = leaves(&cluster)
        .into_iter()
        .filter(|leaf| leaf.authority == Authority::Cluster)
        .map(|leaf| leaf.secret)
        .collect();
    let reissued = issued(&plan);
    assert!(reissued.iter().all(|(_, reason)| *reason == Reason::Issuer));
    assert_eq!(reissued.iter().map(|(name, _)| *name).collect::<Vec<_>>(), own);
    assert_eq!(authorities(&store(&plan)), authorities(&stored));
}

#[test]
fn an_authority_near_its_end_warns_and_a_dead_one_is_an_error() {
    let cluster = cluster(SMALL);
    let mut stored = fresh(&cluster);
    let end = start() + DAY * 3650;
    for days_left in [179, 60, 20, 1] {
        let now = end - DAY * days_left;
        let plan = plan_at(&cluster, &stored, now);
        assert_eq!(plan.warnings.len(), 4, "{days_left} days left");
        stored = store(&plan);
        // Leaves that end with their authority are not renewed again and again.
        let again = plan_at(&cluster, &stored, now);
        assert_eq!(issued(&again), [], "{days_left} days left");
        assert!(again.next_rotation > now);
    }
    let error = refusal(&cluster, &stored, end);
    assert!(matches!(&error, PkiError::Expired { secret, .. } if secret == "prod-cluster-ca"));
}

#[test]
fn a_rotated_token_key_leaves_the_old_one_to_verify_with() {
    let cluster = cluster(SMALL);
    let stored = fresh(&cluster);
    let secret = "prod-service-account";
    let first = text(&stored, secret, "sa.pub");
    let digests = plan_at(&cluster, &stored, start()).digests;

    // The user's own key.
    let own = SystemKeys.generate().unwrap();
    let mut replaced = stored.clone();
    set(&mut replaced, secret, "sa.key", &own.serialize_pem());
    let plan = plan_at(&cluster, &replaced, start());
    let rotated = store(&plan);
    assert_eq!(text(&rotated, secret, "sa.key"), own.serialize_pem());
    assert_eq!(text(&rotated, secret, "sa.pub"), own.public_key_pem() + &first);
    assert_ne!(plan.digests.apiserver, digests.apiserver);
    assert_ne!(plan.digests.controller_manager, digests.controller_manager);
    assert_eq!(plan.digests.scheduler, digests.scheduler);

    // A key that the operator makes.
    let mut removed = rotated.clone();
    unset(&mut removed, secret, "sa.key");
    let again = store(&plan_at(&cluster, &removed, start()));
    assert_ne!(text(&again, secret, "sa.key"), own.serialize_pem());
    assert!(text(&again, secret, "sa.pub").ends_with(&(own.public_key_pem() + &first)));

    // Public keys that are lost come back as far as they can.
    let mut lost = rotated;
    set(&mut lost, secret, "sa.pub", "garbage\n");
    let mended = store(&plan_at(&cluster, &lost, start()));
    assert!(text(&mended, secret, "sa.pub").starts_with(&own.public_key_pem()));

    assert_eq!(store(&plan_at(&cluster, &again, start())), again);
}

#[test]
fn only_what_is_read_at_the_start_restarts_pods() {
    let cluster = cluster(SMALL);
    let stored = fresh(&cluster);
    let before = plan_at(&cluster, &stored, start()).digests;
    let renewed = plan_at(&cluster, &stored, start() + DAY * 61).digests;
    assert_eq!(before.apiserver, renewed.apiserver);
    assert_eq!(before.controller_manager, renewed.controller_manager);
    assert_ne!(before.scheduler, renewed.scheduler);
}

#[test]
fn kubeconfigs_are_what_clients_read() {
    let cluster = cluster(LARGE);
    let stored = fresh(&cluster);
    let admin = text(&stored, "prod-admin-kubeconfig", "value");
    let admin = Kubeconfig::from_yaml(&admin).unwrap();
    assert_eq!(admin.current_context.as_deref(), Some("kubernetes-admin@prod"));
    let server = admin.clusters[0].cluster.as_ref().unwrap();
    assert_eq!(server.server.as_deref(), Some("https://api.prod.example:443"));
    assert!(server.certificate_authority_data.is_some());

    for component in ["controller-manager", "scheduler"] {
        let secret = format!("prod-{component}-kubeconfig");
        let directory = tempfile::tempdir().unwrap();
        for (entry, value) in stored[&secret].data.as_ref().unwrap() {
            std::fs::write(directory.path().join(entry), &value.0).unwrap();
        }
        let read = Kubeconfig::read_from(directory.path().join("kubeconfig")).unwrap();
        let cluster = read.clusters[0].cluster.as_ref().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://prod-api.mc.svc:443"));
        let user = read.auth_infos[0].auth_info.as_ref().unwrap();
        for file in [
            cluster.certificate_authority.as_ref(),
            user.client_certificate.as_ref(),
            user.client_key.as_ref(),
        ] {
            assert!(std::path::Path::new(file.unwrap()).is_file(), "{file:?}");
        }
    }
}

#[test]
fn a_stored_secret_keeps_its_type_and_is_written_at_its_version() {
    let cluster = cluster(SMALL);
    let mut stored = fresh(&cluster);
    let secret = stored.get_mut("prod-store-tls").unwrap();
    secret.type_ = Some("Opaque".to_owned());
    secret.metadata.resource_version = Some("42".to_owned());
    unset(&mut stored, "prod-store-tls", "tls.crt");
    let plan = plan_at(&cluster, &stored, start());
    let planned = plan.secrets.iter().find(|planned| name(planned) == "prod-store-tls").unwrap();
    assert_eq!(planned.change, Change::Update);
    assert_eq!(planned.secret.type_.as_deref(), Some("Opaque"));
    assert_eq!(planned.secret.metadata.resource_version.as_deref(), Some("42"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the clock does and whatever happens to leaves: a plan is finished after one round,
    /// authorities stay, and every leaf is good for its peers at that time.
    #[test]
    fn plans_settle(
        validity_hours in 1_i64..5_000,
        before_minutes in 1_i64..300_000,
        steps in prop::collection::vec((0_i64..100_000, any::<prop::sample::Index>(), 0_u8..4), 1..5),
    ) {
        let before_minutes = before_minutes.min(validity_hours * 60 - 1);
        let cluster = cluster_with("prod", SMALL, Found::default(), |spec| {
            let rotation = format!(
                "rotation: {{leafValidity: {validity_hours}h, renewBefore: {before_minutes}m}}"
            );
            spec.pki = Some(serde_saphyr::from_str(&rotation).unwrap());
        });
        let specs = leaves(&cluster);
        let mut stored = fresh(&cluster);
        let kept = authorities(&stored);
        let mut now = start();
        for (minutes, index, damage) in steps {
            now += SignedDuration::from_mins(minutes);
            let secret = &specs[index.index(specs.len())].secret;
            match damage {
                0 => drop(stored.remove(secret)),
                1 => set(&mut stored, secret, "tls.crt", "x"),
                2 => set(&mut stored, secret, "tls.key", "x"),
                _ => {}
            }
            let plan = plan_at(&cluster, &stored, now);
            prop_assert!(plan.next_rotation > now);
            stored = store(&plan);
            prop_assert_eq!(&authorities(&stored), &kept);
            let again = plan_at(&cluster, &stored, now);
            prop_assert_eq!(issued(&again), []);
            prop_assert_eq!(&store(&again), &stored);
            for leaf in &specs {
                let authority = format!("prod-{}", leaf.authority.suffix());
                prop_assert!(accepted(&stored, leaf, &authority, now), "{}", leaf.secret);
            }
        }
    }
}
