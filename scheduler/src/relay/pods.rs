//! The pods that the watch of waiting pods shows, beside the queue that orders them: who they are,
//! whether they are being bound, and what was said about them.

use std::sync::Arc;
use std::time::Duration;

use super::lookup::News;
use super::nominations::Nominations;
use super::report::Report;
use crate::core::directory::{Change, Key};
use crate::core::maps::{HashMap, HashSet};
use crate::core::pod::PodUid;
use crate::core::preempt::Budget;
use crate::core::queue::{Moment, PendingPod, Queue};
use crate::core::volumes::{ClaimName, Mounts, storage};
use crate::protocol::PodId;

/// The same thing is said again about a pod after this long.
const REPEAT: Duration = Duration::from_mins(5);

/// Pods that were left out are listed again no sooner and no later than this; in between it is after
/// `LIST_PER_POD` for each pod that the list shows, so that lists are a small part of the work.
const LIST: (Duration, Duration) = (Duration::from_secs(30), Duration::from_mins(5));
const LIST_PER_POD: Duration = Duration::from_micros(300);

/// For each pod that is held so many that have yielded are remembered, at some 16 bytes.
const YIELDED: usize = 8;

/// The list is read anew for pods that were left out when one in so many places is free.
const ROOM: usize = 8;

/// A waiting pod as the watch shows it.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Who it is.
    pub id: PodId,
    /// For the queue.
    pub pending: PendingPod,
    /// `metadata.generation`
    pub generation: i64,
    /// Its `PodScheduled` condition, where that is False: reason and message.
    pub condition: Option<(String, String)>,
    /// Whether it is being deleted: then it isn't placed any more.
    pub deleting: bool,
    /// `status.nominatedNodeName`
    pub nominated: Option<Arc<str>>,
    /// `metadata.resourceVersion`: later versions of a pod have greater ones.
    pub version: u64,
}

/// What the watch of waiting pods shows.
#[derive(Clone, Debug)]
pub enum Intake {
    /// A list begins.
    Begin,
    /// A pod waits, in this version.
    Applied(Box<Waiting>),
    /// A pod waits no more: it has a node or is gone.
    Gone(PodUid),
    /// The list is complete.
    End,
    /// News of what pods are looked up in.
    Directory(Change),
    /// News of `PodDisruptionBudget`s.
    Budgets(News<Budget>),
    /// News of what pods' volumes hang on.
    Storage(Box<storage::Change>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the queue or in a round.
    Waiting,
    /// Being bound.
    Binding,
    /// Bound, or nothing more to do; the watch hasn't caught up.
    Settled,
}

#[derive(Debug)]
struct Known {
    id: PodId,
    state: State,
    list: u64,
    generation: i64,
    condition: Option<(String, String)>,
    said: Option<(String, Moment)>,
    mounts: Option<Arc<Mounts>>,
}

/// All pods that the watch shows.
#[derive(Debug, Default)]
pub struct Pods {
    known: HashMap<PodUid, Known>,
    /// Who mounts which claim.
    mounting: HashMap<Key, HashSet<PodUid>>,
    list: u64,
    /// Pods that the watch showed since its last list and that are not held, for there were too
    /// many.
    left_out: usize,
    /// Pods that were tried in vain and yielded: they come again when all others had their turn, or
    /// when they are [`YIELDED`] times as many as may be held.
    yielded: HashSet<PodUid>,
    /// Whether some pod has had its turn by such a one since the last list began.
    turned: bool,
    /// Whether the list was asked for anew, and when the last one began.
    asked: bool,
    listed: Moment,
}

impl Pods {
    /// Takes over what the watch shows, into the queue too.
    pub fn take(
        &mut self,
        queue: &mut Queue,
        nominations: &mut Nominations,
        now: Moment,
        intake: Intake,
    ) {
        match intake {
            Intake::Begin => {
                self.list += 1;
                (self.left_out, self.asked, self.listed) = (0, false, now);
                let most = queue.max_pending().saturating_mul(YIELDED);
                if !std::mem::take(&mut self.turned) || self.yielded.len() >= most {
                    self.yielded.clear();
                }
            }
            Intake::Applied(pod) => self.applied(queue, nominations, now, *pod),
            Intake::Gone(uid) => {
                self.yielded.remove(&uid);
                self.gone(queue, nominations, now, uid);
            }
            // The coordinator's.
            Intake::Directory(_) | Intake::Budgets(_) | Intake::Storage(_) => {}
            Intake::End => {
                let list = self.list;
                let stale = self.known.iter().filter(|(_, known)| known.list < list);
                let stale: Vec<PodUid> = stale.map(|(uid, _)| *uid).collect();
                for uid in stale {
                    self.gone(queue, nominations, now, uid);
                }
            }
        }
    }

