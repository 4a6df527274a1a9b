//! Checks that the schema's rules can't make. Each says what is wrong and what would be right.

use std::net::IpAddr;

use ipnet::IpNet;
use semver::Version;

use super::{DEFAULT_POOL, Problems};
use crate::api::v1alpha1::{ApiServerPool, DurabilityRule, GroupResource, WatchCacheSpec};

/// The Kubernetes minor versions that this operator can run.
const MINORS: std::ops::RangeInclusive<u64> = 36..=36;

/// kube-apiserver refuses Service ranges of more than 2^20 addresses
/// (cmd/kube-apiserver/app/options/validation.go, `maxCIDRBits`).
const MAX_SERVICE_BITS: u8 = 20;

/// Fewer addresses than 2^3 leave no room beside the `kubernetes` and DNS Services.
const MIN_SERVICE_BITS: u8 = 3;

/// The resources that the front door can answer, by group and plural name: its own list.
const KINDS: &str = include_str!("../../../watchcache/src/cache/kinds.tsv");
/// The groups of Kubernetes' own resources: its list, too.
const BUILT_IN_GROUPS: &str =
    include_str!("../../../watchcache/src/cache/custom/built-in-groups.txt");

/// `resource` or `resource.group`.
pub(super) fn full_name(resource: &GroupResource) -> String {
    match resource.group.as_str() {
        "" => resource.resource.clone(),
        group => format!("{}.{group}", resource.resource),
    }
}

/// Whether a resource is one of Kubernetes' own that the front door can answer.
pub(super) fn is_built_in(group: &str, resource: &str) -> bool {
    KINDS.lines().filter(|line| !line.starts_with('#')).any(|line| {
        let mut columns = line.split('\t');
        columns.next() == Some(group) && columns.nth(1) == Some(resource)
    })
}

/// Whether a custom resource may have this name, as the front door decides it
/// (`watchcache/src/cache/custom`): its group has a dot, and is none of Kubernetes' own.
fn may_be_custom(group: &str, resource: &str) -> bool {
    let label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let own = BUILT_IN_GROUPS.lines().any(|own| own == group);
    label(resource) && group.contains('.') && group.split('.').all(label) && !own
}

pub(super) fn cached(resources: &[GroupResource], problems: &mut Problems) {
    for (index, resource) in resources.iter().enumerate() {
        let (group, name) = (resource.group.as_str(), resource.resource.as_str());
        if !is_built_in(group, name) && !may_be_custom(group, name) {
            problems.add(
                format!("spec.watchCache.cached[{index}]"),
                format!("the front door can't answer {}", full_name(resource)),
            );
        }
    }
}

pub(super) fn parts(spec: &WatchCacheSpec, problems: &mut Problems) {
    if spec.parts.is_some_and(|parts| parts > 1) && spec.cached.is_empty() {
        problems.add(
            "spec.watchCache.parts",
            "they divide what is cached, and spec.watchCache.cached is empty",
        );
    }
}

pub(super) fn version(text: &str) -> Result<Version, String> {
    let number = text.strip_prefix('v').ok_or("must begin with v, such as v1.36.3")?;
    let version = Version::parse(number).map_err(|error| format!("{text}: {error}"))?;
    if version.major != 1 || !MINORS.contains(&version.minor) {
        return Err(format!("{text} is not supported: this operator runs v1.{}.x", MINORS.end()));
    }
    Ok(version)
}

/// Parses ranges: one, or one of each IP family.
pub(super) fn cidrs(field: &str, texts: &[String], problems: &mut Problems) -> Vec<IpNet> {
    let mut nets: Vec<IpNet> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let Ok(net) = text.parse::<IpNet>() else {
            problems.add(field, format!("{text} is not a CIDR such as 10.96.0.0/12"));
            continue;
        };
        if net.addr() != net.network() {
            problems.add(field, format!("{text} has bits beyond its mask: write {}", net.trunc()));
        } else if nets.iter().any(|other| family(other) == family(&net)) {
            problems.add(field, "two ranges must be of different IP families");
        } else {
            nets.push(net);
        }
    }
    nets
}

fn family(net: &IpNet) -> bool {
    net.addr().is_ipv4()
}

pub(super) fn service_range_sizes(field: &str, nets: &[IpNet], problems: &mut Problems) {
    for net in nets {
        let bits = net.max_prefix_len() - net.prefix_len();
        if bits > MAX_SERVICE_BITS {
            let smallest = net.max_prefix_len() - MAX_SERVICE_BITS;
            problems
                .add(field, format!("{net} is too large for kube-apiserver: at most /{smallest}"));
        } else if bits < MIN_SERVICE_BITS {
            let largest = net.max_prefix_len() - MIN_SERVICE_BITS;
            problems.add(field, format!("{net} is too small: at least /{largest}"));
        }
    }
}

