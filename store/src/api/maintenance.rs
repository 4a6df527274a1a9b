//! The Maintenance service.

use std::pin::Pin;

use futures::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Answer, Api, ETCD_VERSION, TERM, mismatch};
use crate::core::{self, Command, Reply};
use crate::pb::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
    DowngradeInfo, DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest,
    HashResponse, MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse,
    StatusRequest, StatusResponse, alarm_request::AlarmAction, maintenance_server::Maintenance,
};
use crate::sequencer::Health;

impl Api {
    /// The alarms that are on.
    pub(crate) fn alarms(&self) -> Vec<AlarmType> {
        let shared = self.inner.handle.shared();
        let mut alarms = Vec::new();
        if shared.no_space() {
            alarms.push(AlarmType::Nospace);
        }
        if shared.health() == Health::Broken {
            alarms.push(AlarmType::Corrupt);
        }
        alarms
    }

    pub(super) async fn status_now(&self) -> Result<core::Status, Status> {
        match self.ask(Command::Status, 0).await? {
            Reply::Status(status) => Ok(status),
            _ => Err(mismatch()),
        }
    }
}

fn alarm_name(alarm: AlarmType, member: u64) -> String {
    // As gogo prints an AlarmMember, which is what etcd puts into Status.errors.
    format!("memberID:{member} alarm:{} ", alarm.as_str_name())
}

fn to_i64(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[tonic::async_trait]
impl Maintenance for Api {
    async fn alarm(&self, request: Request<AlarmRequest>) -> Answer<AlarmResponse> {
        let request = request.into_inner();
        let member_id = self.inner.identity.member_id;
        let mut alarms = self.alarms();
        match request.action() {
            AlarmAction::Get => {
                if request.alarm() != AlarmType::None {
                    alarms.retain(|alarm| *alarm == request.alarm());
                }
            }
            AlarmAction::Deactivate => {
                // Only the quota's alarm can be taken back; a full disk or a broken log goes on.
                alarms.retain(|alarm| *alarm == request.alarm());
                if request.alarm() == AlarmType::Nospace {
                    self.ask(Command::Disarm, 0).await?;
                }
            }
            AlarmAction::Activate => {
                return Err(Status::unimplemented(
                    "megacluster-store: alarms are raised by the store alone",
                ));
            }
        }
        let alarms = alarms
            .into_iter()
            .map(|alarm| AlarmMember { member_id, alarm: alarm.into() })
            .collect();
        Ok(Response::new(AlarmResponse { header: Some(self.header_now()), alarms }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusResponse> {
        let status = self.status_now().await?;
        let member = self.inner.identity.member_id;
        let batches = u64::try_from(self.inner.handle.shared().batches()).unwrap_or(0);
        Ok(Response::new(StatusResponse {
            header: Some(self.header(status.revision)),
            version: ETCD_VERSION.to_owned(),
            db_size: to_i64(status.bytes),
            leader: member,
            raft_index: batches,
            raft_term: TERM,
            raft_applied_index: batches,
            errors: self.alarms().into_iter().map(|alarm| alarm_name(alarm, member)).collect(),
            db_size_in_use: to_i64(status.bytes),
            is_learner: false,
            storage_version: "3.6.0".to_owned(),
            db_size_quota: to_i64(self.inner.limits.quota),
            downgrade_info: Some(DowngradeInfo::default()),
        }))
    }

    /// There is nothing to defragment in memory.
    async fn defragment(&self, _: Request<DefragmentRequest>) -> Answer<DefragmentResponse> {
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    /// etcd's goes over its whole file, which differs from member to member; here it is that of the
    /// keys.
    async fn hash(&self, _: Request<HashRequest>) -> Answer<HashResponse> {
        let HashKvResponse { header, hash, .. } = self.hash_at(0).await?;
        Ok(Response::new(HashResponse { header, hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Answer<HashKvResponse> {
        self.hash_at(request.into_inner().revision).await.map(Response::new)
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Answer<Self::SnapshotStream> {
        Ok(Response::new(Box::pin(ReceiverStream::new(self.begin_snapshot()?))))
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Answer<MoveLeaderResponse> {
        if request.into_inner().target_id == self.inner.identity.member_id {
            return Ok(Response::new(MoveLeaderResponse { header: Some(self.header_now()) }));
        }
        Err(Status::failed_precondition("etcdserver: bad leader transferee"))
    }

    async fn downgrade(&self, _: Request<DowngradeRequest>) -> Answer<DowngradeResponse> {
        Err(Status::invalid_argument("etcdserver: invalid downgrade target version"))
    }
}