    fn applied(
        &mut self,
        queue: &mut Queue,
        nominations: &mut Nominations,
        now: Moment,
        pod: Waiting,
    ) {
        let uid = pod.pending.uid;
        if pod.deleting {
            self.gone(queue, nominations, now, uid);
            return;
        }
        if !self.known.contains_key(&uid)
            && self.known.len() >= queue.max_pending()
            && !self.makes_room(queue, nominations, now, &pod)
        {
            return;
        }
        let known = self.known.entry(uid).or_insert_with(|| Known {
            id: pod.id,
            state: State::Waiting,
            list: 0,
            generation: 0,
            condition: None,
            said: None,
            mounts: None,
        });
        if known.mounts.is_none()
            && let Some(mounts) = &pod.pending.request.mounts
        {
            // What a pod mounts can't change.
            known.mounts = Some(Arc::clone(mounts));
            for key in claims(mounts) {
                self.mounting.entry(key).or_default().insert(uid);
            }
        }
        known.list = self.list;
        known.generation = pod.generation;
        known.condition = pod.condition;
        if known.state != State::Settled {
            nominations.shown(uid, &pod.pending.request, pod.nominated, pod.version);
            queue.upsert(pod.pending, now);
        }
    }

    fn gone(&mut self, queue: &mut Queue, nominations: &mut Nominations, now: Moment, uid: PodUid) {
        nominations.forget(uid);
        let known = self.known.remove(&uid);
        for key in known.iter().flat_map(|known| &known.mounts).flat_map(|mounts| claims(mounts)) {
            if let Some(pods) = self.mounting.get_mut(&key) {
                pods.remove(&uid);
                if pods.is_empty() {
                    self.mounting.remove(&key);
                }
            }
        }
        queue.remove(uid, now);
    }

    /// At the bound: a pod goes that is missed less than this one, or this one is left out. Either
    /// comes back with a later list: one that was tried in vain and has yielded is left out until
    /// all others had their turn, or the first pods of each list would keep the last ones out. One
    /// that was still ready has its turn to come. A pod that is promised a node is always held,
    /// since its room is kept from others; the promises have a bound of their own.
    fn makes_room(
        &mut self,
        queue: &mut Queue,
        nominations: &mut Nominations,
        now: Moment,
        pod: &Waiting,
    ) -> bool {
        if pod.nominated.is_some() {
            return true;
        }
        self.left_out = self.left_out.saturating_add(1);
        let had_its_turn = self.yielded.contains(&pod.pending.uid);
        let least = queue.least(pod.pending.request.priority).filter(|_| !had_its_turn);
        let Some(least) = least.filter(|least| nominations.node(least.uid).is_none()) else {
            return false;
        };
        self.gone(queue, nominations, now, least.uid);
        if least.tried {
            if self.yielded.len() < queue.max_pending().saturating_mul(YIELDED) {
                self.yielded.insert(least.uid);
            }
            self.turned = true;
        }
        true
    }

