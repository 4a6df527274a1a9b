//! From what the user wrote to what the rest of the operator relies on: every default filled in,
//! every reference resolved, everything checked that the schema's rules can't check.

mod cluster;
mod rules;

use jiff::SignedDuration;
use k8s_openapi::{
    api::core::v1::ResourceRequirements,
    apimachinery::pkg::{apis::meta::v1::OwnerReference, util::intstr::IntOrString},
};
use kube::Resource as _;

pub use cluster::{
    ApiServers, ControllerManager, DEFAULT_POOL, Durability, Endpoint, Facts, Images, Networking,
    Part, Pool, Rotation, Scheduler, Store, ValidatedCluster, WatchCache,
};

use crate::api::v1alpha1::{
    ApiServersSpec, DurabilityMode, DurabilityRule, GroupResource, ImagesSpec, MegaCluster,
    MegaClusterSpec, NetworkingSpec, PkiSpec, PullPolicy, Resources, StoreSpec,
};

/// Where images come from when the spec doesn't say: the operator's flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageDefaults {
    /// Registry and path in front of MegaCluster's own images; `None` leaves it to each spec.
    pub registry: Option<String>,
    /// Tag of MegaCluster's own images.
    pub tag: String,
    /// Registry and path in front of the stock images.
    pub kubernetes_registry: String,
}

/// One thing that is wrong with a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field, such as `spec.networking.podCIDRs[0]`.
    pub field: String,
    /// What is wrong, for a person.
    pub message: String,
}

/// A spec that can't be run as it is. Only a change of the object helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .fields.iter().map(|f| format!("{}: {}", f.field, f.message)).collect::<Vec<_>>().join("; "))]
pub struct InvalidSpec {
    /// All that is wrong, in the order of the fields.
    pub fields: Vec<FieldError>,
}

/// Collects what is wrong, so that a user hears of everything at once.
#[derive(Debug, Default)]
struct Problems {
    fields: Vec<FieldError>,
}

impl Problems {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.fields.push(FieldError { field: field.into(), message: message.into() });
    }

    /// The value of `result`, or `None` and its error kept.
    fn take<T>(&mut self, field: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.add(field, message)).ok()
    }
}

/// What the front door caches: nothing where reads are audited in a way that it has no part in,
/// since the kube-apiservers can record only what reaches them. And why not.
fn cached(spec: &MegaClusterSpec) -> (Vec<String>, Option<&'static str>) {
    let servers = &spec.api_servers;
    let has = |flag: &str| {
        let value = |arg: &String| arg.strip_prefix(flag).is_some_and(|value| !value.is_empty());
        servers.extra_args.iter().any(value)
    };
    let why = if has("--audit-policy-file=") {
        Some("spec.apiServers.extraArgs has --audit-policy-file")
    } else if servers.audit_policy.is_some() && has("--audit-webhook-config-file=") {
        Some("spec.apiServers.extraArgs has --audit-webhook-config-file")
    } else {
        None
    };
    let asked = &spec.watch_cache.cached;
    match why {
        Some(why) if !asked.is_empty() => (Vec::new(), Some(why)),
        _ => (asked.iter().map(rules::full_name).collect(), None),
    }
}

