//! Reads of many keys in pages, so that the thread that orders everything is never held for long.
//!
//! Each page is a command of its own. The first one finds the revision, the others read at it, so
//! that together they are what one read would have been. A compaction that passes the revision
//! meanwhile ends a stream with etcd's error, as in etcd 3.7; a plain Range begins again.

use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use prost::Message;
use tonic::{Code, Status};

use super::{Api, mismatch};
use crate::core::{Command, Error, KeyValue, Reply, arrange, needs_all};
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse, RangeStreamResponse};

/// Most keys of a page: about half a millisecond of the sequencer.
const PAGE_KEYS: i64 = 2048;
/// Keys of a stream's first page, as in etcd, and the bytes that a page of it should have.
const FIRST_PAGE: i64 = 10;
const PAGE_BYTES: usize = 512 * 1024;
/// How often a Range begins again behind compactions.
const TRIES: u32 = 3;
/// The largest answer: what etcd lets its gRPC server send.
const MAX_ANSWER: usize = i32::MAX as usize;

/// A stream's parts.
pub(super) type Parts = Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

impl Api {
    /// One command's worth of a range.
    async fn page(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        let size = request.encoded_len();
        match self.ask(Command::Range(request), size).await? {
            Reply::Range(response) => Ok(response),
            _ => Err(mismatch()),
        }
    }

    /// A Range, in as many pages as it takes.
    pub(super) async fn range_in_pages(
        &self,
        request: RangeRequest,
    ) -> Result<RangeResponse, Status> {
        let size = request.encoded_len();
        self.admit_range(&request, size)?;
        let mut response = if is_short(&request) {
            self.page(request).await?
        } else {
            let mut tries = 1;
            loop {
                match self.collect(&request).await {
                    // The revision was not asked for: a newer one is as good.
                    Err(status)
                        if request.revision <= 0 && tries < TRIES && is_compacted(&status) =>
                    {
                        tries += 1;
                    }
                    result => break result?,
                }
            }
        };
        self.sign(&mut response.header);
        Ok(response)
    }

    async fn collect(&self, request: &RangeRequest) -> Result<RangeResponse, Status> {
        let all = needs_all(request) || sorts_what_is_cut(request);
        let limit = if all || request.limit <= 0 { i64::MAX } else { request.limit };
        let plain = RangeRequest {
            keys_only: request.keys_only && !all,
            limit: limit.min(PAGE_KEYS),
            ..plain(request)
        };
        let mut found = self.page(plain.clone()).await?;
        let revision = pin(request, &found);
        let mut bytes = size(&found.kvs);
        while found.more
            && let Some(last) = found.kvs.last()
            && let Ok(have) = i64::try_from(found.kvs.len())
            && have < limit
        {
            let page = RangeRequest {
                key: after(last.key()),
                revision,
                limit: PAGE_KEYS.min(limit - have),
                ..plain.clone()
            };
            let page = self.page(page).await?;
            bytes += size(&page.kvs);
            if bytes > MAX_ANSWER {
                return Err(Status::resource_exhausted(format!(
                    "grpc: trying to send message larger than max ({bytes} vs. {MAX_ANSWER})"
                )));
            }
            found.more = page.more;
            found.kvs.extend(page.kvs);
        }
        if all {
            (found.kvs, found.more) = arrange(found.kvs, request);
        }
        Ok(found)
    }

