//! Backends that fail, and what clients see of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use megacluster_watchcache::upstream::Usability;

use crate::backend::Backend;
use crate::certificates::Certificates;
use crate::cluster::{Cluster, until};

async fn two() -> (Arc<Certificates>, Cluster, Backend, Backend) {
    let certificates = Arc::new(Certificates::new());
    let (one, two) = (Backend::start(&certificates).await, Backend::start(&certificates).await);
    let cluster = Cluster::start(&certificates, "", &[&one, &two]).await;
    let pools = cluster.app.router.current();
    until("both are ready", || {
        let backends = pools.pools[0].backends();
        backends.iter().all(|backend| backend.usability() == Usability::Ready)
    })
    .await;
    (certificates, cluster, one, two)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_backend_is_not_noticed() {
    let (_certificates, cluster, one, two) = two().await;
    let mut client = cluster.client(Some(&cluster.pair("alice", &[])), true).await;
    for _ in 0..40 {
        assert_eq!(client.get("/api/v1/pods", &[]).await.status, 200);
    }
    assert!(one.requests() > 0 && two.requests() > 0, "both take requests");
    one.kill().await;
    for _ in 0..40 {
        assert_eq!(client.get("/api/v1/pods", &[]).await.status, 200);
        assert_eq!(client.post("/api/v1/namespaces/a/pods", "{}").await.status, 200);
    }
}

/// A backend that says it wants no requests gets none, and gets them again when it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_not_ready_gets_nothing_new() {
    let (_certificates, cluster, one, two) = two().await;
    let mut client = cluster.client(Some(&cluster.pair("alice", &[])), true).await;
    let pools = cluster.app.router.current();
    let usability = || {
        let backends = pools.pools[0].backends();
        let backend = backends.iter().find(|backend| backend.address() == one.address);
        backend.unwrap().usability()
    };
    one.state.ready.store(false, Ordering::SeqCst);
    until("it is seen", || usability() == Usability::Doubtful).await;
    let before = (one.requests(), two.requests());
    for _ in 0..40 {
        assert_eq!(client.get("/api/v1/pods", &[]).await.status, 200);
    }
    assert_eq!((one.requests(), two.requests()), (before.0, before.1 + 40));
    one.state.ready.store(true, Ordering::SeqCst);
    until("it is seen", || usability() == Usability::Ready).await;
    for _ in 0..40 {
        assert_eq!(client.get("/api/v1/pods", &[]).await.status, 200);
    }
    assert!(one.requests() > before.0);
}

/// A read is tried again; a write may have been carried out, and is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_dies_in_a_request() {
    let certificates = Arc::new(Certificates::new());
    for method in [http::Method::GET, http::Method::POST] {
        let (one, two) = (Backend::start(&certificates).await, Backend::start(&certificates).await);
        let cluster = Cluster::start(&certificates, "", &[&one, &two]).await;
        let mut client = cluster.client(Some(&cluster.pair("alice", &[])), true).await;
        let path = "/api/v1/namespaces/a/pods/hang";
        let request = client.request(method.clone(), path, &[], crate::client::full("{}"));
        let asked = tokio::spawn(async move { client.ask(request).await });
        until("one has it", || one.hanging() + two.hanging() == 1).await;
        let (dying, other) = if one.hanging() == 1 { (&one, &two) } else { (&two, &one) };
        dying.kill().await;
        if method == http::Method::GET {
            until("the other has it", || other.hanging() == 1).await;
            other.state.release.notify_waiters();
            assert_eq!(asked.await.unwrap().status, 200);
        } else {
            let answer = asked.await.unwrap();
            assert_eq!(answer.status, 502);
            assert_eq!(answer.reason(), "InternalError");
            assert!(!answer.headers.contains_key("retry-after"), "client-go would send it again");
            assert_eq!(other.requests(), 0);
        }
    }
}