/// Checks `object` and fills in every default.
///
/// `images` are the operator's own defaults, `facts` what the management cluster holds.
pub fn validate(
    object: &MegaCluster,
    images: &ImageDefaults,
    facts: Facts,
) -> Result<ValidatedCluster, InvalidSpec> {
    let spec = &object.spec;
    let mut problems = Problems::default();
    let hot_standby = spec.controller_manager.hot_standby.unwrap_or(true);

    let owner = problems.take("metadata", owner_reference(object));
    let version = problems.take("spec.version", rules::version(&spec.version));
    let image_references = problems.take(
        "spec.images.registry",
        image_references(spec.images.as_ref(), images, &spec.version, hot_standby),
    );
    let networking = networking(&spec.networking, &mut problems);
    let rotation = rotation(spec.pki.as_ref(), &mut problems);
    let store = store(&spec.store, &mut problems);
    rules::extra_args(
        "spec.apiServers.extraArgs",
        &spec.api_servers.extra_args,
        crate::build::apiserver::MANAGED_FLAGS,
        &mut problems,
    );
    rules::extra_args(
        "spec.controllerManager.extraArgs",
        &spec.controller_manager.extra_args,
        crate::build::controller_manager::MANAGED_FLAGS,
        &mut problems,
    );
    if let Some(policy) = &spec.api_servers.audit_policy {
        rules::audit_policy(policy, &spec.api_servers.extra_args, &mut problems);
    }
    rules::pools(&spec.api_servers.pools, &mut problems);
    rules::cached(&spec.watch_cache.cached, &mut problems);
    rules::parts(&spec.watch_cache, &mut problems);

    let (Some(owner), Some(version), Some(images), Some(networking), Some(rotation), true) =
        (owner, version, image_references, networking, rotation, problems.fields.is_empty())
    else {
        return Err(InvalidSpec { fields: problems.fields });
    };
    let (cached, uncached) = cached(spec);
    let own = |one: &&GroupResource| rules::is_built_in(&one.group, &one.resource);
    let built_in = spec.watch_cache.cached.iter().filter(|_| uncached.is_none()).filter(own);
    let built_in = built_in.map(rules::full_name).collect();
    Ok(ValidatedCluster {
        name: owner.name.clone(),
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        owner,
        images,
        version,
        deletion_policy: spec.deletion_policy,
        networking,
        rotation,
        store,
        watch_cache: WatchCache {
            replicas: spec.watch_cache.replicas,
            parts: if cached.is_empty() { 1 } else { spec.watch_cache.parts.unwrap_or(1) },
            cached,
            built_in,
            uncached,
            resources: requirements(spec.watch_cache.resources.as_ref()),
        },
        api_servers: api_servers(&spec.api_servers),
        controller_manager: ControllerManager {
            replicas: spec.controller_manager.replicas,
            hot_standby,
            extra_args: spec.controller_manager.extra_args.clone(),
            resources: requirements(spec.controller_manager.resources.as_ref()),
        },
        scheduler: Scheduler {
            shards: spec.scheduler.shards,
            standby_per_shard: spec.scheduler.standby_per_shard.unwrap_or(1),
            relays: spec.scheduler.relays.replicas,
            fan_out: spec.scheduler.relays.fan_out.unwrap_or(10),
            resources: requirements(spec.scheduler.resources.as_ref()),
        },
        facts,
    })
}

fn owner_reference(object: &MegaCluster) -> Result<OwnerReference, String> {
    object.controller_owner_ref(&()).ok_or_else(|| "the object has no name or uid yet".to_owned())
}

fn image_references(
    spec: Option<&ImagesSpec>,
    defaults: &ImageDefaults,
    version: &str,
    hot_standby: bool,
) -> Result<Images, String> {
    let spec = spec.cloned().unwrap_or_default();
    let registry = spec
        .registry
        .as_deref()
        .or(defaults.registry.as_deref())
        .ok_or("must be given, since the operator runs without --image-registry")?;
    let tag = spec.tag.as_deref().unwrap_or(&defaults.tag);
    let stock = spec.kubernetes_registry.as_deref().unwrap_or(&defaults.kubernetes_registry);
    let own = |name: &str| format!("{registry}/megacluster-{name}:{tag}");
    let stock = |name: &str| format!("{stock}/{name}:{version}");
    Ok(Images {
        store: own("store"),
        watch_cache: own("watchcache"),
        scheduler: own("scheduler"),
        api_server: stock("kube-apiserver"),
        controller_manager: if hot_standby {
            own("controller-manager")
        } else {
            stock("kube-controller-manager")
        },
        pull_policy: spec.pull_policy.unwrap_or(PullPolicy::IfNotPresent),
        pull_secrets: spec.pull_secrets.into_iter().map(|secret| secret.name).collect(),
    })
}

