//! The Lease service.

use std::pin::Pin;
use std::sync::atomic::Ordering;

use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::{Answer, Api, mismatch};
use crate::core::{Command, Error, Reply};
use crate::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, lease_server::Lease,
};

impl Api {
    /// A positive id, unlikely to be in use.
    fn new_lease_id(&self) -> i64 {
        // An odd step visits every number before it repeats one.
        let next = self.inner.next_lease.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        i64::try_from(next >> 1).unwrap_or(1).max(1)
    }

    async fn keep_alive(&self, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
        // Taken before the renewal, so that the revision is not above that of a revocation which
        // the client may see.
        let header = Some(self.header_now());
        let ttl = match self.inner.handle.ask(Command::LeaseRenew(id), 0).await {
            Ok(Reply::Lease { ttl, .. }) => ttl,
            // A lease that is not there is no error of the stream: its time to live is 0.
            Err(Error::LeaseNotFound) => 0,
            Ok(_) => return Err(mismatch()),
            Err(error) => return Err(error.into()),
        };
        Ok(LeaseKeepAliveResponse { header, id, ttl })
    }
}

#[tonic::async_trait]
impl Lease for Api {
    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Answer<LeaseGrantResponse> {
        let LeaseGrantRequest { ttl, id: asked } = request.into_inner();
        loop {
            let id = if asked == 0 { self.new_lease_id() } else { asked };
            return match self.inner.handle.ask(Command::LeaseGrant { id, ttl }, 0).await {
                Ok(Reply::Lease { revision, ttl }) => {
                    let header = Some(self.header(revision));
                    Ok(Response::new(LeaseGrantResponse { header, id, ttl, error: String::new() }))
                }
                Err(Error::LeaseExists) if asked == 0 => continue,
                Err(error) => Err(error.into()),
                Ok(_) => Err(mismatch()),
            };
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Answer<LeaseRevokeResponse> {
        match self.ask(Command::LeaseRevoke(request.into_inner().id), 0).await? {
            Reply::Done(revision) => {
                Ok(Response::new(LeaseRevokeResponse { header: Some(self.header(revision)) }))
            }
            _ => Err(mismatch()),
        }
    }

    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Answer<Self::LeaseKeepAliveStream> {
        let api = self.clone();
        let drain = self.inner.drain.clone();
        // One answer at a time: the next request is read when the client has room for its answer.
        let answers = request.into_inner().then(move |request| {
            let api = api.clone();
            async move { api.keep_alive(request?.id).await }
        });
        Ok(Response::new(Box::pin(answers.take_until(drain.cancelled_owned()))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Answer<LeaseTimeToLiveResponse> {
        let LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        match self.ask(Command::LeaseView(id, keys), 0).await? {
            Reply::LeaseView(revision, view) => {
                let header = Some(self.header(revision));
                let gone = LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() };
                Ok(Response::new(view.map_or(gone, |view| LeaseTimeToLiveResponse {
                    header,
                    id,
                    ttl: view.remaining,
                    granted_ttl: view.granted_ttl,
                    keys: view.keys,
                })))
            }
            _ => Err(mismatch()),
        }
    }

    async fn lease_leases(&self, _: Request<LeaseLeasesRequest>) -> Answer<LeaseLeasesResponse> {
        match self.ask(Command::LeaseList, 0).await? {
            Reply::LeaseList(revision, ids) => Ok(Response::new(LeaseLeasesResponse {
                header: Some(self.header(revision)),
                leases: ids.into_iter().map(|id| LeaseStatus { id }).collect(),
            })),
            _ => Err(mismatch()),
        }
    }
}
