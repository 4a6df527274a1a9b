//! Watches and the queue: when to reconcile which MegaCluster.

use std::{fmt::Debug, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _, TryStreamExt as _, future::ready, stream};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{ConfigMap, Secret, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::PartialObjectMeta,
    runtime::{
        Controller, WatchStreamExt as _,
        controller::{Action, Config as ControllerConfig, Error as ControllerError},
        predicates,
        reflector::{self, ObjectRef},
        watcher::{self, watcher},
    },
};
use megacluster_service::{admin::Readiness, leadership::Leadership};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::{
    api::{FIELD_MANAGER, LABEL_NAME, v1alpha1::MegaCluster},
    backoff::{self, Failures},
    metrics::Metrics,
    reconcile::{Next, Reconciler, error::ReconcileError},
};

/// Events of a rollout come in swarms; one reconcile answers those of this long.
const DEBOUNCE: Duration = Duration::from_millis(200);

/// How the controller runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The only namespace that is looked at; all of them if `None`.
    pub namespace: Option<String>,
    /// How many clusters are reconciled at once.
    pub concurrency: u16,
    /// Who leads: only the leader reconciles.
    pub leadership: watch::Receiver<Leadership>,
    /// Told once every MegaCluster is known.
    pub readiness: Readiness,
}

/// The condition that every MegaCluster is known: false before [`run`], which sets it.
pub const KNOWN: &str = "megaclusters-known";

/// One that doesn't lead looks again this often, should it have missed that it does.
const STANDBY: Duration = Duration::from_secs(1);

/// How long the reconciles that run when the process shall stop may take to end.
const DRAIN: Duration = Duration::from_secs(20);

struct Context {
    reconciler: Arc<Reconciler>,
    metrics: Metrics,
    failures: Failures,
    /// How many reconciles run now.
    running: watch::Sender<usize>,
    token: CancellationToken,
}

/// Counts a reconcile as running until it is dropped.
struct Running<'a>(&'a watch::Sender<usize>);

impl<'a> Running<'a> {
    fn begin(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Reconciles until `token` is cancelled, then lets the running reconciles end.
pub async fn run(
    reconciler: Arc<Reconciler>,
    options: Options,
    metrics: Metrics,
    token: CancellationToken,
) {
    let client = reconciler.client.clone();
    let namespace = options.namespace.as_deref();
    let (reader, store_writer) = reflector::store();
    let readiness = options.readiness;
    // The spec alone triggers: our own writes of the status don't.
    let clusters = watcher(scoped::<MegaCluster>(&client, namespace), watcher::Config::default())
        .default_backoff()
        // Not the store's own `wait_until_ready`: it wakes one waiter, which is the controller.
        .inspect_ok(move |event| {
            if matches!(event, watcher::Event::InitDone) {
                readiness.set(KNOWN, true);
            }
        })
        .reflect(store_writer)
        .applied_objects()
        .predicate_filter(predicates::generation, predicates_config());
    let terms = terms(options.leadership, metrics.clone());
    let context = Arc::new(Context {
        reconciler,
        metrics,
        failures: Failures::default(),
        running: watch::Sender::new(0),
        token,
    });

    let controller = Controller::for_stream(clusters, reader)
        .reconcile_all_on(terms)
        .with_config(
            ControllerConfig::default().debounce(DEBOUNCE).concurrency(options.concurrency),
        )
        .watches_stream(children::<Secret>(&client, namespace), owner)
        .watches_stream(children::<ConfigMap>(&client, namespace), owner)
        .watches_stream(children::<ServiceAccount>(&client, namespace), owner)
        .watches_stream(children::<Service>(&client, namespace), owner)
        .watches_stream(children::<NetworkPolicy>(&client, namespace), owner)
        .watches_stream(children::<PodDisruptionBudget>(&client, namespace), owner)
        .watches_stream(children::<StatefulSet>(&client, namespace), owner)
        .watches_stream(children::<Deployment>(&client, namespace), owner);
    let work = controller.run(reconcile, on_error, Arc::clone(&context)).for_each(|result| {
        note(&context, result);
        ready(())
    });
    tokio::select! {
        () = work => {}
        () = drained(&context) => {}
    }
}

/// Waits until the process shall stop and no reconcile runs any more. The controller's own
/// graceful shutdown is no use: it would first do all that is put off, up to half a minute of it.
async fn drained(context: &Context) {
    context.token.cancelled().await;
    let mut running = context.running.subscribe();
    let none = running.wait_for(|count| *count == 0);
    if tokio::time::timeout(DRAIN, none).await.is_err() {
        warn!("reconciles are cut off: they did not end in time");
    }
}

/// Tells of each time that this process begins to lead.
fn terms(
    leadership: watch::Receiver<Leadership>,
    metrics: Metrics,
) -> impl Stream<Item = ()> + Send + 'static {
    stream::unfold((leadership, false), move |(mut leadership, mut led)| {
        let metrics = metrics.clone();
        async move {
            loop {
                let leads = leadership.wait_for(|now| now.leader != led).await.ok()?.leader;
                led = leads;
                metrics.leads(leads);
                if leads {
                    return Some(((), (leadership, led)));
                }
            }
        }
    })
}

fn predicates_config() -> kube::runtime::PredicateConfig {
    kube::runtime::PredicateConfig::default()
}

fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Changes of the children of a kind. Their metadata is enough to know whose they are; the
/// reconcile reads them itself. Filtered by `resourceVersion`, which a deletion changes too.
fn children<K>(
    client: &Client,
    namespace: Option<&str>,
) -> impl Stream<Item = Result<PartialObjectMeta<K>, watcher::Error>> + Send + 'static
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let selector = format!("app.kubernetes.io/managed-by={FIELD_MANAGER},{LABEL_NAME}");
    let api = scoped::<PartialObjectMeta<K>>(client, namespace);
    watcher(api, watcher::Config::default().labels(&selector))
        .default_backoff()
        .touched_objects()
        .predicate_filter(predicates::resource_version, predicates_config())
}

