//! A profile's plugins and their arguments, merged as `mergePlugins` and
//! `expandMultiPointPlugins` of kube-scheduler merge them.
//!
//! Plugins are switched as a whole (`multiPoint`) or for their score. To switch single steps of a
//! plugin otherwise is refused.

use serde_json::Value;

use super::{ConfigError, each, list, unsupported, wrong};
use crate::core::diagnosis::Plugin;
use crate::core::policy::{Policy, Weights};

/// Plugins with a filter here.
const FILTERS: [Plugin; 12] = [
    Plugin::NodeUnschedulable,
    Plugin::NodeName,
    Plugin::TaintToleration,
    Plugin::NodeAffinity,
    Plugin::NodePorts,
    Plugin::NodeResourcesFit,
    Plugin::VolumeRestrictions,
    Plugin::NodeVolumeLimits,
    Plugin::VolumeBinding,
    Plugin::VolumeZone,
    Plugin::PodTopologySpread,
    Plugin::InterPodAffinity,
];
/// Plugins with a score alone.
const SCORES: [&str; 2] = ["NodeResourcesBalancedAllocation", "ImageLocality"];
/// Plugins that always run.
const FIXED: [&str; 3] = ["SchedulingGates", "PrioritySort", "DefaultBinder"];
/// Plugins of the default profile for pods that stay Pending here, so that it makes no difference
/// whether they run; switched off by name they would be expected to let such pods pass.
const ABSENT: [&str; 3] = ["DynamicResources", "NodeDeclaredFeatures", "GangScheduling"];
/// The other steps that plugins may be switched at.
const STEPS: [&str; 11] = [
    "preEnqueue",
    "queueSort",
    "preFilter",
    "filter",
    "postFilter",
    "preScore",
    "reserve",
    "permit",
    "preBind",
    "bind",
    "postBind",
];
const PREEMPTION: &str = "DefaultPreemption";

/// What a profile says about decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// `schedulerName`
    pub scheduler_name: Option<String>,
    /// Whether it says `percentageOfNodesToScore` itself.
    pub(super) own_sample: bool,
    /// Plugins, weights and arguments.
    pub policy: Policy,
}

/// One of the lists of plugins.
struct Set {
    disabled: Vec<String>,
    /// Names and weights.
    enabled: Vec<(String, i64)>,
}

impl Set {
    fn is_empty(&self) -> bool {
        self.disabled.is_empty() && self.enabled.is_empty()
    }

    fn all_off(&self) -> bool {
        self.disabled.iter().any(|name| name == "*")
    }
}

