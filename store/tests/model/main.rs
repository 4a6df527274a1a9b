//! The engine and its log against an executable specification: a naive store that keeps a whole map
//! for every revision. Random commands run on both, with leases, compactions, watches from the past,
//! snapshots and restarts of every kind in between, at random durability; every answer, every watch
//! and every recovery must agree.
//!
//! `PROPTEST_CASES` in the environment sets the number of cases, for a longer search.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states its expectation so")]

mod compare;
#[allow(dead_code, reason = "shared with another test")]
mod disk;
mod generate;
mod named;
mod pair;
mod spec;
mod subject;

use megacluster_store::log::{Class, DurabilityRules};
use proptest::prelude::*;

use generate::step;
use pair::Pair;

fn cases(usual: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = asked.unwrap_or(usual);
    // A few draws in a case are ones that etcd would refuse.
    let max_local_rejects = cases.saturating_mul(10).max(65_536);
    ProptestConfig { cases, max_local_rejects, ..ProptestConfig::default() }
}

fn class() -> impl Strategy<Value = Class> {
    prop_oneof![Just(Class::None), Just(Class::Buffered), Just(Class::Fsync)]
}

/// A default, and classes for two of the three families of keys; often as etcd: fsync alone.
fn rules() -> impl Strategy<Value = DurabilityRules> {
    let mixed = (class(), class(), class()).prop_map(|(default, one, two)| {
        let rules = [format!("/1/={one}"), format!("/2/={two}")];
        DurabilityRules::new(default, rules.iter().map(|rule| rule.parse().unwrap())).unwrap()
    });
    // A store that logs nothing at all has nothing to compare after a restart.
    let logs = |rules: &DurabilityRules| {
        [b"/0/", b"/1/", b"/2/"].iter().any(|key| rules.class(*key) != Class::None)
    };
    prop_oneof![Just(DurabilityRules::default()), mixed.prop_filter("logs nothing", logs)]
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn the_store_does_what_the_specification_says(
        rules in rules(),
        steps in prop::collection::vec(step(), 1..90),
    ) {
        let mut pair = Pair::new(rules);
        for step in steps {
            pair.step(step);
        }
        pair.check_all();
    }
}
