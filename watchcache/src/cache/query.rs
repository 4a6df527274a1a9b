//! Which requests the cache answers. All others go on to a kube-apiserver: those it does not
//! know, and those that kube-apiserver would refuse.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderMap, Method};

use super::filter::{Filter, is_plain};
use super::form::{Asked, Form};
use super::kinds::Kind;
use super::page;
use super::table::Window;
use crate::api::{RequestInfo, first_value};

/// Why a request goes on, for the metric.
pub type Pass = &'static str;

/// Parameters that are understood, each at most once.
const KNOWN: [&str; 11] = [
    "watch",
    "allowWatchBookmarks",
    "timeoutSeconds",
    "timeout",
    "resourceVersion",
    "resourceVersionMatch",
    "fieldSelector",
    "labelSelector",
    "limit",
    "continue",
    "sendInitialEvents",
];

/// How new an answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Whatever is known.
    Any,
    /// As of this revision or later.
    NotOlderThan(u64),
    /// As of the moment of the request or later.
    Latest,
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// With what there is, this new; and, if so asked, a bookmark after it.
    State {
        /// How new.
        freshness: Freshness,
        /// Whether a bookmark says where the initial events end.
        marked: bool,
    },
    /// After a revision.
    After(u64),
}

/// A request that the cache answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// One object.
    Get {
        /// `namespace/name`, or the name alone.
        key: String,
        /// How new.
        freshness: Freshness,
    },
    /// A list.
    List {
        /// Of what.
        filter: Filter,
        /// How new.
        freshness: Freshness,
        /// Which part.
        window: Window,
    },
    /// A watch.
    Watch {
        /// Of what.
        filter: Filter,
        /// From where.
        from: From,
        /// Whether it wants bookmarks now and then.
        bookmarks: bool,
        /// How long; else kube-apiserver's default.
        timeout: Option<Duration>,
    },
}

/// Plans a request for a resource.
pub fn plan(
    kind: &'static Kind,
    method: &Method,
    info: &RequestInfo<'_>,
    query: &str,
    headers: &HeaderMap,
) -> Result<(Plan, Form), Pass> {
    if *method != Method::GET
        || info.group != kind.group
        || info.version != kind.version
        || info.resource != kind.resource
        || !info.subresource.is_empty()
        || !is_canonical(kind, info)
    {
        return Err("other");
    }
    if !is_plain(info.namespace) || !is_plain(info.name) {
        return Err("name");
    }
    let parameters = Parameters::read(query)?;
    let watch = parameters.flag("watch")?.unwrap_or(false);
    let asked = match (watch, info.name.is_empty()) {
        (true, _) => Asked::Watch,
        (false, true) => Asked::List,
        (false, false) => Asked::Get,
    };
    let form = Form::accepted(headers, asked).ok_or("content-type")?;
    if form.metadata && !kind.has_own_metadata() {
        return Err("content-type");
    }
    Ok((plan_of(kind, info, &parameters, asked)?, form))
}

fn plan_of(
    kind: &'static Kind,
    info: &RequestInfo<'_>,
    parameters: &Parameters<'_>,
    asked: Asked,
) -> Result<Plan, Pass> {
    if !info.name.is_empty() {
        return get(kind, info, parameters);
    }
    // A resource in no namespace has no collection in one.
    if !kind.namespaced && !info.namespace.is_empty() {
        return Err("other");
    }
    let fields = parameters.text("fieldSelector").unwrap_or_default();
    let labels = parameters.text("labelSelector").unwrap_or_default();
    let filter = Filter::parse(kind, info.namespace, &fields, &labels).ok_or("selector")?;
    if asked == Asked::Watch {
        return parameters.watch(filter);
    }
    if parameters.text("sendInitialEvents").is_some()
        || parameters.text("allowWatchBookmarks").is_some_and(|value| value != "false")
    {
        return Err("query");
    }
    parameters.list(kind, filter)
}

