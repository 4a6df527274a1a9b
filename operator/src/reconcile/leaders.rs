//! Who leads inside a cluster, and whether a takeover would be warm, by the word of its Leases.
//!
//! The leader itself writes there whom it would be followed by, and withdraws that within half a
//! second when the standby falls silent: a pod's readiness knows neither which pod leads nor
//! whether the other one has reached it.

use k8s_openapi::api::coordination::v1::Lease;
use megacluster_service::leadership::record::Record;

use super::conditions::{Conditions, STANDBY_SYNCED};
use crate::{
    api::v1alpha1::{ConditionStatus, LeaderStatus},
    validate::ValidatedCluster,
};

/// Namespace of the Leases inside the cluster.
pub const NAMESPACE: &str = "kube-system";
/// The controller managers' Lease.
pub const CONTROLLER_MANAGER: &str = "kube-controller-manager";
/// The Lease of the scheduler's relays.
pub const SCHEDULER: &str = "kube-scheduler";

/// Who leads one component.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leader {
    /// The pod that leads, if one does.
    pub pod: Option<String>,
    /// Its epoch.
    pub epoch: Option<i64>,
    /// The pod that would follow at once, and whether it is warm.
    pub standby: Option<(String, bool)>,
}

/// Who leads each component that has a leader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaders {
    /// The controller manager.
    pub controller_manager: Leader,
    /// The scheduler's relays.
    pub scheduler: Leader,
}

impl Leader {
    /// What a Lease says; there may be none yet.
    #[must_use]
    pub fn of(lease: Option<&Lease>) -> Self {
        let Some(lease) = lease else { return Self::default() };
        let record = Record::read(lease);
        // A stock program has neither epoch nor standby, but leaves annotations as it found them.
        let of_ours = record.holder.is_some() && record.peer.is_some();
        Self {
            pod: record.holder.as_deref().map(pod),
            epoch: i64::try_from(record.epoch).ok().filter(|_| of_ours),
            standby: record
                .standby
                .filter(|_| of_ours)
                .map(|standby| (pod(&standby.identity), standby.synced)),
        }
    }

    /// As the status tells it; `hot` where the component's standby can be warm at all. While nobody
    /// leads the last epoch stays, so that the next one is told from it.
    fn status(&self, hot: bool, old: &LeaderStatus) -> LeaderStatus {
        LeaderStatus {
            leader: self.pod.clone(),
            epoch: self.epoch.or(old.epoch).filter(|_| hot),
            standby_synced: Some(hot && self.standby.as_ref().is_some_and(|(_, synced)| *synced)),
        }
    }
}

/// The pod of an identity: its name, a `_` and what tells its lives apart.
fn pod(identity: &str) -> String {
    identity.rsplit_once('_').map_or(identity, |(pod, _)| pod).to_owned()
}

/// The leaders as the status tells them, controller manager and scheduler. Where nobody could be
/// asked it is what was known before; only whether the standbys are warm is not known.
pub(super) fn status(
    cluster: &ValidatedCluster,
    leaders: Option<&Leaders>,
    old: [LeaderStatus; 2],
) -> [LeaderStatus; 2] {
    match leaders {
        Some(leaders) => [
            leaders.controller_manager.status(cluster.controller_manager.hot_standby, &old[0]),
            leaders.scheduler.status(true, &old[1]),
        ],
        None => old.map(|old| LeaderStatus { standby_synced: None, ..old }),
    }
}

/// Sets the condition `StandbySynced`: false while a takeover of any component would be cold.
pub(super) fn condition(
    cluster: &ValidatedCluster,
    leaders: Option<&Leaders>,
    shard_standbys: i32,
    conditions: &mut Conditions<'_>,
) {
    let Some(leaders) = leaders else {
        let message = "the cluster's Leases could not be read";
        conditions.set(STANDBY_SYNCED, ConditionStatus::Unknown, "NotAnswering", message);
        return;
    };
    let manager = &cluster.controller_manager;
    let parts = [
        (
            "the controller manager",
            &leaders.controller_manager,
            manager.replicas,
            manager.hot_standby,
        ),
        ("the scheduler", &leaders.scheduler, cluster.scheduler.relays, true),
    ];
    let cold = parts.iter().find_map(|(what, leader, replicas, hot)| {
        let (reason, why) = cold(leader, *replicas, *hot)?;
        Some((reason, format!("{what}: {why}")))
    });
    let scheduler = &cluster.scheduler;
    let wanted = scheduler.shards * scheduler.standby_per_shard;
    let cold = cold.or_else(|| {
        let message =
            format!("the scheduler's shards: {shard_standbys} of {wanted} standbys ready");
        (shard_standbys < wanted).then_some(("NoStandby", message))
    });
    let (holds, reason, message) = cold.map_or_else(
        || (true, "Synced", "a warm replica would follow each leader".to_owned()),
        |(reason, message)| (false, reason, message),
    );
    conditions.set_bool(STANDBY_SYNCED, holds, reason, message);
}

/// Reasons that only a change of the spec ends.
const BY_SPEC: [&str; 2] = ["StockControllerManager", "OneReplica"];