impl Profile {
    /// `profiles[].plugins`
    pub(super) fn plugins(&mut self, value: &Value, field: &str) -> Result<(), ConfigError> {
        let mut points = (None, None);
        each(value, field, |key, field, value| {
            match key {
                "multiPoint" => points.0 = Some((set(value, field)?, field.to_owned())),
                "score" => points.1 = Some((set(value, field)?, field.to_owned())),
                // As kube-scheduler writes a file: nothing is switched.
                step if STEPS.contains(&step) => return Ok(set(value, field)?.is_empty()),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if let Some((set, field)) = points.0 {
            self.everywhere(&set, &field)?;
        }
        if let Some((set, field)) = points.1 {
            self.scores(&set, &field)?;
        }
        Ok(())
    }

    fn everywhere(&mut self, set: &Set, field: &str) -> Result<(), ConfigError> {
        let enabled = |name: &str| set.enabled.iter().any(|(other, _)| other == name);
        if set.all_off() {
            self.policy = Policy {
                filters: crate::core::diagnosis::PluginSet::EMPTY,
                weights: Weights {
                    taints: 0,
                    affinity: 0,
                    fit: 0,
                    spread: 0,
                    preferences: 0,
                    balance: 0,
                    images: 0,
                },
                preemption: false,
                ..self.policy.clone()
            };
            if let Some(missing) = FIXED.iter().find(|name| !enabled(name)) {
                let detail = format!(": * without {missing}, which always runs here");
                return Err(unsupported(&format!("{field}.disabled"), &detail));
            }
        }
        for name in set.disabled.iter().filter(|name| *name != "*") {
            self.switch(name, None, &format!("{field}.disabled"))?;
        }
        for (name, weight) in &set.enabled {
            self.switch(name, Some(*weight), &format!("{field}.enabled"))?;
        }
        if in_default_order(set) {
            Ok(())
        } else {
            Err(unsupported(&format!("{field}.enabled"), ": another order than the default one"))
        }
    }

    fn switch(&mut self, name: &str, on: Option<i64>, field: &str) -> Result<(), ConfigError> {
        let refuse = || {
            if ABSENT.contains(&name) {
                unsupported(field, &format!(": {name}; pods that need it stay Pending"))
            } else {
                unsupported(field, &format!(": {name}"))
            }
        };
        let filter = FILTERS.into_iter().find(|plugin| plugin.name() == name);
        match filter {
            Some(plugin) if on.is_some() => self.policy.filters.insert(plugin),
            Some(plugin) => self.policy.filters.remove(plugin),
            None if name == PREEMPTION => self.policy.preemption = on.is_some(),
            None if SCORES.contains(&name) => {}
            None if on.is_some() && (FIXED.contains(&name) || ABSENT.contains(&name)) => {}
            None => return Err(refuse()),
        }
        if let Some(weight) = self.policy.weights.by_name(name) {
            *weight = on.map_or(0, |weight| weight.max(1));
        }
        Ok(())
    }

    fn scores(&mut self, set: &Set, field: &str) -> Result<(), ConfigError> {
        let refuse = |name: &str, list: &str| {
            unsupported(&format!("{field}.{list}"), &format!(": {name} has no score here"))
        };
        let mut before = self.policy.weights;
        for name in &set.disabled {
            if name == "*" {
                for name in FILTERS.map(Plugin::name).into_iter().chain(SCORES) {
                    if let Some(weight) = self.policy.weights.by_name(name) {
                        *weight = 0;
                    }
                }
                continue;
            }
            match self.policy.weights.by_name(name) {
                Some(weight) => *weight = 0,
                None => return Err(refuse(name, "disabled")),
            }
        }
        for (name, wanted) in &set.enabled {
            // kube-scheduler starts with such a profile and then fails at each pod.
            if before.by_name(name).is_some_and(|weight| *weight == 0) {
                let detail = format!(": {name} is off, and its score needs its other steps");
                return Err(unsupported(&format!("{field}.enabled"), &detail));
            }
            match self.policy.weights.by_name(name) {
                Some(weight) => *weight = (*wanted).max(1),
                None => return Err(refuse(name, "enabled")),
            }
        }
        Ok(())
    }
}

/// Whether the filters that run do so in the order of the default profile: an enabled plugin keeps
/// its place, but goes to the end where the default one is switched off.
fn in_default_order(set: &Set) -> bool {
    let off = |name: &str| set.all_off() || set.disabled.iter().any(|other| other == name);
    let kept = |plugin: &Plugin| !off(plugin.name());
    let mut order: Vec<Plugin> = FILTERS.into_iter().filter(kept).collect();
    for (name, _) in &set.enabled {
        let filter = FILTERS.into_iter().find(|plugin| plugin.name() == name);
        order.extend(filter.filter(|plugin| !kept(plugin)));
    }
    order.is_sorted()
}

fn set(value: &Value, field: &str) -> Result<Set, ConfigError> {
    let mut set = Set { disabled: Vec::new(), enabled: Vec::new() };
    each(value, field, |key, field, value| {
        let enabled = match key {
            "enabled" => true,
            "disabled" => false,
            _ => return Ok(false),
        };
        let plugins = list(value, field)?;
        for (index, plugin) in plugins.iter().enumerate() {
            let field = format!("{field}[{index}]");
            let (mut name, mut weight) = (None, 0);
            each(plugin, &field, |key, field, value| {
                match key {
                    "name" => name = Some(super::string(value, field)?),
                    "weight" => {
                        let number =
                            value.as_i64().filter(|w| (0..=i64::from(i32::MAX)).contains(w));
                        weight = number.ok_or_else(|| wrong(field, "a number of 32 bits"))?;
                    }
                    _ => return Ok(false),
                }
                Ok(true)
            })?;
            let name = name.ok_or_else(|| wrong(&field, "with a name"))?;
            if enabled { set.enabled.push((name, weight)) } else { set.disabled.push(name) }
        }
        Ok(true)
    })?;
    Ok(set)
}
