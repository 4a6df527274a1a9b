//! Requests that travel together: one message to the sequencer, one delivery back.

use std::sync::Arc;

use crate::core::{Command, Error, Reply};

/// One request of several that are handed over together.
#[derive(Debug)]
pub struct Asked {
    /// Comes back with the reply.
    pub tag: usize,
    /// What is asked.
    pub command: Command,
    /// About what the request holds in bytes.
    pub size: usize,
}

/// Replies with the tags of their requests.
pub type Replies = Vec<(usize, Result<Reply, Error>)>;

/// Where replies go. It is called on the sequencer's thread and must not wait.
pub trait Outbox: Send + Sync {
    /// Takes the replies to all requests that were handed over together.
    fn deliver(&self, replies: Replies);
}

/// Requests on their way to the sequencer. None of them stays without an answer: dropped, they are
/// answered with [`Error::Stopped`].
pub(super) struct Parcel {
    asked: Vec<Asked>,
    to: Arc<dyn Outbox>,
}

impl Parcel {
    pub(super) fn new(asked: Vec<Asked>, to: Arc<dyn Outbox>) -> Self {
        Self { asked, to }
    }

    /// The requests.
    pub(super) fn commands(&self) -> impl Iterator<Item = &Command> {
        self.asked.iter().map(|asked| &asked.command)
    }

    /// Answers all of it with an error.
    pub(super) fn refuse(mut self, error: Error) {
        self.answer(error);
    }

    /// The requests, and where their replies are gathered.
    pub(super) fn open(mut self) -> (Vec<Asked>, Delivery) {
        let asked = std::mem::take(&mut self.asked);
        let replies = Vec::with_capacity(asked.len());
        (asked, Delivery { replies, to: self.to.clone() })
    }

    fn answer(&mut self, error: Error) {
        let asked = std::mem::take(&mut self.asked);
        if !asked.is_empty() {
            self.to.deliver(asked.into_iter().map(|asked| (asked.tag, Err(error))).collect());
        }
    }
}

impl Drop for Parcel {
    fn drop(&mut self) {
        self.answer(Error::Stopped);
    }
}

/// Replies that wait until they may be seen. Dropped before, they become [`Error::Stopped`].
pub(super) struct Delivery {
    replies: Replies,
    to: Arc<dyn Outbox>,
}

impl Delivery {
    pub(super) fn push(&mut self, tag: usize, result: Result<Reply, Error>) {
        self.replies.push((tag, result));
    }

    /// The batch failed: whatever was done, nobody may be told so.
    pub(super) fn fail(&mut self, error: Error) {
        for (_, result) in &mut self.replies {
            *result = Err(error);
        }
    }

    pub(super) fn send(mut self) {
        self.to.deliver(std::mem::take(&mut self.replies));
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.replies.is_empty() {
            self.fail(Error::Stopped);
            self.to.deliver(std::mem::take(&mut self.replies));
        }
    }
}