pub(super) fn no_overlap(
    (field, nets): (&str, &[IpNet]),
    (other_field, others): (&str, &[IpNet]),
    problems: &mut Problems,
) {
    for net in nets {
        for other in others {
            if net.contains(other) || other.contains(net) {
                problems.add(field, format!("{net} overlaps {other} of {other_field}"));
            }
        }
    }
}

/// A DNS name (RFC 1123) or an IP address.
pub(super) fn host(text: &str) -> Result<(), String> {
    if text.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // What ends in a number would be read as an address by URL parsers.
    let numeric = text.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
    if text.len() <= 253 && text.split('.').all(label) && !numeric {
        Ok(())
    } else {
        Err(format!("{text} is neither a DNS name nor an IP address"))
    }
}

pub(super) fn port(number: i32) -> Result<u16, String> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("{number} is not a port: 1 to 65535"))
}

pub(super) fn durability_rules(rules: &[DurabilityRule], problems: &mut Problems) {
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("spec.store.durability.rules[{index}].prefix");
        let prefix = &rule.prefix;
        if !prefix.starts_with("/registry/") || !prefix.ends_with('/') {
            problems.add(
                field,
                format!("{prefix} must go from /registry/ to a /, such as /registry/leases/"),
            );
        } else if prefix.contains("//") {
            problems.add(field, format!("{prefix} has an empty part"));
        } else if rules[..index].iter().any(|earlier| earlier.prefix == *prefix) {
            problems.add(field, format!("{prefix} is there twice"));
        }
    }
}

/// Refuses arguments that would replace one of the operator's own, and repeated ones.
pub(super) fn extra_args(field: &str, args: &[String], managed: &[&str], problems: &mut Problems) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, arg) in args.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let Some(flag) = arg.strip_prefix("--") else {
            problems.add(field, format!("{arg} must be --flag=value"));
            continue;
        };
        let name = flag.split_once('=').map_or(flag, |(name, _)| name);
        if managed.contains(&name) {
            problems.add(field, format!("--{name} belongs to the operator"));
        } else if seen.contains(&name) {
            problems.add(field, format!("--{name} is there twice"));
        }
        seen.push(name);
    }
}

/// What is an audit policy at a first look; kube-apiserver looks closer.
pub(super) fn audit_policy(text: &str, args: &[String], problems: &mut Problems) {
    const FIELD: &str = "spec.apiServers.auditPolicy";
    let policy: serde_json::Value = match serde_saphyr::from_str(text) {
        Ok(policy) => policy,
        Err(error) => return problems.add(FIELD, format!("it is not YAML: {error}")),
    };
    let is = |name: &str, value: &str| policy.get(name).is_some_and(|found| found == value);
    if !is("apiVersion", "audit.k8s.io/v1") || !is("kind", "Policy") {
        problems.add(FIELD, "must be a Policy of audit.k8s.io/v1");
    }
    let rules = policy.get("rules").and_then(serde_json::Value::as_array);
    if rules.is_none_or(Vec::is_empty) {
        problems.add(FIELD, "must have rules");
    }
    for (index, rule) in rules.into_iter().flatten().enumerate() {
        let level = rule.get("level").and_then(serde_json::Value::as_str).unwrap_or_default();
        if !["None", "Metadata", "Request", "RequestResponse"].contains(&level) {
            problems.add(
                format!("{FIELD} rules[{index}].level"),
                "must be None, Metadata, Request or RequestResponse",
            );
        }
    }
    if args.iter().any(|arg| arg.starts_with("--audit-policy-file")) {
        problems.add(FIELD, "extraArgs has --audit-policy-file, too");
    }
}

pub(super) fn pools(pools: &[ApiServerPool], problems: &mut Problems) {
    for (index, pool) in pools.iter().enumerate() {
        if pool.name == DEFAULT_POOL {
            problems.add(
                format!("spec.apiServers.pools[{index}].name"),
                "the name default belongs to the pool that spec.apiServers itself describes",
            );
        }
        for matched in &pool.matches {
            if pools[..index].iter().any(|earlier| earlier.matches.contains(matched)) {
                problems.add(
                    format!("spec.apiServers.pools[{index}].match"),
                    format!("{} is matched by an earlier pool too", matched.resource),
                );
            }
        }
    }
}
