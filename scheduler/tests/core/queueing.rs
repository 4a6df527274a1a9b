//! The queue: order, pauses, events, and that no pod is lost or handed out twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use megacluster_scheduler::core::diagnosis::{Plugin, PluginSet};
use megacluster_scheduler::core::event::{ClusterEvent, EventSet};
use megacluster_scheduler::core::pod::{PodRequest, PodUid};
use megacluster_scheduler::core::queue::{Attempt, Depths, Least, PendingPod, Queue, QueueConfig};
use proptest::prelude::*;

fn uid(number: u32) -> PodUid {
    PodUid::new(&format!("{number:032x}"))
}

fn waiting(number: u32, priority: i32) -> PendingPod {
    PendingPod {
        uid: uid(number),
        namespace: "default".into(),
        name: format!("p{number}").into(),
        gates: Vec::new(),
        request: Arc::new(PodRequest { priority, ..PodRequest::default() }),
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn by(plugins: &[Plugin]) -> PluginSet {
    plugins.iter().copied().collect()
}

/// A queue that doesn't try pods before their pause is over.
fn patient() -> Queue {
    Queue::new(QueueConfig { pop_from_backoff: false, ..QueueConfig::default() })
}

fn popped(queue: &mut Queue, now: Duration) -> Option<PodUid> {
    queue.pop(now).map(|attempt| attempt.pod.uid)
}

#[test]
fn priority_then_age() {
    let mut queue = Queue::default();
    queue.upsert(waiting(1, 0), seconds(0));
    queue.upsert(waiting(2, 5), seconds(1));
    queue.upsert(waiting(3, 5), seconds(1));
    queue.upsert(waiting(4, 0), seconds(2));
    let order: Vec<_> = std::iter::from_fn(|| popped(&mut queue, seconds(3))).collect();
    assert_eq!(order, [uid(2), uid(3), uid(1), uid(4)]);
    assert_eq!(queue.depths(), Depths { in_flight: 4, ..Depths::default() });
    queue.done(uid(1), seconds(3));
    queue.done(uid(9), seconds(3));
    assert_eq!(queue.depths().in_flight, 3);
}

#[test]
fn pauses_double_up_to_the_longest() {
    let mut queue = patient();
    queue.upsert(waiting(1, 0), seconds(0));
    let mut now = seconds(0);
    for (failure, pause) in [1, 2, 4, 8, 10, 10].into_iter().enumerate() {
        let attempt = queue.pop(now).unwrap();
        assert_eq!(attempt.number as usize, failure + 1);
        assert_eq!(attempt.first_ready, seconds(0));
        queue.retry(uid(1), now);
        // A pause ends with the whole second in which it would end.
        assert_eq!(queue.next_wake(), Some(now + seconds(pause + 1)));
        assert_eq!(popped(&mut queue, now + seconds(pause)), None);
        now += seconds(pause + 1);
    }
    assert_eq!(popped(&mut queue, now), Some(uid(1)));
}

#[test]
fn a_rejected_pod_waits_for_an_event_that_may_help() {
    let mut queue = patient();
    queue.upsert(waiting(1, 0), seconds(0));
    queue.pop(seconds(0));
    queue.unschedulable(uid(1), by(&[Plugin::TaintToleration]), false, seconds(0));
    assert_eq!(queue.depths().unschedulable, 1);
    assert_eq!(queue.notify(ClusterEvent::PodFreed.into(), seconds(5)), 0);
    assert_eq!(popped(&mut queue, seconds(5)), None);
    assert_eq!(queue.notify(ClusterEvent::NodeTaints.into(), seconds(6)), 1);
    // Its pause is long over.
    assert_eq!(popped(&mut queue, seconds(6)), Some(uid(1)));
    queue.unschedulable(uid(1), by(&[Plugin::TaintToleration]), false, seconds(6));
    assert_eq!(queue.notify(ClusterEvent::NodeAdded.into(), seconds(6)), 1);
    assert_eq!(queue.depths().backoff, 1);
    assert_eq!(popped(&mut queue, seconds(8)), None);
    assert_eq!(popped(&mut queue, seconds(9)), Some(uid(1)));
}

#[test]
fn nothing_to_do_tries_a_rejected_pod_early_but_never_after_an_error() {
    let mut queue = Queue::default();
    queue.upsert(waiting(1, 0), seconds(0));
    queue.pop(seconds(0));
    queue.unschedulable(uid(1), by(&[Plugin::NodeResourcesFit]), false, seconds(0));
    queue.notify(ClusterEvent::PodFreed.into(), seconds(0));
    assert_eq!(queue.next_wake(), Some(Duration::ZERO));
    assert_eq!(popped(&mut queue, seconds(0)), Some(uid(1)));
    queue.retry(uid(1), seconds(0));
    assert_eq!(popped(&mut queue, seconds(0)), None);
    assert_eq!(popped(&mut queue, seconds(2)), Some(uid(1)));
}

#[test]
fn a_pause_because_of_an_error_ends_when_that_may_be_over() {
    let mut queue = Queue::default();
    for number in 1..=3 {
        queue.upsert(waiting(number, 0), seconds(0));
        queue.pop(seconds(0));
    }
    queue.retry(uid(1), seconds(0));
    queue.unschedulable(uid(2), by(&[Plugin::NodeResourcesFit]), false, seconds(0));
    assert_eq!(queue.end_error_pauses(seconds(0)), 1);
    assert_eq!(popped(&mut queue, seconds(0)), Some(uid(1)));
    assert_eq!(popped(&mut queue, seconds(0)), None, "the rejected one waits on");
    // The next pause is the second one's.
    queue.retry(uid(1), seconds(0));
    assert_eq!(queue.next_wake(), Some(seconds(3)));
}

#[test]
fn an_event_during_the_try_is_not_missed() {
    for (event, woken) in [(ClusterEvent::PodFreed, true), (ClusterEvent::NodeLabels, false)] {
        let mut queue = patient();
        queue.notify(ClusterEvent::PodFreed.into(), seconds(0));
        queue.upsert(waiting(1, 0), seconds(0));
        queue.pop(seconds(0));
        queue.notify(event.into(), seconds(0));
        queue.unschedulable(uid(1), by(&[Plugin::NodeResourcesFit]), false, seconds(1));
        assert_eq!(queue.depths().backoff == 1, woken, "{event:?}");
        assert_eq!(queue.depths().unschedulable == 1, !woken, "{event:?}");
    }
}

#[test]
fn an_unschedulable_pod_is_tried_after_five_minutes() {
    let mut queue = Queue::default();
    queue.upsert(waiting(1, 0), seconds(0));
    queue.pop(seconds(0));
    queue.unschedulable(uid(1), by(&[Plugin::NodeName]), false, seconds(10));
    assert_eq!(queue.next_wake(), Some(seconds(310)));
    assert_eq!(popped(&mut queue, seconds(309)), None);
    assert_eq!(popped(&mut queue, seconds(310)), Some(uid(1)));
}

#[test]
fn gates_hold_a_pod_until_they_go() {
    let mut queue = Queue::default();
    let gated = PendingPod { gates: vec!["g".into()], ..waiting(1, 0) };
    queue.upsert(gated.clone(), seconds(0));
    assert_eq!(queue.notify(EventSet::ALL, seconds(1)), 0);
    assert_eq!(popped(&mut queue, seconds(600)), None);
    assert_eq!(queue.depths().gated, 1);
    queue.upsert(PendingPod { gates: Vec::new(), ..gated }, seconds(700));
    assert_eq!(queue.pop(seconds(700)).unwrap().first_ready, seconds(700));
}

#[test]
fn a_changed_request_is_tried_again() {
    let mut queue = patient();
    queue.upsert(waiting(1, 0), seconds(0));
    queue.pop(seconds(0));
    queue.unschedulable(uid(1), by(&[Plugin::Unsupported]), false, seconds(0));
    // The same again: a status update, say.
    queue.upsert(waiting(1, 0), seconds(100));
    assert_eq!(queue.depths().unschedulable, 1);
    queue.upsert(waiting(1, 7), seconds(100));
    assert_eq!(queue.depths().active, 1);
    // Changed during the try.
    queue.pop(seconds(100));
    queue.upsert(waiting(1, 8), seconds(100));
    queue.unschedulable(uid(1), by(&[Plugin::Unsupported]), false, seconds(100));
    assert_eq!(queue.depths().backoff, 1);
}

#[test]
fn a_pod_that_goes_during_its_try_does_not_come_back() {
    let mut queue = Queue::default();
    queue.upsert(waiting(1, 0), seconds(0));
    queue.pop(seconds(0));
    queue.remove(uid(1), seconds(0));
    assert!(!queue.contains(uid(1)));
    queue.retry(uid(1), seconds(0));
    assert_eq!(queue.depths(), Depths::default());
}

#[test]
fn a_list_forgets_what_it_does_not_show() {
    let mut queue = Queue::default();
    (0..4).for_each(|number| queue.upsert(waiting(number, 0), seconds(0)));
    queue.pop(seconds(0));
    queue.retain(|listed| listed == uid(2), seconds(0));
    assert_eq!(queue.depths(), Depths { active: 1, in_flight: 1, ..Depths::default() });
    queue.retry(uid(0), seconds(0));
    assert_eq!(queue.depths(), Depths { active: 1, ..Depths::default() });
}

/// Pods of one class, of a namespace.
fn equal(number: u32, namespace: &str, class: &Arc<PodRequest>) -> PendingPod {
    PendingPod { namespace: namespace.into(), request: class.clone(), ..waiting(number, 0) }
}

#[test]
fn a_flood_leaves_other_namespaces_their_turn() {
    let mut queue = Queue::default();
    let class = Arc::new(PodRequest::default());
    (0..1000).for_each(|number| queue.upsert(equal(number, "flood", &class), seconds(0)));
    let first: Vec<_> = (0..100).filter_map(|_| popped(&mut queue, seconds(1))).collect();
    assert_eq!(first, (0..100).map(uid).collect::<Vec<_>>());
    (2000..2040).for_each(|number| queue.upsert(equal(number, "quiet", &class), seconds(1)));
    queue.upsert(equal(3000, "one", &class), seconds(1));
    let next: Vec<_> = (0..200).filter_map(|_| popped(&mut queue, seconds(2))).collect();
    let place = |number| next.iter().position(|found| *found == uid(number)).unwrap();
    // Behind what is left of the flood's turn and one turn of the other.
    assert!(place(3000) < 64 + 32, "{}", place(3000));
    // Two turns, and the flood's between them.
    assert!(place(2039) < 4 * 32 + 1, "{}", place(2039));
    assert!((2000..2039).all(|number| place(number) < place(number + 1)));
    // Priority goes first all the same.
    queue.upsert(waiting(4000, 1), seconds(2));
    assert_eq!(popped(&mut queue, seconds(2)), Some(uid(4000)));
}

/// The next pods that follow the first one because they ask for the same.
fn alike(queue: &mut Queue, first: u32, now: Duration) -> Vec<PodUid> {
    std::iter::from_fn(|| queue.pop_like(uid(first), now).map(|attempt| attempt.pod.uid)).collect()
}

#[test]
fn equal_pods_that_came_at_about_the_same_time_follow_each_other() {
    let mut queue = Queue::default();
    let classes = [0, 1].map(|_| Arc::new(PodRequest::default()));
    for number in 0..10 {
        let class = &classes[number as usize % 2];
        queue.upsert(equal(number, "one", class), Duration::from_millis(250) * number);
    }
    assert_eq!(popped(&mut queue, seconds(3)), Some(uid(0)));
    // The pod whose request becomes another is no longer like them.
    let other = PodRequest { may_preempt: true, ..PodRequest::default() };
    queue.upsert(equal(2, "one", &Arc::new(other)), seconds(3));
    assert_eq!(alike(&mut queue, 0, seconds(3)), [uid(4)], "those of one second");
    assert_eq!(popped(&mut queue, seconds(3)), Some(uid(1)));
    assert_eq!(alike(&mut queue, 1, seconds(3)), [uid(3), uid(5)]);
    let rest: Vec<_> = std::iter::from_fn(|| popped(&mut queue, seconds(3))).collect();
    assert_eq!(rest, [2, 6, 7, 8, 9].map(uid));
    assert_eq!(alike(&mut queue, 6, seconds(3)), []);
}

#[test]
fn equal_pods_of_a_flood_do_not_take_more_than_a_few_turns_at_once() {
    let mut queue = Queue::default();
    let class = Arc::new(PodRequest::default());
    (0..1000).for_each(|number| queue.upsert(equal(number, "flood", &class), seconds(0)));
    assert_eq!(popped(&mut queue, seconds(1)), Some(uid(0)));
    queue.upsert(equal(2000, "quiet", &Arc::default()), seconds(1));
    let taken = alike(&mut queue, 0, seconds(1));
    assert!(taken == (1..128).map(uid).collect::<Vec<_>>(), "{} pods", taken.len());
    assert_eq!(popped(&mut queue, seconds(1)), Some(uid(2000)));
    // Alone again, it takes all at once.
    assert_eq!(popped(&mut queue, seconds(1)), Some(uid(128)));
    assert_eq!(alike(&mut queue, 128, seconds(1)).len(), 1000 - 129);
}

/// Has all pods tried until none is ready; those for which there is room are placed. How many were.
fn round(queue: &mut Queue, room: &mut usize, now: Duration) -> usize {
    let mut tried = 0;
    while let Some(attempt) = queue.pop(now) {
        tried += 1;
        if *room > 0 {
            *room -= 1;
            queue.done(attempt.pod.uid, now);
        } else {
            queue.unschedulable(attempt.pod.uid, by(&[Plugin::NodeResourcesFit]), false, now);
        }
    }
    tried
}

#[test]
fn of_equal_pods_as_many_are_tried_as_there_is_room_for() {
    let mut queue = Queue::default();
    let class = Arc::new(PodRequest::default());
    (0..10_000).for_each(|number| queue.upsert(equal(number, "default", &class), seconds(0)));
    assert_eq!(round(&mut queue, &mut 0, seconds(0)), 10_000);
    let freed = EventSet::from(ClusterEvent::PodFreed);
    // Nothing fits: one try tells.
    queue.notify(freed, seconds(100));
    assert_eq!(round(&mut queue, &mut 0, seconds(100)), 1);
    // There is room for some: they get it, and few are tried in vain.
    for room in [1, 7, 1000] {
        let mut left = room;
        queue.notify(freed, seconds(200));
        let tried = round(&mut queue, &mut left, seconds(200));
        assert_eq!(left, 0);
        assert!(tried <= 5 * room + 1, "{tried} for {room}");
    }
    assert_eq!(queue.depths().unschedulable, 10_000 - 1008);
    // The one that is tried goes away, or asks for something else: another says how things are.
    for change in 0..2 {
        queue.notify(freed, seconds(300));
        let attempt = queue.pop(seconds(300)).unwrap();
        if change == 0 {
            queue.remove(attempt.pod.uid, seconds(300));
        } else {
            let request =
                Arc::new(PodRequest { priority: 0, containers: 2, ..PodRequest::default() });
            queue.upsert(PendingPod { request, ..attempt.pod.clone() }, seconds(300));
        }
        assert!(queue.depths().active + queue.depths().backoff > 0);
        queue.unschedulable(attempt.pod.uid, by(&[Plugin::NodeResourcesFit]), false, seconds(300));
        round(&mut queue, &mut 0, seconds(320));
    }
}

#[test]
fn a_verdict_of_its_own_wakes_each_pod() {
    let mut queue = Queue::default();
    let class = Arc::new(PodRequest::default());
    for number in 0..5 {
        queue.upsert(equal(number, "default", &class), seconds(0));
        queue.pop(seconds(0));
        queue.unschedulable(uid(number), by(&[Plugin::NodeResourcesFit]), true, seconds(0));
    }
    assert_eq!(queue.notify(ClusterEvent::PodFreed.into(), seconds(50)), 5);
}

#[test]
fn the_least_was_tried_in_vain_or_has_a_lower_priority() {
    let mut queue = Queue::default();
    let least = |number, tried| Some(Least { uid: uid(number), tried });
    assert_eq!(queue.least(9), None);
    queue.upsert(waiting(1, 3), seconds(0));
    queue.upsert(waiting(2, 1), seconds(0));
    assert_eq!((queue.least(1), queue.least(2)), (None, least(2, false)));
    queue.upsert(waiting(3, 9), seconds(0));
    queue.pop(seconds(0));
    queue.unschedulable(uid(3), by(&[Plugin::NodeName]), false, seconds(0));
    assert_eq!((queue.least(8), queue.least(9)), (least(2, false), least(3, true)));
    // Ready again after a try in vain.
    queue.remove(uid(2), seconds(0));
    queue.pop(seconds(0));
    queue.unschedulable(uid(1), by(&[Plugin::NodeResourcesFit]), false, seconds(0));
    queue.notify(ClusterEvent::PodFreed.into(), seconds(50));
    assert_eq!(queue.least(4), least(1, true));
}

#[derive(Clone, Debug)]
enum Step {
    Upsert { pod: u32, priority: i32, gated: bool },
    Remove { pod: u32 },
    Pop,
    PopLike { nth: usize },
    Done { nth: usize },
    Unschedulable { nth: usize, plugins: Vec<Plugin>, alone: bool },
    Retry { nth: usize },
    Notify { events: u8 },
    Wait { millis: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let plugins = prop::collection::vec(prop::sample::select(Plugin::ALL.to_vec()), 0..3);
    prop_oneof![
        4 => (0..20_u32, 0..3, prop::bool::weighted(0.2))
            .prop_map(|(pod, priority, gated)| Step::Upsert { pod, priority, gated }),
        1 => (0..20_u32).prop_map(|pod| Step::Remove { pod }),
        4 => Just(Step::Pop),
        2 => (0..9_usize).prop_map(|nth| Step::PopLike { nth }),
        1 => (0..9_usize).prop_map(|nth| Step::Done { nth }),
        2 => (0..9_usize, plugins, any::<bool>())
            .prop_map(|(nth, plugins, alone)| Step::Unschedulable { nth, plugins, alone }),
        2 => (0..9_usize).prop_map(|nth| Step::Retry { nth }),
        1 => any::<u8>().prop_map(|events| Step::Notify { events }),
        2 => (0..20_000_u64).prop_map(|millis| Step::Wait { millis }),
    ]
}

/// Which pods wait, whether gated, and which are in flight (the value: not removed meanwhile).
#[derive(Default)]
struct Model {
    waiting: BTreeMap<u32, bool>,
    in_flight: BTreeMap<u32, bool>,
    gated_in_flight: BTreeSet<u32>,
    /// What pods ask for, by priority: some share it.
    classes: BTreeMap<i32, Arc<PodRequest>>,
}

impl Model {
    fn number(uid: PodUid) -> u32 {
        (0..20).find(|number| self::uid(*number) == uid).unwrap()
    }

    fn nth_in_flight(&self, nth: usize) -> Option<u32> {
        self.in_flight.keys().copied().nth(nth % self.in_flight.len().max(1))
    }

    fn pop(&mut self, queue: &mut Queue, now: Duration) -> Result<bool, TestCaseError> {
        self.take(queue.pop(now))
    }

    fn take(&mut self, attempt: Option<Attempt>) -> Result<bool, TestCaseError> {
        let Some(attempt) = attempt else { return Ok(false) };
        let number = Self::number(attempt.pod.uid);
        prop_assert_eq!(self.waiting.remove(&number), Some(false), "{} wasn't ready", number);
        prop_assert!(self.in_flight.insert(number, true).is_none(), "{} twice", number);
        Ok(true)
    }

    fn come_back(&mut self, number: u32) {
        let gated = self.gated_in_flight.remove(&number);
        if self.in_flight.remove(&number) == Some(true) {
            self.waiting.insert(number, gated);
        }
    }

    fn apply(
        &mut self,
        queue: &mut Queue,
        step: Step,
        now: &mut Duration,
    ) -> Result<(), TestCaseError> {
        match step {
            Step::Upsert { pod, priority, gated } => {
                let gates = if gated { vec!["g".to_owned()] } else { Vec::new() };
                // A gate can't come back, and neither can a priority change.
                let known = self.waiting.get(&pod).copied();
                if gated && (known == Some(false) || self.in_flight.contains_key(&pod)) {
                    return Ok(());
                }
                let new = waiting(pod, priority);
                let request = self.classes.entry(priority).or_insert(new.request).clone();
                queue.upsert(PendingPod { gates, request, ..waiting(pod, priority) }, *now);
                match self.in_flight.get_mut(&pod) {
                    Some(alive) => *alive = true,
                    None => _ = self.waiting.insert(pod, gated),
                }
            }
            Step::Remove { pod } => {
                queue.remove(uid(pod), *now);
                self.waiting.remove(&pod);
                self.in_flight.entry(pod).and_modify(|alive| *alive = false);
            }
            Step::Pop => _ = self.pop(queue, *now)?,
            Step::PopLike { nth } => {
                if let Some(number) = self.nth_in_flight(nth) {
                    self.take(queue.pop_like(uid(number), *now))?;
                }
            }
            Step::Done { nth } => {
                if let Some(number) = self.nth_in_flight(nth) {
                    queue.done(uid(number), *now);
                    self.in_flight.remove(&number);
                }
            }
            Step::Unschedulable { nth, plugins, alone } => {
                if let Some(number) = self.nth_in_flight(nth) {
                    queue.unschedulable(uid(number), by(&plugins), alone, *now);
                    self.come_back(number);
                }
            }
            Step::Retry { nth } => {
                if let Some(number) = self.nth_in_flight(nth) {
                    queue.retry(uid(number), *now);
                    self.come_back(number);
                }
            }
            Step::Notify { events } => _ = queue.notify(EventSet::from_bits(events.into()), *now),
            Step::Wait { millis } => *now += Duration::from_millis(millis),
        }
        Ok(())
    }

    fn check(&self, queue: &Queue) -> Result<(), TestCaseError> {
        let depths = queue.depths();
        let gated = self.waiting.values().filter(|gated| **gated).count();
        prop_assert_eq!(depths.gated, gated);
        let ungated = depths.active + depths.backoff + depths.unschedulable;
        prop_assert_eq!(ungated, self.waiting.len() - gated);
        prop_assert_eq!(depths.in_flight, self.in_flight.len());
        for number in 0..20 {
            let alive = self.waiting.contains_key(&number)
                || self.in_flight.get(&number).copied().unwrap_or_default();
            prop_assert_eq!(queue.contains(uid(number)), alive);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn no_pod_is_lost_and_none_handed_out_twice(
        steps in prop::collection::vec(step(), 1..120),
        pop_from_backoff in any::<bool>(),
    ) {
        let mut queue = Queue::new(QueueConfig { pop_from_backoff, ..QueueConfig::default() });
        let mut model = Model::default();
        let mut now = Duration::ZERO;
        for step in steps {
            model.apply(&mut queue, step, &mut now)?;
            model.check(&queue)?;
        }
        // Whatever happened, time alone brings out every pod that no gate holds, and the queue
        // says when.
        let mut idle = 0;
        while idle < 2 {
            while model.pop(&mut queue, now)? {
                idle = 0;
            }
            match queue.next_wake() {
                Some(wake) => {
                    prop_assert!(wake > now, "nothing at the moment announced");
                    now = wake;
                }
                None => idle = 2,
            }
        }
        prop_assert!(model.waiting.values().all(|gated| *gated));
    }
}
