//! The KV service.

use prost::Message;
use tonic::{Request, Response, Status};

use super::paged::Parts;
use super::{Answer, Api, mismatch};
use crate::core::{Command, Reply, check, is_read_only};
use crate::pb::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse, kv_server::Kv,
};

impl Api {
    // What is refused before the sequencer sees it. `size` is the message's.

    pub(super) fn admit_range(&self, request: &RangeRequest, size: usize) -> Result<(), Status> {
        self.check_message(size)?;
        Ok(check::range(request)?)
    }

    pub(super) fn admit_put(&self, request: &PutRequest, size: usize) -> Result<(), Status> {
        check::put(request)?;
        self.check_write(size)
    }

    pub(super) fn admit_delete(
        &self,
        request: &DeleteRangeRequest,
        size: usize,
    ) -> Result<(), Status> {
        check::delete(request)?;
        self.check_write(size)
    }

    pub(super) fn admit_txn(&self, request: &TxnRequest, size: usize) -> Result<(), Status> {
        self.check_message(size)?;
        check::txn(request, self.inner.limits.txn_ops)?;
        if is_read_only(request) { Ok(()) } else { self.check_write(size) }
    }
}

#[tonic::async_trait]
impl Kv for Api {
    async fn range(&self, request: Request<RangeRequest>) -> Answer<RangeResponse> {
        self.range_in_pages(request.into_inner()).await.map(Response::new)
    }

    type RangeStreamStream = Parts;

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Answer<Self::RangeStreamStream> {
        self.range_in_parts(request.into_inner()).await.map(Response::new)
    }

    async fn put(&self, request: Request<PutRequest>) -> Answer<PutResponse> {
        let request = request.into_inner();
        let size = request.encoded_len();
        self.admit_put(&request, size)?;
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
        self.admit_delete(&request, size)?;
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
        self.admit_txn(&request, size)?;
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
