//! gRPC's own health service, as etcd registers it (etcd `server/etcdserver/api/v3rpc/health.go`;
//! answers as in grpc-go's `health/server.go`): what a kubelet's gRPC probe and client libraries ask.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, stream};
use tonic::{Request, Response, Status};

use super::{Answer, Api};
use crate::core::Error;
use crate::pb::health::health_check_response::ServingStatus;
use crate::pb::health::health_server::Health as HealthService;
use crate::pb::health::{HealthCheckRequest, HealthCheckResponse};
use crate::sequencer::Health;

/// How soon a watch sees a change.
const LOOK: Duration = Duration::from_millis(500);

impl Api {
    /// The server as a whole, which has no name, is the only service with a status. It does not
    /// serve while only a restart helps; a full disk is an alarm, as in etcd.
    fn serving(&self, service: &str) -> ServingStatus {
        if !service.is_empty() {
            return ServingStatus::ServiceUnknown;
        }
        match self.inner.handle.shared().health() {
            Health::Good | Health::Full => ServingStatus::Serving,
            Health::Broken => ServingStatus::NotServing,
        }
    }
}

#[tonic::async_trait]
impl HealthService for Api {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Answer<HealthCheckResponse> {
        match self.serving(&request.get_ref().service) {
            ServingStatus::ServiceUnknown => Err(Status::not_found("unknown service")),
            status => Ok(Response::new(HealthCheckResponse { status: status.into() })),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Answer<Self::WatchStream> {
        let service = request.into_inner().service;
        let api = self.clone();
        let answers = stream::unfold(None, move |told| {
            let (api, service) = (api.clone(), service.clone());
            async move {
                loop {
                    let status = api.serving(&service);
                    if told != Some(status) {
                        let answer = HealthCheckResponse { status: status.into() };
                        return Some((Ok(answer), Some(status)));
                    }
                    tokio::select! {
                        () = api.inner.drain.cancelled() => {
                            // Said once: whoever reads on finds the end.
                            return Some((Err(Error::Stopped.into()), told));
                        }
                        () = tokio::time::sleep(LOOK) => {}
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}
