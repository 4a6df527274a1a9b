//! Makes the management cluster hold what `build` asked for: server-side apply in the order of
//! the stages, then removal of what is no longer asked for.
//!
//! Typestate: [`Prepared`] is what should be, [`Applied`] what is; a status can be computed from
//! the second only.

use std::collections::BTreeSet;

use futures::{FutureExt as _, StreamExt as _, stream};

use super::{
    error::{ApplyError, CallError, bounded},
    gate::{self, Gate},
    kinds::{self, Verb},
    memory::Memory,
    observed::{ObjectKey, Observed, key},
    volumes,
};
use crate::{
    build::watchcache::is_front_door,
    children::{Child, Children, Object, Stage},
    validate::ValidatedCluster,
};

/// Writes in flight for one MegaCluster.
const fn concurrency(stage: Stage) -> usize {
    match stage {
        Stage::Secrets => 1,
        _ => 8,
    }
}

/// What should be: the children of a cluster and how the management cluster is before them.
#[derive(Debug)]
pub struct Prepared<'a> {
    /// The cluster.
    pub cluster: &'a ValidatedCluster,
    /// All its children as they should be.
    pub children: &'a Children,
    /// Its children as they are.
    pub live: Observed,
    /// Whether the cluster has ever been complete: a first start has its own order.
    pub started: bool,
}

/// What is, after the writes.
#[derive(Debug)]
pub struct Applied {
    /// The children as the API returned them.
    pub observed: Observed,
    /// What was changed.
    pub changes: Vec<Change>,
    /// Workloads that wait, and for what.
    pub held: Vec<Held>,
    /// What stopped the stages, if anything did.
    pub failure: Option<ApplyError>,
}

/// A child that was written or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What was done.
    pub what: ChangeKind,
    /// To which child.
    pub key: ObjectKey,
    /// Whether this process had applied the child just so before: then somebody else changed it,
    /// not the spec and not a new version of the operator.
    pub undone: bool,
}

/// What was done to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was not there.
    Created,
    /// It differed.
    Updated,
    /// It is no longer wanted.
    Removed,
}

/// A workload that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which.
    pub key: ObjectKey,
    /// For what, for a person.
    pub reason: String,
}

impl Applied {
    /// Nothing was written: the children of a paused cluster.
    #[must_use]
    pub fn untouched(live: Observed) -> Self {
        Self { observed: live, changes: Vec::new(), held: Vec::new(), failure: None }
    }
}

/// Who writes, and whether it still may.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    /// The management cluster.
    pub client: &'a kube::Client,
    /// Asked right before each write: whether this process still leads.
    pub may_act: &'a (dyn Fn() -> bool + Send + Sync),
    /// What was written before.
    pub memory: &'a Memory,
}

impl std::fmt::Debug for Writer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl Writer<'_> {
    /// Fails once this process doesn't lead any more.
    pub(super) fn claim(&self) -> Result<(), CallError> {
        if (self.may_act)() { Ok(()) } else { Err(CallError::NotLeader) }
    }
}