/// The MegaCluster that a child belongs to.
fn owner<K>(child: PartialObjectMeta<K>) -> Option<ObjectRef<MegaCluster>> {
    let metadata = child.metadata;
    let name = metadata.labels.as_ref()?.get(LABEL_NAME)?.clone();
    Some(ObjectRef::new(&name).within(metadata.namespace.as_deref()?))
}

async fn reconcile(
    object: Arc<MegaCluster>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    if context.token.is_cancelled() {
        return Ok(Action::await_change());
    }
    if !(context.reconciler.may_act)() {
        return Ok(Action::requeue(STANDBY));
    }
    let _running = Running::begin(&context.running);
    let _timed = context.metrics.begin();
    let namespace = object.namespace().unwrap_or_default();
    let name = object.name_any();
    let next = Box::pin(context.reconciler.reconcile(&namespace, &name)).await?;
    context.failures.clear(&namespace, &name);
    context.metrics.retrying(context.failures.len());
    Ok(match next {
        Next::AwaitChange => Action::await_change(),
        Next::After(pause) => Action::requeue(pause),
    })
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that Controller::run asks for")]
fn on_error(object: Arc<MegaCluster>, error: &ReconcileError, context: Arc<Context>) -> Action {
    let namespace = object.namespace().unwrap_or_default();
    let name = object.name_any();
    let failures = context.failures.add(&namespace, &name);
    context.metrics.failed(error.reason());
    context.metrics.retrying(context.failures.len());
    let pause = backoff::pause(failures, rand::random());
    warn!(namespace, cluster = name, %error, failures, pause_ms = pause.as_millis(), "reconcile failed");
    Action::requeue(pause)
}

type Outcome =
    Result<(ObjectRef<MegaCluster>, Action), ControllerError<ReconcileError, watcher::Error>>;

fn note(context: &Context, result: Outcome) {
    match result {
        Ok((object, action)) => debug!(%object, ?action, "reconciled"),
        // A child of a MegaCluster that is gone.
        Err(ControllerError::ObjectNotFound(object)) => {
            let namespace = object.namespace.as_deref().unwrap_or_default();
            context.reconciler.memory.forget(namespace, &object.name);
            context.failures.clear(namespace, &object.name);
            context.metrics.retrying(context.failures.len());
        }
        // Logged and counted where it happened.
        Err(ControllerError::ReconcilerFailed(..)) => {}
        Err(ControllerError::QueueError(error)) => {
            context.metrics.watch_failed();
            warn!(%error, "watch failed");
        }
        Err(ControllerError::RunnerError(error)) => error!(%error, "queue failed"),
    }
}
