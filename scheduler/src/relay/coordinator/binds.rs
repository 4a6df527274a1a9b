//! What becomes of binds, and what a shard that has restarted has to hear of them.

use std::collections::VecDeque;
use std::sync::Arc;

use tracing::{info, warn};

use super::{Action, Binding, Coordinator, MAX_RECENT, RECENT, Recent};
use crate::core::pod::PodUid;
use crate::core::queue::Moment;
use crate::protocol::{Operation, PodId, Reservation};
use crate::relay::bind::BindOutcome;
use crate::relay::report::Report;

impl Coordinator {
    /// Takes over the outcome of [`Action::Bind`].
    pub fn bound(&mut self, now: Moment, pod: &PodId, outcome: BindOutcome) -> Vec<Action> {
        let uid = PodUid::new(&pod.uid);
        let Some(Binding { attempt, reservation, owner, begun }) = self.binds.remove(&uid) else {
            return Vec::new();
        };
        let node = reservation.node.clone();
        let pod = reservation.pod.clone();
        let settlement = reservation.settlement();
        let (result, operation) = match &outcome {
            BindOutcome::Bound => ("bound", Some(Operation::Confirm(settlement))),
            BindOutcome::Elsewhere(_) => ("elsewhere", Some(Operation::Release(settlement))),
            BindOutcome::Gone => ("gone", Some(Operation::Release(settlement))),
            BindOutcome::Refused(_) => ("refused", Some(Operation::Release(settlement))),
            BindOutcome::Unknown(_) => ("unknown", None),
        };
        self.metrics.bind_ended(result);
        if let Some(operation) = operation {
            self.shards.tell(&owner, operation);
        }
        let profile = reservation.class.policy.profile.clone();
        match outcome {
            BindOutcome::Bound => {
                self.remember(now, reservation, true);
                self.queue.done(uid, now);
                self.pods.settled(uid);
                self.metrics.attempt("scheduled", &profile, now.saturating_sub(begun));
                self.metrics.bound(attempt.number, now.saturating_sub(attempt.first_ready));
                return vec![Action::Report(Report::Scheduled { pod, node, profile })];
            }
            BindOutcome::Elsewhere(other) => {
                info!(%pod, %node, %other, "someone else bound the pod");
                self.queue.done(uid, now);
                self.pods.settled(uid);
            }
            BindOutcome::Gone => {
                self.queue.done(uid, now);
                self.pods.settled(uid);
            }
            BindOutcome::Refused(message) => {
                warn!(%pod, %node, %message, "bind refused");
                self.redraw(now);
                self.metrics.attempt("error", &profile, now.saturating_sub(begun));
                self.pods.waits(uid);
                self.queue.retry(uid, now);
            }
            BindOutcome::Unknown(message) => {
                warn!(%pod, %node, %message, "bind unanswered: the reservation is left to expire");
                self.redraw(now);
                self.metrics.attempt("error", &profile, now.saturating_sub(begun));
                self.remember(now, reservation, false);
                self.pods.waits(uid);
                self.queue.retry(uid, now);
            }
        }
        Vec::new()
    }

    fn remember(&mut self, now: Moment, reservation: Reservation, bound: bool) {
        while self.recent.len() >= MAX_RECENT
            || self.recent.front().is_some_and(|recent| recent.until <= now)
        {
            self.recent.pop_front();
        }
        self.recent.push_back(Recent { until: now + RECENT, reservation, bound });
    }

    /// What a shard that has restarted may not know: binds under way and those of late.
    pub(super) fn restoration(&mut self, now: Moment, shard: &Arc<str>) -> VecDeque<Operation> {
        while self.recent.front().is_some_and(|recent| recent.until <= now) {
            self.recent.pop_front();
        }
        let membership = &self.config.membership;
        let theirs = |reservation: &Reservation| membership.owner(&reservation.node) == Some(shard);
        let mut operations = VecDeque::new();
        for recent in self.recent.iter().filter(|recent| theirs(&recent.reservation)) {
            operations.push_back(Operation::Restore(recent.reservation.clone()));
            if recent.bound {
                operations.push_back(Operation::Confirm(recent.reservation.settlement()));
            }
        }
        let mounting = self.mounting.values().map(|mounting| &mounting.binding);
        let under_way = self.binds.values().chain(mounting);
        let under_way = under_way.filter(|binding| theirs(&binding.reservation));
        operations.extend(under_way.map(|b| Operation::Restore(b.reservation.clone())));
        operations
    }
}
