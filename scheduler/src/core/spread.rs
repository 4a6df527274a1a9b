//! Topology spread constraints, compiled (`plugins/podtopologyspread/common.go`).

use std::sync::Arc;

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use serde::{Deserialize, Serialize};

use super::diagnosis::Plugin;
use super::labels::{InvalidSelector, Labels, Selector};
use super::policy::Policy;
use super::selector::{HOSTNAME_LABEL, Requirement};

/// The label that names a node's zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// One constraint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Constraint {
    /// How far a domain may be ahead of the emptiest.
    pub max_skew: i32,
    /// The node label whose values are the domains.
    pub key: Arc<str>,
    /// Which pods of the pod's namespace are counted.
    pub selector: Selector,
    /// With fewer domains than this the emptiest counts as empty.
    pub min_domains: i32,
    /// Nodes that the pod's node affinity excludes don't count.
    pub honor_affinity: bool,
    /// Nodes whose taints the pod doesn't tolerate don't count.
    pub honor_taints: bool,
}

impl Constraint {
    fn compile(
        constraint: &TopologySpreadConstraint,
        labels: &Labels,
    ) -> Result<Self, InvalidSelector> {
        let mut selector = Selector::of(constraint.label_selector.as_ref())?;
        let keys = constraint.match_label_keys.iter().flatten();
        let same = |key: &String| labels.get(key).map(|value| Requirement::equals(key, value));
        selector.and(keys.filter_map(same));
        Ok(Self {
            max_skew: constraint.max_skew,
            key: constraint.topology_key.as_str().into(),
            selector,
            min_domains: constraint.min_domains.unwrap_or(1),
            honor_affinity: constraint.node_affinity_policy.as_deref().is_none_or(|p| p == "Honor"),
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        })
    }

    /// One of a profile's own constraints, which get the pod's selector later.
    #[must_use]
    pub fn default_for(key: &str, max_skew: i32) -> Self {
        Self {
            max_skew,
            key: key.into(),
            selector: Selector::Nothing,
            min_domains: 1,
            honor_affinity: true,
            honor_taints: false,
        }
    }

    /// Whether its domains are single nodes.
    #[must_use]
    pub fn is_by_node(&self) -> bool {
        &*self.key == HOSTNAME_LABEL
    }

    /// Whether a pod with these labels counts. A selector of everything counts nothing
    /// (`countPodsMatchSelector`).
    #[must_use]
    pub fn counts(&self, labels: &Labels) -> bool {
        !self.selector.is_everything() && self.selector.matches(labels)
    }
}

/// A pod's constraints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Spread {
    /// `DoNotSchedule`
    pub hard: Vec<Constraint>,
    /// `ScheduleAnyway`
    pub soft: Vec<Constraint>,
    /// The pod has none of its own: it gets the profile's.
    pub defaulted: bool,
    /// Whether nodes that lack a label of a soft constraint are left out of the score: so it is
    /// but for the system's default constraints.
    pub needs_all_labels: bool,
}

impl Spread {
    /// Reads a pod's constraints.
    pub fn compile(
        constraints: &[TopologySpreadConstraint],
        labels: &Labels,
    ) -> Result<Self, InvalidSelector> {
        let of = |action: &str| -> Result<Vec<_>, InvalidSelector> {
            let those = constraints.iter().filter(|c| c.when_unsatisfiable == action);
            those.map(|constraint| Constraint::compile(constraint, labels)).collect()
        };
        Ok(Self {
            hard: of("DoNotSchedule")?,
            soft: of("ScheduleAnyway")?,
            defaulted: constraints.is_empty(),
            needs_all_labels: true,
        })
    }

    /// Leaves out what a profile doesn't look at.
    pub fn restrict(&mut self, policy: &Policy) {
        if !policy.filters.contains(Plugin::PodTopologySpread) {
            self.hard.clear();
        }
        if policy.weights.spread == 0 {
            self.soft.clear();
        }
    }

    /// Whether there is nothing to spread over.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hard.is_empty() && self.soft.is_empty()
    }
}

/// `math.Log` of Go, whose last bit may differ from the platform's: the rounding of a score hangs
/// on it. After FreeBSD's `e_log.c`. For numbers of 1 and above.
#[must_use]
pub fn natural_logarithm(x: f64) -> f64 {
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    const L: [f64; 7] = [
        6.666_666_666_666_735e-1,
        3.999_999_999_940_942e-1,
        2.857_142_874_366_239e-1,
        2.222_219_843_214_978_4e-1,
        1.818_357_216_161_805e-1,
        1.531_383_769_920_937_3e-1,
        1.479_819_860_511_658_6e-1,
    ];
    // x = f × 2^exponent with f in [√½, √2).
    let mut exponent = 0.0;
    let mut f = x;
    while f >= 1.0 {
        f /= 2.0;
        exponent += 1.0;
    }
    if f < std::f64::consts::SQRT_2 / 2.0 {
        f *= 2.0;
        exponent -= 1.0;
    }
    let f = f - 1.0;
    let s = f / (2.0 + f);
    let s2 = s * s;
    let s4 = s2 * s2;
    let odd = s2 * (L[0] + s4 * (L[2] + s4 * (L[4] + s4 * L[6])));
    let even = s4 * (L[1] + s4 * (L[3] + s4 * L[5]));
    let r = odd + even;
    let half = 0.5 * f * f;
    exponent * LN2_HIGH - ((half - (s * (half + r) + exponent * LN2_LOW)) - f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_one() {
        for x in [1.0_f64, 2.0, 3.0, 4.0, 5.0, 7.0, 102.0, 5002.0, 1_000_002.0] {
            assert!((natural_logarithm(x) - x.ln()).abs() < 1e-14, "{x}");
        }
    }
}
