//! Asks the cluster itself whether it serves: as an administrator, through the front door.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{
    Api, Client, Config,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::leaders::{self, Leader, Leaders};
use super::status::Answer;
use crate::validate::ValidatedCluster;

/// How long the endpoint may take for all questions together.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why the endpoint could not be asked, or what it said.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("the admin kubeconfig has no {0}")]
    Incomplete(&'static str),
    #[error("the admin kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    #[error("the address of the front door: {0}")]
    Address(#[from] http::uri::InvalidUri),
    #[error(transparent)]
    Call(#[from] kube::Error),
    #[error("/readyz said: {0}")]
    NotReady(String),
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
}

/// Asks `/readyz` and for one Namespace with the credentials of `admin`, the Secret of the admin
/// kubeconfig. The first says that the servers are well, the second that identity, authorisation
/// and the store are.
///
/// The connection goes to the Service's own address, whatever name clients use from elsewhere:
/// that name may not be reachable from here, and its load balancer is not the cluster's fault.
///
/// Where it answers it also says who leads.
pub(super) async fn ask(cluster: &ValidatedCluster, admin: &Secret) -> (Answer, Option<Leaders>) {
    let Some(address) = cluster.facts.endpoint_cluster_ip else {
        let why = "the Service in front of the cluster has no address yet";
        return (Answer::NotAsked(why.to_owned()), None);
    };
    let answer = tokio::time::timeout(TIMEOUT, ask_at(cluster, address, admin)).await;
    match answer.unwrap_or(Err(ProbeError::Timeout)) {
        Ok(leaders) => (Answer::Yes, leaders),
        Err(error) => (Answer::No(chain(&error)), None),
    }
}

async fn ask_at(
    cluster: &ValidatedCluster,
    address: IpAddr,
    admin: &Secret,
) -> Result<Option<Leaders>, ProbeError> {
    let data = admin.data.as_ref().and_then(|data| data.get("value"));
    let text = data.and_then(|value| std::str::from_utf8(&value.0).ok());
    let kubeconfig = Kubeconfig::from_yaml(text.ok_or(ProbeError::Incomplete("value"))?)?;
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let host = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    config.cluster_url = format!("https://{host}:{}", cluster.networking.endpoint.port).parse()?;
    config.tls_server_name = Some(cluster.internal_host());
    config.connect_timeout = Some(TIMEOUT);
    config.read_timeout = Some(TIMEOUT);
    let client = Client::try_from(config)?;
    let request = http::Request::get("/readyz").body(Vec::new()).map_err(kube::Error::HttpError)?;
    let said = client.request_text(request).await?;
    if said != "ok" {
        return Err(ProbeError::NotReady(said.chars().take(200).collect()));
    }
    let leases: Api<Lease> = Api::namespaced(client.clone(), leaders::NAMESPACE);
    let (all, one): (Api<Namespace>, _) = (Api::all(client), ListParams::default().limit(1));
    let (namespaces, controller_manager, scheduler) = tokio::join!(
        all.list_metadata(&one),
        leases.get_opt(leaders::CONTROLLER_MANAGER),
        leases.get_opt(leaders::SCHEDULER),
    );
    namespaces?;
    // Whether the endpoint answers is the question; Leases that can't be read are no answer to it.
    let (Ok(controller_manager), Ok(scheduler)) = (controller_manager, scheduler) else {
        return Ok(None);
    };
    Ok(Some(Leaders {
        controller_manager: Leader::of(controller_manager.as_ref()),
        scheduler: Leader::of(scheduler.as_ref()),
    }))
}

/// An error and what caused it: the cause of a failed connection is several layers down.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
