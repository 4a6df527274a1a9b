//! Between the protocol's own types and protobuf. What comes in is checked here once; a message
//! that makes no sense is refused whole.

mod pools;
mod preemption;
mod request;
mod response;
mod runs;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

pub use self::request::{decode_request, encode_request};
pub use self::response::{decode_response, encode_response};
use super::generated as pb;
use crate::core::diagnosis::{Reason, Rejections};
use crate::core::maps::HashMap;
use crate::core::pod::PodRequest;
use crate::core::survey::Survey;

/// Classes kept by their bytes; the cache starts anew when it is full.
const CLASSES: usize = 4096;
/// Operations in one message.
pub const MAX_OPERATIONS: usize = 4096;

/// What a peer understands, by its last message; each includes those before it. One of an older
/// version refuses what it does not know, and says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dialect {
    /// Nothing but the first version's.
    #[default]
    First,
    /// A reservation without a class is of the same as the one before it.
    CarryOver,
    /// Runs of operations and answers, nodes in columns, and sessions.
    Runs,
    /// [`Operation::Draw`](super::Operation::Draw).
    Pools,
}

impl Dialect {
    /// What is said of this version.
    const OURS: u32 = 3;

    fn read(dialect: u32, carry_over: bool) -> Self {
        match dialect {
            Self::OURS.. => Self::Pools,
            2 => Self::Runs,
            _ if carry_over => Self::CarryOver,
            _ => Self::First,
        }
    }

    /// What whoever sent this takes in an answer.
    #[must_use]
    pub fn of_request(request: &pb::ExchangeRequest) -> Self {
        Self::read(request.dialect, false)
    }

    /// What whoever sent this takes in a request.
    #[must_use]
    pub fn of_response(response: &pb::ExchangeResponse) -> Self {
        Self::read(response.dialect, response.classes_carry_over)
    }
}

/// A message can't be read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// A field is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A JSON part can't be read or written.
    #[error("{what}: {source}")]
    Json {
        /// Which part.
        what: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// A UID that isn't 16 bytes long, or a class that isn't there.
    #[error("a nominee or victim makes no sense")]
    Nominee,
    /// A run whose parts don't fit each other, or with a text that isn't one.
    #[error("a run of operations makes no sense")]
    Run,
    /// More than the bound.
    #[error("{0} operations in one message: at most {MAX_OPERATIONS}")]
    TooMany(usize),
}

/// Compiled classes by their bytes, so that pods of one template are decoded once.
#[derive(Debug, Default)]
pub struct ClassCache {
    classes: Mutex<HashMap<Bytes, Arc<PodRequest>>>,
}

impl ClassCache {
    fn get(&self, class: Option<pb::PodClass>) -> Result<Arc<PodRequest>, WireError> {
        let bytes = class.ok_or(WireError::Missing("class"))?.request;
        if let Some(known) = self.classes.lock().get(&bytes) {
            return Ok(known.clone());
        }
        let class: Arc<PodRequest> = serde_json::from_slice(&bytes)
            .map(Arc::new)
            .map_err(|source| WireError::Json { what: "class", source })?;
        let mut classes = self.classes.lock();
        if classes.len() >= CLASSES {
            classes.clear();
        }
        classes.insert(bytes, class.clone());
        Ok(class)
    }
}

fn encode_class(class: &PodRequest) -> Result<pb::PodClass, WireError> {
    let request = serde_json::to_vec(class)
        .map_err(|source| WireError::Json { what: "class", source })?
        .into();
    Ok(pb::PodClass { request })
}

fn encode_survey(survey: &Survey) -> Result<Bytes, WireError> {
    let json = serde_json::to_vec(survey);
    Ok(json.map_err(|source| WireError::Json { what: "survey", source })?.into())
}

fn decode_survey(survey: &[u8]) -> Result<Survey, WireError> {
    serde_json::from_slice(survey).map_err(|source| WireError::Json { what: "survey", source })
}

fn encode_rejections(rejections: &Rejections) -> Vec<pb::Rejection> {
    let rejection = |(reason, nodes): (&Reason, &u64)| pb::Rejection {
        reason: reason.to_string(),
        nodes: *nodes,
    };
    rejections.iter().map(rejection).collect()
}

fn decode_rejections(rejections: Vec<pb::Rejection>) -> Rejections {
    let rejection = |rejection: pb::Rejection| match rejection.reason.parse::<Reason>() {
        Ok(reason) => (reason, rejection.nodes),
    };
    rejections.into_iter().map(rejection).collect()
}
