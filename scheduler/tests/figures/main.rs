//! What a bound pod costs: a kube-scheduler and ours, one after the other on one kube-apiserver and
//! one store of ours, with the same nodes and the same pods. `bench/run scheduler --peer` runs this,
//! optimised; nothing else does.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a measurement states its expectation by unwrapping, and prints what it finds"
)]

mod cluster;
mod process;
mod workload;

use std::time::{Duration, Instant};

use self::cluster::Cluster;
use self::process::Program;
use self::workload::Case;

/// Pods that a scheduler places before anything is measured.
const WARM_UP: usize = 40;

fn number(variable: &str, default: usize) -> usize {
    let text = std::env::var(variable).ok();
    text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}: {text}")))
}

/// Whether something of this name is to be measured: all, where the variable names none.
fn wanted(variable: &str, name: &str) -> bool {
    std::env::var(variable).map_or(true, |names| names.split(',').any(|other| other == name))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark"]
async fn figures() {
    let nodes = number("FIGURES_NODES", 5000);
    let pods = number("FIGURES_PODS", 5000);
    let cluster = Cluster::start().await;
    cluster.make_nodes(nodes).await;
    println!("{nodes} nodes, {} templates", workload::TEMPLATES);
    for case in Case::ALL.into_iter().filter(|case| wanted("FIGURES_CASES", case.name())) {
        let pods = case.pods(pods);
        let both = [Which::Stock, Which::Ours].into_iter();
        for which in both.filter(|which| wanted("FIGURES_OF", which.name())) {
            measure(&cluster, which, case, nodes, pods).await;
        }
    }
}

#[derive(Clone, Copy)]
enum Which {
    Stock,
    Ours,
}

impl Which {
    fn name(self) -> &'static str {
        match self {
            Self::Stock => "kube-scheduler",
            Self::Ours => "ours",
        }
    }

    fn start(self, cluster: &Cluster) -> Program {
        match self {
            Self::Stock => cluster.kube_scheduler(),
            Self::Ours => cluster.scheduler(),
        }
    }
}

async fn measure(cluster: &Cluster, which: Which, case: Case, nodes: usize, pods: usize) {
    let before = case.before(nodes);
    cluster.make_pods(before).await;
    let scheduler = which.start(cluster);
    cluster.make_pods((0..WARM_UP).map(workload::warm_up)).await;
    let bound = cluster.all_bound(Duration::from_mins(2)).await;
    assert!(bound, "{} binds nothing; see its log", which.name());
    scheduler.is_quiet().await;
    let (cpu, of_apiserver) = (scheduler.cpu(), cluster.apiserver_cpu());
    let begun = Instant::now();
    cluster.make_pods((0..pods).map(|number| case.pod(number))).await;
    let made = begun.elapsed();
    let bound = cluster.all_bound(Duration::from_mins(10)).await;
    let took = begun.elapsed();
    scheduler.is_quiet().await;
    #[expect(clippy::cast_precision_loss, reason = "few pods")]
    let count = pods as f64;
    let each = |cpu: Duration| cpu.as_secs_f64() * 1000.0 / count;
    println!(
        "{:15} {:15} {pods} pods{}: {:.3} ms of its CPU each, {:.2} ms of the kube-apiserver's; \
         {:.0} pods/s, made at {:.0}/s; {} MiB resident",
        case.name(),
        which.name(),
        if bound { "" } else { " NOT ALL BOUND" },
        each(scheduler.cpu().saturating_sub(cpu)),
        each(cluster.apiserver_cpu().saturating_sub(of_apiserver)),
        count / took.as_secs_f64(),
        count / made.as_secs_f64(),
        scheduler.resident() >> 20,
    );
    drop(scheduler);
    cluster.delete_pods().await;
}
