//! Service-account keys and what restarts pods.

use super::*;

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
