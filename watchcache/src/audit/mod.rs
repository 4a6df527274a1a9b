//! Audit records of the requests that the front door answers from its cache, as kube-apiserver
//! writes those of its own (`k8s.io/apiserver/pkg/audit`, `.../endpoints/filters/audit.go`): events
//! of `audit.k8s.io/v1`, a line of JSON for each stage. All other requests are in the audit log of
//! the kube-apiserver that they go to.

mod log;
mod policy;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use serde::Serialize;

pub use log::{Counts, Log, Retention};
pub use policy::{Level, Omitted, Policy, PolicyError, Stage};

use crate::cache::{Attributes, Subject};

/// The header in which a client names its request, and is told the name.
pub const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Bytes of the client's name that are recorded.
const MAX_USER_AGENT: usize = 1024;

/// Audit records can't be written.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The policy is not one.
    #[error("--audit-policy-file: {0}")]
    Policy(#[from] PolicyError),
    /// The log can't be opened.
    #[error("--audit-log-path: {0}")]
    Log(std::io::Error),
}

/// Records requests.
#[derive(Debug)]
pub struct Auditor {
    policy: Policy,
    log: Arc<Log>,
}

/// What is known of a request when it comes.
#[derive(Clone, Debug)]
pub struct Received {
    at: SystemTime,
    id: String,
    uri: String,
    sources: Vec<IpAddr>,
    user_agent: String,
}

impl Received {
    /// What a request tells of itself.
    #[must_use]
    pub fn of<B>(request: &Request<B>, client: IpAddr) -> Self {
        let headers = request.headers();
        let text = |name| headers.get(name).map(HeaderValue::as_bytes).unwrap_or_default();
        let id = String::from_utf8_lossy(text(AUDIT_ID)).into_owned();
        let mut agent = String::from_utf8_lossy(text(header::USER_AGENT)).into_owned();
        if agent.len() > MAX_USER_AGENT {
            agent.truncate(agent.floor_char_boundary(MAX_USER_AGENT));
            agent.push_str("...TRUNCATED");
        }
        let uri = request.uri();
        Self {
            at: SystemTime::now(),
            id: if id.is_empty() { new_id() } else { id },
            uri: uri.path_and_query().map_or_else(|| uri.path().to_owned(), ToString::to_string),
            sources: sources(headers, client),
            user_agent: agent,
        }
    }

    /// The name of the request.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// A random UUID.
fn new_id() -> String {
    let random = rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62) | 4 << 76 | 2 << 62;
    let hex = format!("{random:032x}");
    let mut id = String::with_capacity(36);
    for (place, digit) in hex.chars().enumerate() {
        if matches!(place, 8 | 12 | 16 | 20) {
            id.push('-');
        }
        id.push(digit);
    }
    id
}

/// Where a request comes from, by way of whom (`SourceIPs` of `k8s.io/apimachinery/pkg/util/net`).
fn sources(headers: &HeaderMap, client: IpAddr) -> Vec<IpAddr> {
    // As Go's net.IP, which does not tell an IPv4 address from the same one in IPv6.
    let address = |text: &str| text.trim_ascii().parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
    let first = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut sources: Vec<_> = first(FORWARDED_FOR).split(',').filter_map(address).collect();
    if let Some(real) = address(first(REAL_IP))
        && !sources.contains(&real)
    {
        sources.push(real);
    }
    let client = client.to_canonical();
    if sources.last() != Some(&client) {
        sources.push(client);
    }
    sources
}

/// What an audit policy says of one read.
#[derive(Debug)]
pub enum Wanted {
    /// It is not recorded.
    Nothing,
    /// It is recorded.
    Record(Box<Record>),
    /// It is to be recorded with its answer, or there is no room for more: it is for kube-apiserver
    /// to answer and to record.
    Elsewhere,
}

/// A request that is recorded.
#[derive(Debug)]
pub struct Record {
    log: Arc<Log>,
    level: Level,
    omitted: Omitted,
    received: Received,
    verb: &'static str,
    user: User,
    object: ObjectRef,
    /// Why it is allowed.
    reason: Arc<str>,
}

