//! Several classes by one pool are what deciding one pod after the other is, however the nodes are
//! divided.

use std::sync::Arc;

use megacluster_scheduler::core::draw::Draw;
use megacluster_scheduler::core::evaluate::{evaluate, survey as plain_survey};
use megacluster_scheduler::core::gather::{Decision, decide};
use megacluster_scheduler::core::pod::{PodRequest, PodUid};
use megacluster_scheduler::core::pool::{Asked, Pool, ignore_each_other, suits};
use megacluster_scheduler::core::table::NodeTable;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use crate::build::pod;
use crate::cells::{divided, pick, surveyed};

const SEED: u64 = 9;

/// A class that counts no pods but its own.
fn class(random: &mut SmallRng, number: usize) -> Arc<PodRequest> {
    let app = format!("class-{number}");
    let cpu = pick(random, &["1m", "100m", "250m", "700m", "1"]);
    let memory = pick(random, &["64Mi", "300Mi", "1Gi", "3Gi"]);
    let mut patch = json!({
        "metadata": {"labels": {"app": app}},
        "spec": {"containers": [
            {"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]},
    });
    let spec = &mut patch["spec"];
    match random.random_range(0..5) {
        0 => spec["nodeSelector"] = json!({"disk": "ssd"}),
        1 => {
            let zone = pick(random, &["a", "b", "c"]);
            let term = json!({"key": "zone", "operator": "In", "values": [zone]});
            spec["affinity"]["nodeAffinity"] = json!({
                "preferredDuringSchedulingIgnoredDuringExecution":
                    [{"weight": 1, "preference": {"matchExpressions": [term]}}],
            });
        }
        _ => {}
    }
    if random.random_range(0..2) == 0 {
        spec["topologySpreadConstraints"] = json!([{
            "maxSkew": random.random_range(1..=2), "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": app}},
        }]);
    }
    Arc::new(PodRequest::compile(&pod(&app, patch)))
}

/// The pools of all tables, put together by twos or all at once.
fn pool(parts: &mut [NodeTable], asked: &[Asked], ahead: usize, by_twos: bool) -> Pool {
    let ahead = vec![ahead; asked.len()];
    let mut pools: Vec<Pool> =
        parts.iter_mut().map(|table| Pool::of(table, asked, &ahead, SEED)).collect();
    let join = |pools: &[Pool]| {
        let pools = pools.iter().cloned();
        pools
            .reduce(|mut sum, other| {
                sum.absorb(other);
                sum
            })
            .unwrap()
    };
    while by_twos && pools.len() > 1 {
        pools = pools.chunks(2).map(join).collect();
    }
    join(&pools)
}

#[test]
fn a_pool_is_deciding_one_class_after_the_other() {
    let (mut decided, mut whole_classes) = (0, 0);
    for seed in 0..80_usize {
        let mut random = SmallRng::seed_from_u64(seed as u64);
        let shards = [1, 2, 7, 32][seed % 4];
        let (mut parts, mut whole) = divided(&mut random, shards, false);
        for round in 0..4 {
            let mut asked: Vec<Asked> = Vec::new();
            for number in 0..random.random_range(2..6) {
                let class = class(&mut random, round * 10 + number);
                let minds = class.minds_others();
                assert!(suits(&class, minds));
                assert!(asked.iter().all(|other| ignore_each_other(&class, &other.class)));
                let survey = minds.then(|| Arc::new(surveyed(&mut parts, &class)));
                asked.push(Asked { class, count: random.random_range(1..25), survey });
            }
            let by_twos = random.random_range(0..2) == 0;
            let pool = pool(&mut parts, &asked, random.random_range(2..12), by_twos);
            let mut draw = Draw::new(&pool, SEED);
            for (place, asked) in asked.iter().enumerate() {
                let placements = draw.next(place, asked);
                for (number, seen) in placements.iter().enumerate() {
                    let what = format!("seed {seed}, round {round}, class {place}, pod {number}");
                    let survey = plain_survey(&whole, &asked.class, false);
                    let survey = asked.survey.is_some().then_some(survey);
                    let now = evaluate(&whole, &asked.class, SEED, survey.as_ref());
                    let Decision::Place(now) = decide(&now, &asked.class) else {
                        panic!("{what}: {now:?}")
                    };
                    assert_eq!((&seen.node, seen.score), (&now.node, now.score), "{what}");
                    let uid = PodUid::new(&what);
                    let owner = parts.iter_mut().find(|table| table.usage(&now.node).is_some());
                    for table in [owner.unwrap(), &mut whole] {
                        table.assume_class(uid, &now.node, &asked.class).expect(&what);
                    }
                    decided += 1;
                }
                // Whoever decides asks anew then.
                if placements.len() < asked.count as usize {
                    break;
                }
                whole_classes += 1;
            }
        }
    }
    assert!(decided > 3000, "{decided} pods decided");
    assert!(whole_classes > 300, "{whole_classes} classes decided to the last pod");
}

#[test]
fn a_class_that_one_table_cannot_tell_is_left_out() {
    let mut random = SmallRng::seed_from_u64(1);
    let (mut parts, _) = divided(&mut random, 2, false);
    let plain = Arc::new(PodRequest::compile(&pod("a", json!({}))));
    // It minds a pod of the second table's.
    let keeps = json!({"spec": {"affinity": {"podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{
            "topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "kept"}}}]}}}});
    let node = parts[1].node_names().next().unwrap().to_string();
    parts[1].upsert_pod(&crate::build::on(pod("keeps", keeps), &node));
    let kept = pod("b", json!({"metadata": {"labels": {"app": "kept"}}}));
    let kept = Arc::new(PodRequest::compile(&kept));
    let asked = [plain, kept].map(|class| Asked { class, count: 3, survey: None });
    let pool = pool(&mut parts, &asked, 8, false);
    assert!(pool.classes[0].is_some() && pool.classes[1].is_none());
    let mut draw = Draw::new(&pool, SEED);
    assert_eq!(draw.next(0, &asked[0]).len(), 3);
    assert!(draw.next(1, &asked[1]).is_empty() && draw.next(2, &asked[1]).is_empty());
}
