//! Which requests the cache answers. All others go on to a kube-apiserver: those it does not
//! know, and those that kube-apiserver would refuse.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderMap, Method, header};

use super::selector::{LabelSelector, node_of};
use super::table::Filter;
use super::wire::Kind;
use crate::api::{RequestInfo, first_value};

/// Why a request goes on, for the metric.
pub type Pass = &'static str;

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// Parameters that are understood, each at most once.
const KNOWN: [&str; 10] = [
    "watch",
    "allowWatchBookmarks",
    "timeoutSeconds",
    "timeout",
    "resourceVersion",
    "resourceVersionMatch",
    "fieldSelector",
    "labelSelector",
    "limit",
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
        /// `namespace/name`.
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

/// Plans a request for a resource in namespaces.
pub fn plan(
    kind: &Kind,
    method: &Method,
    info: &RequestInfo<'_>,
    query: &str,
    headers: &HeaderMap,
) -> Result<Plan, Pass> {
    if *method != Method::GET
        || info.prefix != "api"
        || !info.group.is_empty()
        || info.version != kind.version
        || info.resource != kind.resource
        || !info.subresource.is_empty()
        || !is_canonical(info)
    {
        return Err("other");
    }
    let plain = |name: &str| {
        name.len() <= 253
            && name.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte)
            })
    };
    if !plain(info.namespace) || !plain(info.name) {
        return Err("name");
    }
    let Some(stream) = accepted(headers) else { return Err("content-type") };
    let parameters = Parameters::read(query)?;
    let watch = parameters.flag("watch")?.unwrap_or(false);
    if stream && !watch {
        return Err("content-type");
    }
    if !info.name.is_empty() {
        return get(info, &parameters);
    }
    let filter = parameters.filter(info.namespace)?;
    let version = parameters.version()?;
    let matching = parameters.text("resourceVersionMatch");
    if watch {
        return parameters.watch(filter, version, matching.as_deref());
    }
    if parameters.text("sendInitialEvents").is_some()
        || parameters.text("allowWatchBookmarks").is_some_and(|value| value != "false")
    {
        return Err("query");
    }
    match matching.as_deref() {
        None | Some("") => {}
        Some("NotOlderThan") if version.is_some() => {}
        Some(_) => return Err("resource-version"),
    }
    match parameters.text("limit").as_deref() {
        None | Some("" | "0") => {}
        // kube-apiserver's cache answers this in full, too.
        Some(limit) if version == Some(0) && limit.parse::<u32>().is_ok() => {}
        Some(_) => return Err("limit"),
    }
    let freshness = match version {
        None => Freshness::Latest,
        Some(0) => Freshness::Any,
        Some(version) => Freshness::NotOlderThan(version),
    };
    Ok(Plan::List { filter, freshness })
}

/// Whether the path is the one that a collection or an object has; others, such as `/watch/`, go
/// on.
fn is_canonical(info: &RequestInfo<'_>) -> bool {
    let mut path = info.path;
    let collection = ["namespaces", info.namespace];
    let parts = ["api", info.version]
        .into_iter()
        .chain(collection.into_iter().filter(|_| !info.namespace.is_empty()))
        .chain([info.resource, info.name].into_iter().filter(|part| !part.is_empty()));
    for part in parts {
        let left = path.strip_prefix('/').and_then(|path| path.strip_prefix(part));
        let Some(left) = left else { return false };
        path = left;
    }
    path.is_empty()
}

fn get(info: &RequestInfo<'_>, parameters: &Parameters<'_>) -> Result<Plan, Pass> {
    if info.namespace.is_empty() {
        return Err("other");
    }
    if KNOWN.iter().any(|name| *name != "resourceVersion" && parameters.text(name).is_some()) {
        return Err("query");
    }
    let freshness = match parameters.version()? {
        None => Freshness::Latest,
        Some(0) => Freshness::Any,
        Some(version) => Freshness::NotOlderThan(version),
    };
    Ok(Plan::Get { key: format!("{}/{}", info.namespace, info.name), freshness })
}

/// Whether protobuf is what the client wants most, and whether it said that it wants a stream.
/// None where it wants something else, or where that takes more than a look.
fn accepted(headers: &HeaderMap) -> Option<bool> {
    let mut accept = headers.get_all(header::ACCEPT).iter();
    let (Some(value), None) = (accept.next(), accept.next()) else { return None };
    let value = value.to_str().ok()?;
    if value.contains("q=") {
        return None;
    }
    let first = value.split(',').next()?.trim();
    match first.strip_prefix(PROTOBUF)? {
        "" => Some(false),
        ";stream=watch" => Some(true),
        _ => None,
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

    fn filter(&self, namespace: &str) -> Result<Filter, Pass> {
        let node = match self.text("fieldSelector").as_deref() {
            None | Some("") => None,
            Some(text) => Some(node_of(text).ok_or("selector")?.to_owned()),
        };
        let labels = self.text("labelSelector").unwrap_or_default();
        let labels = LabelSelector::parse(&labels).ok_or("selector")?;
        let namespace = (!namespace.is_empty()).then(|| namespace.to_owned());
        Ok(Filter { namespace, node, labels })
    }

    fn watch(
        &self,
        filter: Filter,
        version: Option<u64>,
        matching: Option<&str>,
    ) -> Result<Plan, Pass> {
        if self.text("limit").is_some() {
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
            (Some(true), Some("NotOlderThan")) if bookmarks => From::State {
                freshness: match version {
                    None => Freshness::Latest,
                    Some(0) => Freshness::Any,
                    Some(version) => Freshness::NotOlderThan(version),
                },
                marked: true,
            },
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
    use http::HeaderValue;

    use super::super::wire::PODS;
    use super::*;

    fn planned(target: &str, accept: &'static str) -> Result<Plan, Pass> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let info = RequestInfo::parse(&Method::GET, path, query);
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        plan(&PODS, &Method::GET, &info, query, &headers)
    }

    #[test]
    fn what_client_go_asks_is_answered() {
        const ACCEPT: &str = "application/vnd.kubernetes.protobuf,application/json";
        let all = Filter::default();
        assert_eq!(
            planned("/api/v1/pods?limit=500&resourceVersion=0", ACCEPT),
            Ok(Plan::List { filter: all.clone(), freshness: Freshness::Any })
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
                filter: Filter { node: Some("n1".to_owned()), ..all.clone() },
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
            "/api/v1/pods?limit=5",
            "/api/v1/pods?limit=5&resourceVersion=7",
            "/api/v1/pods?continue=x",
            "/api/v1/pods?shardSelector=x",
            "/api/v1/pods?pretty=1",
            "/api/v1/pods?watch=1&watch=0",
            "/api/v1/pods?watch=yes",
            "/api/v1/pods?resourceVersion=x",
            "/api/v1/pods?resourceVersion=-1",
            "/api/v1/pods?resourceVersionMatch=NotOlderThan",
            "/api/v1/pods?resourceVersionMatch=Exact&resourceVersion=5",
            "/api/v1/pods?sendInitialEvents=true",
            "/api/v1/pods?fieldSelector=metadata.name%3Da",
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
            "application/json",
            "*/*",
            "application/json, application/vnd.kubernetes.protobuf",
            "application/vnd.kubernetes.protobuf;q=0.5,application/json",
            "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io",
            "application/vnd.kubernetes.protobuf;stream=watch",
        ] {
            assert!(planned("/api/v1/pods", accept).is_err(), "{accept}");
        }
    }
}
