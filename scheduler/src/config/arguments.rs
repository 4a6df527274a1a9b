//! Plugins' arguments. Those that aren't supported may have the values that kube-scheduler gives
//! them by itself, so that a file that it wrote is read.

use std::time::Duration;

use serde_json::{Value, json};

use super::{ConfigError, Profile, each, list, only, unsupported, wrong};
use crate::core::directory::DefaultSpread;
use crate::core::spread::Constraint;

/// Longer than anything is waited for, in seconds.
const CENTURY: u64 = 100 * 365 * 24 * 60 * 60;

impl Profile {
    /// `profiles[].pluginConfig`
    pub(super) fn arguments(&mut self, value: &Value, field: &str) -> Result<(), ConfigError> {
        let entries = list(value, field)?;
        for (index, entry) in entries.iter().enumerate() {
            let field = format!("{field}[{index}]");
            let (mut name, mut arguments) = (None, Value::Null);
            each(entry, &field, |key, field, value| {
                match key {
                    "name" => name = Some(super::string(value, field)?),
                    "args" => arguments = value.clone(),
                    _ => return Ok(false),
                }
                Ok(true)
            })?;
            let field = format!("{field}.args");
            match name.as_deref() {
                Some("InterPodAffinity") => self.affinity_arguments(&arguments, &field)?,
                Some("PodTopologySpread") => self.spread_arguments(&arguments, &field)?,
                Some("VolumeBinding") => self.binding_arguments(&arguments, &field)?,
                Some("NodeResourcesFit") => fit_arguments(&arguments, &field)?,
                Some("NodeResourcesBalancedAllocation") => balance_arguments(&arguments, &field)?,
                Some("NodeAffinity") => node_affinity_arguments(&arguments, &field)?,
                Some("DefaultPreemption") => preemption_arguments(&arguments, &field)?,
                Some("DynamicResources") => resource_claims_arguments(&arguments, &field)?,
                Some(name) => return Err(unsupported(&field, &format!(": of {name}"))),
                None => return Err(wrong(&field, "with a name")),
            }
        }
        Ok(())
    }

    fn affinity_arguments(&mut self, value: &Value, field: &str) -> Result<(), ConfigError> {
        let policy = &mut self.policy;
        each(value, field, |key, field, value| {
            match key {
                "apiVersion" | "kind" => {}
                "hardPodAffinityWeight" => {
                    let weight = value.as_i64().filter(|weight| (0..=100).contains(weight));
                    let weight = weight.and_then(|weight| i32::try_from(weight).ok());
                    policy.hard_pod_affinity_weight =
                        weight.ok_or_else(|| wrong(field, "a number from 0 to 100"))?;
                }
                "ignorePreferredTermsOfExistingPods" => {
                    policy.ignore_preferred_terms =
                        value.as_bool().ok_or_else(|| wrong(field, "true or false"))?;
                }
                _ => return Ok(false),
            }
            Ok(true)
        })
    }

    /// `shape` needs a feature gate that is off in kube-scheduler by default.
    fn binding_arguments(&mut self, value: &Value, field: &str) -> Result<(), ConfigError> {
        let policy = &mut self.policy;
        each(value, field, |key, field, value| {
            match key {
                "apiVersion" | "kind" => {}
                "bindTimeoutSeconds" => {
                    let seconds =
                        value.as_u64().ok_or_else(|| wrong(field, "a whole number of seconds"))?;
                    policy.bind_timeout = Duration::from_secs(seconds.min(CENTURY));
                }
                "shape" => only(value, field, &[Value::Null])?,
                _ => return Ok(false),
            }
            Ok(true)
        })
    }