/// Whether the path is the one that a collection or an object has; others, such as `/watch/`, go
/// on.
fn is_canonical(kind: &Kind, info: &RequestInfo<'_>) -> bool {
    let mut path = info.path;
    // A namespace itself is named twice in what was read of its path.
    let namespace = if kind.namespaced { info.namespace } else { "" };
    let collection = ["namespaces", namespace];
    let root: &[&str] = if info.group.is_empty() { &["api"] } else { &["apis", info.group] };
    let parts = root
        .iter()
        .copied()
        .chain([info.version])
        .chain(collection.into_iter().filter(|_| !namespace.is_empty()))
        .chain([info.resource, info.name].into_iter().filter(|part| !part.is_empty()));
    for part in parts {
        let left = path.strip_prefix('/').and_then(|path| path.strip_prefix(part));
        let Some(left) = left else { return false };
        path = left;
    }
    path.is_empty()
}

fn get(kind: &Kind, info: &RequestInfo<'_>, parameters: &Parameters<'_>) -> Result<Plan, Pass> {
    if kind.namespaced && info.namespace.is_empty() {
        return Err("other");
    }
    if KNOWN.iter().any(|name| *name != "resourceVersion" && parameters.text(name).is_some()) {
        return Err("query");
    }
    let freshness = freshness(parameters.version()?);
    let key = if kind.namespaced {
        format!("{}/{}", info.namespace, info.name)
    } else {
        info.name.to_owned()
    };
    Ok(Plan::Get { key, freshness })
}

fn freshness(version: Option<u64>) -> Freshness {
    match version {
        None => Freshness::Latest,
        Some(0) => Freshness::Any,
        Some(version) => Freshness::NotOlderThan(version),
    }
}

struct Parameters<'a> {
    query: &'a str,
}

