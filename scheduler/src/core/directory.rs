//! What a pod's rules hang on beside pods and nodes: the labels of namespaces, and the selectors of
//! Services and owners, which say what a pod without spread constraints of its own is spread over
//! (`plugins/helper/spread.go`, `DefaultSelector`).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::affinity::Reach;
use super::labels::{Labels, Selector};
use super::maps::{HashMap, HashSet};
use super::pod::{OwnerKind, PodRequest};
use super::selector::{HOSTNAME_LABEL, Requirement};
use super::spread::{Constraint, Spread, ZONE_LABEL};

/// Resolved requests that are remembered; the memory starts anew when it is full.
const MEMO: usize = 4096;

/// A kind of object that is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Namespaces, for their labels.
    Namespace,
    /// Services, for their selectors.
    Service,
    /// Owners, for theirs.
    Owner(OwnerKind),
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::Namespace,
        Self::Service,
        Self::Owner(OwnerKind::ReplicationController),
        Self::Owner(OwnerKind::ReplicaSet),
        Self::Owner(OwnerKind::StatefulSet),
    ];
}

/// Namespace and name; a namespace itself has an empty namespace.
pub type Key = (Arc<str>, Arc<str>);

/// What is kept of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Labels of a namespace, or equalities that a Service or a `ReplicationController` selects by.
    Labels(Labels),
    /// The selector of a `ReplicaSet` or `StatefulSet`.
    Selector(Selector),
}

/// News of these objects.
#[derive(Clone, Debug)]
pub enum Change {
    /// All objects of a kind.
    Replace(Kind, Vec<(Key, Value)>),
    /// One object; no value: it is gone, or selects nothing.
    One(Kind, Key, Option<Value>),
}

/// The constraints of a profile for pods that have none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DefaultSpread {
    /// `DoNotSchedule`, without selectors.
    pub hard: Vec<Constraint>,
    /// `ScheduleAnyway`, without selectors.
    pub soft: Vec<Constraint>,
    /// Whether they are the system's own, which score nodes without the labels too.
    pub system: bool,
}

impl Default for DefaultSpread {
    /// `systemDefaultConstraints` in `plugins/podtopologyspread/plugin.go`.
    fn default() -> Self {
        Self {
            hard: Vec::new(),
            soft: vec![
                Constraint::default_for(HOSTNAME_LABEL, 3),
                Constraint::default_for(ZONE_LABEL, 5),
            ],
            system: true,
        }
    }
}

#[derive(Debug)]
struct Resolved {
    /// Keeps the address, by which it is remembered, from being used again.
    _request: Arc<PodRequest>,
    generation: u64,
    outcome: Arc<PodRequest>,
}

/// The objects.
#[derive(Debug, Default)]
pub struct Directory {
    namespaces: BTreeMap<Arc<str>, Labels>,
    services: HashMap<Arc<str>, BTreeMap<Arc<str>, Labels>>,
    owners: HashMap<(OwnerKind, Arc<str>, Arc<str>), Value>,
    complete: HashSet<Kind>,
    generation: u64,
    memo: HashMap<usize, Resolved>,
}

