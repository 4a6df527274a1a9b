//! The other forms of the same answers: JSON, and metadata alone in JSON and protobuf.

use std::time::{Duration, Instant};

use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;

use crate::cluster::User;
use crate::frames::Frames;

/// What a client accepts of a list, and of an object.
pub(crate) const FORMS: [[&str; 2]; 3] = [
    ["application/json", "application/json"],
    [
        "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
        "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
    ],
    [
        "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
        "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json",
    ],
];

/// What kubectl accepts of what it shows in columns.
pub(crate) const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,\
    application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

pub(crate) fn is_json(accept: &str) -> bool {
    accept.starts_with("application/json")
}

/// A list without what two moments differ in: the revision, and the token that holds it.
pub(crate) fn masked(bytes: &[u8], accept: &str) -> String {
    if !is_json(accept) {
        let list = crate::frames::list(bytes);
        let next = list.next.map(|(text, _)| text);
        return format!("{:?} {:?} {next:?} {:?}", list.kind, list.items, list.rest);
    }
    let mut text = String::from_utf8(bytes.to_vec()).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    for name in ["resourceVersion", "continue"] {
        if let Some(found) = value["metadata"][name].as_str() {
            text =
                text.replacen(&format!("\"{name}\":\"{found}\""), &format!("\"{name}\":\"\""), 1);
        }
    }
    text
}

/// Both give the same list in each form.
pub(crate) async fn lists(direct: &mut User, door: &mut User, path: &str) {
    for [accept, _] in FORMS {
        same_list(direct, door, path, accept).await;
    }
}

/// Both give the same object in each form.
pub(crate) async fn gets(direct: &mut User, door: &mut User, path: &str) {
    for [_, accept] in FORMS {
        same_object(direct, door, path, accept).await;
    }
}

/// Both give the same pages in each form, by the tokens of either.
pub(crate) async fn pages(direct: &mut User, door: &mut User, path: &str) {
    for [accept, _] in FORMS {
        let (mut query, mut turn) = (String::new(), 0);
        loop {
            let tokens = same_list(direct, door, &format!("{path}&limit=2{query}"), accept).await;
            let Some(token) = &tokens[turn % 2] else { break };
            assert!(tokens.iter().all(Option::is_some), "{path} as {accept}");
            (query, turn) = (format!("&continue={token}"), turn + 1);
        }
    }
}

/// Both show an object and all of its collection in the same columns. An age may become a second more
/// from one read to the next: they are read again then.
pub(crate) async fn tables(direct: &mut User, door: &mut User, object: &str) {
    same_object(direct, door, object, TABLE).await;
    let (collection, _) = object.rsplit_once('/').unwrap();
    for query in ["", "?limit=2", "?labelSelector=app%3Dweb"] {
        same_list(direct, door, &format!("{collection}{query}"), TABLE).await;
    }
}

fn token(bytes: &[u8], accept: &str) -> Option<String> {
    if !is_json(accept) {
        return crate::frames::list(bytes).next.map(|(_, whole)| whole);
    }
    let value: Value = serde_json::from_slice(bytes).unwrap();
    value["metadata"]["continue"].as_str().map(str::to_owned)
}

/// Both give the same list in a form. Gives the tokens of both for what comes next.
pub(crate) async fn same_list(
    direct: &mut User,
    door: &mut User,
    path: &str,
    accept: &str,
) -> [Option<String>; 2] {
    // kube-apiserver writes, too: of some resources, between the two reads.
    for attempt in 0..5 {
        let (status, expected) = direct.read(path, accept).await;
        let (seen_status, seen) = door.read(path, accept).await;
        assert_eq!((status, seen_status), (StatusCode::OK, StatusCode::OK), "{path}");
        let tokens = [token(&expected, accept), token(&seen, accept)];
        let (expected, seen) = (masked(&expected, accept), masked(&seen, accept));
        if attempt < 4 && expected != seen {
            continue;
        }
        assert_eq!(seen, expected, "{path} as {accept}");
        return tokens;
    }
    unreachable!();
}

