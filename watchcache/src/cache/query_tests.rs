//! What is planned, and what goes on.

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
    let gates = Gates { sharded: true };
    let planned = plan(kind, &Method::GET, &info, query, &headers, gates);
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
fn shares() {
    let range = "shardRange(object.metadata.uid,'0x0000000000000000','0x8000000000000000')";
    let target = format!("/api/v1/pods?shardSelector={range}");
    let Ok(Plan::List { filter, .. }) = planned(&target, PROTOBUF) else { panic!() };
    assert!(!filter.is_plain() && filter.ranges.is_some());
    let events = |query: &str| {
        let target = format!("/api/v1/events?shardSelector={range}{query}");
        planned_for(kinds::find("", "events").unwrap(), &target, PROTOBUF)
    };
    assert!(events("").is_ok());
    assert_eq!(events("&watch=1"), Err("selector"));
    assert_eq!(planned(&format!("{target}&limit=1"), PROTOBUF), Err("limit"));
    assert!(planned(&format!("{target}&limit=1&resourceVersion=0"), PROTOBUF).is_ok());
    assert!(planned("/api/v1/pods?shardSelector=", PROTOBUF).is_ok());
    let (path, query) = target.split_once('?').unwrap();
    let info = RequestInfo::parse(&Method::GET, path, query);
    let pods = kinds::find("", "pods").unwrap();
    let closed = Gates::default();
    let plan = plan(pods, &Method::GET, &info, query, &HeaderMap::new(), closed);
    assert_eq!(plan.err(), Some("query"));
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
