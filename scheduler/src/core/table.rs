//! The nodes of one shard and what is taken on them.
//!
//! Every change is idempotent and the watch may repeat itself: a pod counts once, on the node that
//! its newest version names. Usage of a node that isn't known yet is kept, so nodes and pods may
//! come in any order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::core::v1::{Node, Pod};
use thiserror::Error;

use super::affinity::Identity;
use super::cells::Cells;
use super::columns::{Columns, NodeChange, NodeUsage, Slot};
use super::diagnosis::Rejections;
use super::evaluate;
use super::event::{ClusterEvent, EventSet};
use super::facts::NodeFacts;
use super::maps::HashMap;
use super::pod::{PodRequest, PodUid};
use super::population::Population;
use super::ports::{HostPort, host_ports};
use super::preempt::Tenure;
use super::resources::{self, PodResources};
use super::survey::{self, Survey};
use super::tombstones::Tombstones;
use super::views::{View, Views};
use super::volumes::Mounts;
use super::volumes::storage::Change;

/// Pods whose end is remembered, so that a late event or reservation doesn't bring them back.
const TOMBSTONES: usize = 65_536;

/// How sure it is that a pod is where the table counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reserved here; the binding isn't known to have happened.
    Assumed,
    /// The API server took the binding; the watch hasn't shown it yet.
    Confirmed,
    /// The watch shows it.
    Assigned,
}

/// What a pod takes from its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) resources: PodResources,
    pub(super) ports: Vec<HostPort>,
    pub(super) priority: i32,
    pub(super) mounts: Option<Arc<Mounts>>,
}

impl Share {
    /// What a pod will take that isn't on a node yet.
    pub(super) fn reserved(request: &PodRequest) -> Self {
        Self {
            resources: request.resources.clone(),
            ports: request.ports.clone(),
            priority: request.priority,
            mounts: request.mounts.as_ref().map(|mounts| mounts.reserved(&request.volumes)),
        }
    }
}

/// A pod on a node, as preemption looks at it.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub(super) uid: PodUid,
    pub(super) share: Arc<Share>,
    /// In the population.
    pub(super) identity: u32,
    pub(super) tenure: Tenure,
}

#[derive(Debug)]
struct Record {
    slot: Slot,
    stage: Stage,
    share: Arc<Share>,
    /// In the population.
    identity: u32,
    tenure: Tenure,
    /// The list that showed the pod last.
    seen: u64,
}

/// Why a reservation was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Unfit {
    /// The node isn't known here.
    #[error("node {0} is not known to this shard")]
    NodeUnknown(String),
    /// The pod doesn't pass the filters of the node any more.
    #[error("the pod does not fit the node any more: {}", texts(.0))]
    Rejected(Rejections),
    /// The pod already has a place, reserved or bound.
    #[error("the pod already has a place on node {0}")]
    Placed(Arc<str>),
    /// The pod ended.
    #[error("the pod is gone")]
    PodGone,
}

fn texts(rejections: &Rejections) -> String {
    let texts: Vec<String> = rejections.keys().map(ToString::to_string).collect();
    texts.join(", ")
}

/// Nodes, pods on them and reservations.
#[derive(Debug)]
pub struct NodeTable {
    columns: Columns,
    pods: HashMap<PodUid, Record>,
    /// Pods by row.
    rows: Vec<Vec<PodUid>>,
    population: Population,
    cells: Cells,
    views: Views,
    gone: Tombstones,
    /// Pods by priority, to tell whether preemption could find a victim.
    priorities: BTreeMap<i32, u64>,
    /// Counts lists of pods; 0 before the first.
    pod_list: u64,
    /// Counts lists of nodes.
    node_list: u64,
    /// The row at which the next sample of nodes begins.
    sample_from: AtomicUsize,
}

impl Default for NodeTable {
    fn default() -> Self {
        Self::new()
    }
}

