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

impl Api {
    /// etcd's error for a member that isn't there.
    fn check_member(&self, id: u64) -> Result<(), Status> {
        if id == self.inner.identity.member_id {
            return Ok(());
        }
        Err(Status::not_found("etcdserver: member not found"))
    }
}

#[tonic::async_trait]
impl Cluster for Api {
    async fn member_add(&self, _: Request<MemberAddRequest>) -> Answer<MemberAddResponse> {
        Err(one_member())
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Answer<MemberRemoveResponse> {
        self.check_member(request.into_inner().id)?;
        Err(Status::failed_precondition(
            "etcdserver: re-configuration failed due to not enough started members",
        ))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Answer<MemberUpdateResponse> {
        self.check_member(request.into_inner().id)?;
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
        request: Request<MemberPromoteRequest>,
    ) -> Answer<MemberPromoteResponse> {
        self.check_member(request.into_inner().id)?;
        Err(Status::failed_precondition("etcdserver: can only promote a learner member"))
    }
}
