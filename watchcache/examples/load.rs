//! Loads an endpoint with GETs or watches, to compare the front door with a kube-apiserver.
//!
//! `load get CA CERT KEY URL CONNECTIONS STREAMS SECONDS` prints requests and their rate.
//! `load watch CA CERT KEY URL CONNECTIONS STREAMS SECONDS` holds CONNECTIONS × STREAMS watches
//! and prints frames received.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use megacluster_service::tls::{ClientTls, ClientTlsFiles};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

type AnyError = Box<dyn Error + Send + Sync>;
type Sender = SendRequest<Empty<Bytes>>;

async fn connect(tls: &ClientTls, uri: &Uri) -> Result<Sender, AnyError> {
    let host = uri.host().ok_or("the URL has no host")?.to_owned();
    let stream = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(443))).await?;
    stream.set_nodelay(true)?;
    let connector = TlsConnector::from(tls.config());
    let stream = connector.connect(ServerName::try_from(host)?, stream).await?;
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

fn request(uri: &Uri) -> Result<Request<Empty<Bytes>>, http::Error> {
    Request::get(uri.clone()).header("accept", "application/json").body(Empty::new())
}

async fn gets(
    mut sender: Sender,
    uri: Uri,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) -> Result<(), AnyError> {
    while !stop.load(Ordering::Relaxed) {
        let response = sender.send_request(request(&uri)?).await?;
        if !response.status().is_success() {
            return Err(format!("{}", response.status()).into());
        }
        response.into_body().collect().await?;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

async fn watch(mut sender: Sender, uri: Uri, done: Arc<AtomicU64>) -> Result<(), AnyError> {
    let response = sender.send_request(request(&uri)?).await?;
    if !response.status().is_success() {
        return Err(format!("{}", response.status()).into());
    }
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        let data = frame?.into_data().unwrap_or_default();
        let events = data.split(|byte| *byte == b'\n').count() as u64 - 1;
        done.fetch_add(events, Ordering::Relaxed);
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    megacluster_service::crypto::install();
    let arguments: Vec<String> = std::env::args().collect();
    let [_, mode, ca, cert, key, url, connections, streams, seconds] = &arguments[..] else {
        return Err("load get|watch CA CERT KEY URL CONNECTIONS STREAMS SECONDS".into());
    };
    let files =
        ClientTlsFiles { ca: Some(ca.into()), cert: Some(cert.into()), key: Some(key.into()) };
    let tls = ClientTls::new(files, &[b"h2"])?;
    let uri: Uri = url.parse()?;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    for _ in 0..connections.parse::<usize>()? {
        let sender = connect(&tls, &uri).await?;
        for _ in 0..streams.parse::<usize>()? {
            let (sender, uri, done) = (sender.clone(), uri.clone(), done.clone());
            let (get, stop) = (mode == "get", stop.clone());
            tokio::spawn(async move {
                let ended = if get {
                    gets(sender, uri, stop.clone(), done).await
                } else {
                    watch(sender, uri, done).await
                };
                // At the end connections break while others still read.
                if let Err(error) = ended
                    && !stop.load(Ordering::Relaxed)
                {
                    eprintln!("{error}");
                }
            });
        }
    }
    tokio::time::sleep(Duration::from_secs(seconds.parse()?)).await;
    stop.store(true, Ordering::Relaxed);
    println!("{}", done.load(Ordering::Relaxed));
    Ok(())
}