#[derive(Debug, Serialize)]
struct User {
    username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ObjectRef {
    resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    api_group: String,
    api_version: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    kind: &'static str,
    api_version: &'static str,
    level: &'static str,
    #[serde(rename = "auditID")]
    audit_id: &'a str,
    stage: &'static str,
    #[serde(rename = "requestURI")]
    request_uri: &'a str,
    verb: &'static str,
    user: &'a User,
    #[serde(rename = "sourceIPs")]
    source_ips: &'a [IpAddr],
    #[serde(skip_serializing_if = "str::is_empty")]
    user_agent: &'a str,
    object_ref: &'a ObjectRef,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<Status>,
    request_received_timestamp: String,
    stage_timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<Annotations<'a>>,
}

#[derive(Serialize)]
struct Status {
    metadata: Empty,
    code: u16,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct Annotations<'a> {
    #[serde(rename = "authorization.k8s.io/decision")]
    decision: &'static str,
    #[serde(rename = "authorization.k8s.io/reason")]
    reason: &'a str,
}

impl Auditor {
    /// Records what a policy wants in a log.
    pub fn new(
        policy: &str,
        path: &Path,
        kept: Retention,
        counts: Counts,
    ) -> Result<Self, AuditError> {
        let policy = Policy::parse(policy)?;
        let log = Arc::new(Log::open(path, kept, counts).map_err(AuditError::Log)?);
        Ok(Self { policy, log })
    }

    /// What is recorded of a read.
    #[must_use]
    pub fn of(&self, received: &Received, who: &Subject, what: &Attributes<'_>) -> Wanted {
        let groups = who.all_groups();
        let (level, omitted) = self.policy.of(who, &groups, what);
        match level {
            Level::None => return Wanted::Nothing,
            // Of a watch, kube-apiserver does not record what it tells.
            Level::RequestResponse if what.verb != "watch" => return Wanted::Elsewhere,
            _ if !self.log.has_room() => return Wanted::Elsewhere,
            _ => {}
        }
        let verb = match what.verb {
            "get" => "get",
            "watch" => "watch",
            _ => "list",
        };
        Wanted::Record(Box::new(Record {
            log: self.log.clone(),
            level,
            omitted,
            received: received.clone(),
            verb,
            user: User {
                username: who.username.clone(),
                uid: who.uid.clone(),
                groups: groups.into_iter().map(str::to_owned).collect(),
                extra: who.extra.clone(),
            },
            object: ObjectRef {
                resource: what.resource.to_owned(),
                namespace: what.namespace.to_owned(),
                name: what.name.to_owned(),
                api_group: what.group.to_owned(),
                api_version: what.version.to_owned(),
            },
            reason: "".into(),
        }))
    }
}

impl Record {
    /// Its name, which its client is told.
    #[must_use]
    pub fn id(&self) -> &str {
        self.received.id()
    }

    /// The answer begins. All of it is recorded when what is given back is dropped: the client has it
    /// then, or has gone.
    #[must_use]
    pub fn begin(mut self: Box<Self>, code: u16, reason: Option<Arc<str>>) -> Ending {
        let allowed = reason.is_some();
        self.reason = reason.unwrap_or_else(|| "".into());
        self.put(Stage::RequestReceived, None, false);
        if self.verb == "watch" {
            self.put(Stage::ResponseStarted, Some(code), allowed);
        }
        Ending { record: self, code, allowed }
    }

