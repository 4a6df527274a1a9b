//! Relays and shards against an apiserver, all simulated with one clock and one seed: messages are
//! lost, late or answered too late; watches lag; shards and the leader crash; an old leader goes on
//! for a while; binds go unanswered and are carried out later. What must hold all the same: no node
//! takes more than it has, nobody believes in a bind that did not happen, no pod is forgotten, and
//! pods that keep others away are left alone.
//!
//! `SIMULATION_SEEDS` sets how many seeds are run, `SIMULATION_SEED` runs a single one.

#![allow(clippy::expect_used, reason = "a test states its expectation by unwrapping")]

use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use megacluster_scheduler::core::directory::DefaultSpread;
use megacluster_scheduler::core::membership::Membership;
use megacluster_scheduler::core::queue::QueueConfig;
use megacluster_scheduler::metrics::Metrics;
use megacluster_scheduler::protocol::{PodId, Refusal, Request, Response};
use megacluster_scheduler::relay::bind::BindOutcome;
use megacluster_scheduler::relay::coordinator::{Action, Coordinator, CoordinatorConfig};
use megacluster_scheduler::relay::intake::Compiler;
use megacluster_scheduler::relay::pods::Intake;
use megacluster_scheduler::relay::report::Report;
use megacluster_scheduler::relay::tree::{self, Branch};
use megacluster_scheduler::shard::machine::{Expiring, ShardConfig, ShardMachine};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

type Time = Duration;

const NODES: u32 = 12;
const SLOTS: u32 = 4;
const SHARDS: usize = 3;
const FAULTS_END: Time = Duration::from_mins(4);
const END: Time = Duration::from_secs(640);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What happened at the apiserver, in order: watches deliver it with a lag.
#[derive(Clone)]
enum Change {
    Created(u32),
    Bound(u32),
    Deleted(u32),
}

#[derive(Clone)]
struct ApiPod {
    uid: String,
    node: Option<String>,
    deleted: bool,
}

#[derive(Default)]
struct Api {
    pods: BTreeMap<u32, ApiPod>,
    history: Vec<(Time, Change)>,
}

impl Api {
    fn object(&self, number: u32) -> Pod {
        let pod = &self.pods[&number];
        let labels = json!({"app": role(number)});
        let zone = |app: &str| json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app}}});
        let node = |app: &str| {
            let mut term = zone(app);
            term["topologyKey"] = json!("kubernetes.io/hostname");
            term
        };
        // One to a zone, and none to a node of the shy ones, who know nothing of it.
        let lonely = json!({"podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [zone("lonely"), node("shy")],
        }});
        let affinity = if role(number) == "lonely" { lonely } else { json!({}) };
        serde_json::from_value(json!({
            "metadata": {
                "name": format!("p{number}"), "namespace": "d", "uid": pod.uid, "labels": labels,
            },
            "spec": {
                "nodeName": pod.node,
                "affinity": affinity,
                "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}],
            },
        }))
        .expect("pod")
    }

    fn live(&self) -> impl Iterator<Item = (&u32, &ApiPod)> {
        self.pods.iter().filter(|(_, pod)| !pod.deleted)
    }

    /// Binds, and checks the invariant that matters most.
    fn bind(&mut self, now: Time, number: u32, node: &str) -> BindOutcome {
        let pod = self.pods.get_mut(&number).expect("known pod");
        if pod.deleted {
            return BindOutcome::Gone;
        }
        match &pod.node {
            Some(other) if other == node => return BindOutcome::Bound,
            Some(other) => return BindOutcome::Elsewhere(other.clone()),
            None => pod.node = Some(node.to_owned()),
        }
        self.history.push((now, Change::Bound(number)));
        let taken = self.live().filter(|(_, pod)| pod.node.as_deref() == Some(node)).count();
        assert!(taken <= SLOTS as usize, "{now:?}: {node} takes {taken} pods of {SLOTS}");
        self.check_company(now, number, node);
        BindOutcome::Bound
    }

    /// No lonely pod shares a zone with another, nor a node with a shy one.
    fn check_company(&self, now: Time, number: u32, node: &str) {
        for (other, pod) in self.live().filter(|(other, _)| **other != number) {
            let Some(at) = &pod.node else { continue };
            let company = match (role(number), role(*other)) {
                ("lonely", "lonely") => zone_of(at) == zone_of(node),
                ("lonely", "shy") | ("shy", "lonely") => at == node,
                _ => false,
            };
            assert!(!company, "{now:?}: p{number} on {node} beside p{other} on {at}");
        }
    }

    fn delete(&mut self, now: Time, number: u32) {
        self.pods.get_mut(&number).expect("known pod").deleted = true;
        self.history.push((now, Change::Deleted(number)));
    }
}

