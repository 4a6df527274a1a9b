//! Kubernetes' own tables: what the tests of its plugins ask them, recorded by
//! `tests/oracle/plugin-tables`, asked of the oracle and of the core, with that plugin alone and
//! with the whole default profile.
//!
//! The oracle's answer has to be what the plugin said in its own test, or the case isn't what was
//! tested and says nothing. `replayed.tsv` holds how many entries of each test are replayed with an
//! answer, how many as inputs alone (the test looks at a plugin's insides), and why others are not;
//! with `REPLAYED=write` it is written anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use megacluster_scheduler::config::SchedulerConfig;
use serde::Deserialize;
use serde_json::Value;

use crate::program::Oracle;
use crate::{Answer, Case, check, request};

#[derive(Deserialize)]
struct Entry {
    plugin: String,
    test: String,
    case: Option<Value>,
    expected: Option<Expected>,
    #[serde(default)]
    gates: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Expected {
    #[serde(rename = "preFilter")]
    pre_filter: Option<Status>,
    #[serde(default)]
    filter: BTreeMap<String, Status>,
    #[serde(default)]
    scores: BTreeMap<String, i64>,
    #[serde(default)]
    victims: BTreeMap<String, Option<Sacrifice>>,
}

#[derive(Debug, Deserialize)]
struct Sacrifice {
    pods: Vec<String>,
    violations: u64,
}

#[derive(Debug, Deserialize)]
struct Status {
    code: String,
    #[serde(default)]
    reasons: Vec<String>,
}

impl Status {
    fn passes(&self) -> bool {
        matches!(self.code.as_str(), "Success" | "Skip")
    }
}

/// How the oracle's answer differs from what the plugin said in its test.
fn difference(plugin: &str, expected: &Expected, answer: &Answer) -> Option<String> {
    if let Some(status) = expected.pre_filter.as_ref().filter(|status| !status.passes()) {
        let told = status.reasons.iter().all(|reason| answer.message.contains(reason));
        let refused = answer.scores.is_empty() && answer.rejected.is_empty();
        return (!told || !refused).then(|| format!("{status:?}"));
    }
    for (node, status) in &expected.filter {
        let feasible = answer.scores.contains_key(node);
        let same = match answer.rejected.get(node) {
            None if status.passes() => feasible,
            // PreFilter leaves other nodes only, and nobody is asked about this one.
            None => !feasible && status.code == "UnschedulableAndUnresolvable",
            Some(rejection) => {
                rejection.unresolvable == (status.code == "UnschedulableAndUnresolvable")
                    && rejection.reasons == status.reasons
            }
        };
        if !same {
            return Some(format!("{node}: {status:?}"));
        }
    }
    for (node, score) in &expected.scores {
        let theirs = answer.scores.get(node).map(|scores| scores.get(plugin).unwrap_or(&0));
        if theirs != Some(score) {
            return Some(format!("{node}: score {score}"));
        }
    }
    for (node, victims) in &expected.victims {
        let theirs = answer.candidates.as_ref().and_then(|candidates| candidates.get(node));
        let same = match (victims, theirs) {
            (None, None) => true,
            // In any order: equal ones are sorted by chance.
            (Some(told), Some(theirs)) => {
                let (mut told_pods, mut pods) = (told.pods.clone(), theirs.victims.clone());
                told_pods.sort();
                pods.sort();
                told_pods == pods && told.violations == theirs.violations
            }
            _ => false,
        };
        if !same {
            return Some(format!("{node}: {victims:?}"));
        }
    }
    None
}

/// What came of one entry of a table.
enum Outcome {
    Replayed,
    /// Replayed, though the test looks at something else than an answer.
    Inputs,
    /// Not expressible, for a reason that others share.
    Left(String),
    Differs(String),
}

fn left(reason: &str) -> Outcome {
    Outcome::Left(reason.to_owned())
}

fn replay(oracle: &mut Oracle, entry: &Entry) -> Outcome {
    let (Some(value), Some(expected)) = (&entry.case, &entry.expected) else {
        return left("asks nothing about a pod and nodes");
    };
    let statuses = || expected.pre_filter.iter().chain(expected.filter.values());
    if statuses().any(|status| status.code == "Error") {
        return left("the plugin fails");
    }
    let case: Case = match serde_json::from_value(value.clone()) {
        Ok(case) => case,
        Err(error) => return Outcome::Left(format!("no object of the API: {error}")),
    };
    if let Err(error) = SchedulerConfig::parse(case.configuration.as_deref().unwrap_or_default()) {
        let text = error.to_string();
        let field = text.split(": ").next().unwrap_or_default();
        let field = field.rsplit("args.").next().unwrap_or_default();
        return Outcome::Left(format!("refused argument {field}"));
    }
    let (line, answer) = oracle.ask(value);
    if !answer.error.is_empty() {
        return left("the plugin fails");
    }
    if let Some(difference) = difference(&entry.plugin, expected, &answer) {
        eprintln!("{} {}: {difference}, but {line}", entry.plugin, entry.test);
        return Outcome::Left(match entry.gates.as_slice() {
            [] => "another answer from kube-scheduler as a whole".to_owned(),
            gates => format!("with {}", gates.join(", ")),
        });
    }
    if !request(&case).unsupported.is_empty() {
        return left("stays Pending here for another reason");
    }
    let mut differs = String::new();
    let mut compare = |case: &Case, line: &str, answer: &Answer, profile: &str| {
        for shards in [1, 2, 7] {
            if catch_unwind(AssertUnwindSafe(|| check(case, answer, shards))).is_err() {
                let _ = writeln!(differs, "{shards} shards, {profile}: {line}");
            }
        }
    };
    compare(&case, &line, &answer, "the plugin alone");
    let mut whole = value.clone();
    whole["configuration"] = Value::Null;
    let (line, answer) = oracle.ask(&whole);
    if answer.error.is_empty() {
        let case = Case { configuration: None, ..case };
        compare(&case, &line, &answer, "the default profile");
    }
    if !differs.is_empty() {
        return Outcome::Differs(format!("{differs}case {value}"));
    }
    let silent = expected.filter.is_empty()
        && expected.scores.is_empty()
        && expected.victims.is_empty()
        && expected.pre_filter.as_ref().is_none_or(Status::passes);
    if silent { Outcome::Inputs } else { Outcome::Replayed }
}

/// What came of a test's entries.
#[derive(Default)]
struct Row {
    replayed: usize,
    inputs: usize,
    left: BTreeMap<String, usize>,
}

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/replayed.tsv");

#[test]
#[ignore = "needs the recorded tables: tests/oracle/run makes them"]
fn answers_equal_those_of_the_plugins_own_tables() {
    let path = std::env::var("PLUGIN_CASES").expect("PLUGIN_CASES names the recorded tables");
    let recorded = std::fs::read_to_string(path).unwrap();
    let mut oracle = Oracle::start();
    let mut rows: BTreeMap<(String, String), Row> = BTreeMap::new();
    let mut differ = Vec::new();
    for line in recorded.lines() {
        let entry: Entry = serde_json::from_str(line).unwrap();
        let outcome = replay(&mut oracle, &entry);
        let test = entry.test.split('/').next().unwrap_or_default().to_owned();
        let row = rows.entry((entry.plugin.clone(), test)).or_default();
        match outcome {
            Outcome::Replayed => row.replayed += 1,
            Outcome::Inputs => row.inputs += 1,
            Outcome::Left(reason) => *row.left.entry(reason).or_default() += 1,
            Outcome::Differs(how) => {
                differ.push(format!("{} {}: {how}", entry.plugin, entry.test));
            }
        }
    }
    oracle.end();
    assert!(differ.is_empty(), "{} differ:\n{}", differ.len(), differ.join("\n"));
    let mut table = "plugin\ttest\treplayed\tinputs\tleft\twhy\n".to_owned();
    let mut sum = Row::default();
    for ((plugin, test), row) in &rows {
        let left: usize = row.left.values().sum();
        let why: Vec<_> = row.left.iter().map(|(why, count)| format!("{count} {why}")).collect();
        let (replayed, inputs, why) = (row.replayed, row.inputs, why.join("; "));
        let line = format!("{plugin}\t{test}\t{replayed}\t{inputs}\t{left}\t{why}");
        let _ = writeln!(table, "{}", line.trim_end());
        sum.replayed += replayed;
        sum.inputs += inputs;
        for (why, count) in &row.left {
            *sum.left.entry(why.clone()).or_default() += count;
        }
    }
    println!("{} entries replayed, {} more as inputs; left:", sum.replayed, sum.inputs);
    for (why, count) in &sum.left {
        println!("  {count} {why}");
    }
    if std::env::var("REPLAYED").is_ok_and(|mode| mode == "write") {
        std::fs::write(TABLE, &table).unwrap();
    }
    let known = std::fs::read_to_string(TABLE).unwrap();
    for line in known.lines().skip(1) {
        let [plugin, test, replayed, inputs] =
            std::array::from_fn(|column| line.split('\t').nth(column).unwrap_or_default());
        let row = rows.get(&(plugin.to_owned(), test.to_owned()));
        let counts = row.map_or((0, 0), |row| (row.replayed, row.inputs));
        let known = (replayed.parse().unwrap(), inputs.parse().unwrap());
        // What was replayed stays so; REPLAYED=write is for more.
        assert!(
            counts.0 >= known.0 && counts.1 >= known.1,
            "{plugin} {test}: {counts:?} of {known:?}"
        );
    }
}