    /// A `RangeStream`: a page is read when the client has room for it, and no more than one is held.
    pub(super) async fn range_in_parts(&self, request: RangeRequest) -> Result<Parts, Status> {
        let size = request.encoded_len();
        self.admit_range(&request, size)?;
        if request.sort_order() != SortOrder::None || request.sort_target() != SortTarget::Key {
            return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
        }
        if needs_all(&request) {
            return Err(Status::unimplemented("RangeStream does not support revision filters"));
        }
        if request.count_only {
            let mut found = self.page(request).await?;
            self.sign(&mut found.header);
            let part = RangeStreamResponse { range_response: Some(found) };
            return Ok(Box::pin(stream::iter([Ok(part)])));
        }
        let left = if request.limit > 0 { request.limit } else { i64::MAX };
        let mut state = Streaming {
            api: self.clone(),
            next: Some(request),
            keys: FIRST_PAGE,
            left,
            sent: 0,
            header: None,
        };
        // The first page is read here, so that an error is the call's own.
        let first = state.part().await?;
        let rest = stream::try_unfold(state, |mut state| async {
            Ok(state.part().await?.map(|part| (part, state)))
        });
        Ok(Box::pin(stream::iter(first.map(Ok)).chain(rest)))
    }
}

/// A `RangeStream` under way.
struct Streaming {
    api: Api,
    /// The next page; `None` behind the last.
    next: Option<RangeRequest>,
    /// Keys of the next page.
    keys: i64,
    /// Keys that the client's limit still allows.
    left: i64,
    sent: i64,
    /// Revision of the answer: the newest when the stream began.
    header: Option<i64>,
}

impl Streaming {
    /// The next part: keys alone, and with the last all that is told once (etcd 3.7
    /// `server/etcdserver/v3_server.go`, `rangeStream`).
    async fn part(&mut self) -> Result<Option<RangeStreamResponse>, Status> {
        let Some(mut request) = self.next.take() else { return Ok(None) };
        request.limit = self.keys.min(PAGE_KEYS).min(self.left);
        let found = self.api.page(request.clone()).await?;
        let revision = found.header.as_ref().map_or(0, |header| header.revision);
        let header = *self.header.get_or_insert(revision);
        let keys = i64::try_from(found.kvs.len()).unwrap_or(i64::MAX);
        self.left -= keys;
        let mut part = RangeResponse::default();
        match found.kvs.last() {
            Some(last) if found.more && self.left > 0 => {
                if size(&found.kvs) < PAGE_BYTES / 2 {
                    self.keys *= 2;
                } else if size(&found.kvs) > PAGE_BYTES * 2 {
                    self.keys = (self.keys / 2).max(1);
                }
                self.keys = self.keys.min(PAGE_KEYS);
                request.key = after(last.key());
                request.revision = pin(&request, &found);
                self.next = Some(request);
            }
            _ => {
                part.header = Some(self.api.header(header));
                part.more = found.more;
                // A page counts from its own first key on.
                part.count = self.sent + found.count;
            }
        }
        self.sent += keys;
        part.kvs = found.kvs;
        Ok(Some(RangeStreamResponse { range_response: Some(part) }))
    }
}

/// One command is enough: a key, a count, or a page.
pub(super) fn is_short(request: &RangeRequest) -> bool {
    request.range_end.is_empty()
        || request.count_only
        || (request.limit > 0 && request.limit <= PAGE_KEYS && !needs_all(request))
        || (request.limit > 0 && sorts_what_is_cut(request))
}

/// As in etcd, a target without an order sorts what the limit let through.
fn sorts_what_is_cut(request: &RangeRequest) -> bool {
    request.sort_order() == SortOrder::None && request.sort_target() != SortTarget::Key
}

/// The range alone, without what is done with it.
fn plain(request: &RangeRequest) -> RangeRequest {
    RangeRequest {
        key: request.key.clone(),
        range_end: request.range_end.clone(),
        revision: request.revision,
        serializable: request.serializable,
        ..RangeRequest::default()
    }
}

/// The revision at which the other pages are read.
fn pin(request: &RangeRequest, first: &RangeResponse) -> i64 {
    if request.revision > 0 {
        return request.revision;
    }
    first.header.as_ref().map_or(0, |header| header.revision)
}

/// The least key above a key.
fn after(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

fn size(kvs: &[KeyValue]) -> usize {
    kvs.iter().map(Message::encoded_len).sum()
}

fn is_compacted(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message() == Error::Compacted.to_string()
}
