//! What a relay and its children say to each other, without the wire. [`wire`] turns it into
//! protobuf; a child in the same process takes it as it is.

pub mod generated;
pub mod transport;
pub mod wire;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::core::evaluate::Evaluation;
use crate::core::event::EventSet;
use crate::core::nominate::Nominee;
use crate::core::pod::{PodRequest, PodUid};
use crate::core::pool::{Asked, Pool};
use crate::core::preempt::{Budget, Question, Trial};
use crate::core::survey::Survey;

/// One pod, for good: a namesake made later has another UID.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodId {
    /// `metadata.uid`
    pub uid: Arc<str>,
    /// `metadata.namespace`
    pub namespace: Arc<str>,
    /// `metadata.name`
    pub name: Arc<str>,
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A shard's run: a random number that is not 0, drawn at its start.
pub type Incarnation = u64;

/// One shard that a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The shard's name.
    pub shard: Arc<str>,
    /// The run that the sender knows; 0 for none.
    pub incarnation: Incarnation,
    /// The count of changes that the sender has heard of.
    pub changes: u64,
}

/// A pod's share of a node.
#[derive(Clone, Debug)]
pub struct Reservation {
    /// Whose.
    pub pod: PodId,
    /// Of which node.
    pub node: Arc<str>,
    /// How much.
    pub class: Arc<PodRequest>,
    /// Grows with each attempt of a leader and with each leader.
    pub token: u64,
}

impl Reservation {
    /// What ends it.
    #[must_use]
    pub fn settlement(&self) -> Settlement {
        Settlement { uid: self.pod.uid.clone(), node: self.node.clone(), token: self.token }
    }
}

/// Which reservation ends. A late release must not undo a later reservation, hence the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// Which pod, by its UID.
    pub uid: Arc<str>,
    /// Where it has a share.
    pub node: Arc<str>,
    /// The reservation's.
    pub token: u64,
}

/// Where would evicting others make room for a pod? See [`Question`].
#[derive(Clone, Debug)]
pub struct Preempt {
    /// The pod.
    pub class: Arc<PodRequest>,
    /// Who it is.
    pub uid: PodUid,
    /// The node that it is promised already.
    pub nominated: Option<Arc<str>>,
    /// Pods that were evicted from that node for it.
    pub evicted: Arc<[PodUid]>,
    /// The survey of all shards, with domains of single nodes.
    pub survey: Arc<Survey>,
    /// Pods of the same or a higher priority that are promised a node.
    pub nominees: Arc<[Nominee]>,
    /// All budgets.
    pub budgets: Arc<[Budget]>,
    /// Decides among equals; the same for all targets.
    pub seed: u64,
}

impl Preempt {
    /// As the core asks it.
    #[must_use]
    pub fn question(&self) -> Question<'_> {
        Question {
            request: &self.class,
            uid: self.uid,
            nominated: self.nominated.as_deref(),
            evicted: &self.evicted,
            survey: &self.survey,
            nominees: &self.nominees,
            budgets: &self.budgets,
            seed: self.seed,
        }
    }
}

/// One operation.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Before phase 1, for all targets: what the pod's rules about other pods need to know.
    Survey {
        /// For which pods.
        class: Arc<PodRequest>,
        /// Whether domains of single nodes are listed too.
        full: bool,
    },
    /// Phase 1, for all targets.
    Evaluate {
        /// For which pods.
        class: Arc<PodRequest>,
        /// Decides among equals; the same for all targets.
        seed: u64,
        /// How many pods of the class wait: the answer may look as many ahead.
        count: u32,
        /// The surveys of all shards added up.
        survey: Option<Arc<Survey>>,
        /// Pods of the same or a higher priority that are promised a node. Where there are such,
        /// a survey lists domains of single nodes.
        nominees: Arc<[Nominee]>,
    },
    /// The same for several classes, one after the other, for targets that know of it.
    Draw {
        /// The classes.
        asked: Arc<[Asked]>,
        /// Decides among equals; the same for all targets.
        seed: u64,
    },
    /// For a pod that fits nowhere, for all targets: where evicting others makes room.
    Preempt(Preempt),
    /// Phase 2, for the node's owner, which checks again that the pod fits.
    Reserve(Reservation),
    /// As reserve, but without the check: the bind is under way already.
    Restore(Reservation),
    /// The pod is bound.
    Confirm(Settlement),
    /// The pod is not bound to this node and won't be by the reservation's bind.
    Release(Settlement),
}

