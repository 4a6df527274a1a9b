//! What every plan does: order, ends, rounds.

use base64::Engine as _;
use proptest::prelude::*;

use super::*;

#[test]
fn the_first_plan_creates_everything_authorities_first() {
    for yaml in [SMALL, LARGE] {
        let plan = plan_at(&cluster(yaml), &Stored::new(), start());
        assert!(plan.secrets.iter().all(|planned| planned.change == Change::Create));
        let mut names: Vec<&str> = plan.secrets.iter().map(name).collect();
        // Only where shards have standbys, as they have where nothing else is said.
        let standby = names.iter().position(|name| *name == "prod-scheduler-standby-tls");
        assert!(standby.map(|at| names.remove(at)).is_some());
        // Only where the front door reads the store.
        let reader = names.iter().position(|name| *name == "prod-watchcache-store-client-tls");
        assert_eq!(reader.map(|at| names.remove(at)).is_some(), yaml == LARGE);
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
fn the_next_rotation_is_when_a_leaf_is_due_or_within_a_day() {
    let cluster = cluster(SMALL);
    let stored = fresh(&cluster);
    assert_eq!(plan_at(&cluster, &stored, start()).next_rotation, start() + DAY);
    let late = start() + DAY * 60 - SignedDuration::from_mins(10);
    assert_eq!(plan_at(&cluster, &stored, late).next_rotation, start() + DAY * 60);
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

    /// Stored bytes are anybody's: whatever they are, there is a plan or an error.
    #[test]
    fn no_stored_bytes_stop_the_operator(
        secret in any::<prop::sample::Index>(),
        entry in any::<prop::sample::Index>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let cluster = cluster(SMALL);
        let mut stored = fresh(&cluster);
        let secret = stored.keys().nth(secret.index(stored.len())).unwrap().clone();
        let data = stored.get_mut(&secret).unwrap().data.as_mut().unwrap();
        let entry = data.keys().nth(entry.index(data.len())).unwrap().clone();
        // Behind PEM, so that the flips reach what the bytes mean.
        let pem = String::from_utf8(data[&entry].0.clone()).unwrap();
        if let Ok((_, mut block)) = x509_parser::pem::parse_x509_pem(pem.as_bytes()) {
            for (at, bits) in flips {
                let at = at.index(block.contents.len());
                block.contents[at] ^= bits;
            }
            let text = base64::engine::general_purpose::STANDARD.encode(&block.contents);
            let label = &block.label;
            let damaged = format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n");
            data.insert(entry, ByteString(damaged.into_bytes()));
        }
        drop(plan(&cluster, &stored, start(), &SystemKeys));
    }

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
