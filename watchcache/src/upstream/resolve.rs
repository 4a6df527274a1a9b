//! Finds a pool's backends by name, again and again.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Weak;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Pool;

const INTERVAL_MILLIS: u64 = 2_000;
const DEADLINE: Duration = Duration::from_secs(5);
/// More addresses than this are not taken: a wildcard record must not fill the process.
const MAX_BACKENDS: usize = 256;

/// Keeps the pool's backends those that its host resolves to. A name that can't be resolved
/// leaves the backends as they are: their health checks say whether they still serve.
pub(super) async fn run(pool: Weak<Pool>, token: CancellationToken) {
    let Some(first) = pool.upgrade() else { return };
    let (name, host, port) = (first.name().clone(), first.host().to_owned(), first.port());
    if let Ok(address) = host.parse::<IpAddr>() {
        first.update(&BTreeSet::from([SocketAddr::new(address, port)]));
        return;
    }
    drop(first);
    let mut failing = false;
    loop {
        let lookup = tokio::time::timeout(DEADLINE, tokio::net::lookup_host((host.as_str(), port)));
        let found = tokio::select! {
            () = token.cancelled() => return,
            found = lookup => found,
        };
        let found = match found {
            Ok(Ok(addresses)) => Ok(addresses.take(MAX_BACKENDS).collect::<BTreeSet<_>>()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer in {DEADLINE:?}")),
        };
        let Some(pool) = pool.upgrade() else { return };
        match found {
            Ok(addresses) if !addresses.is_empty() => {
                failing = false;
                pool.update(&addresses);
            }
            other => {
                pool.metrics().resolve_errors.inc();
                // Once for each outage: this happens every two seconds.
                if !failing {
                    let error = other.err().unwrap_or_else(|| "no address".to_owned());
                    warn!(pool = %name, host, error, "name not resolved");
                }
                failing = true;
            }
        }
        drop(pool);
        let pause = Duration::from_millis(
            INTERVAL_MILLIS * 3 / 4 + rand::random_range(0..=INTERVAL_MILLIS / 2),
        );
        tokio::select! {
            () = token.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}
