//! The KV service.

use std::pin::Pin;

use futures::{Stream, stream};
use prost::Message;
use tonic::{Request, Response, Status};

use super::{Answer, Api, mismatch};
use crate::core::{Command, Reply, check, is_read_only};
use crate::pb::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
    kv_server::Kv,
};

/// Bytes of keys and values after which a part of a streamed range is closed.
const PART_BYTES: usize = 512 * 1024;

impl Api {
    async fn range_reply(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        let size = request.encoded_len();
        self.check_message(size)?;
        check::range(&request)?;
        match self.ask(Command::Range(request), size).await? {
            Reply::Range(mut response) => {
                self.sign(&mut response.header);
                Ok(response)
            }
            _ => Err(mismatch()),
        }
    }
}

#[tonic::async_trait]
impl Kv for Api {
    async fn range(&self, request: Request<RangeRequest>) -> Answer<RangeResponse> {
        self.range_reply(request.into_inner()).await.map(Response::new)
    }

    type RangeStreamStream =
        Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Answer<Self::RangeStreamStream> {
        let response = self.range_reply(request.into_inner()).await?;
        Ok(Response::new(Box::pin(stream::iter(parts(response).map(Ok)))))
    }

    async fn put(&self, request: Request<PutRequest>) -> Answer<PutResponse> {
        let request = request.into_inner();
        let size = request.encoded_len();
        check::put(&request)?;
        self.check_write(size)?;
        match self.ask(Command::Put(request), size).await? {
            Reply::Put(mut response) => {
                self.sign(&mut response.header);
                Ok(Response::new(response))
            }
            _ => Err(mismatch()),
        }
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Answer<DeleteRangeResponse> {
        let request = request.into_inner();
        let size = request.encoded_len();
        check::delete(&request)?;
        self.check_write(size)?;
        match self.ask(Command::Delete(request), size).await? {
            Reply::Delete(mut response) => {
                self.sign(&mut response.header);
                Ok(Response::new(response))
            }
            _ => Err(mismatch()),
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Answer<TxnResponse> {
        let request = request.into_inner();
        let size = request.encoded_len();
        self.check_message(size)?;
        check::txn(&request, self.inner.limits.txn_ops)?;
        if !is_read_only(&request) {
            self.check_write(size)?;
        }
        match self.ask(Command::Txn(request), size).await? {
            Reply::Txn(mut response) => {
                self.sign(&mut response.header);
                Ok(Response::new(response))
            }
            _ => Err(mismatch()),
        }
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Answer<CompactionResponse> {
        // `physical` asks to wait until memory is freed; that is a matter of slices here, and
        // nothing that a client can see depends on it.
        match self.ask(Command::Compact(request.into_inner().revision), 0).await? {
            Reply::Done(revision) => {
                Ok(Response::new(CompactionResponse { header: Some(self.header(revision)) }))
            }
            _ => Err(mismatch()),
        }
    }
}

/// A range's answer in parts: keys in order, then with the last part all that is told once
/// (etcd 3.7 `api/etcdserverpb/rpc.proto`, `RangeStreamResponse`).
fn parts(response: RangeResponse) -> impl Iterator<Item = RangeStreamResponse> + Send {
    let RangeResponse { header, kvs, more, count } = response;
    let mut kvs = kvs.into_iter().peekable();
    let mut last = Some(RangeResponse { header, kvs: Vec::new(), more, count });
    std::iter::from_fn(move || {
        last.as_ref()?;
        let mut part = Vec::new();
        let mut bytes = 0;
        while bytes < PART_BYTES
            && let Some(kv) = kvs.next()
        {
            bytes += kv.encoded().len();
            part.push(kv);
        }
        let mut range_response = RangeResponse { kvs: part, ..RangeResponse::default() };
        if kvs.peek().is_none()
            && let Some(end) = last.take()
        {
            range_response = RangeResponse { kvs: range_response.kvs, ..end };
        }
        Some(RangeStreamResponse { range_response: Some(range_response) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Fields, KeyValue};
    use crate::pb::etcdserverpb::ResponseHeader;

    #[test]
    fn parts_join_to_the_whole() {
        for n in [0_i64, 1, 5, 40] {
            let kvs: Vec<KeyValue> = (0..n)
                .map(|i| {
                    let value = vec![b'x'; 100_000];
                    KeyValue::new(Fields { mod_revision: i, value: &value, ..Fields::default() })
                })
                .collect();
            let header = Some(ResponseHeader { revision: 9, ..ResponseHeader::default() });
            let whole = RangeResponse { header, kvs, more: true, count: n };
            let found: Vec<_> =
                parts(whole.clone()).filter_map(|part| part.range_response).collect();
            let (end, before) = found.split_last().unwrap();
            assert!(before.iter().all(|part| part.header.is_none() && part.count == 0));
            assert!(end.header.is_some() && end.more);
            let joined: Vec<_> = found.iter().flat_map(|part| part.kvs.clone()).collect();
            assert_eq!(joined, whole.kvs);
            assert!(n < 40 || found.len() > 5);
        }
    }
}
