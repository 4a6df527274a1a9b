//! A client of the apiserver for what is sent once for each pod: binds, events, conditions,
//! evictions.
//!
//! It sends what kube's own client does, by the same credentials, with less around it: whoever
//! sends a request drives the connection too, so that no task is woken but the sender's. Connections
//! are HTTP/1.1, each for one exchange at a time, and the one that was used last is taken first. A
//! request that is given up takes its connection along. How many there are is up to the senders,
//! which are bounded.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::HttpConnector;
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use parking_lot::Mutex;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};

/// Idle connections that are kept.
const IDLE: usize = 128;
/// An idle connection is closed after this long; kube-apiserver keeps it for three minutes.
const IDLE_FOR: Duration = Duration::from_mins(1);
/// Bytes of an answer. The largest are lists of the pods on one node.
const ANSWER: usize = 64 << 20;
/// A connection that ended before it took the request is replaced so often.
const ATTEMPTS: usize = 8;

/// A client for short requests, each of which must have a deadline. By a proxy they go as all
/// others do.
pub fn client(config: Config) -> kube::Result<Client> {
    if config.proxy_url.is_some() {
        return Client::try_from(config);
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(Connections { connector, idle: Arc::default() });
    Ok(Client::new(service, config.default_namespace))
}

struct Connection {
    sender: SendRequest<Body>,
    /// Reads and writes; whoever has the connection polls it.
    driver: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>,
    ended: bool,
    since: Instant,
}

impl Connection {
    /// Whether it takes a request. Sees, too, that the other end has closed it.
    async fn is_ready(&mut self) -> bool {
        if self.since.elapsed() > IDLE_FOR {
            return false;
        }
        poll_fn(|context| {
            self.drive(context);
            let ready = self.sender.poll_ready(context);
            Poll::Ready(!self.ended && matches!(ready, Poll::Ready(Ok(()))))
        })
        .await
    }

    fn drive(&mut self, context: &mut Context<'_>) {
        // An error reaches the request that was under way.
        self.ended = self.ended || self.driver.as_mut().poll(context).is_ready();
    }
}

/// Opens connections and keeps the idle ones, the last used at the end.
#[derive(Clone)]
struct Connections<C> {
    connector: C,
    idle: Arc<Mutex<VecDeque<Connection>>>,
}

impl<C> Connections<C>
where
    C: Service<Uri, Error = BoxError> + Clone,
    C::Response: Read + Write + Unpin + Send + 'static,
{
    async fn exchange(self, request: Request<Body>) -> Result<Response<Full<Bytes>>, BoxError> {
        let (address, mut request) = to_origin_form(request)?;
        for _ in 0..ATTEMPTS {
            let mut connection = match idle(&self.idle).await {
                Some(connection) => connection,
                None => self.clone().open(address.clone()).await?,
            };
            let sent = connection.sender.try_send_request(request);
            let mut answer = std::pin::pin!(async move {
                let (head, body) = match sent.await {
                    Ok(response) => response.into_parts(),
                    Err(mut failed) => match failed.take_message() {
                        Some(request) => return Ok(Err(request)),
                        None => return Err(BoxError::from(failed.into_error())),
                    },
                };
                let body = Limited::new(body, ANSWER).collect().await?.to_bytes();
                Ok(Ok(Response::from_parts(head, Full::new(body))))
            });
            let answered = poll_fn(|context| {
                // Twice, so that what was just read is taken at once.
                for _ in 0..2 {
                    if let Poll::Ready(answer) = answer.as_mut().poll(context) {
                        return Poll::Ready(answer);
                    }
                    connection.drive(context);
                }
                answer.as_mut().poll(context)
            })
            .await?;
            match answered {
                Ok(response) => {
                    self.put_back(connection);
                    return Ok(response);
                }
                Err(unsent) => request = unsent,
            }
        }
        Err("every connection was closed before it took the request".into())
    }

    async fn open(self, address: Uri) -> Result<Connection, BoxError> {
        let stream = self.connector.oneshot(address).await?;
        let (sender, driver) = http1::handshake(stream).await?;
        let since = Instant::now();
        Ok(Connection { sender, driver: Box::pin(driver), ended: false, since })
    }

    fn put_back(&self, mut connection: Connection) {
        if connection.ended || connection.sender.is_closed() {
            return;
        }
        connection.since = Instant::now();
        let mut idle = self.idle.lock();
        idle.push_back(connection);
        let old = |oldest: &Connection| oldest.since.elapsed() > IDLE_FOR;
        while idle.len() > IDLE || idle.front().is_some_and(old) {
            idle.pop_front();
        }
    }
}

impl<C> Service<Request<Body>> for Connections<C>
where
    C: Service<Uri, Error = BoxError> + Clone + Send + 'static,
    C::Response: Read + Write + Unpin + Send + 'static,
    C::Future: Send,
{
    type Response = Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().exchange(request))
    }
}

/// The connection that was used last of those that are still good.
async fn idle(connections: &Mutex<VecDeque<Connection>>) -> Option<Connection> {
    loop {
        let mut connection = connections.lock().pop_back()?;
        if connection.is_ready().await {
            return Some(connection);
        }
    }
}

/// Whom to connect to, and the request as a server takes it: its path, and the server's name beside
/// it.
fn to_origin_form(mut request: Request<Body>) -> Result<(Uri, Request<Body>), BoxError> {
    let path = request.uri().path_and_query().cloned();
    let path = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    let address = std::mem::replace(request.uri_mut(), path);
    if let Some(authority) = address.authority()
        && !request.headers().contains_key(HOST)
    {
        let host = HeaderValue::from_str(authority.as_str())?;
        request.headers_mut().insert(HOST, host);
    }
    Ok((address, request))
}