/// Both give the same object in a form.
pub(crate) async fn same_object(direct: &mut User, door: &mut User, path: &str, accept: &str) {
    for attempt in 0..5 {
        let (expected, seen) = (direct.read(path, accept).await, door.read(path, accept).await);
        if attempt < 4 && expected != seen {
            continue;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(text(&seen.1), text(&expected.1), "{path} as {accept}");
        assert_eq!(seen, expected, "{path} as {accept}");
        return;
    }
}

enum Events {
    Frames(Frames),
    Lines(Incoming, Vec<u8>),
}

impl Events {
    fn new(body: Incoming, accept: &str) -> Self {
        if is_json(accept) {
            return Self::Lines(body, Vec::new());
        }
        Self::Frames(Frames::new(body))
    }

    /// The next event, bookmarks aside that come now and then; none where none comes in time.
    async fn next(&mut self, patience: Duration) -> Option<String> {
        loop {
            let text = match self {
                Self::Frames(frames) => {
                    let frame = frames.next(patience).await?;
                    let bytes = frame.bytes.iter().map(|byte| char::from(*byte));
                    format!("{} {}", frame.kind, bytes.collect::<String>())
                }
                Self::Lines(body, read) => loop {
                    if let Some(end) = read.iter().position(|byte| *byte == b'\n') {
                        let line: Vec<u8> = read.drain(..=end).collect();
                        break String::from_utf8(line).unwrap();
                    }
                    let frame = tokio::time::timeout(patience, body.frame()).await.ok()??;
                    read.extend(frame.unwrap().into_data().unwrap());
                },
            };
            if !text.contains("BOOKMARK") {
                return Some(text);
            }
            if let Some(place) = text.find("k8s.io/initial-events-end") {
                // As of a revision that kube-apiserver's own writes move on, also to more digits:
                // in protobuf lengths change with it.
                let from = if matches!(self, Self::Frames(_)) { place } else { 0 };
                let mut kept: Vec<char> = text[from..].chars().collect();
                kept.iter_mut().filter(|c| c.is_ascii_digit()).for_each(|c| *c = '0');
                kept.dedup_by(|one, other| *one == '0' && *other == '0');
                return Some(kept.into_iter().collect());
            }
        }
    }
}

/// An event of a table whose cells do not tell how old something was when it was sent. The objects
/// in it still tell when they were made.
fn without_ages(event: &str) -> String {
    // A bookmark, whose digits are gone already, may be no JSON any more.
    let Ok(mut event) = serde_json::from_str::<Value>(event) else { return event.to_owned() };
    let is_age = |cell: &Value| {
        let text = cell.as_str().unwrap_or_default();
        text.starts_with(|first: char| first.is_ascii_digit())
            && text.chars().all(|one| one.is_ascii_digit() || "smhdy".contains(one))
            && text.ends_with(['s', 'm', 'h', 'd', 'y'])
    };
    for row in event["object"]["rows"].as_array_mut().into_iter().flatten() {
        for cell in row["cells"].as_array_mut().into_iter().flatten() {
            if is_age(cell) {
                *cell = "AGE".into();
            }
        }
    }
    event.to_string()
}

/// A watch of both.
pub(crate) struct Pair {
    path: String,
    accept: &'static str,
    direct: Events,
    door: Events,
}

impl Pair {
    pub(crate) async fn open(
        direct: &mut User,
        door: &mut User,
        path: String,
        accept: &'static str,
    ) -> Self {
        let expected = direct.open_as(&path, accept).await;
        let seen = door.open_as(&path, accept).await;
        assert_eq!((expected.status(), seen.status()), (StatusCode::OK, StatusCode::OK), "{path}");
        for name in ["content-type", "cache-control"] {
            assert_eq!(seen.headers()[name], expected.headers()[name], "{path} as {accept}");
        }
        let direct = Events::new(expected.into_body(), accept);
        Self { path, accept, direct, door: Events::new(seen.into_body(), accept) }
    }

    /// Both tell the same events in the same order.
    pub(crate) async fn compare(mut self, quiet: Duration) -> usize {
        let (mut expected, mut seen) = (Vec::new(), Vec::new());
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            while let Some(event) = self.direct.next(quiet).await {
                expected.push(event);
            }
            while let Some(event) = self.door.next(quiet).await {
                seen.push(event);
            }
            if expected.len() == seen.len() {
                break;
            }
        }
        if self.accept == TABLE {
            for events in [&mut expected, &mut seen] {
                *events = events.iter().map(|event| without_ages(event)).collect();
            }
        }
        assert_eq!(seen, expected, "{} as {}", self.path, self.accept);
        seen.len()
    }
}