impl<'a> Parameters<'a> {
    fn read(query: &'a str) -> Result<Self, Pass> {
        let mut seen = [false; KNOWN.len()];
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let name = pair.split('=').next().unwrap_or_default();
            let place = KNOWN.iter().position(|known| *known == name).ok_or("query")?;
            let again = seen.get_mut(place).is_none_or(|seen| std::mem::replace(seen, true));
            if again || first_value(pair, name).is_none() {
                return Err("query");
            }
        }
        Ok(Self { query })
    }

    fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        first_value(self.query, name)
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, Pass> {
        match self.text(name).as_deref() {
            None => Ok(None),
            Some("1" | "true") => Ok(Some(true)),
            Some("0" | "false") => Ok(Some(false)),
            Some(_) => Err("query"),
        }
    }

    /// None where none was given.
    fn version(&self) -> Result<Option<u64>, Pass> {
        match self.text("resourceVersion").as_deref() {
            None | Some("") => Ok(None),
            Some(text) if text.len() <= 18 && text.bytes().all(|digit| digit.is_ascii_digit()) => {
                text.parse().map(Some).map_err(|_| "resource-version")
            }
            Some(_) => Err("resource-version"),
        }
    }

    /// As `waitUntilFreshAndList` of `k8s.io/apiserver/pkg/storage/cacher/watch_cache.go` decides
    /// it, after the rules of `ValidateListOptions`.
    fn list(&self, kind: &Kind, filter: Filter) -> Result<Plan, Pass> {
        let version = self.version()?;
        let limit = match self.text("limit").as_deref() {
            None | Some("") => 0,
            Some(text) => text.parse::<u32>().map_err(|_| "limit")? as usize,
        };
        let matching = self.text("resourceVersionMatch").unwrap_or_default();
        let next = self.text("continue").unwrap_or_default();
        let mut window = Window { limit, by_index: kind.cached, ..Window::default() };
        let mut freshness = freshness(version);
        match (&*matching, version) {
            ("", None) if !next.is_empty() => {
                let namespace = filter.namespace.as_deref();
                let place = page::decode(&next, namespace).ok_or("continue")?;
                (window.at, window.from, window.by_index) = (place.at, place.from, false);
                freshness = place.at.map_or(Freshness::Latest, Freshness::NotOlderThan);
            }
            (_, _) if !next.is_empty() => return Err("continue"),
            ("Exact", Some(version @ 1..)) => (window.at, window.by_index) = (Some(version), false),
            // The legacy of before there was a way to say it.
            ("", Some(version @ 1..)) if limit > 0 => {
                (window.at, window.by_index) = (Some(version), false);
            }
            // kube-apiserver's cache answers in full what may be old; the store knows no such thing.
            ("" | "NotOlderThan", Some(0)) if kind.cached => window.limit = 0,
            ("" | "NotOlderThan", Some(0)) if limit > 0 => freshness = Freshness::Latest,
            ("", _) | ("NotOlderThan", Some(_)) => {}
            _ => return Err("resource-version"),
        }
        // kube-apiserver 1.36 does not find its place again where a field selector has narrowed the
        // first page to a namespace; that is its to tell.
        if (filter.key.is_some() || filter.narrowed)
            && (window.limit > 0 || window.at.is_some() || !next.is_empty())
        {
            return Err("limit");
        }
        Ok(Plan::List { filter, freshness, window })
    }

    fn watch(&self, filter: Filter) -> Result<Plan, Pass> {
        let version = self.version()?;
        let matching = self.text("resourceVersionMatch");
        let matching = matching.as_deref();
        if self.text("limit").is_some() || self.text("continue").is_some() {
            return Err("limit");
        }
        let bookmarks = self.flag("allowWatchBookmarks")?.unwrap_or(false);
        let timeout = match self.text("timeoutSeconds").as_deref() {
            None | Some("" | "0") => None,
            Some(text) => {
                Some(Duration::from_secs(text.parse::<u32>().map_err(|_| "query")?.into()))
            }
        };
        let from = match (self.flag("sendInitialEvents")?, matching) {
            (Some(true), Some("NotOlderThan")) if bookmarks => {
                From::State { freshness: freshness(version), marked: true }
            }
            (None, None | Some("")) => match version {
                None | Some(0) => From::State { freshness: Freshness::Any, marked: false },
                Some(version) => From::After(version),
            },
            _ => return Err("query"),
        };
        Ok(Plan::Watch { filter, from, bookmarks, timeout })
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header};

    use super::super::kinds;
    use super::*;

    const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

    fn planned(target: &str, accept: &'static str) -> Result<Plan, Pass> {
        planned_for(kinds::find("", "pods").unwrap(), target, accept)
    }

    fn planned_for(kind: &'static Kind, target: &str, accept: &'static str) -> Result<Plan, Pass> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let info = RequestInfo::parse(&Method::GET, path, query);
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        let planned = plan(kind, &Method::GET, &info, query, &headers);
        planned.map(|(plan, form)| {
            assert_eq!(form, Form::default());
            plan
        })
    }

    #[test]
    fn what_client_go_asks_is_answered() {
        const ACCEPT: &str = "application/vnd.kubernetes.protobuf,application/json";
        let all = Filter::default();
        assert_eq!(
            planned("/api/v1/pods?limit=500&resourceVersion=0", ACCEPT),
            Ok(Plan::List {
                filter: all.clone(),
                freshness: Freshness::Any,
                window: Window { by_index: true, ..Window::default() },
            })
        );
        assert_eq!(
            planned("/api/v1/namespaces/a/pods/p", ACCEPT),
            Ok(Plan::Get { key: "a/p".to_owned(), freshness: Freshness::Latest })
        );
        assert_eq!(
            planned(
                "/api/v1/pods?allowWatchBookmarks=true&fieldSelector=spec.nodeName%3Dn1\
                 &resourceVersionMatch=NotOlderThan&sendInitialEvents=true&timeout=9m\
                 &timeoutSeconds=540&watch=true",
                ACCEPT
            ),
            Ok(Plan::Watch {
                filter: Filter { index: Some("n1".to_owned()), ..all.clone() },
                from: From::State { freshness: Freshness::Latest, marked: true },
                bookmarks: true,
                timeout: Some(Duration::from_mins(9)),
            })
        );
        assert_eq!(
            planned("/api/v1/pods?watch=1&resourceVersion=7", ACCEPT),
            Ok(Plan::Watch { filter: all, from: From::After(7), bookmarks: false, timeout: None })
        );
    }

    #[test]
    fn lists_in_parts() {
        let window = |target: &str| match planned(target, PROTOBUF) {
            Ok(Plan::List { window, freshness, .. }) => (window, freshness),
            other => panic!("{target}: {other:?}"),
        };
        let first = Window { limit: 5, by_index: true, ..Window::default() };
        assert_eq!(window("/api/v1/pods?limit=5"), (first, Freshness::Latest));
        let exact = Window { limit: 5, at: Some(7), ..Window::default() };
        let seven = Freshness::NotOlderThan(7);
        assert_eq!(window("/api/v1/pods?limit=5&resourceVersion=7"), (exact.clone(), seven));
        let whole = Window { limit: 0, ..exact.clone() };
        let target = "/api/v1/pods?resourceVersionMatch=Exact&resourceVersion=7";
        assert_eq!(window(target), (whole, seven));
        let token = page::encode(true, 7, "a/p", Some("a"));
        let next = Window { from: "a/p\0".to_owned(), ..exact };
        let target = format!("/api/v1/namespaces/a/pods?limit=5&continue={token}");
        assert_eq!(window(&target), (next, seven));
    }

    #[test]
    fn other_resources() {
        let nodes = kinds::find("", "nodes").unwrap();
        let key = "n".to_owned();
        let one = Ok(Plan::Get { key, freshness: Freshness::Latest });
        assert_eq!(planned_for(nodes, "/api/v1/nodes/n", PROTOBUF), one);
        assert!(planned_for(nodes, "/api/v1/nodes", PROTOBUF).is_ok());
        assert!(planned_for(nodes, "/api/v1/namespaces/a/nodes", PROTOBUF).is_err());
        let leases = kinds::find("coordination.k8s.io", "leases").unwrap();
        let path = "/apis/coordination.k8s.io/v1/namespaces/a/leases/l";
        let key = "a/l".to_owned();
        assert_eq!(
            planned_for(leases, path, PROTOBUF),
            Ok(Plan::Get { key, freshness: Freshness::Latest })
        );
        assert!(planned_for(leases, "/api/v1/leases", PROTOBUF).is_err());
        let namespaces = kinds::find("", "namespaces").unwrap();
        let key = "a".to_owned();
        let one = Ok(Plan::Get { key, freshness: Freshness::Latest });
        assert_eq!(planned_for(namespaces, "/api/v1/namespaces/a", PROTOBUF), one);
        assert!(planned_for(namespaces, "/api/v1/namespaces", PROTOBUF).is_ok());
        // Another version of what is stored in v1.
        let events = kinds::find("", "events").unwrap();
        assert!(planned_for(events, "/apis/events.k8s.io/v1/events", PROTOBUF).is_err());
        assert!(planned_for(events, "/api/v1/events", PROTOBUF).is_ok());
    }

    #[test]
    fn the_rest_goes_on() {
        for target in [
            "/api/v1/nodes",
            "/apis/metrics.k8s.io/v1/pods",
            "/api/v1/watch/pods",
            "/api/v1/pods/",
            "/api/v1//pods",
            "/api/v1/pods/p",
            "/api/v1/namespaces/a/pods/p/log",
            "/api/v1/namespaces/A/pods",
            "/api/v1/pods?continue=x",
            "/api/v1/pods?limit=-1",
            "/api/v1/pods?resourceVersionMatch=Exact&resourceVersion=0",
            "/api/v1/pods?resourceVersionMatch=Exact",
            "/api/v1/namespaces/a/pods?fieldSelector=metadata.name%3Da&limit=1",
            "/api/v1/pods?fieldSelector=spec.nothing%3Da",
            "/api/v1/pods?shardSelector=x",
            "/api/v1/pods?pretty=1",
            "/api/v1/pods?watch=1&watch=0",
            "/api/v1/pods?watch=yes",
            "/api/v1/pods?resourceVersion=x",
            "/api/v1/pods?resourceVersion=-1",
            "/api/v1/pods?resourceVersionMatch=NotOlderThan",
            "/api/v1/pods?sendInitialEvents=true",
            "/api/v1/pods?labelSelector=a%3D%3D%3D",
            "/api/v1/pods?labelSelector=%zz",
            "/api/v1/pods?labelSelector=a;b",
            "/api/v1/pods?watch=1&sendInitialEvents=true",
            "/api/v1/pods?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
            "/api/v1/pods?watch=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan",
            "/api/v1/pods?watch=1&resourceVersionMatch=NotOlderThan",
            "/api/v1/pods?watch=1&limit=1",
            "/api/v1/namespaces/a/pods/p?watch=1",
        ] {
            assert!(planned(target, PROTOBUF).is_err(), "{target}");
        }
        for accept in [
            "application/yaml",
            "application/vnd.kubernetes.protobuf;q=0.5,application/json",
            "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io",
            "application/vnd.kubernetes.protobuf;stream=watch",
        ] {
            assert!(planned("/api/v1/pods", accept).is_err(), "{accept}");
        }
    }
}
