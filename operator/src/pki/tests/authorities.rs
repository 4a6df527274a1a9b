//! Authorities: never replaced, and what is said instead.

use super::*;

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