    fn put(&self, stage: Stage, code: Option<u16>, allowed: bool) {
        if !self.omitted.records(stage) {
            return;
        }
        let received = micros(self.received.at);
        let event = Event {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level: self.level.name(),
            audit_id: &self.received.id,
            stage: stage.name(),
            request_uri: &self.received.uri,
            verb: self.verb,
            user: &self.user,
            source_ips: &self.received.sources,
            user_agent: &self.received.user_agent,
            object_ref: &self.object,
            response_status: code.map(|code| Status { metadata: Empty {}, code }),
            stage_timestamp: match stage {
                Stage::RequestReceived => received.clone(),
                _ => micros(SystemTime::now()),
            },
            request_received_timestamp: received,
            annotations: allowed.then(|| Annotations { decision: "allow", reason: &self.reason }),
        };
        // Text and numbers always serialise.
        let mut line = serde_json::to_vec(&event).unwrap_or_default();
        line.push(b'\n');
        self.log.add(&line);
    }
}

/// A `MicroTime`.
fn micros(time: SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// A request whose answer is on its way.
#[derive(Debug)]
pub struct Ending {
    record: Box<Record>,
    code: u16,
    allowed: bool,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.record.put(Stage::ResponseComplete, Some(self.code), self.allowed);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n\
        - {level: None, users: [quiet]}\n\
        - {level: RequestResponse, resources: [{resources: [secrets]}]}\n\
        - {level: Request, verbs: [watch], omitStages: [RequestReceived]}\n\
        - {level: Metadata}\n";

    fn attributes(verb: &'static str, resource: &'static str) -> Attributes<'static> {
        Attributes {
            verb,
            group: "",
            resource,
            version: "v1",
            namespace: "a",
            name: "",
            field_selector: "",
            label_selector: "",
        }
    }

    fn lines(path: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn each_stage_is_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let kept = Retention { size: 0, backups: 0, days: 0 };
        let auditor = Auditor::new(POLICY, &path, kept, Counts::default()).unwrap();
        let mut request = Request::new(());
        *request.uri_mut() = "https://x/api/v1/namespaces/a/pods?watch=1".parse().unwrap();
        request.headers_mut().insert("audit-id", HeaderValue::from_static("mine"));
        let received = Received::of(&request, "10.0.0.1".parse().unwrap());
        let named = |name: &str| Subject { username: name.to_owned(), ..Subject::default() };
        let alice = named("alice");
        let wanted = auditor.of(&received, &named("quiet"), &attributes("list", "pods"));
        assert!(matches!(wanted, Wanted::Nothing));
        let wanted = auditor.of(&received, &alice, &attributes("get", "secrets"));
        assert!(matches!(wanted, Wanted::Elsewhere));
        let watched = auditor.of(&received, &alice, &attributes("watch", "secrets"));
        let Wanted::Record(watched) = watched else { panic!() };
        assert_eq!(watched.level, Level::RequestResponse);
        drop(watched);
        for (verb, reason, code) in
            [("watch", Some("RBAC: x"), 200), ("list", Some(""), 200), ("get", None, 429)]
        {
            let wanted = auditor.of(&received, &alice, &attributes(verb, "pods"));
            let Wanted::Record(record) = wanted else { panic!() };
            assert_eq!(record.id(), "mine");
            drop(record.begin(code, reason.map(Into::into)));
        }
        drop(auditor);
        let seen = lines(&path);
        let stages: Vec<_> = seen
            .iter()
            .map(|line| (line["verb"].as_str().unwrap(), line["stage"].as_str().unwrap()))
            .collect();
        assert_eq!(
            stages,
            [
                ("watch", "ResponseStarted"),
                ("watch", "ResponseComplete"),
                ("list", "RequestReceived"),
                ("list", "ResponseComplete"),
                ("get", "RequestReceived"),
                ("get", "ResponseComplete")
            ]
        );
        assert_eq!(seen[0]["annotations"]["authorization.k8s.io/reason"], "RBAC: x");
        assert_eq!(seen[0]["level"], "Request");
        assert_eq!(seen[2]["requestReceivedTimestamp"], seen[2]["stageTimestamp"]);
        assert_eq!(seen[2]["responseStatus"], Value::Null);
        assert_eq!(seen[3]["responseStatus"]["code"], 200);
        assert_eq!(
            (&seen[5]["responseStatus"]["code"], &seen[5]["annotations"]),
            (&429.into(), &Value::Null)
        );
        assert_eq!(seen[5]["user"]["groups"][0], "system:authenticated");
        assert_eq!(seen[5]["requestURI"], "/api/v1/namespaces/a/pods?watch=1");
    }

    #[test]
    fn where_a_request_comes_from() {
        let from = |forwarded: &'static str, real: &'static str, client: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(FORWARDED_FOR, HeaderValue::from_static(forwarded));
            headers.insert(REAL_IP, HeaderValue::from_static(real));
            let sources = sources(&headers, client.parse().unwrap());
            sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(from("", "", "10.0.0.1"), "10.0.0.1");
        assert_eq!(from("1.2.3.4, x, ::1", "", "10.0.0.1"), "1.2.3.4 ::1 10.0.0.1");
        assert_eq!(from("1.2.3.4", "1.2.3.4", "1.2.3.4"), "1.2.3.4");
        assert_eq!(from("1.2.3.4", "5.6.7.8", "::ffff:5.6.7.8"), "1.2.3.4 5.6.7.8");
    }

    #[test]
    fn ids_are_random_uuids() {
        let id = new_id();
        assert_eq!(id.len(), 36);
        assert_eq!((id.as_bytes()[14], id.as_bytes()[8], id.as_bytes()[23]), (b'4', b'-', b'-'));
        assert!(b"89ab".contains(&id.as_bytes()[19]));
        assert_ne!(id, new_id());
    }

    #[test]
    fn a_long_name_of_a_client_is_cut() {
        let mut request = Request::new(());
        let name = HeaderValue::from_str(&"x".repeat(2000)).unwrap();
        request.headers_mut().insert("user-agent", name);
        let received = Received::of(&request, "::1".parse().unwrap());
        assert_eq!(received.user_agent, format!("{}...TRUNCATED", "x".repeat(1024)));
    }
}
