//! Conditions as metav1 and kstatus want them. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::v1alpha1::{Condition, ConditionStatus};

/// Every component is available and the endpoint answers.
pub const READY: &str = "Ready";
/// A change is being rolled out. There only while true.
pub const RECONCILING: &str = "Reconciling";
/// Nothing goes on until the user changes something. There only while true.
pub const STALLED: &str = "Stalled";
/// The operator leaves the children alone. There only while true.
pub const PAUSED: &str = "Paused";
/// The store is available.
pub const STORE_READY: &str = "StoreReady";
/// The front door is available.
pub const WATCH_CACHE_READY: &str = "WatchCacheReady";
/// Every pool of kube-apiservers is available.
pub const API_SERVERS_READY: &str = "APIServersReady";
/// The controller manager is available.
pub const CONTROLLER_MANAGER_READY: &str = "ControllerManagerReady";
/// Every shard and relay is available.
pub const SCHEDULER_READY: &str = "SchedulerReady";
/// Every certificate is there and valid.
pub const CERTIFICATES_READY: &str = "CertificatesReady";
/// An administrator's request through the front door was answered.
pub const ENDPOINT_READY: &str = "EndpointReady";
/// A warm replica would follow each leader that died now.
pub const STANDBY_SYNCED: &str = "StandbySynced";
/// Every component runs as the latest spec asks.
pub const UP_TO_DATE: &str = "UpToDate";

/// Collects the conditions of one status.
#[derive(Debug)]
pub struct Conditions<'a> {
    old: &'a [Condition],
    generation: Option<i64>,
    now: Timestamp,
    list: Vec<Condition>,
}

impl<'a> Conditions<'a> {
    /// Conditions about `generation` that follow `old`.
    #[must_use]
    pub fn new(old: &'a [Condition], generation: Option<i64>, now: Timestamp) -> Self {
        Self { old, generation, now, list: Vec::new() }
    }

    /// Sets a condition. The time of its last transition stays unless its status changes.
    pub fn set(
        &mut self,
        type_: &str,
        status: ConditionStatus,
        reason: &str,
        message: impl Into<String>,
    ) {
        let mut message: String = message.into();
        // What metav1.Condition allows; a cut message still says what is wrong first.
        if message.len() > 32_768 {
            message
                .truncate((0..=32_000).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0));
        }
        let last_transition_time = find(self.old, type_)
            .filter(|old| old.status == status)
            .map_or_else(|| Time(whole_second(self.now)), |old| old.last_transition_time.clone());
        self.list.push(Condition {
            type_: type_.to_owned(),
            status,
            observed_generation: self.generation,
            last_transition_time,
            reason: reason.to_owned(),
            message,
        });
    }

    /// Sets a condition that is true or false.
    pub fn set_bool(&mut self, type_: &str, holds: bool, reason: &str, message: impl Into<String>) {
        let status = if holds { ConditionStatus::True } else { ConditionStatus::False };
        self.set(type_, status, reason, message);
    }

    /// Keeps an old condition as it was, where nothing new is known: what it is about stays the
    /// generation that it was about.
    pub fn keep(&mut self, type_: &str) {
        self.list.extend(find(self.old, type_).cloned());
    }

    /// The conditions that were set, in the order they are shown in.
    #[must_use]
    pub fn into_list(self) -> Vec<Condition> {
        self.list
    }
}

/// The condition of a type.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition of a type is there and true.
#[must_use]
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == ConditionStatus::True)
}

/// The API writes times in whole seconds; a finer one would differ from what comes back.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut first = Conditions::new(&[], Some(1), at(10));
        first.set_bool(READY, false, "Starting", "a");
        let first = first.into_list();
        let mut second = Conditions::new(&first, Some(2), at(20));
        second.set_bool(READY, false, "Other", "b");
        let second = second.into_list();
        assert_eq!(second[0].last_transition_time, Time(at(10)));
        assert_eq!(second[0].observed_generation, Some(2));
        let mut third = Conditions::new(&second, Some(2), at(30));
        third.set_bool(READY, true, "Available", "c");
        assert_eq!(third.into_list()[0].last_transition_time, Time(at(30)));
    }

    #[test]
    fn a_very_long_message_is_cut() {
        let mut conditions = Conditions::new(&[], None, at(0));
        conditions.set_bool(READY, false, "X", "ü".repeat(40_000));
        assert!(conditions.into_list()[0].message.len() <= 32_768);
    }
}
