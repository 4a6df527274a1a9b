//! What a profile of `KubeSchedulerConfiguration` changes about decisions: which plugins run, and
//! their weights and arguments. Travels with each pod, so that shards need no configuration.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::diagnosis::{Plugin, PluginSet};
use super::directory::DefaultSpread;

/// The profile of pods that name no scheduler (`v1.DefaultSchedulerName`).
pub const DEFAULT_PROFILE: &str = "default-scheduler";

/// Weights of the scores; 0 for a plugin that is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Weights {
    /// `TaintToleration`
    pub taints: i64,
    /// `NodeAffinity`
    pub affinity: i64,
    /// `NodeResourcesFit`
    pub fit: i64,
    /// `PodTopologySpread`
    pub spread: i64,
    /// `InterPodAffinity`
    pub preferences: i64,
    /// `NodeResourcesBalancedAllocation`
    pub balance: i64,
    /// `ImageLocality`
    pub images: i64,
}

impl Default for Weights {
    /// `apis/config/v1/default_plugins.go`
    fn default() -> Self {
        Self { taints: 3, affinity: 2, fit: 1, spread: 2, preferences: 2, balance: 1, images: 1 }
    }
}

impl Weights {
    /// The weight of a plugin by its name; `None` for one without a score.
    pub fn by_name(&mut self, plugin: &str) -> Option<&mut i64> {
        Some(match plugin {
            "TaintToleration" => &mut self.taints,
            "NodeAffinity" => &mut self.affinity,
            "NodeResourcesFit" => &mut self.fit,
            "PodTopologySpread" => &mut self.spread,
            "InterPodAffinity" => &mut self.preferences,
            "NodeResourcesBalancedAllocation" => &mut self.balance,
            "ImageLocality" => &mut self.images,
            _ => return None,
        })
    }
}

/// A profile.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Policy {
    /// `schedulerName`; the relay's alone.
    #[serde(skip, default = "default_profile")]
    pub profile: Arc<str>,
    /// `PodTopologySpreadArgs`, which the relay gives to pods before shards see them.
    #[serde(skip)]
    pub default_spread: DefaultSpread,
    /// `VolumeBindingArgs.bindTimeoutSeconds`: how long claims may take to be bound; the relay's
    /// alone.
    #[serde(skip, default = "bind_timeout")]
    pub bind_timeout: Duration,
    /// The plugins whose filters run.
    pub filters: PluginSet,
    /// Weights of the scores.
    pub weights: Weights,
    /// `InterPodAffinityArgs.hardPodAffinityWeight`
    pub hard_pod_affinity_weight: i32,
    /// `InterPodAffinityArgs.ignorePreferredTermsOfExistingPods`
    pub ignore_preferred_terms: bool,
    /// Whether preemption is looked at.
    pub preemption: bool,
    /// `percentageOfNodesToScore`, from 1 to 99: where nodes are looked at one by one a shard may
    /// stop when so many of its own take the pod. Absent: it looks at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<u8>,
}

fn bind_timeout() -> Duration {
    Duration::from_mins(10)
}

fn default_profile() -> Arc<str> {
    DEFAULT_PROFILE.into()
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            profile: default_profile(),
            default_spread: DefaultSpread::default(),
            bind_timeout: bind_timeout(),
            filters: Plugin::ALL.into_iter().collect(),
            weights: Weights::default(),
            hard_pod_affinity_weight: 1,
            ignore_preferred_terms: false,
            preemption: true,
            sample: None,
        }
    }
}

/// As few nodes as are never worth a sample (`minFeasibleNodesToFind`).
const SAMPLE_AT_LEAST: u64 = 100;

impl Policy {
    /// How many of so many nodes have to take a pod before the others needn't be looked at
    /// (`numFeasibleNodesToFind`).
    #[must_use]
    pub fn enough(&self, nodes: u64) -> u64 {
        match self.sample {
            Some(percent) => (nodes.saturating_mul(u64::from(percent)) / 100).max(SAMPLE_AT_LEAST),
            None => u64::MAX,
        }
    }

    /// Whether shards need not be told of it: what they read of it is the default profile's.
    #[must_use]
    pub fn is_default(&self) -> bool {
        let default = Self::default();
        let Self { profile, default_spread, bind_timeout, .. } = default.clone();
        Self { profile, default_spread, bind_timeout, ..self.clone() } == default
    }
}