    /// Pods that the apiserver has and this process does not hold.
    #[must_use]
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// Whether the list has to be read anew for the pods that were left out: there is room again, or
    /// they have waited for long and one that was tried in vain has to yield. Told once.
    pub fn wants_list(&mut self, bound: usize, now: Moment) -> bool {
        let room = self.known.len() <= bound - (bound / ROOM).max(1).min(bound);
        let pods = u32::try_from(self.known.len().saturating_add(self.left_out));
        let pause = LIST_PER_POD.saturating_mul(pods.unwrap_or(u32::MAX)).clamp(LIST.0, LIST.1);
        let due = room || now >= self.listed + pause;
        let wants = self.left_out > 0 && due && !self.asked;
        self.asked |= wants;
        wants
    }

    /// The pods that mount a claim.
    pub fn mounting(&self, claim: &Key) -> impl Iterator<Item = PodUid> {
        self.mounting.get(claim).into_iter().flatten().copied()
    }

    /// Who a pod is, while the watch shows it.
    #[must_use]
    pub fn id(&self, uid: PodUid) -> Option<PodId> {
        self.known.get(&uid).map(|known| known.id.clone())
    }

    /// The pod of a name, and what was said of it last.
    #[must_use]
    pub fn by_name(&self, namespace: &str, name: &str) -> Option<(PodUid, Option<String>)> {
        let named = |known: &Known| *known.id.namespace == *namespace && *known.id.name == *name;
        let (uid, known) = self.known.iter().find(|(_, known)| named(known))?;
        let condition = known.condition.as_ref().map(|(_, message)| message.clone());
        Some((*uid, known.said.as_ref().map(|(message, _)| message.clone()).or(condition)))
    }

    /// Whether a pod is there to be placed.
    #[must_use]
    pub fn is_waiting(&self, uid: PodUid) -> bool {
        self.known.get(&uid).is_some_and(|known| known.state == State::Waiting)
    }

    /// A pod is being bound from now on. Whether it is still there.
    pub fn binds(&mut self, uid: PodUid) -> bool {
        self.set(uid, State::Binding)
    }

    /// Nothing more is to be done about a pod.
    pub fn settled(&mut self, uid: PodUid) {
        self.set(uid, State::Settled);
    }

    /// A pod's bind failed.
    pub fn waits(&mut self, uid: PodUid) {
        self.set(uid, State::Waiting);
    }

    fn set(&mut self, uid: PodUid, state: State) -> bool {
        let Some(known) = self.known.get_mut(&uid) else { return false };
        known.state = state;
        true
    }

    /// A pod fits nowhere: what to say, unless it was said just now. `withdraw`: it is promised no
    /// node any more.
    pub fn failed(
        &mut self,
        uid: PodUid,
        profile: &Arc<str>,
        message: String,
        withdraw: bool,
        now: Moment,
    ) -> Option<Report> {
        let known = self.known.get_mut(&uid)?;
        let repeated = |(said, at): &(String, Moment)| *said == message && now < *at + REPEAT;
        if !withdraw && known.said.as_ref().is_some_and(repeated) {
            return None;
        }
        known.said = Some((message.clone(), now));
        let same = ("Unschedulable", message.as_str());
        let condition = known.condition.as_ref();
        let written =
            condition.is_some_and(|(reason, text)| (reason.as_str(), text.as_str()) == same);
        Some(Report::Failed {
            pod: known.id.clone(),
            generation: known.generation,
            was_false: condition.is_some(),
            write_condition: withdraw || !written,
            withdraw,
            message,
            profile: profile.clone(),
        })
    }
}

fn claims(mounts: &Mounts) -> impl Iterator<Item = Key> {
    let key = |claim: &ClaimName| (Arc::clone(&mounts.namespace), Arc::clone(&claim.name));
    mounts.claims.iter().map(key)
}

/// Shared texts: many pods have one namespace.
#[must_use]
pub fn pod_id(uid: &str, namespace: Arc<str>, name: &str) -> PodId {
    PodId { uid: uid.into(), namespace, name: name.into() }
}
