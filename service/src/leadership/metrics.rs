//! Metrics of an election.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::{Leadership, Takeover};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    component: &'static str,
    cause: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Component {
    component: &'static str,
}

/// Metrics of the elections of a process; clones share them.
#[derive(Clone, Debug)]
pub struct ElectionMetrics {
    component: &'static str,
    seconds: Family<Labels, Histogram>,
    takeovers: Family<Labels, Counter>,
    epoch: Family<Component, Gauge>,
    standby_synced: Family<Component, Gauge>,
}

impl ElectionMetrics {
    /// Registers all metrics, with `component` as their label.
    pub fn register(registry: &mut Registry, component: &'static str) -> Self {
        let metrics = Self {
            component,
            // 5 ms to 20 s.
            seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.005, 2.0, 13))
            }),
            takeovers: Family::default(),
            epoch: Family::default(),
            standby_synced: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("megacluster_leadership");
        registry.register(
            "takeover_seconds",
            "From the last sign of the old leader until this process might act",
            metrics.seconds.clone(),
        );
        registry.register(
            "takeovers",
            "Leaderships begun by this process",
            metrics.takeovers.clone(),
        );
        registry.register("epoch", "The epoch last seen", metrics.epoch.clone());
        registry.register(
            "standby_synced",
            "Whether a standby that has all it needs would take over if the leader died now",
            metrics.standby_synced.clone(),
        );
        metrics
    }

    pub(super) fn took_over(&self, takeover: &Takeover) {
        let labels = Labels { component: self.component, cause: takeover.cause.as_str() };
        self.takeovers.get_or_create(&labels).inc();
        if let Some(took) = takeover.took {
            self.seconds.get_or_create(&labels).observe(took.as_secs_f64());
        }
    }

    pub(super) fn show(&self, leadership: &Leadership) {
        let component = Component { component: self.component };
        let epoch = i64::try_from(leadership.epoch).unwrap_or(i64::MAX);
        self.epoch.get_or_create(&component).set(epoch);
        let synced = i64::from(leadership.standby_synced);
        self.standby_synced.get_or_create(&component).set(synced);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::leadership::Cause;

    #[test]
    fn takeovers_are_told_by_component_and_cause() {
        let mut registry = Registry::default();
        let metrics = ElectionMetrics::register(&mut registry, "relay");
        let took = |cause, took| Takeover { epoch: 7, cause, took };
        metrics.took_over(&took(Cause::Death, Some(Duration::from_millis(40))));
        metrics.took_over(&took(Cause::Handover, Some(Duration::from_secs(2))));
        metrics.took_over(&took(Cause::Vacant, None));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let labels = |cause| format!("{{component=\"relay\",cause=\"{cause}\"}}");
        for cause in ["death", "handover", "vacant"] {
            let line = format!("megacluster_leadership_takeovers_total{} 1\n", labels(cause));
            assert!(text.contains(&line), "{text}");
        }
        for (cause, sum) in [("death", "0.04"), ("handover", "2.0")] {
            let line =
                format!("megacluster_leadership_takeover_seconds_sum{} {sum}\n", labels(cause));
            assert!(text.contains(&line), "{text}");
        }
        let unknown = format!("takeover_seconds_count{}", labels("vacant"));
        assert!(!text.contains(&unknown), "nobody led before: {text}");
    }
}
