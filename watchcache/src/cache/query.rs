//! Which requests the cache answers. All others go on to a kube-apiserver: those it does not
//! know, and those that kube-apiserver would refuse.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderMap, Method};

use super::filter::{Filter, is_plain};
use super::form::{Asked, Form};
use super::json::rows::Include;
use super::kinds::Kind;
use super::page;
use super::ranges::Ranges;
use super::table::Window;
use crate::api::{RequestInfo, first_value};

/// Why a request goes on, for the metric.
pub type Pass = &'static str;

/// Parameters that are understood, each at most once.
const KNOWN: [&str; 13] = [
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
    "shardSelector",
    "includeObject",
];

/// Features of kube-apiserver that are not on in every cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gates {
    /// `ShardedListAndWatch`: without it kube-apiserver does not look at `shardSelector`.
    pub sharded: bool,
}

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
    gates: Gates,
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
    // Of a share, a list of custom resources says nothing.
    let sharded = gates.sharded && !kind.custom;
    if parameters.text("shardSelector").is_some() && !sharded {
        return Err("query");
    }
    let watch = parameters.flag("watch")?.unwrap_or(false);
    let asked = match (watch, info.name.is_empty()) {
        (true, _) => Asked::Watch,
        (false, true) => Asked::List,
        (false, false) => Asked::Get,
    };
    let mut form = Form::accepted(headers, asked).ok_or("content-type")?;
    match (&mut form.table, parameters.text("includeObject").as_deref()) {
        (_, None) => {}
        (Some(table), Some(text)) => table.include = include(text).ok_or("query")?,
        (None, Some(_)) => return Err("query"),
    }
    if !form.fits(kind) {
        return Err("content-type");
    }
    Ok((plan_of(kind, info, &parameters, asked)?, form))
}

/// What rows of a table have of their objects (`ValidateTableOptions`).
fn include(text: &str) -> Option<Include> {
    Some(match text {
        "" | "Metadata" => Include::Metadata,
        "None" => Include::None,
        "Object" => Include::Object,
        _ => return None,
    })
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
    let mut filter = Filter::parse(kind, info.namespace, &fields, &labels).ok_or("selector")?;
    if let Some(text) = parameters.text("shardSelector").filter(|text| !text.is_empty()) {
        // kube-apiserver does not filter the watches of what it keeps no cache of
        // (`k8s.io/apiserver/pkg/storage/etcd3/watcher.go`, `createWatchChan`).
        if asked == Asked::Watch && !kind.cached {
            return Err("selector");
        }
        filter.ranges = Some(Ranges::parse(&text).ok_or("selector")?);
    }
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
    let of_lists = |name: &&&str| !matches!(**name, "resourceVersion" | "includeObject");
    if KNOWN.iter().filter(of_lists).any(|name| parameters.text(name).is_some()) {
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
        let in_parts = window.limit > 0 || !next.is_empty();
        if (filter.key.is_some() || filter.narrowed) && (in_parts || window.at.is_some()) {
            return Err("limit");
        }
        // What is left of ranges it counts as if there were none.
        if filter.ranges.is_some() && in_parts {
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
#[path = "query_tests.rs"]
mod tests;
