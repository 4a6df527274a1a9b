//! What is printed.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use super::measure::Times;
use super::workload::Workload;
use super::world::{Outcome, Spent};
use crate::core::maps::HashSet;

/// Accounts that are listed one by one; of more the rest is summed up.
const ACCOUNTS: usize = 20;
/// Reasons shown of one account.
const REASONS: usize = 3;

/// The figures of a run.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) nodes: usize,
    pub(super) running: usize,
    pub(super) shards: u16,
    /// Whether messages went over connections.
    pub(super) wire: bool,
    /// From the first object until the first pod has a node.
    pub(super) start: Duration,
    pub(super) node_bytes: u64,
    pub(super) pod_bytes: u64,
    pub(super) single: Times,
    /// Of the pods that came all at once.
    pub(super) attempts: u64,
    pub(super) messages: u64,
    pub(super) spent: Spent,
    /// CPU time of all threads, and what of it went into decisions.
    pub(super) cpu: Duration,
    pub(super) deciding_cpu: Duration,
}

#[derive(Default)]
struct Account {
    pods: usize,
    placed: usize,
    nodes: HashSet<Arc<str>>,
    reasons: BTreeMap<Arc<str>, usize>,
}

/// Prints where the workload went.
pub(super) fn outcomes(
    out: &mut impl Write,
    workload: &Workload,
    outcomes: &[Outcome],
    list: bool,
) -> std::io::Result<()> {
    let mut accounts: BTreeMap<String, Account> = BTreeMap::new();
    for (number, outcome) in outcomes.iter().enumerate() {
        let account = accounts.entry(workload.account(number)).or_default();
        account.pods += 1;
        match outcome {
            Outcome::Placed(node) => {
                account.placed += 1;
                account.nodes.insert(Arc::clone(node));
            }
            Outcome::Failed(reason) => {
                *account.reasons.entry(Arc::clone(reason)).or_default() += 1;
            }
            Outcome::Open => *account.reasons.entry("undecided".into()).or_default() += 1,
        }
        if list {
            let pod = workload.pod(number).metadata;
            let (namespace, name) =
                (pod.namespace.unwrap_or_default(), pod.name.unwrap_or_default());
            match outcome {
                Outcome::Placed(node) => writeln!(out, "{namespace}/{name}\t{node}")?,
                Outcome::Failed(reason) => writeln!(out, "{namespace}/{name}\t-\t{reason}")?,
                Outcome::Open => writeln!(out, "{namespace}/{name}\t-\tundecided")?,
            }
        }
    }
    let placed: usize = accounts.values().map(|account| account.placed).sum();
    writeln!(out, "{} pods: {placed} placed, {} not", outcomes.len(), outcomes.len() - placed)?;
    // Those with pods left over first.
    let mut sorted: Vec<(&String, &Account)> = accounts.iter().collect();
    sorted.sort_by_key(|(_, account)| account.placed == account.pods);
    for (name, account) in sorted.iter().take(ACCOUNTS) {
        let (pods, placed, nodes) = (account.pods, account.placed, account.nodes.len());
        writeln!(out, "  {name}: {placed} of {pods} placed, on {nodes} nodes")?;
        for (reason, pods) in account.reasons.iter().take(REASONS) {
            writeln!(out, "    {pods}: {reason}")?;
        }
        if account.reasons.len() > REASONS {
            let more: usize = account.reasons.values().skip(REASONS).sum();
            writeln!(out, "    {more}: for other reasons")?;
        }
    }
    if let Some(rest) = sorted.get(ACCOUNTS..).filter(|rest| !rest.is_empty()) {
        let pods: usize = rest.iter().map(|(_, account)| account.pods).sum();
        let placed: usize = rest.iter().map(|(_, account)| account.placed).sum();
        writeln!(out, "  {} others: {placed} of {pods} placed", rest.len())?;
    }
    Ok(())
}

/// Prints how fast it was.
#[expect(clippy::cast_precision_loss, reason = "no run makes 2^52 decisions")]
pub(super) fn figures(out: &mut impl Write, figures: &Figures) -> std::io::Result<()> {
    let Figures { nodes, running, shards, start, spent, .. } = figures;
    writeln!(out, "{nodes} nodes on {shards} shards, {running} pods on them before")?;
    writeln!(out, "  start until the first decision  {:.1} s", start.as_secs_f64())?;
    if *nodes > 0 {
        writeln!(
            out,
            "  memory for each node            {} B",
            figures.node_bytes / *nodes as u64
        )?;
    }
    if *running > 0 {
        let each = figures.pod_bytes / *running as u64;
        writeln!(out, "  memory for each pod on a node   {each} B")?;
    }
    if figures.single.len() > 0 {
        let ms = |percent| figures.single.percentile(percent).as_secs_f64() * 1000.0;
        writeln!(
            out,
            "  a single pod, {:5} of them      p50 {:.3} ms, p99 {:.3} ms, longest {:.3} ms",
            figures.single.len(),
            ms(50),
            ms(99),
            ms(100)
        )?;
    }
    let attempts = figures.attempts;
    if attempts > 0 {
        let each = |time: Duration| time.as_secs_f64() * 1e6 / attempts as f64;
        let deciding = spent.deciding();
        let rate = attempts as f64 / deciding.as_secs_f64();
        writeln!(
            out,
            "  {attempts} decisions {}: {rate:.0} a second, {:.1} to a message",
            if figures.wire { "by gRPC with TLS" } else { "on one core" },
            { attempts as f64 / figures.messages.max(1) as f64 }
        )?;
        writeln!(
            out,
            "  for each decision               {:.2} µs: relay {:.2}, {} {:.2}; CPU {:.2} µs",
            each(deciding),
            each(spent.relay),
            if figures.wire { "answers of shards after" } else { "shards" },
            each(spent.shards),
            each(figures.deciding_cpu)
        )?;
        writeln!(
            out,
            "  beside it, for each pod         intake {:.2} µs, watch of its bind {:.2} µs; \
             CPU of all {:.2} µs",
            each(spent.intake),
            each(spent.watch),
            each(figures.cpu)
        )?;
    }
    Ok(())
}