impl Operation {
    /// The node that the operation is about; `None` where it is for all shards.
    #[must_use]
    pub fn node(&self) -> Option<&Arc<str>> {
        match self {
            Self::Survey { .. } | Self::Evaluate { .. } | Self::Draw { .. } | Self::Preempt(_) => {
                None
            }
            Self::Reserve(reservation) | Self::Restore(reservation) => Some(&reservation.node),
            Self::Confirm(settlement) | Self::Release(settlement) => Some(&settlement.node),
        }
    }

    /// The same for the owners of some nodes alone: promises of other nodes are left out.
    #[must_use]
    pub fn concerning(mut self, theirs: impl Fn(&str) -> bool) -> Self {
        let nominees = match &mut self {
            Self::Evaluate { nominees, .. } => nominees,
            Self::Preempt(preempt) => &mut preempt.nominees,
            _ => return self,
        };
        if !nominees.iter().all(|nominee| theirs(&nominee.node)) {
            *nominees = nominees.iter().filter(|n| theirs(&n.node)).cloned().collect();
        }
        self
    }
}

/// One message down.
#[derive(Clone, Debug)]
pub struct Request {
    /// The leader's term.
    pub term: u64,
    /// Hash of all shards' names.
    pub membership: u64,
    /// For which shards.
    pub targets: Vec<Target>,
    /// Relays that may stand between.
    pub relays: Vec<Arc<str>>,
    /// How long the answer may take.
    pub deadline: Duration,
    /// What to do, in this order.
    pub operations: Vec<Operation>,
}

/// Why a shard carried out nothing of a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A later leader has spoken.
    #[error("stale term: the shard has seen {current}")]
    StaleTerm {
        /// Its term.
        current: u64,
    },
    /// The nodes are divided otherwise.
    #[error("stale membership: the shard's is {current:x}")]
    StaleMembership {
        /// The shard's.
        current: u64,
    },
    /// Nodes or pods are not all read yet.
    #[error("the shard has not read all nodes and pods yet")]
    NotSynced,
    /// The shard has restarted since the sender last heard of it.
    #[error("the shard has restarted")]
    NewIncarnation,
    /// No answer.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// A request that makes no sense.
    #[error("malformed: {0}")]
    Malformed(String),
}

impl Refusal {
    /// A label for metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::StaleTerm { .. } => "stale_term",
            Self::StaleMembership { .. } => "stale_membership",
            Self::NotSynced => "not_synced",
            Self::NewIncarnation => "new_incarnation",
            Self::Unreachable(_) => "unreachable",
            Self::Malformed(_) => "malformed",
        }
    }
}

/// What one shard did with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardReport {
    /// Which shard.
    pub shard: Arc<str>,
    /// Its run; 0 where it is not known.
    pub incarnation: Incarnation,
    /// Counts what may have made room on the shard's nodes.
    pub changes: u64,
    /// What kinds of changes there were since the count in the target.
    pub events: EventSet,
    /// Whether some pod on its nodes keeps others away from more than its own node.
    pub keeps_domains_free: bool,
    /// The highest token of a reservation that this run was told of; 0 if none. Tokens grow with the
    /// term and within it.
    pub last_token: u64,
    /// Whether it knows [`Operation::Draw`], and whoever stands between.
    pub pools: bool,
    /// Why it did nothing; `None`: it did all.
    pub refusal: Option<Refusal>,
}

/// The answer to one operation.
#[derive(Clone, Debug)]
pub enum Answer {
    /// To an evaluation: one, which may look ahead ([`Evaluation::ahead`]). Of several, which an
    /// earlier version sends, the first counts.
    Evaluations(Vec<Evaluation>),
    /// To [`Operation::Draw`]: the shards' pools put together.
    Pool(Box<Pool>),
    /// To a survey.
    Survey(Box<Survey>),
    /// To [`Operation::Preempt`]: the shards' trials put together.
    Trial(Box<Trial>),
    /// To all else: done, or why not.
    Outcome(Result<(), String>),
    /// No shard that carried the request out was concerned.
    Nobody,
}

/// One message up.
#[derive(Clone, Debug)]
pub struct Response {
    /// One for each target.
    pub shards: Vec<ShardReport>,
    /// One for each operation, in their order; empty where every shard refused.
    pub answers: Vec<Answer>,
}

impl Response {
    /// No shard did anything, all for one reason.
    #[must_use]
    pub fn refused(targets: &[Target], refusal: &Refusal) -> Self {
        let report = |target: &Target| ShardReport {
            shard: target.shard.clone(),
            incarnation: 0,
            changes: 0,
            events: EventSet::EMPTY,
            keeps_domains_free: false,
            last_token: 0,
            pools: false,
            refusal: Some(refusal.clone()),
        };
        Self { shards: targets.iter().map(report).collect(), answers: Vec::new() }
    }
}