/// Whether a standby may become warm by itself, for which it is worth to look again soon.
pub(super) fn may_become_warm(reason: &str) -> bool {
    !BY_SPEC.contains(&reason)
}

/// Why a takeover would be cold: reason and message.
fn cold(leader: &Leader, replicas: i32, hot: bool) -> Option<(&'static str, String)> {
    if !hot {
        return Some((BY_SPEC[0], "the stock one starts cold when it takes over".to_owned()));
    }
    if replicas < 2 {
        return Some((BY_SPEC[1], "there is one replica, and none to take over".to_owned()));
    }
    match (&leader.pod, &leader.standby) {
        (None, _) => Some(("NoLeader", "nobody leads".to_owned())),
        (Some(pod), None) => Some(("NoStandby", format!("no standby has reached {pod}"))),
        (Some(_), Some((standby, false))) => {
            Some(("StandbyCold", format!("{standby} has not filled its caches yet")))
        }
        (Some(_), Some((_, true))) => None,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;
    use crate::build::fixtures::{LARGE, cluster_with};
    use crate::validate::Facts;

    fn lease(holder: &str, annotations: &Value) -> Lease {
        serde_json::from_value(json!({
            "metadata": {"resourceVersion": "40", "annotations": annotations},
            "spec": {"holderIdentity": holder},
        }))
        .unwrap()
    }

    fn leads(standby: &str) -> Leader {
        Leader::of(Some(&lease(
            "relay-1_7444",
            &json!({
                "megacluster.io/leader-peer": "10.0.0.7:7444 k",
                "megacluster.io/epoch": "12",
                "megacluster.io/standby": standby,
            }),
        )))
    }

    #[test]
    fn a_lease_names_leader_epoch_and_standby() {
        let leader = leads("relay-0_7444 00ff synced");
        assert_eq!(leader.pod.as_deref(), Some("relay-1"));
        assert_eq!(leader.epoch, Some(12));
        assert_eq!(leader.standby, Some(("relay-0".to_owned(), true)));
        assert_eq!(Leader::of(None), Leader::default());
    }

    #[test]
    fn the_first_write_of_a_leadership_is_its_epoch() {
        let new = lease("a_1", &json!({"megacluster.io/leader-peer": "10.0.0.7:7444 k"}));
        assert_eq!(Leader::of(Some(&new)).epoch, Some(40));
    }

    #[test]
    fn a_stock_leader_has_no_epoch_and_a_released_lease_no_leader() {
        let stock = Leader::of(Some(&lease("host_uuid", &json!({"megacluster.io/epoch": "12"}))));
        assert_eq!((stock.pod.as_deref(), stock.epoch), (Some("host"), None));
        let released = json!({"megacluster.io/epoch": "12", "megacluster.io/released": "12 b"});
        assert_eq!(Leader::of(Some(&lease("", &released))), Leader::default());
    }

    fn reason(
        manager: Leader,
        scheduler: Leader,
        hot: bool,
        replicas: i32,
        standbys: i32,
    ) -> String {
        let cluster = cluster_with("prod", LARGE, Facts::default(), |spec| {
            spec.controller_manager.hot_standby = Some(hot);
            spec.controller_manager.replicas = replicas;
            spec.scheduler.standby_per_shard = Some(1);
        });
        let leaders = Leaders { controller_manager: manager, scheduler };
        let mut conditions = Conditions::new(&[], None, Timestamp::UNIX_EPOCH);
        condition(&cluster, Some(&leaders), standbys, &mut conditions);
        conditions.into_list()[0].reason.clone()
    }

    #[test]
    fn the_condition_says_which_takeover_would_be_cold() {
        let warm = || leads("relay-0_7444 00ff synced");
        assert_eq!(reason(warm(), warm(), true, 2, 3), "Synced");
        assert_eq!(reason(warm(), warm(), true, 2, 2), "NoStandby", "of a shard");
        assert_eq!(reason(warm(), leads("relay-0_7444 00ff cold"), true, 2, 3), "StandbyCold");
        assert_eq!(reason(leads(""), warm(), true, 2, 3), "NoStandby");
        assert_eq!(reason(warm(), Leader::default(), true, 2, 3), "NoLeader");
        assert_eq!(reason(warm(), warm(), true, 1, 3), "OneReplica");
        assert_eq!(reason(warm(), warm(), false, 2, 3), "StockControllerManager");
    }

    #[test]
    fn what_was_known_stays_while_nobody_leads_or_can_be_asked() {
        let cluster = cluster_with("prod", LARGE, Facts::default(), |_| {});
        let old = LeaderStatus {
            leader: Some("a".to_owned()),
            epoch: Some(3),
            standby_synced: Some(true),
        };
        let [manager, _] = status(&cluster, None, [old.clone(), LeaderStatus::default()]);
        assert_eq!(manager, LeaderStatus { standby_synced: None, ..old.clone() });
        let nobody = Some(&Leaders::default());
        let [manager, relay] = status(&cluster, nobody, [LeaderStatus::default(), old]);
        assert_eq!((manager.leader, manager.epoch), (None, None));
        assert_eq!((relay.leader, relay.epoch), (None, Some(3)));
    }
}
