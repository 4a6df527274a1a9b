//! The calls that make up nearly all of a control plane's traffic, without a task, a codec and a
//! channel for each: a connection decodes them itself, hands over what came together as one parcel
//! and encodes the replies. What they do is in `kv`, like that of the calls which go through tonic.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use tonic::Status;

use super::paged::is_short;
use super::pieces::Pieces;
use super::{Api, CODEC_SLACK_BYTES, OVERHEAD_BYTES, mismatch};
use crate::core::{Command, Error, Reply};
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest};
use crate::sequencer::{Asked, Outbox};

/// A gRPC message's compression flag and length.
const PREFIX: usize = 5;
/// Room is taken in pieces of this size, which several answers share.
const ROOM: usize = 16 * 1024;

/// A call that may go this way: those that a connection counts by itself.
pub(crate) type Call = crate::metrics::Direct;

impl Call {
    /// The call at a request's path.
    pub(crate) fn at(path: &str) -> Option<Self> {
        match path.strip_prefix("/etcdserverpb.KV/")? {
            "Range" => Some(Self::Range),
            "Put" => Some(Self::Put),
            "DeleteRange" => Some(Self::DeleteRange),
            "Txn" => Some(Self::Txn),
            _ => None,
        }
    }
}

/// Which way a request goes on.
#[derive(Debug)]
pub(crate) enum Way {
    /// With others, as one command.
    Parcel(Asked),
    /// On its own: it reads more than the thread that orders everything should do at once.
    Pages(RangeRequest),
}

impl Api {
    /// Decodes a request and refuses what must not reach the sequencer. Strings share the
    /// message's memory.
    pub(crate) fn admit(&self, call: Call, tag: usize, message: Bytes) -> Result<Way, Status> {
        let size = message.len();
        let command = match call {
            Call::Range => {
                let request: RangeRequest = decode(message)?;
                self.admit_range(&request, size)?;
                if !is_short(&request) {
                    return Ok(Way::Pages(request));
                }
                Command::Range(request)
            }
            Call::Put => {
                let request: PutRequest = decode(message)?;
                self.admit_put(&request, size)?;
                Command::Put(request)
            }
            Call::DeleteRange => {
                let request: DeleteRangeRequest = decode(message)?;
                self.admit_delete(&request, size)?;
                Command::Delete(request)
            }
            Call::Txn => {
                let request: TxnRequest = decode(message)?;
                self.admit_txn(&request, size)?;
                Command::Txn(request)
            }
        };
        Ok(Way::Parcel(Asked { tag, command, size }))
    }

    /// The answer to a range that goes on its own, to be encoded as the client takes it.
    pub(crate) async fn pages(&self, request: RangeRequest) -> Result<Pieces, Status> {
        self.range_in_pages(request).await.map(Pieces::new)
    }

    /// Hands over what came together.
    pub(crate) fn submit(&self, asked: Vec<Asked>, to: Arc<dyn Outbox>) {
        self.inner.handle.submit(asked, to);
    }

    /// A reply as one gRPC message, taken off `room`.
    pub(crate) fn message(
        &self,
        result: Result<Reply, Error>,
        room: &mut BytesMut,
    ) -> Result<Bytes, Status> {
        match result {
            Ok(Reply::Range(mut response)) => {
                self.sign(&mut response.header);
                Ok(encode(&response, room))
            }
            Ok(Reply::Put(mut response)) => {
                self.sign(&mut response.header);
                Ok(encode(&response, room))
            }
            Ok(Reply::Delete(mut response)) => {
                self.sign(&mut response.header);
                Ok(encode(&response, room))
            }
            Ok(Reply::Txn(mut response)) => {
                self.sign(&mut response.header);
                Ok(encode(&response, room))
            }
            Ok(_) => Err(mismatch()),
            Err(error) => {
                if error == Error::TooManyRequests {
                    self.inner.metrics.shed.inc();
                }
                Err(error.into())
            }
        }
    }

    /// The largest message that is read to its end, so that a client which sends it all before it
    /// listens learns why it is refused.
    pub(crate) fn largest_message(&self) -> usize {
        self.inner.limits.request_bytes + OVERHEAD_BYTES + CODEC_SLACK_BYTES
    }

    /// The largest message that etcd's gRPC server takes.
    pub(crate) fn message_limit(&self) -> usize {
        self.inner.limits.request_bytes + OVERHEAD_BYTES
    }
}

fn decode<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message)
        .map_err(|error| Status::internal(format!("grpc: error unmarshalling request: {error}")))
}

fn encode(response: &impl Message, room: &mut BytesMut) -> Bytes {
    let size = response.encoded_len();
    if room.capacity() < PREFIX + size {
        room.reserve(ROOM.max(PREFIX + size));
    }
    room.resize(PREFIX + size, 0);
    // Into a slice: a growing buffer would look for room with each byte of a number.
    let mut slice = room.as_mut();
    put_prefix(size, &mut slice);
    response.encode_raw(&mut slice);
    room.split().freeze()
}

/// Writes what comes before a message of `size` bytes.
pub(super) fn put_prefix(size: usize, room: &mut impl BufMut) {
    room.put_u8(0);
    // No answer is longer than a length can say: its keys would not fit a range's bounds.
    room.put_u32(u32::try_from(size).unwrap_or(u32::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::RangeResponse;

    #[test]
    fn calls_are_known_by_their_paths() {
        assert_eq!(Call::at("/etcdserverpb.KV/Txn"), Some(Call::Txn));
        assert_eq!(Call::at("/etcdserverpb.KV/DeleteRange"), Some(Call::DeleteRange));
        for path in ["/etcdserverpb.KV/Compact", "/etcdserverpb.Watch/Watch", "/", "Range", ""] {
            assert_eq!(Call::at(path), None, "{path}");
        }
    }

    #[test]
    fn messages_carry_their_length() {
        let mut room = BytesMut::new();
        let response = RangeResponse { count: 7, more: true, ..RangeResponse::default() };
        for _ in 0..3 {
            let wire = encode(&response, &mut room);
            assert_eq!(wire[..PREFIX], [0, 0, 0, 0, 4]);
            assert_eq!(RangeResponse::decode(&wire[PREFIX..]).unwrap(), response);
        }
        assert!(decode::<RangeResponse>(Bytes::from_static(b"\xff\xff")).is_err());
    }
}
