//! The Auth service, refused: who may talk to the store is decided by client certificates alone.
//! The errors are those of an etcd without users and without authentication.

use tonic::{Request, Response, Status};

use super::{Answer, Api};
use crate::pb::etcdserverpb::{
    AuthDisableRequest, AuthDisableResponse, AuthEnableRequest, AuthEnableResponse,
    AuthRoleAddRequest, AuthRoleAddResponse, AuthRoleDeleteRequest, AuthRoleDeleteResponse,
    AuthRoleGetRequest, AuthRoleGetResponse, AuthRoleGrantPermissionRequest,
    AuthRoleGrantPermissionResponse, AuthRoleListRequest, AuthRoleListResponse,
    AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, AuthStatusRequest,
    AuthStatusResponse, AuthUserAddRequest, AuthUserAddResponse, AuthUserChangePasswordRequest,
    AuthUserChangePasswordResponse, AuthUserDeleteRequest, AuthUserDeleteResponse,
    AuthUserGetRequest, AuthUserGetResponse, AuthUserGrantRoleRequest, AuthUserGrantRoleResponse,
    AuthUserListRequest, AuthUserListResponse, AuthUserRevokeRoleRequest,
    AuthUserRevokeRoleResponse, AuthenticateRequest, AuthenticateResponse, auth_server::Auth,
};

fn not_capable() -> Status {
    Status::failed_precondition("etcdserver: not capable")
}

fn no_user() -> Status {
    Status::failed_precondition("etcdserver: user name not found")
}

fn no_role() -> Status {
    Status::failed_precondition("etcdserver: role name not found")
}

#[tonic::async_trait]
impl Auth for Api {
    async fn auth_status(&self, _: Request<AuthStatusRequest>) -> Answer<AuthStatusResponse> {
        let header = Some(self.header_now());
        Ok(Response::new(AuthStatusResponse { header, enabled: false, auth_revision: 1 }))
    }

    async fn user_list(&self, _: Request<AuthUserListRequest>) -> Answer<AuthUserListResponse> {
        Ok(Response::new(AuthUserListResponse {
            header: Some(self.header_now()),
            users: Vec::new(),
        }))
    }

    async fn role_list(&self, _: Request<AuthRoleListRequest>) -> Answer<AuthRoleListResponse> {
        Ok(Response::new(AuthRoleListResponse {
            header: Some(self.header_now()),
            roles: Vec::new(),
        }))
    }

    async fn auth_disable(&self, _: Request<AuthDisableRequest>) -> Answer<AuthDisableResponse> {
        Err(not_capable())
    }

    async fn auth_enable(&self, _: Request<AuthEnableRequest>) -> Answer<AuthEnableResponse> {
        Err(Status::failed_precondition("etcdserver: root user does not exist"))
    }

    async fn authenticate(&self, _: Request<AuthenticateRequest>) -> Answer<AuthenticateResponse> {
        Err(Status::failed_precondition("etcdserver: authentication is not enabled"))
    }

    async fn user_add(&self, _: Request<AuthUserAddRequest>) -> Answer<AuthUserAddResponse> {
        Err(not_capable())
    }

    async fn user_get(&self, _: Request<AuthUserGetRequest>) -> Answer<AuthUserGetResponse> {
        Err(no_user())
    }

    async fn user_delete(
        &self,
        _: Request<AuthUserDeleteRequest>,
    ) -> Answer<AuthUserDeleteResponse> {
        Err(no_user())
    }

    async fn user_change_password(
        &self,
        _: Request<AuthUserChangePasswordRequest>,
    ) -> Answer<AuthUserChangePasswordResponse> {
        Err(no_user())
    }

    async fn user_grant_role(
        &self,
        _: Request<AuthUserGrantRoleRequest>,
    ) -> Answer<AuthUserGrantRoleResponse> {
        Err(no_user())
    }

    async fn user_revoke_role(
        &self,
        _: Request<AuthUserRevokeRoleRequest>,
    ) -> Answer<AuthUserRevokeRoleResponse> {
        Err(no_user())
    }

    async fn role_add(&self, _: Request<AuthRoleAddRequest>) -> Answer<AuthRoleAddResponse> {
        Err(not_capable())
    }

    async fn role_get(&self, _: Request<AuthRoleGetRequest>) -> Answer<AuthRoleGetResponse> {
        Err(no_role())
    }

    async fn role_delete(
        &self,
        _: Request<AuthRoleDeleteRequest>,
    ) -> Answer<AuthRoleDeleteResponse> {
        Err(no_role())
    }

    async fn role_grant_permission(
        &self,
        _: Request<AuthRoleGrantPermissionRequest>,
    ) -> Answer<AuthRoleGrantPermissionResponse> {
        Err(no_role())
    }

    async fn role_revoke_permission(
        &self,
        _: Request<AuthRoleRevokePermissionRequest>,
    ) -> Answer<AuthRoleRevokePermissionResponse> {
        Err(no_role())
    }
}