impl NodeTable {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self {
            columns: Columns::default(),
            pods: HashMap::default(),
            rows: Vec::new(),
            population: Population::default(),
            cells: Cells::default(),
            views: Views::default(),
            gone: Tombstones::new(TOMBSTONES),
            priorities: BTreeMap::new(),
            pod_list: 0,
            node_list: 0,
            sample_from: AtomicUsize::new(0),
        }
    }

    /// Nodes that are known.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.columns.node_count()
    }

    /// Pods that count, reserved ones among them.
    #[must_use]
    pub fn pod_count(&self) -> usize {
        self.pods.len()
    }

    /// The names of all nodes.
    pub fn node_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.columns.names()
    }

    /// What a node has and what is taken.
    #[must_use]
    pub fn usage(&self, node: &str) -> Option<NodeUsage> {
        self.columns.find(node).map(|slot| self.columns.usage(slot))
    }

    /// Where a pod counts and how sure that is.
    #[must_use]
    pub fn placement(&self, uid: PodUid) -> Option<(&Arc<str>, Stage)> {
        let record = self.pods.get(&uid)?;
        Some((self.columns.name(record.slot), record.stage))
    }

    /// Reservations that no binding has followed yet.
    pub fn assumed(&self) -> impl Iterator<Item = (PodUid, &Arc<str>)> {
        let assumed = self.pods.iter().filter(|(_, record)| record.stage == Stage::Assumed);
        assumed.map(|(uid, record)| (*uid, self.columns.name(record.slot)))
    }

    pub(super) fn columns(&self) -> &Columns {
        &self.columns
    }

    pub(super) fn cells(&self) -> &Cells {
        &self.cells
    }

    /// Does what the next decision would have to do first, after many changes at once.
    pub fn prepare(&mut self) {
        self.update_cells(self.cells.seed());
    }

    /// Brings the cells up to date.
    pub(super) fn update_cells(&mut self, seed: u64) {
        self.cells.update(&mut self.columns, seed);
    }

    /// Brings what is known for a class up to date.
    pub(super) fn update_views(&mut self, class: &Arc<PodRequest>) {
        self.views.update(class, &self.columns, &self.cells, &self.population);
    }

    /// What is known for a class, as of the last update.
    pub(super) fn view(&self, class: &Arc<PodRequest>) -> Option<&View> {
        self.views.get(class)
    }

    /// For changes that are taken back before anyone looks.
    pub(super) fn columns_mut(&mut self) -> &mut Columns {
        &mut self.columns
    }

    /// The pods on a node.
    pub(super) fn guests(&self, slot: Slot) -> impl Iterator<Item = Guest> + '_ {
        let uids = self.rows.get(slot.index()).into_iter().flatten();
        uids.filter_map(|uid| {
            let record = self.pods.get(uid)?;
            Some(Guest {
                uid: *uid,
                share: Arc::clone(&record.share),
                identity: record.identity,
                tenure: record.tenure,
            })
        })
    }

    /// Takes over news of what volumes hang on, of nodes only those that `owns` names.
    pub fn apply_volumes(&mut self, change: &Change, owns: impl Fn(&str) -> bool) -> EventSet {
        self.columns.mounts.attached.apply(change, owns)
    }

    /// Whether all has been read that volumes hang on.
    #[must_use]
    pub fn knows_volumes(&self) -> bool {
        self.columns.mounts.attached.is_complete()
    }

    pub(super) fn population(&self) -> &Population {
        &self.population
    }

    /// Whether some pod keeps others away from more than its own node: then nothing is certain
    /// about other shards' nodes without this table's word.
    #[must_use]
    pub fn keeps_domains_free(&self) -> bool {
        self.population.keeps_domains_free()
    }

    /// Nodes to look at one by one, as long as they are wanted: each time from where the last time
    /// ended.
    pub(super) fn sample(&self, mut wanted: impl FnMut(usize) -> bool) {
        let rows = self.columns.present.len();
        let from = self.sample_from.load(Ordering::Relaxed).min(rows);
        let present = |row: &usize| self.columns.present[*row];
        let last = (from..rows).chain(0..from).filter(present).find(|row| !wanted(*row));
        if let Some(last) = last {
            self.sample_from.store(last + 1, Ordering::Relaxed);
        }
    }

    pub(super) fn has_pods_below(&self, priority: i32) -> bool {
        self.priorities.range(..priority).next().is_some()
    }

    /// Takes over the newest version of a node; says what of it may help a waiting pod.
    pub fn upsert_node(&mut self, node: &Node) -> EventSet {
        let Some(name) = node.metadata.name.as_deref() else { return EventSet::EMPTY };
        let slot = self.columns.slot(name);
        let NodeChange { events, kinds } =
            self.columns.set_node(slot, NodeFacts::of(node), self.node_list);
        self.move_pods(slot, kinds);
        events
    }

    /// Forgets a node. Its pods still count should it come back. Says what of it may help a
    /// waiting pod: one that spreads has a domain less to fill.
    pub fn remove_node(&mut self, name: &str) -> EventSet {
        let Some(slot) = self.columns.find(name) else { return EventSet::EMPTY };
        self.clear(slot);
        ClusterEvent::NodeRemoved.into()
    }

    fn clear(&mut self, slot: Slot) {
        self.move_pods(slot, (self.columns.kind(slot), None));
        self.columns.clear_node(slot);
    }

    fn move_pods(&mut self, slot: Slot, (from, to): (Option<u32>, Option<u32>)) {
        if from == to {
            return;
        }
        for uid in self.rows.get(slot.index()).into_iter().flatten() {
            if let Some(record) = self.pods.get(uid) {
                self.population.move_kind(record.identity, from, to);
            }
        }
    }

    /// Starts a list of all nodes: those that [`Self::upsert_node`] doesn't show until
    /// [`Self::end_node_list`] are gone.
    pub fn begin_node_list(&mut self) {
        self.node_list += 1;
    }

    /// Ends a list of all nodes; returns how many were gone.
    pub fn end_node_list(&mut self) -> usize {
        let unseen = self.columns.unseen(self.node_list);
        for slot in &unseen {
            self.clear(*slot);
        }
        unseen.len()
    }

    /// Takes over the newest version of a pod. It counts if it has a node and hasn't ended; a
    /// reservation for it becomes what the watch shows.
    pub fn upsert_pod(&mut self, pod: &Pod) -> EventSet {
        let uid = PodUid::of(pod);
        if has_ended(pod) {
            return self.remove_pod(uid);
        }
        let spec = pod.spec.as_ref();
        let node = spec.and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty());
        let Some(node) = node else { return EventSet::EMPTY };
        if self.gone.contains(uid) {
            return EventSet::EMPTY;
        }
        let share = Share {
            resources: resources::assigned(pod),
            ports: host_ports(pod),
            priority: spec.and_then(|spec| spec.priority).unwrap_or_default(),
            mounts: Mounts::of(pod),
        };
        let (identity, _) = Identity::of(pod);
        let tenure = Tenure::of(pod);
        let mut events = EventSet::from(ClusterEvent::PodAdded);
        if let Some(record) = self.pods.get_mut(&uid)
            && **self.columns.name(record.slot) == *node
        {
            if std::mem::replace(&mut record.stage, Stage::Assigned) == Stage::Assigned {
                events = EventSet::EMPTY;
            }
            record.seen = self.pod_list;
            record.tenure = tenure;
            let same_identity = self.population.identity(record.identity) == Some(&identity);
            if same_identity && same_share(&record.share, &share) {
                return events;
            }
            if !same_identity {
                events |= ClusterEvent::PodRelabelled.into();
            }
        }
        if let Some(before) = self.take_out(uid) {
            events |= freed_by_change(&before, &share);
        }
        // Looked up now: taking the pod out may have given the row of an unknown node back.
        let slot = self.columns.slot(node);
        self.put_in(uid, slot, Stage::Assigned, Arc::new(share), &Arc::new(identity));
        if let Some(record) = self.pods.get_mut(&uid) {
            record.tenure = tenure;
        }
        events
    }

    /// Forgets a pod for good; says what of it may help a waiting pod.
    pub fn remove_pod(&mut self, uid: PodUid) -> EventSet {
        self.gone.insert(uid);
        self.take_out(uid).map_or(EventSet::EMPTY, |share| freed(&share))
    }

    /// Starts a list of all pods on nodes: those that [`Self::upsert_pod`] doesn't show until
    /// [`Self::end_pod_list`] are gone, but for reservations and for bindings made meanwhile. The
    /// list must be read after this call and at the most recent version: one from an old cache
    /// would leave out, for a moment, pods that are there.
    pub fn begin_pod_list(&mut self) {
        self.pod_list += 1;
    }

    /// Ends a list of all pods on nodes; says what of it may help a waiting pod. A pod that wasn't
    /// shown may still come by the watch: a list can be older than what was known before it.
    pub fn end_pod_list(&mut self) -> EventSet {
        let list = self.pod_list;
        let unseen = |record: &Record| record.stage != Stage::Assumed && record.seen < list;
        let gone: Vec<PodUid> =
            self.pods.iter().filter(|(_, record)| unseen(record)).map(|(uid, _)| *uid).collect();
        let shares = gone.into_iter().filter_map(|uid| self.take_out(uid));
        shares.fold(EventSet::EMPTY, |events, share| events | freed(&share))
    }

    /// Reserves a place, if the pod still passes every filter of the node. Repeating a
    /// reservation changes nothing.
    pub fn assume(&mut self, uid: PodUid, node: &str, request: &PodRequest) -> Result<(), Unfit> {
        if self.is_reserved(uid, node)? {
            return Ok(());
        }
        let known = self.columns.find(node);
        let slot = known.ok_or_else(|| Unfit::NodeUnknown(node.to_owned()))?;
        let mut rejections = evaluate::reject(self, slot, request, None);
        if rejections.is_empty() {
            let relations = survey::relations(&self.population, request);
            let reason = evaluate::kept_apart(self, slot, request, &relations);
            rejections.extend(reason.map(|reason| (reason, 1)));
        }
        if !rejections.is_empty() {
            return Err(Unfit::Rejected(rejections));
        }
        self.reserve(uid, slot, request);
        Ok(())
    }

    /// As [`Self::assume`], of a pod of a class: what holds for all of it is worked out once.
    pub fn assume_class(
        &mut self,
        uid: PodUid,
        node: &str,
        class: &Arc<PodRequest>,
    ) -> Result<(), Unfit> {
        if self.is_reserved(uid, node)? {
            return Ok(());
        }
        let known = self.columns.find(node);
        let slot = known.ok_or_else(|| Unfit::NodeUnknown(node.to_owned()))?;
        let mut rejections = evaluate::reject(self, slot, class, None);
        let (relations, share) = self.views.share(class, &self.population);
        if rejections.is_empty() {
            let reason = evaluate::kept_apart(self, slot, class, &relations);
            rejections.extend(reason.map(|reason| (reason, 1)));
        }
        if !rejections.is_empty() {
            return Err(Unfit::Rejected(rejections));
        }
        self.put_in(uid, slot, Stage::Assumed, share, &class.identity);
        Ok(())
    }

    /// Why a node doesn't take a pod; empty when it does, `None` when the node isn't known.
    #[must_use]
    pub fn reject(
        &self,
        node: &str,
        request: &PodRequest,
        survey: Option<&Survey>,
    ) -> Option<Rejections> {
        Some(evaluate::reject(self, self.columns.find(node)?, request, survey))
    }

    /// Reserves a place for a pod whose binding is under way already: it may be there by now,
    /// whether it fits or not and whether the node is known or not.
    pub fn restore(&mut self, uid: PodUid, node: &str, request: &PodRequest) -> Result<(), Unfit> {
        if !self.is_reserved(uid, node)? {
            let slot = self.columns.slot(node);
            self.reserve(uid, slot, request);
        }
        Ok(())
    }

    /// Whether the pod is reserved on this very node; an error when it can't be.
    fn is_reserved(&self, uid: PodUid, node: &str) -> Result<bool, Unfit> {
        if self.gone.contains(uid) {
            return Err(Unfit::PodGone);
        }
        match self.placement(uid) {
            None => Ok(false),
            Some((at, Stage::Assumed)) if **at == *node => Ok(true),
            Some((at, _)) => Err(Unfit::Placed(Arc::clone(at))),
        }
    }

    fn reserve(&mut self, uid: PodUid, slot: Slot, request: &PodRequest) {
        let share = Arc::new(Share::reserved(request));
        self.put_in(uid, slot, Stage::Assumed, share, &request.identity);
    }

    /// Gives a reservation back; what is bound stays.
    pub fn forget(&mut self, uid: PodUid) -> EventSet {
        match self.pods.get(&uid) {
            Some(record) if record.stage == Stage::Assumed => {
                self.take_out(uid).map_or(EventSet::EMPTY, |share| freed(&share))
            }
            _ => EventSet::EMPTY,
        }
    }

    /// The API server took the binding: the reservation can't be given back any more. Whether
    /// there was one.
    pub fn confirm(&mut self, uid: PodUid) -> bool {
        let list = self.pod_list;
        let Some(record) = self.pods.get_mut(&uid) else { return false };
        if record.stage == Stage::Assumed {
            record.stage = Stage::Confirmed;
            record.seen = list;
        }
        true
    }

    fn put_in(
        &mut self,
        uid: PodUid,
        slot: Slot,
        stage: Stage,
        share: Arc<Share>,
        identity: &Arc<Identity>,
    ) {
        self.columns.add(slot, &share);
        *self.priorities.entry(share.priority).or_default() += 1;
        let identity = self.population.add(identity, slot.row(), self.columns.kind(slot));
        if self.rows.len() <= slot.index() {
            self.rows.resize_with(slot.index() + 1, Vec::new);
        }
        self.rows[slot.index()].push(uid);
        let (tenure, seen) = (Tenure::default(), self.pod_list);
        self.pods.insert(uid, Record { slot, stage, share, identity, tenure, seen });
    }

    fn take_out(&mut self, uid: PodUid) -> Option<Arc<Share>> {
        let record = self.pods.remove(&uid)?;
        self.population.remove(record.identity, record.slot.row(), self.columns.kind(record.slot));
        if let Some(pods) = self.rows.get_mut(record.slot.index()) {
            if let Some(place) = pods.iter().position(|other| *other == uid) {
                pods.swap_remove(place);
            }
            if pods.is_empty() {
                *pods = Vec::new();
            }
        }
        self.columns.subtract(record.slot, &record.share);
        let priority = record.share.priority;
        if let Some(pods) = self.priorities.get_mut(&priority) {
            *pods -= 1;
            if *pods == 0 {
                self.priorities.remove(&priority);
            }
        }
        Some(record.share)
    }
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Equal but for what a score adds for a pod that isn't placed yet.
fn same_share(a: &Share, b: &Share) -> bool {
    a.resources.requests == b.resources.requests
        && a.resources.non_zero == b.resources.non_zero
        && a.ports == b.ports
        && a.priority == b.priority
        && a.mounts == b.mounts
}

fn freed(share: &Share) -> EventSet {
    let ports = (!share.ports.is_empty()).then_some(ClusterEvent::PortsFreed);
    let volumes = share.mounts.as_ref().map(|_| ClusterEvent::VolumesFreed);
    [ClusterEvent::PodFreed].into_iter().chain(ports).chain(volumes).collect()
}

fn freed_by_change(before: &Share, after: &Share) -> EventSet {
    let (old, new) = (&before.resources.requests, &after.resources.requests);
    let scalar = |name: &str| {
        new.scalars.iter().find(|(n, _)| **n == *name).map(|(_, v)| *v).unwrap_or_default()
    };
    let less = new.milli_cpu < old.milli_cpu
        || new.memory < old.memory
        || new.ephemeral_storage < old.ephemeral_storage
        || old.scalars.iter().any(|(name, amount)| scalar(name) < *amount);
    less.then_some(ClusterEvent::PodScaledDown).into_iter().collect()
}