fn networking(spec: &NetworkingSpec, problems: &mut Problems) -> Option<Networking> {
    const SERVICES: &str = "spec.networking.serviceCIDRs";
    const PODS: &str = "spec.networking.podCIDRs";
    let before = problems.fields.len();
    let service_cidrs = rules::cidrs(SERVICES, &spec.service_cidrs, problems);
    let pod_cidrs = rules::cidrs(PODS, &spec.pod_cidrs, problems);
    rules::service_range_sizes(SERVICES, &service_cidrs, problems);
    rules::no_overlap((SERVICES, &service_cidrs), (PODS, &pod_cidrs), problems);
    let endpoint = &spec.endpoint;
    if let Some(host) = &endpoint.host {
        problems.take("spec.networking.endpoint.host", rules::host(host));
    }
    for (index, name) in endpoint.cert_sans.iter().enumerate() {
        let name = name.strip_prefix("*.").unwrap_or(name);
        problems.take(&format!("spec.networking.endpoint.certSANs[{index}]"), rules::host(name));
    }
    let port =
        problems.take("spec.networking.endpoint.port", rules::port(endpoint.port.unwrap_or(6443)));
    let node_port = endpoint
        .node_port
        .and_then(|port| problems.take("spec.networking.endpoint.nodePort", rules::port(port)));
    if problems.fields.len() > before {
        return None;
    }
    Some(Networking {
        service_cidrs,
        pod_cidrs,
        dns_domain: spec.dns_domain.clone(),
        endpoint: Endpoint {
            type_: endpoint.type_,
            host: endpoint.host.clone(),
            port: port?,
            node_port,
            cert_sans: endpoint.cert_sans.clone(),
        },
    })
}

fn rotation(spec: Option<&PkiSpec>, problems: &mut Problems) -> Option<Rotation> {
    const DAY: SignedDuration = SignedDuration::from_hours(24);
    let spec = spec.map(|pki| pki.rotation.clone()).unwrap_or_default();
    let duration = |given: Option<kube::core::Duration>, default: SignedDuration| match given {
        Some(given) => SignedDuration::try_from(std::time::Duration::from(given))
            .map_err(|error| error.to_string()),
        None => Ok(default),
    };
    let leaf_validity =
        problems.take("spec.pki.rotation.leafValidity", duration(spec.leaf_validity, DAY * 90))?;
    let renew_before =
        problems.take("spec.pki.rotation.renewBefore", duration(spec.renew_before, DAY * 30))?;
    if renew_before >= leaf_validity {
        problems.add("spec.pki.rotation.renewBefore", "must be shorter than leafValidity");
        return None;
    }
    Some(Rotation { leaf_validity, renew_before })
}

fn store(spec: &StoreSpec, problems: &mut Problems) -> Store {
    let durability = spec.durability.clone().unwrap_or_default();
    let rules = durability.rules.unwrap_or_else(|| {
        ["/registry/leases/", "/registry/events/"]
            .map(|prefix| DurabilityRule { prefix: prefix.to_owned(), mode: DurabilityMode::None })
            .to_vec()
    });
    rules::durability_rules(&rules, problems);
    Store {
        durability: Durability { default: durability.default.unwrap_or_default(), rules },
        storage_class_name: spec.wal.storage_class_name.clone(),
        size: spec.wal.size.clone(),
        resources: requirements(spec.resources.as_ref()),
    }
}

fn api_servers(spec: &ApiServersSpec) -> ApiServers {
    let shared = requirements(spec.resources.as_ref());
    let default = Pool {
        name: DEFAULT_POOL.to_owned(),
        replicas: spec.replicas,
        matches: Vec::new(),
        resources: shared.clone(),
    };
    let others = spec.pools.iter().map(|pool| Pool {
        name: pool.name.clone(),
        replicas: pool.replicas,
        matches: pool.matches.clone(),
        resources: pool.resources.as_ref().map_or_else(|| shared.clone(), Into::into),
    });
    ApiServers {
        max_surge: spec.max_surge.clone().unwrap_or_else(|| IntOrString::String("100%".to_owned())),
        extra_args: spec.extra_args.clone(),
        audit_policy: spec.audit_policy.clone(),
        pools: std::iter::once(default).chain(others).collect(),
    }
}

fn requirements(resources: Option<&Resources>) -> ResourceRequirements {
    resources.map(Into::into).unwrap_or_default()
}

#[cfg(test)]
mod tests;
