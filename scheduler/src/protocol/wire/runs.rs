//! What comes many times in a message, in columns: reservations and confirmations of one round have
//! all but names in common, and the nodes of a look ahead are names and numbers. One buffer holds all
//! their texts, so that neither side allocates for each of them more than it keeps.

use std::sync::Arc;

use bytes::Bytes;

use super::{ClassCache, MAX_OPERATIONS, WireError};
use crate::core::evaluate::Next;
use crate::core::pod::PodRequest;
use crate::protocol::generated as pb;
use crate::protocol::{Operation, PodId, Reservation, Settlement};

/// Texts one behind the other.
#[derive(Debug, Default)]
pub(super) struct Texts {
    pub(super) bytes: Vec<u8>,
    pub(super) lengths: Vec<u32>,
}

impl Texts {
    pub(super) fn push(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
        self.lengths.push(u32::try_from(text.len()).unwrap_or(u32::MAX));
    }
}

/// The texts again; `None` where the lengths don't add up to them, or one isn't a text.
pub(super) fn texts<'a>(
    bytes: &'a [u8],
    lengths: &'a [u32],
) -> Option<impl Iterator<Item = Option<&'a str>> + use<'a>> {
    let whole: u64 = lengths.iter().map(|length| u64::from(*length)).sum();
    if whole != bytes.len() as u64 {
        return None;
    }
    let text = std::str::from_utf8(bytes).ok()?;
    let mut at = 0;
    Some(lengths.iter().map(move |length| {
        let begin = at;
        at += *length as usize;
        text.get(begin..at)
    }))
}

/// A run that goes on as long as operations have enough in common with its first one.
pub(super) struct OpenRun {
    /// The namespace and the class of reservations; none for confirmations.
    reserves: Option<(Arc<str>, Arc<PodRequest>, pb::PodClass)>,
    token: u64,
    texts: Texts,
}

impl OpenRun {
    /// One that begins with an operation; `None` for one that runs aren't made of.
    pub(super) fn of(
        operation: &Operation,
        class: impl FnOnce(&Arc<PodRequest>) -> Result<pb::PodClass, WireError>,
    ) -> Result<Option<Self>, WireError> {
        let (reserves, token) = match operation {
            Operation::Reserve(Reservation { pod, class: of, token, .. }) => {
                (Some((pod.namespace.clone(), of.clone(), class(of)?)), *token)
            }
            Operation::Confirm(settlement) => (None, settlement.token),
            _ => return Ok(None),
        };
        let mut run = Self { reserves, token, texts: Texts::default() };
        run.takes(operation);
        Ok(Some(run))
    }

    /// Appends an operation, if it is of the run.
    pub(super) fn takes(&mut self, operation: &Operation) -> bool {
        match (operation, &self.reserves) {
            (Operation::Reserve(reservation), Some((namespace, class, _))) => {
                let Reservation { pod, node, class: of, token } = reservation;
                if *token != self.token || !Arc::ptr_eq(of, class) || pod.namespace != *namespace {
                    return false;
                }
                for text in [&pod.uid, &pod.name, node] {
                    self.texts.push(text);
                }
            }
            (Operation::Confirm(Settlement { uid, node, token }), None) => {
                if *token != self.token {
                    return false;
                }
                for text in [uid, node] {
                    self.texts.push(text);
                }
            }
            _ => return false,
        }
        true
    }

    pub(super) fn close(self) -> pb::Operation {
        use pb::operation::Kind;
        let Self { reserves, token, texts: Texts { bytes, lengths } } = self;
        let run = pb::Run { token, text: bytes.into(), lengths, ..pb::Run::default() };
        let kind = match reserves {
            Some((namespace, _, class)) => {
                let namespace = namespace.to_string();
                Kind::Reserves(pb::Run { namespace, class: Some(class), ..run })
            }
            None => Kind::Confirms(run),
        };
        pb::Operation { kind: Some(kind) }
    }
}

/// The operations that one on the wire stands for; `None` where it is no run.
pub(super) fn expand(
    operation: &pb::Operation,
    classes: &ClassCache,
) -> Result<Option<Vec<Operation>>, WireError> {
    use pb::operation::Kind;
    match &operation.kind {
        Some(Kind::Reserves(run)) => reserves(run, classes).map(Some),
        Some(Kind::Confirms(run)) => confirms(run).map(Some),
        _ => Ok(None),
    }
}

/// The texts of a run, so many for each operation.
fn rows<const N: usize>(run: &pb::Run) -> Result<Vec<[&str; N]>, WireError> {
    if run.lengths.len() > MAX_OPERATIONS * N {
        return Err(WireError::TooMany(run.lengths.len() / N));
    }
    let texts = texts(&run.text, &run.lengths).ok_or(WireError::Run)?;
    let texts: Vec<&str> = texts.collect::<Option<_>>().ok_or(WireError::Run)?;
    let (rows, rest) = texts.as_chunks::<N>();
    // The first one is the UID.
    if !rest.is_empty() || rows.iter().any(|row| row.first().is_none_or(|uid| uid.is_empty())) {
        return Err(WireError::Run);
    }
    Ok(rows.to_vec())
}

fn reserves(run: &pb::Run, classes: &ClassCache) -> Result<Vec<Operation>, WireError> {
    let namespace: Arc<str> = run.namespace.as_str().into();
    let class = classes.get(run.class.clone())?;
    let reserve = |[uid, name, node]: [&str; 3]| {
        let pod = PodId { uid: uid.into(), namespace: namespace.clone(), name: name.into() };
        let (class, token) = (class.clone(), run.token);
        Operation::Reserve(Reservation { pod, node: node.into(), class, token })
    };
    Ok(rows(run)?.into_iter().map(reserve).collect())
}

fn confirms(run: &pb::Run) -> Result<Vec<Operation>, WireError> {
    let confirm = |[uid, node]: [&str; 2]| {
        Operation::Confirm(Settlement { uid: uid.into(), node: node.into(), token: run.token })
    };
    Ok(rows(run)?.into_iter().map(confirm).collect())
}

/// The nodes of a look ahead, in columns.
pub(super) fn write_next(next: &[Next], tuple: &mut pb::Tuple) {
    let mut texts = Texts::default();
    for Next { local, lot, node } in next {
        tuple.next_locals.push(*local);
        tuple.next_lots.push(*lot);
        texts.push(node);
    }
    tuple.next_nodes = texts.bytes.into();
    tuple.next_lengths = texts.lengths;
}

/// The nodes of a look ahead, and whether they make sense; otherwise none of them is to be used.
pub(super) fn read_next(tuple: &mut pb::Tuple) -> Option<Vec<Next>> {
    let nodes = std::mem::replace(&mut tuple.next_nodes, Bytes::new());
    let lengths = std::mem::take(&mut tuple.next_lengths);
    if tuple.next_locals.len() != lengths.len() || tuple.next_lots.len() != lengths.len() {
        return None;
    }
    let numbers = tuple.next_locals.iter().zip(&tuple.next_lots);
    let next = |((local, lot), node): ((&i64, &u64), Option<&str>)| {
        Some(Next { local: *local, lot: *lot, node: node?.into() })
    };
    let columns = numbers.zip(texts(&nodes, &lengths)?).map(next);
    let plain = std::mem::take(&mut tuple.next).into_iter();
    let plain =
        plain.map(|next| Some(Next { local: next.local, lot: next.lot, node: next.node.into() }));
    plain.chain(columns).collect()
}