impl Prepared<'_> {
    /// Writes one child and no other.
    pub async fn apply_one(
        &mut self,
        child: &Child,
        writer: Writer<'_>,
    ) -> Result<Option<Change>, ApplyError> {
        let Written { object, change, undone } = self.write(child, writer).await?;
        let change = change.map(|what| Change { what, key: key(&object), undone });
        self.live.insert(object);
        Ok(change)
    }

    /// Writes what differs. Never fails as a whole: what went wrong is in the result, beside what
    /// was achieved.
    pub async fn apply(mut self, writer: Writer<'_>) -> Applied {
        let mut changes = Vec::new();
        let mut held = Vec::new();
        let mut failure = None;
        for stage in Stage::ALL {
            let rollouts = self.live.rollouts(self.cluster);
            let mut open = Vec::new();
            for child in self.children.iter().filter(|child| child.stage == stage) {
                match gate::check(stage, &child.object, &self.live, &rollouts, self.started) {
                    Gate::Open => open.push(child),
                    Gate::Closed(reason) => held.push(Held { key: key(&child.object), reason }),
                }
            }
            // Ordered, so that with a concurrency of one the first failure is the last write.
            let mut results = Vec::new();
            let pending: Vec<_> =
                open.into_iter().map(|child| self.write(child, writer).boxed()).collect();
            let mut done = stream::iter(pending).buffered(concurrency(stage));
            while let Some(result) = done.next().await {
                let failed = result.is_err();
                results.push(result);
                if failed {
                    break;
                }
            }
            drop(done);
            for result in results {
                match result {
                    Ok(Written { object, change, undone }) => {
                        let key = key(&object);
                        changes.extend(change.map(|what| Change { what, key, undone }));
                        self.live.insert(object);
                    }
                    Err(error) => failure = Some(error),
                }
            }
            if failure.is_some() {
                break;
            }
        }
        if failure.is_none() {
            failure = self.prune(writer, &mut changes).await.err();
        }
        Applied { observed: self.live, changes, held, failure }
    }

    async fn write(&self, child: &Child, writer: Writer<'_>) -> Result<Written, ApplyError> {
        let desired = &child.object;
        let live = self.live.get(&key(desired));
        let namespace = &self.cluster.namespace;
        if let Some(live) = live
            && writer.memory.is_current(namespace, desired, live)
        {
            return Ok(Written { object: live.clone(), change: None, undone: false });
        }
        let failed = |source| ApplyError {
            action: "applying",
            kind: desired.kind(),
            name: desired.name().to_owned(),
            source,
        };
        if let (Object::StatefulSet(desired), Some(Object::StatefulSet(live))) = (desired, live) {
            volumes::grow(desired, live, namespace, writer).await?;
        }
        writer.claim().map_err(failed)?;
        if let (Object::Secret(secret), true) = (desired, child.create_only) {
            bounded(kinds::create(writer.client, namespace, secret)).await.map_err(failed)?;
        }
        let object =
            bounded(kinds::apply(writer.client, namespace, desired)).await.map_err(failed)?;
        let undone = writer.memory.asked_before(namespace, desired);
        writer.memory.keep(namespace, desired, &object);
        let change = match live {
            None => Some(ChangeKind::Created),
            Some(live) if kinds::differs(live, &object) => Some(ChangeKind::Updated),
            Some(_) => None,
        };
        Ok(Written { object, change, undone })
    }

    /// Removes the children that the cluster owns and that nobody asks for any more, once the
    /// front door no longer sends anybody to them. Front doors of another number of parts go first,
    /// with their pods: until then they need the others.
    async fn prune(
        &mut self,
        writer: Writer<'_>,
        changes: &mut Vec<Change>,
    ) -> Result<(), ApplyError> {
        if !self.live.rollouts(self.cluster).front_door_is_done() {
            return Ok(());
        }
        let wanted: BTreeSet<ObjectKey> =
            self.children.iter().map(|child| key(&child.object)).collect();
        let mut unwanted: Vec<Object> = self
            .live
            .iter()
            .filter(|(key, object)| !wanted.contains(*key) && self.owns(object))
            .map(|(_, object)| object.clone())
            .collect();
        let mut verb = Verb::Cascade;
        if unwanted.iter().any(is_front_door) {
            unwanted.retain(is_front_door);
            verb = Verb::CascadeFirst;
        }
        for object in unwanted.into_iter().filter(|object| !goes(object)) {
            let failed = |source| ApplyError {
                action: "removing",
                kind: object.kind(),
                name: object.name().to_owned(),
                source,
            };
            writer.claim().map_err(failed)?;
            match bounded(kinds::delete(writer.client, &self.cluster.namespace, &object, verb))
                .await
            {
                Err(error) if !error.is_status(404) => return Err(failed(error)),
                _ => {}
            }
            let key = key(&object);
            self.live.remove(&key);
            changes.push(Change { what: ChangeKind::Removed, key, undone: false });
        }
        Ok(())
    }

    fn owns(&self, object: &Object) -> bool {
        let owners = object.metadata().owner_references.iter().flatten();
        owners.into_iter().any(|owner| owner.uid == self.cluster.owner.uid)
    }
}

/// Whether an object is being deleted.
fn goes(object: &Object) -> bool {
    object.metadata().deletion_timestamp.is_some()
}

struct Written {
    object: Object,
    change: Option<ChangeKind>,
    undone: bool,
}