impl Directory {
    /// Whether the objects of all kinds have been read.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete.len() == Kind::ALL.len()
    }

    /// Takes over what a watch shows.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::One(kind, key, value) => self.set(kind, key, value),
            Change::Replace(kind, objects) => {
                self.complete.insert(kind);
                let kept: HashSet<Key> = objects.iter().map(|(key, _)| key.clone()).collect();
                let gone: Vec<Key> =
                    self.keys(kind).into_iter().filter(|key| !kept.contains(key)).collect();
                for key in gone {
                    self.set(kind, key, None);
                }
                for (key, value) in objects {
                    self.set(kind, key, Some(value));
                }
            }
        }
    }

    fn keys(&self, kind: Kind) -> Vec<Key> {
        match kind {
            Kind::Namespace => {
                self.namespaces.keys().map(|name| (Arc::from(""), Arc::clone(name))).collect()
            }
            Kind::Service => {
                let of = |(namespace, services): (&Arc<str>, &BTreeMap<Arc<str>, Labels>)| {
                    let key = |name: &Arc<str>| (Arc::clone(namespace), Arc::clone(name));
                    services.keys().map(key).collect::<Vec<_>>()
                };
                self.services.iter().flat_map(of).collect()
            }
            Kind::Owner(kind) => {
                let ours = self.owners.keys().filter(|key| key.0 == kind);
                ours.map(|key| (Arc::clone(&key.1), Arc::clone(&key.2))).collect()
            }
        }
    }

    fn set(&mut self, kind: Kind, (namespace, name): Key, value: Option<Value>) {
        let changed = match (kind, value) {
            (Kind::Namespace, Some(Value::Labels(labels))) => {
                self.namespaces.insert(name, labels.clone()) != Some(labels)
            }
            (Kind::Namespace, _) => self.namespaces.remove(&name).is_some(),
            (Kind::Service, Some(Value::Labels(labels))) => {
                let services = self.services.entry(namespace).or_default();
                services.insert(name, labels.clone()) != Some(labels)
            }
            (Kind::Service, _) => {
                let services = self.services.get_mut(&namespace);
                let gone = services.is_some_and(|services| services.remove(&name).is_some());
                self.services.retain(|_, services| !services.is_empty());
                gone
            }
            (Kind::Owner(kind), Some(value)) => {
                let key = (kind, namespace, name);
                self.owners.insert(key, value.clone()) != Some(value)
            }
            (Kind::Owner(kind), None) => self.owners.remove(&(kind, namespace, name)).is_some(),
        };
        self.generation += u64::from(changed);
    }

    /// The request with all that hangs on these objects worked out. The same request gives the
    /// same allocation for as long as they don't change.
    pub fn resolve(&mut self, request: &Arc<PodRequest>) -> Arc<PodRequest> {
        let address = Arc::as_ptr(request).addr();
        if let Some(known) = self.memo.get(&address)
            && known.generation == self.generation
        {
            return Arc::clone(&known.outcome);
        }
        let resolved = self.work_out(request);
        if self.memo.len() >= MEMO {
            self.memo.clear();
        }
        let known = Resolved {
            _request: Arc::clone(request),
            generation: self.generation,
            outcome: Arc::clone(&resolved),
        };
        self.memo.insert(address, known);
        resolved
    }

    fn work_out(&self, request: &Arc<PodRequest>) -> Arc<PodRequest> {
        let identity = &request.identity;
        let namespace_labels = self.namespaces.get(&identity.namespace).cloned();
        let resolved = PodRequest {
            namespace_labels: namespace_labels.unwrap_or_default(),
            reaches: identity.terms().map(|term| Reach::of(term, &self.namespaces)).collect(),
            spread: if request.spread.defaulted {
                self.default_spread(request)
            } else {
                request.spread.clone()
            },
            ..PodRequest::clone(request)
        };
        if resolved == **request { Arc::clone(request) } else { Arc::new(resolved) }
    }

    fn default_spread(&self, request: &PodRequest) -> Spread {
        let defaults = &request.policy.default_spread;
        let selector = self.default_selector(request);
        let mut spread =
            Spread { defaulted: true, needs_all_labels: !defaults.system, ..Spread::default() };
        if selector.is_everything() {
            return spread;
        }
        let selecting = |constraints: &[Constraint]| {
            let with = |c: &Constraint| Constraint { selector: selector.clone(), ..c.clone() };
            constraints.iter().map(with).collect()
        };
        spread.hard = selecting(&defaults.hard);
        spread.soft = selecting(&defaults.soft);
        spread.restrict(&request.policy);
        spread
    }

    fn default_selector(&self, request: &PodRequest) -> Selector {
        let identity = &request.identity;
        let labels = &identity.labels;
        let mut equal: BTreeMap<Arc<str>, Arc<str>> = BTreeMap::new();
        let services = self.services.get(&identity.namespace).into_iter().flatten();
        for (_, wanted) in services.filter(|(_, wanted)| wanted.are_among(labels)) {
            equal.extend(wanted.iter().cloned());
        }
        let owner = request.owner.as_ref().and_then(|owner| {
            let namespace = Arc::clone(&identity.namespace);
            self.owners.get(&(owner.kind, namespace, Arc::clone(&owner.name)))
        });
        if let Some(Value::Labels(wanted)) = owner {
            equal.extend(wanted.iter().cloned());
        }
        let mut requirements: Vec<Requirement> =
            equal.iter().map(|(key, value)| Requirement::equals(key, value)).collect();
        if let Some(Value::Selector(selector)) = owner {
            for requirement in selector.requirements() {
                if !requirements.contains(requirement) {
                    requirements.push(requirement.clone());
                }
            }
        }
        Selector::All(requirements)
    }
}
