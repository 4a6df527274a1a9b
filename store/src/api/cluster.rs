//! The Cluster service: one member, which does not change.

use tonic::{Request, Response, Status};

use super::{Answer, Api};
use crate::pb::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse, cluster_server::Cluster,
};

fn one_member() -> Status {
    Status::unimplemented("megacluster-store: the cluster has one member and can't be changed")
}

#[tonic::async_trait]
impl Cluster for Api {
    async fn member_add(&self, _: Request<MemberAddRequest>) -> Answer<MemberAddResponse> {
        Err(one_member())
    }

    async fn member_remove(&self, _: Request<MemberRemoveRequest>) -> Answer<MemberRemoveResponse> {
        Err(one_member())
    }

    async fn member_update(&self, _: Request<MemberUpdateRequest>) -> Answer<MemberUpdateResponse> {
        Err(one_member())
    }

    async fn member_list(&self, _: Request<MemberListRequest>) -> Answer<MemberListResponse> {
        let identity = &self.inner.identity;
        let member = Member {
            id: identity.member_id,
            name: identity.name.clone(),
            peer_ur_ls: identity.peer_urls.clone(),
            client_ur_ls: identity.client_urls.clone(),
            is_learner: false,
        };
        Ok(Response::new(MemberListResponse {
            header: Some(self.header_now()),
            members: vec![member],
        }))
    }

    async fn member_promote(
        &self,
        _: Request<MemberPromoteRequest>,
    ) -> Answer<MemberPromoteResponse> {
        Err(Status::failed_precondition("etcdserver: can only promote a learner member"))
    }
}
