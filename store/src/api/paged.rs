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
use crate::core::{Command, Error, KeyRange, KeyValue, Page, Reply, arrange, needs_all};
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse, RangeStreamResponse};

/// Most keys of a range's first page: about half a millisecond of the sequencer.
const PAGE_KEYS: i64 = 2048;
/// Keys of a stream's first page, as in etcd, and the bytes of the pages behind any first.
const FIRST_PAGE: i64 = 10;
const PAGE_BYTES: usize = 256 * 1024;
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
        let mut bytes = size(&found.kvs);
        let mut rest = Rest::behind(&plain, &found, limit);
        while let Some((kvs, more)) = rest.page(self).await? {
            bytes += size(&kvs);
            if bytes > MAX_ANSWER {
                return Err(Status::resource_exhausted(format!(
                    "grpc: trying to send message larger than max ({bytes} vs. {MAX_ANSWER})"
                )));
            }
            found.more = more;
            found.kvs.extend(kvs);
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
        let limit = if request.limit > 0 { request.limit } else { i64::MAX };
        // The first page is read here, so that an error is the call's own.
        let first = RangeRequest { limit: limit.min(FIRST_PAGE), ..request.clone() };
        let mut first = self.page(first).await?;
        let rest = Rest::behind(&request, &first, limit);
        let kvs = std::mem::take(&mut first.kvs);
        // What the last part tells.
        self.sign(&mut first.header);
        let (api, end, more) = (self.clone(), first.clone(), first.more);
        let first = part(kvs, rest.is_over().then_some((more, first)));
        let rest = stream::try_unfold(rest, move |mut rest| {
            let (api, end) = (api.clone(), end.clone());
            async move {
                let Some((kvs, more)) = rest.page(&api).await? else { return Ok(None) };
                let end = rest.is_over().then_some((more, end));
                Ok(Some((part(kvs, end), rest)))
            }
        });
        Ok(Box::pin(stream::iter([Ok(first)]).chain(rest)))
    }
}

/// Keys alone, or with the last of them all that is told once (etcd 3.7
/// `server/etcdserver/v3_server.go`, `rangeStream`).
fn part(kvs: Vec<KeyValue>, end: Option<(bool, RangeResponse)>) -> RangeStreamResponse {
    let range_response = match end {
        Some((more, end)) => RangeResponse { kvs, more, ..end },
        None => RangeResponse { kvs, ..RangeResponse::default() },
    };
    RangeStreamResponse { range_response: Some(range_response) }
}

/// The keys behind a range's first page, at the same revision.
struct Rest {
    range: KeyRange,
    revision: i64,
    keys_only: bool,
    /// The next key; `None` when nothing more is to be read.
    next: Option<Bytes>,
    /// Keys that the limit still allows.
    left: i64,
}

impl Rest {
    /// What `limit` leaves of a range behind its first page.
    fn behind(request: &RangeRequest, first: &RangeResponse, limit: i64) -> Self {
        let left = limit - i64::try_from(first.kvs.len()).unwrap_or(i64::MAX);
        let last = first.kvs.last().filter(|_| first.more && left > 0);
        let newest = first.header.as_ref().map_or(0, |header| header.revision);
        Self {
            range: KeyRange::new(request.key.clone(), request.range_end.clone()),
            revision: if request.revision > 0 { request.revision } else { newest },
            keys_only: request.keys_only,
            next: last.map(|kv| after(kv.key())),
            left,
        }
    }

    fn is_over(&self) -> bool {
        self.next.is_none()
    }

    /// The next page, and whether the range has more than was read of it.
    async fn page(&mut self, api: &Api) -> Result<Option<(Vec<KeyValue>, bool)>, Status> {
        let Some(from) = self.next.take() else { return Ok(None) };
        let (size, range) = (from.len(), self.range.clone());
        let max_bytes = PAGE_BYTES;
        let command = Command::Page { range, revision: self.revision, from, max_bytes };
        let Reply::Page(Page { mut kvs, next }) = api.ask(command, size).await? else {
            return Err(mismatch());
        };
        let allowed = usize::try_from(self.left).unwrap_or(usize::MAX);
        let more = next.is_some() || kvs.len() > allowed;
        kvs.truncate(allowed);
        self.left -= i64::try_from(kvs.len()).unwrap_or(i64::MAX);
        self.next = next.filter(|_| self.left > 0);
        if self.keys_only {
            kvs = kvs.iter().map(KeyValue::without_value).collect();
        }
        Ok(Some((kvs, more)))
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