/// A watch ends as if it had timed out: client-go then goes on from where it was, at once. A stream
/// that is reset it would begin anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_of_a_backend_that_dies_end_regularly() {
    let (_certificates, cluster, one, two) = two().await;
    for http2 in [true, false] {
        let mut client = cluster.client(Some(&cluster.pair("alice", &[])), http2).await;
        let request =
            client.request(http::Method::GET, "/api/v1/pods?watch=1", &[], crate::client::empty());
        let mut body = client.send(request).await.unwrap().into_body();
        crate::client::event(&mut body).await.unwrap().unwrap();
        if http2 {
            let dying = if one.open_watches() == 1 { &one } else { &two };
            dying.kill().await;
        } else {
            // The other one, by now the only one.
            tokio::join!(one.kill(), two.kill());
        }
        let rest = http_body_util::BodyExt::collect(body).await;
        assert!(rest.is_ok(), "reset: {rest:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_backends_clients_are_told_to_wait() {
    let certificates = Arc::new(Certificates::new());
    let backend = Backend::start(&certificates).await;
    let address = backend.address;
    let cluster = Cluster::start(&certificates, "", &[&backend]).await;
    let pair = cluster.pair("alice", &[]);
    let mut client = cluster.client(Some(&pair), true).await;
    assert_eq!(client.get("/api/v1/pods", &[]).await.status, 200);
    backend.kill().await;
    // Until it is noticed a write may be sent into the dead connection, and is then lost.
    let pools = cluster.app.router.current();
    until("it is noticed", || pools.pools[0].backends()[0].usability() == Usability::Unusable)
        .await;
    for _ in 0..3 {
        let answer = client.post("/api/v1/namespaces/a/pods", "{}").await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.reason(), "ServiceUnavailable");
        assert_eq!(answer.headers["retry-after"], "1");
    }
    let mut anonymous = cluster.client(None, false).await;
    assert_eq!(anonymous.get("/version", &[]).await.status, 503);
    let _backend = Backend::start_at(&certificates, address).await;
    until("it is back", || pools.pools[0].backends()[0].usability() == Usability::Ready).await;
    assert_eq!(client.post("/api/v1/namespaces/a/pods", "{}").await.status, 200);
    assert_eq!(anonymous.get("/version", &[]).await.status, 200);
}

/// Backends are replaced one after the other, as a Deployment does it, under load: no request
/// fails, reads and writes, certificates, tokens and anonymous.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_roll_without_a_failed_request() {
    let (certificates, cluster, one, two) = two().await;
    let stop = Arc::new(AtomicBool::new(false));
    let (served, mut clients) = (Arc::new(AtomicUsize::new(0)), Vec::new());
    let pair = cluster.pair("alice", &[]);
    for number in 0..12 {
        let (stop, served) = (stop.clone(), served.clone());
        let kind = number % 3;
        let mut client = cluster.client((kind == 0).then_some(&pair), kind != 2).await;
        clients.push(tokio::spawn(async move {
            let token = [("authorization", "Bearer t")];
            let headers: &[_] = if kind == 1 { &token } else { &[] };
            while !stop.load(Ordering::Relaxed) {
                let answer = client.get("/api/v1/pods", headers).await;
                assert_eq!(answer.status, 200, "{answer:?}");
                let path = "/api/v1/namespaces/a/pods";
                let body = crate::client::full(vec![b' '; 1000]);
                let request = client.request(http::Method::POST, path, headers, body);
                let answer = client.ask(request).await;
                assert_eq!(answer.status, 200, "{answer:?}");
                served.fetch_add(2, Ordering::Relaxed);
            }
        }));
    }
    let mut backends = [one, two];
    for round in 0..4 {
        let backend = &mut backends[round % 2];
        backend.stop(Duration::from_millis(1500)).await;
        *backend = Backend::start_at(&certificates, backend.address).await;
        let before = backend.requests();
        until("the new backend serves", || backend.requests() > before + 10).await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert!(served.load(Ordering::Relaxed) > 100);
}

/// Backends die one after the other, under load: writes that may have been carried out are lost, but
/// none is told that nobody takes it, since one backend always does. client-go would wait a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_told_to_wait_while_one_backend_lives() {
    let (certificates, cluster, one, two) = two().await;
    let stop = Arc::new(AtomicBool::new(false));
    let (served, lost) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let pair = cluster.pair("alice", &[]);
    let mut clients = Vec::new();
    for _ in 0..12 {
        let (stop, served, lost) = (stop.clone(), served.clone(), lost.clone());
        let mut client = cluster.client(Some(&pair), true).await;
        clients.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let path = "/api/v1/namespaces/a/pods";
                let body = crate::client::full("{}");
                let request = client.request(http::Method::POST, path, &[], body);
                let (head, body) = client.send(request).await.unwrap().into_parts();
                // An answer that breaks off is lost, too.
                let whole = http_body_util::BodyExt::collect(body).await.is_ok();
                match head.status.as_u16() {
                    200 if whole => served.fetch_add(1, Ordering::Relaxed),
                    200 | 502 => lost.fetch_add(1, Ordering::Relaxed),
                    _ => panic!("{head:?}"),
                };
            }
        }));
    }
    let mut backends = [one, two];
    let pools = cluster.app.router.current();
    for round in 0..8 {
        let backend = &mut backends[round % 2];
        backend.kill().await;
        *backend = Backend::start_at(&certificates, backend.address).await;
        until("it is seen again", || {
            let backends = pools.pools[0].backends();
            backends.iter().all(|backend| backend.usability() == Usability::Ready)
        })
        .await;
        let before = backend.requests();
        until("the new backend serves", || backend.requests() > before + 100).await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert!(served.load(Ordering::Relaxed) > 1000, "{lost:?} lost");
}
