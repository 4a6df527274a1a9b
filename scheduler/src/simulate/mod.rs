//! `megacluster-scheduler simulate`: where a workload would go, and how fast. A cluster comes from
//! a dump or out of nothing; the relay and the shards are the real ones, in one thread without
//! anything between them, or with `--wire` at the ends of real connections. Nothing is asked of any
//! cluster.

mod dump;
mod error;
mod flags;
mod generate;
mod measure;
mod report;
mod wire;
mod workload;
mod world;

pub use error::SimulateError;
pub use flags::{Domain, SimulateFlags};

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use self::dump::Dump;
use self::generate::Generator;
use self::measure::Times;
use self::report::Figures;
use self::workload::Workload;
use self::world::World;
use crate::config::SchedulerConfig;
use crate::core::directory::{Kind, Value};
use crate::core::labels::Selector;
use crate::core::pod::OwnerKind;
use crate::core::selector::Requirement;

/// Nodes where neither a file nor a number is given.
const NODES: u32 = 1000;
/// Pods where no number is given.
const MAX_PODS: u32 = 100_000;
/// Single pods where no number is given.
const SINGLE: usize = 1000;

/// Simulates, and prints what came of it.
pub fn run(flags: &SimulateFlags, out: &mut impl Write) -> Result<(), SimulateError> {
    let config = match &flags.config {
        Some(path) => SchedulerConfig::read(path)?,
        None => SchedulerConfig::default(),
    };
    let policy = config.policies(None).swap_remove(0);
    let begun = Instant::now();
    let mut dump = Dump::default();
    for path in &flags.from {
        dump.read(path)?;
    }
    for path in &flags.workload {
        dump.read_workload(path)?;
    }
    let files = !flags.from.is_empty() || !flags.workload.is_empty();
    let nodes = flags.nodes.unwrap_or(if flags.from.is_empty() { NODES } else { 0 });
    let pods = flags.pods.unwrap_or(if files { 0 } else { nodes.min(MAX_PODS) });
    if nodes == 0 && flags.running > 0 {
        return Err(SimulateError::Flags("--running: needs --nodes".to_owned()));
    }
    let generator = Generator::new(flags, nodes)?;
    let mut figures = Figures { shards: flags.shards, wire: flags.wire, ..Figures::default() };
    let mut world = World::new(flags.shards, &policy, flags.seed);
    let before = measure::resident();
    dump.nodes.drain(..).for_each(|node| world.node(&node));
    (0..nodes).for_each(|number| world.node(&generator.node(number)));
    world.nodes_end();
    figures.nodes = world.node_count();
    let with_nodes = measure::resident();
    figures.node_bytes = with_nodes.saturating_sub(before);
    dump.running.drain(..).for_each(|pod| world.running(&pod));
    (0..flags.running).for_each(|number| world.running(&generator.running(number)));
    world.pods_end();
    figures.running = world.pod_count();
    figures.pod_bytes = measure::resident().saturating_sub(with_nodes);
    if flags.wire {
        world.by_wire()?;
    }
    if flags.replica_sets {
        let sets = (0..flags.classes).map(replica_set);
        dump.lookups.entry(Kind::Owner(OwnerKind::ReplicaSet)).or_default().extend(sets);
    }
    world.lead(std::mem::take(&mut dump.lookups), std::mem::take(&mut dump.stored));
    for (kind, objects) in &dump.ignored {
        writeln!(out, "passed over: {objects} {kind}")?;
    }
    let waiting = std::mem::take(&mut dump.waiting);
    let workload = Workload::new(waiting, generator, pods, flags.classes, flags.interleave);
    let single = flags.single.map_or((workload.len() / 10).min(SINGLE), |single| single as usize);
    place(&mut world, &workload, single.min(workload.len()), begun, &mut figures);
    report::outcomes(out, &workload, &world.outcomes, flags.list)?;
    report::figures(out, &figures)?;
    Ok(())
}

/// Places the workload: the first pods one by one, the others all at once.
fn place(
    world: &mut World,
    workload: &Workload,
    single: usize,
    begun: Instant,
    figures: &mut Figures,
) {
    let mut first = true;
    let mut times = Times::default();
    // From all over the workload.
    let step = workload.len().checked_div(single).unwrap_or(1).max(1);
    let alone = |number: &usize| number.is_multiple_of(step) && number / step < single;
    for number in (0..workload.len()).filter(alone) {
        let pod = workload.pod(number);
        let came = Instant::now();
        world.submit(number, &pod);
        world.settle(workload);
        // The first one finds nothing prepared: it is part of the start.
        if std::mem::take(&mut first) {
            figures.start = begun.elapsed();
        } else {
            times.push(came.elapsed());
        }
        world.watch(workload);
    }
    figures.single = times;
    let (spent, attempts, messages) = (world.spent, world.attempts, world.messages);
    let cpu = measure::cpu();
    for number in (0..workload.len()).filter(|number| !alone(number)) {
        world.submit(number, &workload.pod(number));
    }
    let (deciding, showing) = (measure::cpu(), world.spent.showing);
    world.settle(workload);
    let showing = world.spent.showing.saturating_sub(showing);
    figures.deciding_cpu = measure::cpu().saturating_sub(deciding + showing);
    world.watch(workload);
    if first {
        figures.start = begun.elapsed();
    }
    figures.cpu = measure::cpu().saturating_sub(cpu);
    figures.spent = world.spent.since(spent);
    figures.attempts = world.attempts - attempts;
    figures.messages = world.messages - messages;
}

fn replica_set(class: u32) -> ((Arc<str>, Arc<str>), Value) {
    let name = format!("class-{class}");
    let selector = Selector::All(vec![Requirement::equals("app", &name)]);
    (("default".into(), name.into()), Value::Selector(selector))
}