    fn spread_arguments(&mut self, value: &Value, field: &str) -> Result<(), ConfigError> {
        let mut list: Option<DefaultSpread> = None;
        let mut listed = false;
        each(value, field, |key, field, value| {
            match key {
                "apiVersion" | "kind" => {}
                "defaultingType" => match value.as_str() {
                    Some("List") => listed = true,
                    Some("System") => listed = false,
                    _ => return Err(wrong(field, "List or System")),
                },
                "defaultConstraints" => list = Some(constraints(value, field)?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let some = |list: &DefaultSpread| !list.hard.is_empty() || !list.soft.is_empty();
        match list {
            Some(list) if listed => self.policy.default_spread = list,
            Some(list) if some(&list) => {
                let field = format!("{field}.defaultConstraints");
                return Err(wrong(&field, "empty unless defaultingType is List"));
            }
            _ if listed => {
                self.policy.default_spread =
                    DefaultSpread { hard: Vec::new(), soft: Vec::new(), system: false };
            }
            _ => self.policy.default_spread = DefaultSpread::default(),
        }
        Ok(())
    }
}

/// Least allocated, by CPU and memory alike.
fn fit_arguments(value: &Value, field: &str) -> Result<(), ConfigError> {
    each(value, field, |key, field, value| {
        match key {
            "apiVersion" | "kind" => {}
            "ignoredResources" | "ignoredResourceGroups" => {
                only(value, field, &[Value::Null, json!([])])?;
            }
            "scoringStrategy" => each(value, field, |key, field, value| {
                match key {
                    "type" => only(value, field, &[json!("LeastAllocated")])?,
                    "resources" => cpu_and_memory(value, field)?,
                    _ => return Ok(false),
                }
                Ok(true)
            })?,
            _ => return Ok(false),
        }
        Ok(true)
    })
}

fn balance_arguments(value: &Value, field: &str) -> Result<(), ConfigError> {
    each(value, field, |key, field, value| {
        match key {
            "apiVersion" | "kind" => {}
            "resources" => cpu_and_memory(value, field)?,
            _ => return Ok(false),
        }
        Ok(true)
    })
}

fn cpu_and_memory(value: &Value, field: &str) -> Result<(), ConfigError> {
    let (cpu, memory) =
        (json!({"name": "cpu", "weight": 1}), json!({"name": "memory", "weight": 1}));
    only(value, field, &[json!([cpu, memory]), json!([memory, cpu])])
}

fn node_affinity_arguments(value: &Value, field: &str) -> Result<(), ConfigError> {
    each(value, field, |key, field, value| {
        match key {
            "apiVersion" | "kind" => {}
            "addedAffinity" => only(value, field, &[Value::Null])?,
            _ => return Ok(false),
        }
        Ok(true)
    })
}

/// Every node is tried, so more than kube-scheduler tries by default, and as many as it can.
fn preemption_arguments(value: &Value, field: &str) -> Result<(), ConfigError> {
    each(value, field, |key, field, value| {
        match key {
            "apiVersion" | "kind" => {}
            "minCandidateNodesPercentage" => only(value, field, &[json!(10), json!(100)])?,
            "minCandidateNodesAbsolute" => only(value, field, &[json!(100)])?,
            _ => return Ok(false),
        }
        Ok(true)
    })
}

/// Pods with resource claims stay Pending whatever these say.
fn resource_claims_arguments(value: &Value, field: &str) -> Result<(), ConfigError> {
    each(value, field, |key, field, value| {
        match key {
            "apiVersion" | "kind" => {}
            "filterTimeout" => only(value, field, &[json!("10s")])?,
            "bindingTimeout" => only(value, field, &[json!("10m0s"), json!("10m")])?,
            _ => return Ok(false),
        }
        Ok(true)
    })
}

/// `defaultConstraints`, which may not have selectors.
fn constraints(value: &Value, field: &str) -> Result<DefaultSpread, ConfigError> {
    let constraints = list(value, field)?;
    let mut spread = DefaultSpread { hard: Vec::new(), soft: Vec::new(), system: false };
    for (index, constraint) in constraints.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let (mut skew, mut key, mut hard) = (None, None, None);
        each(constraint, &field, |name, field, value| {
            match name {
                "maxSkew" => skew = value.as_i64().and_then(|skew| i32::try_from(skew).ok()),
                "topologyKey" => key = Some(super::string(value, field)?),
                "whenUnsatisfiable" => {
                    hard = match value.as_str() {
                        Some("DoNotSchedule") => Some(true),
                        Some("ScheduleAnyway") => Some(false),
                        _ => None,
                    }
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let (Some(skew @ 1..), Some(key), Some(hard)) = (skew, key, hard) else {
            return Err(wrong(&field, "maxSkew above 0, topologyKey and whenUnsatisfiable"));
        };
        let constraint = Constraint::default_for(&key, skew);
        if hard { spread.hard.push(constraint) } else { spread.soft.push(constraint) }
    }
    Ok(spread)
}
