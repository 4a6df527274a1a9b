//! `megacluster-scheduler simulate` as its users see it.

#![allow(clippy::expect_used, reason = "a test states its expectation by unwrapping")]

use std::io::Write;

use clap::Parser;
use megacluster_scheduler::cli::{Cli, Role};
use megacluster_scheduler::simulate;

fn simulated(arguments: &str) -> Result<String, String> {
    let whole = ["megacluster-scheduler", "simulate"].into_iter();
    let cli = Cli::try_parse_from(whole.chain(arguments.split_whitespace()))
        .map_err(|error| error.to_string())?;
    let Some(Role::Simulate(flags)) = cli.role else { return Err("another role".to_owned()) };
    let mut out = Vec::new();
    simulate::run(&flags, &mut out).map_err(|error| error.to_string())?;
    Ok(String::from_utf8(out).expect("text"))
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("file");
    file.write_all(text.as_bytes()).expect("written");
    file
}

/// Lines of pods with their node.
fn places(printed: &str) -> Vec<(&str, &str)> {
    printed.lines().filter_map(|line| line.split_once('\t')).collect()
}

#[test]
fn a_generated_cluster_takes_a_generated_workload() {
    let printed = simulated("--nodes 100 --pods 300 --classes 7 --running 50").expect("simulated");
    assert!(printed.contains("300 pods: 300 placed, 0 not"), "{printed}");
    assert!(printed.contains("100 nodes on 8 shards, 50 pods on them before"), "{printed}");
}

#[test]
fn the_number_of_shards_does_not_show() {
    for rules in ["", "--spread zone", "--anti-affinity hostname", "--replica-sets", "--interleave"]
    {
        let run = |shards: u32| {
            let arguments =
                format!("--nodes 60 --pods 150 --classes 5 --list --shards {shards} {rules}");
            simulated(&arguments).expect("simulated")
        };
        let (one, many) = (run(1), run(7));
        assert_eq!(places(&one).len(), 150);
        assert_eq!(places(&one), places(&many), "{rules}");
    }
}

#[test]
fn the_wire_does_not_show() {
    megacluster_service::crypto::install();
    for rules in ["--spread zone", "--anti-affinity hostname --interleave"] {
        let run = |wire: &str| {
            let arguments =
                format!("--nodes 60 --pods 150 --classes 5 --list --shards 3 {rules} {wire}");
            simulated(&arguments).expect("simulated")
        };
        assert_eq!(places(&run("")), places(&run("--wire")), "{rules}");
    }
}

#[test]
fn rules_hold() {
    let printed = simulated("--nodes 30 --pods 90 --classes 1 --spread zone --list --zones 3");
    let printed = printed.expect("simulated");
    let mut zones = [0; 3];
    for (_, node) in places(&printed) {
        let number: usize = node.trim_start_matches("node-").parse().expect("a node of ours");
        zones[number % 3] += 1;
    }
    assert_eq!(zones, [30; 3]);
    let lonely = simulated("--nodes 10 --pods 12 --classes 1 --anti-affinity hostname");
    let lonely = lonely.expect("simulated");
    assert!(lonely.contains("10 of 12 placed, on 10 nodes"), "{lonely}");
    let reason = "0/10 nodes are available: 10 node(s) didn't match pod anti-affinity rules";
    assert!(lonely.contains(reason), "{lonely}");
}

#[test]
fn a_dump_and_a_workload() {
    let dump = file(
        "kind: List\nitems:\n\
         - {kind: Node, metadata: {name: a}, status: {allocatable: {cpu: 2, memory: 4Gi, pods: 9}}}\n\
         - {kind: Node, metadata: {name: b}, status: {allocatable: {cpu: 2, memory: 4Gi, pods: 9}}}\n\
         - kind: Pod\n  metadata: {name: p, namespace: d}\n  spec:\n    nodeName: a\n    containers:\n\
         \x20   - {name: c, resources: {requests: {cpu: 1500m}}}\n",
    );
    let workload = file(
        "kind: Deployment\nmetadata: {name: web}\nspec:\n  replicas: 3\n  selector: {matchLabels: {app: web}}\n\
         \x20 template:\n    metadata: {labels: {app: web}}\n    spec:\n      containers:\n\
         \x20     - {name: c, resources: {requests: {cpu: 1}}}\n",
    );
    let arguments =
        format!("--from {} --workload {} --list", dump.path().display(), workload.path().display());
    let printed = simulated(&arguments).expect("simulated");
    assert!(printed.contains("default/web-0\tb"), "{printed}");
    assert!(printed.contains("Deployment default/web: 2 of 3 placed, on 1 nodes"), "{printed}");
    assert!(printed.contains("0/2 nodes are available: 2 Insufficient cpu"), "{printed}");
}

#[test]
fn what_is_wrong_is_named() {
    let wrong =
        file("kind: List\nitems:\n- kind: Pod\n  metadata: {name: p}\n  spec: {containers: 3}\n");
    let path = wrong.path().display().to_string();
    let error = simulated(&format!("--from {path}")).expect_err("wrong");
    assert!(error.starts_with(&format!("{path}: items[0].spec.containers: ")), "{error}");
    let error = simulated("--from /nowhere").expect_err("not there");
    assert!(error.starts_with("/nowhere: "), "{error}");
    let error = simulated("--nodes 0 --running 5").expect_err("no nodes");
    assert_eq!(error, "--running: needs --nodes");
}