/// Some pods have rules about others.
fn role(number: u32) -> &'static str {
    match number % 8 {
        3 => "lonely",
        5 => "shy",
        _ => "plain",
    }
}

fn zone_of(node: &str) -> u32 {
    node.trim_start_matches('n').parse::<u32>().expect("a node of ours") % 4
}

fn node(number: u32) -> Node {
    let amounts = json!({"cpu": SLOTS.to_string(), "memory": "64Gi", "pods": "110"});
    serde_json::from_value(json!({
        "metadata": {
            "name": format!("n{number}"),
            "labels": {
                "kubernetes.io/hostname": format!("n{number}"),
                "zone": zone_of(&format!("n{number}")).to_string(),
            },
        },
        "status": {"allocatable": amounts, "capacity": amounts},
    }))
    .expect("node")
}

/// A process that follows the apiserver.
struct Process<T> {
    state: T,
    /// Tells this run's events from an earlier run's.
    run: u64,
    /// How much of the history it has seen.
    cursor: usize,
}

struct Relay {
    coordinator: Coordinator,
    compiler: Compiler,
    term: Option<u64>,
    /// Still acts in its term although it holds the Lease no more.
    fenced: bool,
}

enum Event {
    /// Things that happen by themselves.
    Chaos,
    /// A process looks at the clock.
    Wake,
    Tick,
    Watch,
    Arrive {
        exchange: u64,
        leaf: usize,
    },
    Answer {
        exchange: u64,
        leaf: usize,
        response: Response,
    },
    Deadline {
        exchange: u64,
    },
    BindArrives {
        pod: u32,
        node: String,
    },
    BindEnds {
        relay: usize,
        run: u64,
        pod: PodId,
        outcome: Option<BindOutcome>,
        node: String,
    },
    Checked {
        shard: usize,
        run: u64,
        expiring: Expiring,
        lost: bool,
    },
    RestartShard(usize),
    RestartRelay(usize),
    Elect,
}

/// One message on its way through the tree.
struct Exchange {
    relay: usize,
    run: u64,
    id: u64,
    request: Request,
    leaves: Vec<(Request, Option<Response>)>,
}

