//! A leader that is asked to stop. It leaves the Lease to its standby, which takes it in one write;
//! where none takes it, the Lease is given back in the way of client-go, for anybody.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;

use super::election::{Effect, Election};
use super::record::{self, Record};
use super::wire::FromLeader;

/// A leadership that we have ended ourselves.
#[derive(Debug)]
pub(super) struct Stopped {
    epoch: u64,
    successor: Option<String>,
}

impl Election {
    /// Stops leading, for good. Where a standby is told that the Lease is left to it: its
    /// connection, which it closes once it has taken the Lease.
    pub fn stop(&mut self) -> Option<u64> {
        let tenure = self.tenure.take()?;
        let (epoch, armed) = (tenure.epoch, tenure.armed);
        self.stopped = Some(Stopped {
            epoch,
            successor: armed.as_ref().map(|standby| standby.identity.clone()),
        });
        let version = self.record.version.clone()?;
        let id = self.peers.connection(armed?.session)?;
        self.effects.push(Effect::Say(id, FromLeader::Yours { epoch, version }));
        Some(id)
    }

    /// The record that gives the Lease back, where it was ours when we stopped.
    #[must_use]
    pub fn release(&self, wall: Timestamp) -> Option<Lease> {
        let stopped = self.stopped.as_ref()?;
        Some(record::release(self.seen.as_ref()?, stopped.successor.as_deref(), wall))
    }

    /// The same for a record that has moved on meanwhile; `None` where it is not ours any more.
    #[must_use]
    pub fn release_again(&self, found: &Lease, wall: Timestamp) -> Option<Lease> {
        let stopped = self.stopped.as_ref()?;
        let record = Record::read(found);
        let ours = record.holder.as_deref() == Some(&self.config.identity);
        let successor = record.standby.map(|standby| standby.identity);
        (ours && record.epoch == stopped.epoch)
            .then(|| record::release(found, successor.as_deref(), wall))
    }

    /// The Lease was given back: what is left to say.
    pub fn released(&mut self) {
        for id in self.peers.ids() {
            self.effects.push(Effect::Say(id, FromLeader::Bye));
        }
        for id in self.peers.close_all() {
            self.effects.push(Effect::Close(id));
        }
    }
}