struct Simulation {
    random: SmallRng,
    now: Time,
    sequence: u64,
    events: BinaryHeap<std::cmp::Reverse<(Time, u64)>>,
    payloads: HashMap<u64, Event>,
    api: Api,
    membership: Membership,
    shards: Vec<Option<Process<ShardMachine>>>,
    relays: Vec<Option<Process<Relay>>>,
    exchanges: HashMap<u64, Exchange>,
    next_exchange: u64,
    runs: u64,
    terms: u64,
    next_pod: u32,
    wake_at: Option<Time>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let names: Vec<String> = (0..SHARDS).map(|i| format!("s{i}")).collect();
        let mut simulation = Self {
            random: SmallRng::seed_from_u64(seed),
            now: Time::ZERO,
            sequence: 0,
            events: BinaryHeap::new(),
            payloads: HashMap::new(),
            api: Api::default(),
            membership: Membership::new(0, &names),
            shards: (0..SHARDS).map(|_| None).collect(),
            relays: vec![None, None],
            exchanges: HashMap::new(),
            next_exchange: 0,
            runs: 0,
            terms: 0,
            next_pod: 0,
            wake_at: None,
        };
        (0..SHARDS).for_each(|shard| simulation.start_shard(shard));
        (0..2).for_each(|relay| simulation.start_relay(relay));
        simulation.at(ms(10), Event::Elect);
        simulation.at(ms(20), Event::Chaos);
        simulation.at(ms(20), Event::Tick);
        simulation.at(ms(20), Event::Watch);
        simulation
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.sequence += 1;
        self.events.push(std::cmp::Reverse((self.now + after, self.sequence)));
        self.payloads.insert(self.sequence, event);
    }

    fn chance(&mut self, per_mille: u32) -> bool {
        self.random.random_range(0..1000) < per_mille
    }

    fn faulty(&mut self, per_mille: u32) -> bool {
        self.now < FAULTS_END && self.chance(per_mille)
    }

    fn start_shard(&mut self, shard: usize) {
        self.runs += 1;
        let name: Arc<str> = format!("s{shard}").into();
        let mut machine = ShardMachine::new(ShardConfig {
            name,
            membership: self.membership.clone(),
            incarnation: self.runs,
            ttl: Duration::from_secs(90),
        });
        machine.node_list_begins();
        (0..NODES).for_each(|number| machine.node_applied(&node(number)));
        machine.node_list_ends();
        machine.pod_list_begins();
        for (number, _) in self.api.live() {
            machine.pod_applied(&self.api.object(*number));
        }
        machine.pod_list_ends();
        let cursor = self.api.history.len();
        self.shards[shard] = Some(Process { state: machine, run: self.runs, cursor });
    }

    fn start_relay(&mut self, relay: usize) {
        self.runs += 1;
        let config = CoordinatorConfig {
            profile: "default-scheduler".to_owned(),
            membership: self.membership.clone(),
            relays: vec!["r8".into(), "r9".into()],
            max_binds: 8,
            deadline: Duration::from_secs(1),
            queue: QueueConfig::default(),
            default_spread: DefaultSpread::default(),
            await_directory: false,
            seed: self.random.random(),
        };
        let coordinator = Coordinator::new(config, Metrics::unregistered());
        let mut relay_state =
            Relay { coordinator, compiler: Compiler::default(), term: None, fenced: false };
        relay_state.coordinator.intake(self.now, Intake::Begin);
        for (number, pod) in self.api.live() {
            if pod.node.is_none() {
                let waiting = relay_state.compiler.waiting(&self.api.object(*number));
                relay_state.coordinator.intake(self.now, Intake::Applied(Box::new(waiting)));
            }
        }
        relay_state.coordinator.intake(self.now, Intake::End);
        let cursor = self.api.history.len();
        self.relays[relay] = Some(Process { state: relay_state, run: self.runs, cursor });
    }

    fn run(mut self) {
        while let Some(std::cmp::Reverse((at, sequence))) = self.events.pop() {
            if at > END {
                break;
            }
            self.now = at;
            if let Some(event) = self.payloads.remove(&sequence) {
                self.handle(event);
            }
            self.poll();
        }
        // Rules may leave no room for some.
        let anywhere = |number: u32| role(number) == "plain";
        let left = self.api.live().filter(|(n, pod)| pod.node.is_none() && anywhere(**n));
        let waiting: Vec<_> = left.map(|(n, _)| *n).collect();
        for relay in self.relays.iter().flatten().filter(|relay| relay.state.term.is_some()) {
            let coordinator = &relay.state.coordinator;
            let (up, of) = coordinator.shards_up();
            println!(
                "leader: {up} of {of} shards, {:?}, {} binds",
                coordinator.depths(),
                coordinator.binds_in_flight()
            );
        }
        for shard in self.shards.iter().flatten() {
            let (table, held) = (shard.state.table(), shard.state.reservations());
            println!("{}: {} pods, {held} held", shard.state.name(), table.pod_count());
        }
        assert!(waiting.is_empty(), "pods left waiting though there is room: {waiting:?}");
        for shard in self.shards.iter().flatten() {
            assert_eq!(shard.state.reservations(), 0, "reservations left behind");
        }
    }

    fn poll(&mut self) {
        let now = self.now;
        let mut wake = now + Duration::from_mins(1);
        for index in 0..self.relays.len() {
            let Some(relay) = &mut self.relays[index] else { continue };
            let run = relay.run;
            let actions = relay.state.coordinator.poll(now);
            let next = relay.state.coordinator.next_wake(now).max(now + ms(1));
            if relay.state.term.is_some() {
                wake = wake.min(next);
            }
            self.act(index, run, actions);
        }
        if self.wake_at.is_none_or(|at| at <= now || wake < at) {
            self.wake_at = Some(wake);
            self.at(wake.saturating_sub(now), Event::Wake);
        }
    }

    fn act(&mut self, relay: usize, run: u64, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Exchange { id, request } => self.send(relay, run, id, request),
                Action::Bind { pod, node } => self.bind(relay, run, pod, &node),
                Action::Report(Report::Scheduled { pod, node }) => {
                    let known = &self.api.pods[&number(&pod)];
                    assert_eq!(known.node.as_deref(), Some(&*node), "believed in a bind of {pod}");
                }
                Action::Report(Report::Failed { .. }) => {}
            }
        }
    }

    /// Cuts a message as the relays of the tree would, down to the shards.
    fn leaves(&self, request: &Request, found: &mut Vec<Request>) {
        for part in tree::split(request, &self.membership, 2) {
            match part.to {
                Branch::Shard(_) => found.push(part.request),
                Branch::Relay(_) => self.leaves(&part.request, found),
            }
        }
    }

    /// Puts the answers together as the relays of the tree would.
    fn gather(&self, request: &Request, leaves: &mut impl Iterator<Item = Response>) -> Response {
        let mut answered = Vec::new();
        for part in tree::split(request, &self.membership, 2) {
            let response = match part.to {
                Branch::Shard(_) => leaves.next().expect("one for each leaf"),
                Branch::Relay(_) => self.gather(&part.request, leaves),
            };
            answered.push((part.places, response));
        }
        tree::join(&request.operations, answered)
    }

    fn send(&mut self, relay: usize, run: u64, id: u64, request: Request) {
        let mut leaves = Vec::new();
        self.leaves(&request, &mut leaves);
        self.next_exchange += 1;
        let exchange = self.next_exchange;
        for leaf in 0..leaves.len() {
            // Lost, or so late that nobody waits for it: it may still be carried out.
            if self.faulty(20) {
                continue;
            }
            let late = if self.faulty(20) { 1500 } else { 0 };
            let after = ms(late + self.random.random_range(1..5));
            self.at(after, Event::Arrive { exchange, leaf });
        }
        let deadline = request.deadline;
        let leaves = leaves.into_iter().map(|request| (request, None)).collect();
        self.exchanges.insert(exchange, Exchange { relay, run, id, request, leaves });
        self.at(deadline, Event::Deadline { exchange });
    }

    fn answer(&mut self, exchange: u64) {
        let Some(found) = self.exchanges.remove(&exchange) else { return };
        let silent = Refusal::Unreachable("silent".to_owned());
        let mut leaves = found.leaves.into_iter().map(|(request, response)| {
            response.unwrap_or_else(|| Response::refused(&request.targets, &silent))
        });
        let response = self.gather(&found.request, &mut leaves);
        let Some(relay) = &mut self.relays[found.relay] else { return };
        if relay.run == found.run {
            let actions = relay.state.coordinator.exchanged(self.now, found.id, response);
            self.act(found.relay, found.run, actions);
        }
    }

    fn bind(&mut self, relay: usize, run: u64, pod: PodId, node: &Arc<str>) {
        let node = node.to_string();
        let fenced = self.relays[relay].as_ref().is_some_and(|relay| relay.state.fenced);
        let number = number(&pod);
        let answer = ms(self.random.random_range(5..50));
        if fenced || self.faulty(30) {
            let outcome = Some(BindOutcome::Refused("not sent".to_owned()));
            self.at(answer, Event::BindEnds { relay, run, pod, outcome, node });
        } else if self.faulty(60) {
            // Unanswered: carried out at once, later than the relay waits, or never.
            if self.chance(700) {
                let late = ms(self.random.random_range(1..8_000));
                self.at(late, Event::BindArrives { pod: number, node: node.clone() });
            }
            let outcome = Some(BindOutcome::Unknown("unanswered".to_owned()));
            let after = ms(self.random.random_range(500..6_000));
            self.at(after, Event::BindEnds { relay, run, pod, outcome, node });
        } else {
            self.at(answer, Event::BindEnds { relay, run, pod, outcome: None, node });
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Chaos => self.chaos(),
            Event::Wake => {}
            Event::Tick => self.tick(),
            Event::Watch => self.watch(),
            Event::Arrive { exchange, leaf } => self.arrive(exchange, leaf),
            Event::Answer { exchange, leaf, response } => {
                if let Some(found) = self.exchanges.get_mut(&exchange) {
                    found.leaves[leaf].1 = Some(response);
                    if found.leaves.iter().all(|(_, response)| response.is_some()) {
                        self.answer(exchange);
                    }
                }
            }
            Event::Deadline { exchange } => self.answer(exchange),
            Event::BindArrives { pod, node } => {
                self.api.bind(self.now, pod, &node);
            }
            Event::BindEnds { relay, run, pod, outcome, node } => {
                let outcome =
                    outcome.unwrap_or_else(|| self.api.bind(self.now, number(&pod), &node));
                let Some(process) = &mut self.relays[relay] else { return };
                if process.run == run {
                    let actions = process.state.coordinator.bound(self.now, &pod, outcome);
                    self.act(relay, run, actions);
                }
            }
            Event::Checked { shard, run, expiring, lost } => {
                let pod = &self.api.pods[&number(&expiring.pod)];
                let bound = !pod.deleted && pod.node.as_deref() == Some(&*expiring.node);
                if let Some(shard) = &mut self.shards[shard]
                    && shard.run == run
                {
                    shard.state.checked(self.now, &expiring, (!lost).then_some(bound));
                }
            }
            Event::RestartShard(shard) => self.start_shard(shard),
            Event::RestartRelay(relay) => self.start_relay(relay),
            Event::Elect => self.elect(),
        }
    }

    fn arrive(&mut self, exchange: u64, leaf: usize) {
        // An exchange that nobody waits for any more is carried out all the same.
        let Some(found) = self.exchanges.get(&exchange) else { return };
        let request = found.leaves[leaf].0.clone();
        let name = &request.targets[0].shard;
        let shard = self.shards.iter_mut().flatten().find(|shard| shard.state.name() == name);
        let Some(shard) = shard else { return };
        let response = shard.state.exchange(self.now, &request);
        if !self.faulty(20) {
            let after = ms(self.random.random_range(1..5));
            self.at(after, Event::Answer { exchange, leaf, response });
        }
    }

    /// Deliveries of watches: each process sees the next changes after a lag of its own.
    fn watch(&mut self) {
        let lag = |random: &mut SmallRng| ms(random.random_range(0..2_000));
        for index in 0..SHARDS {
            let seen_until = self.now.saturating_sub(lag(&mut self.random));
            let Some(shard) = &mut self.shards[index] else { continue };
            while let Some((at, change)) = self.api.history.get(shard.cursor) {
                if *at > seen_until {
                    break;
                }
                shard.cursor += 1;
                match change {
                    Change::Created(_) => {}
                    Change::Bound(number) => shard.state.pod_applied(&self.api.object(*number)),
                    Change::Deleted(number) => shard.state.pod_deleted(&self.api.object(*number)),
                }
            }
        }
        for index in 0..self.relays.len() {
            let seen_until = self.now.saturating_sub(lag(&mut self.random));
            let Some(relay) = &mut self.relays[index] else { continue };
            while let Some((at, change)) = self.api.history.get(relay.cursor) {
                if *at > seen_until {
                    break;
                }
                relay.cursor += 1;
                let Relay { coordinator, compiler, .. } = &mut relay.state;
                let (Change::Created(number) | Change::Bound(number) | Change::Deleted(number)) =
                    change;
                let waiting = compiler.waiting(&self.api.object(*number));
                let intake = match change {
                    Change::Created(_) => Intake::Applied(Box::new(waiting)),
                    Change::Bound(_) | Change::Deleted(_) => Intake::Gone(waiting.pending.uid),
                };
                coordinator.intake(self.now, intake);
            }
        }
        self.at(ms(50), Event::Watch);
    }

    fn tick(&mut self) {
        for index in 0..SHARDS {
            let Some(shard) = &mut self.shards[index] else { continue };
            let run = shard.run;
            for expiring in shard.state.due(self.now) {
                let lost = self.faulty(200);
                let after = ms(self.random.random_range(1..100));
                self.at(after, Event::Checked { shard: index, run, expiring, lost });
            }
        }
        self.at(Duration::from_secs(1), Event::Tick);
    }

    /// Pods come and go; processes die.
    fn chaos(&mut self) {
        self.at(ms(100), Event::Chaos);
        let live = self.api.live().count();
        let faults = self.now < FAULTS_END;
        let most = if faults { 60 } else { 40 };
        if faults && live < most && self.chance(500) {
            let number = self.next_pod;
            self.next_pod += 1;
            let uid = format!("00000000-0000-0000-0000-{number:012x}");
            self.api.pods.insert(number, ApiPod { uid, node: None, deleted: false });
            self.api.history.push((self.now, Change::Created(number)));
        }
        if live > most || self.faulty(200) {
            let numbers: Vec<u32> = self.api.live().map(|(number, _)| *number).collect();
            if !numbers.is_empty() {
                let number = numbers[self.random.random_range(0..numbers.len())];
                self.api.delete(self.now, number);
            }
        }
        if self.faulty(5) {
            let shard = self.random.random_range(0..SHARDS);
            if self.shards[shard].take().is_some() {
                let after = ms(self.random.random_range(10..10_000));
                self.at(after, Event::RestartShard(shard));
            }
        }
        if self.faulty(3) {
            self.end_leader();
        }
    }

    /// The leader dies, or loses the Lease and goes on for a while without noticing.
    fn end_leader(&mut self) {
        let leads = |relay: &Option<Process<Relay>>| {
            relay.as_ref().is_some_and(|relay| relay.state.term.is_some() && !relay.state.fenced)
        };
        let Some(index) = self.relays.iter().position(leads) else { return };
        if self.chance(500) {
            self.relays[index] = None;
            let after = ms(self.random.random_range(10..20_000));
            self.at(after, Event::RestartRelay(index));
        } else if let Some(relay) = &mut self.relays[index] {
            relay.state.fenced = true;
        }
        // The Lease has to run out.
        self.at(Duration::from_secs(15), Event::Elect);
    }

    fn elect(&mut self) {
        let now = self.now;
        for relay in self.relays.iter_mut().flatten() {
            if relay.state.fenced {
                relay.state.fenced = false;
                relay.state.term = None;
                relay.state.coordinator.step_down(now);
            }
        }
        if self.relays.iter().flatten().any(|relay| relay.state.term.is_some()) {
            return;
        }
        let next = self.random.random_range(0..self.relays.len());
        self.terms += 1;
        match &mut self.relays[next] {
            Some(relay) => {
                relay.state.term = Some(self.terms);
                relay.state.coordinator.lead(now, self.terms);
            }
            None => self.at(Duration::from_secs(1), Event::Elect),
        }
    }
}

fn number(pod: &PodId) -> u32 {
    pod.name.trim_start_matches('p').parse().expect("a pod of ours")
}

#[test]
fn nothing_is_overcommitted_believed_or_forgotten() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    if let Some(seed) = variable("SIMULATION_SEED") {
        Simulation::new(seed).run();
        return;
    }
    let seeds = variable("SIMULATION_SEEDS").unwrap_or(20);
    for seed in 0..seeds {
        let outcome = std::panic::catch_unwind(|| Simulation::new(seed).run());
        assert!(outcome.is_ok(), "failed: SIMULATION_SEED={seed}");
    }
}
