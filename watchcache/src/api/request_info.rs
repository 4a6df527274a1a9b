//! What a request asks for, read from its method, path and query as kube-apiserver's
//! `RequestInfoFactory` does (`k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`, 1.36).

use std::borrow::Cow;

use http::Method;

use super::first_value;

/// Subresources of a namespace: they tell `/namespaces/x/status` from a resource named `status`.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

/// Subresources whose requests last as long as the client likes
/// (`k8s.io/kubernetes/pkg/controlplane/apiserver/config.go`, `LongRunningFunc`).
const LONG_RUNNING_SUBRESOURCES: [&str; 5] = ["attach", "exec", "proxy", "log", "portforward"];

/// A path is read this many segments deep: prefix, group, version, special verb, `namespaces`,
/// namespace, resource, name, subresource. What lies deeper belongs to the subresource.
const DEPTH: usize = 9;

/// A request as Kubernetes sees it. Absent parts are empty.
///
/// A `fieldSelector` on `metadata.name` does not set [`RequestInfo::name`], as it does in
/// kube-apiserver: no route depends on a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestInfo<'a> {
    /// Whether the path names a resource; else it is discovery, health and the like.
    pub is_resource: bool,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `proxy`,
    /// empty for another method on a resource; the method in lower case for other paths.
    pub verb: Cow<'static, str>,
    /// `api` or `apis`.
    pub prefix: &'a str,
    /// Empty for the core group.
    pub group: &'a str,
    /// The version in the group, for example `v1`.
    pub version: &'a str,
    /// Empty for what is not in a namespace.
    pub namespace: &'a str,
    /// The plural name, for example `pods`.
    pub resource: &'a str,
    /// For example `status`.
    pub subresource: &'a str,
    /// Empty for requests about a collection.
    pub name: &'a str,
    /// The path, decoded.
    pub path: &'a str,
}

/// Decodes a path's percent escapes, as Go does before anything reads the path. A path with a
/// broken escape is left as it is: kube-apiserver refuses it.
#[must_use]
pub fn decode_path(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    percent_decode(path.as_bytes()).map_or(Cow::Borrowed(path), |bytes| {
        Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
    })
}

/// Decodes `%XX`; none where an escape is broken.
pub(super) fn percent_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || bytes.next().and_then(|hex| char::from(hex).to_digit(16));
            let value = digit()? * 16 + digit()?;
            decoded.push(u8::try_from(value).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    Some(decoded)
}

impl<'a> RequestInfo<'a> {
    /// Reads a request. `path` is already decoded, `query` is not.
    #[must_use]
    pub fn parse(method: &Method, path: &'a str, query: &str) -> Self {
        let mut info = Self {
            is_resource: false,
            verb: method_name(method),
            prefix: "",
            group: "",
            version: "",
            namespace: "",
            resource: "",
            subresource: "",
            name: "",
            path,
        };
        let trimmed = path.trim_matches('/');
        let mut segments = [""; DEPTH];
        let mut count = 0;
        if !trimmed.is_empty() {
            for (place, segment) in segments.iter_mut().zip(trimmed.split('/')) {
                *place = segment;
                count += 1;
            }
        }
        let Some(parts) = segments.get(..count) else { return info };
        let rest = match parts {
            ["api", rest @ ..] if rest.len() >= 2 => {
                info.prefix = "api";
                rest
            }
            ["apis", group, rest @ ..] if rest.len() >= 2 => {
                info.prefix = "apis";
                info.group = group;
                rest
            }
            ["apis", _, _] => {
                info.prefix = "apis";
                return info;
            }
            _ => return info,
        };
        info.read_resource(method, rest, query);
        info
    }

    /// Reads what follows the group: at least a version and one more segment.
    fn read_resource(&mut self, method: &Method, segments: &[&'a str], query: &str) {
        let [version, parts @ ..] = segments else { return };
        let mut parts: &[&str] = parts;
        self.is_resource = true;
        self.version = version;
        if let [special @ ("proxy" | "watch"), rest @ ..] = parts {
            if rest.is_empty() {
                return;
            }
            self.verb = Cow::Borrowed(if *special == "proxy" { "proxy" } else { "watch" });
            parts = rest;
        } else {
            self.verb = Cow::Borrowed(resource_verb(method));
        }
        if let ["namespaces", namespace, rest @ ..] = parts {
            self.namespace = namespace;
            if rest.first().is_some_and(|next| !NAMESPACE_SUBRESOURCES.contains(next)) {
                parts = rest;
            }
        }
        if let [resource, ..] = parts {
            self.resource = resource;
        }
        if let [_, name, ..] = parts {
            self.name = name;
        }
        if let [_, _, subresource, ..] = parts
            && self.verb != "proxy"
        {
            self.subresource = subresource;
        }
        if self.name.is_empty() && self.verb == "get" {
            self.verb = Cow::Borrowed(if asks_to_watch(query) { "watch" } else { "list" });
        }
        if self.name.is_empty() && self.verb == "delete" {
            self.verb = Cow::Borrowed("deletecollection");
        }
    }

    /// Whether the request lasts as long as the client likes, as kube-apiserver decides it
    /// (`k8s.io/apiserver/pkg/server/filters/longrunning.go`).
    #[must_use]
    pub fn is_long_running(&self) -> bool {
        matches!(self.verb.as_ref(), "watch" | "proxy")
            || self.is_resource && LONG_RUNNING_SUBRESOURCES.contains(&self.subresource)
            || !self.is_resource && self.path.starts_with("/debug/pprof/")
    }

    /// Whether the answer is a stream of watch events.
    #[must_use]
    pub fn is_watch(&self) -> bool {
        self.is_resource && self.verb == "watch"
    }
}

/// `watch` as `runtime.Convert_Slice_string_To_bool` reads it: anything but `0` and `false`.
fn asks_to_watch(query: &str) -> bool {
    first_value(query, "watch")
        .is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
}

fn resource_verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

fn method_name(method: &Method) -> Cow<'static, str> {
    Cow::Borrowed(match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        Method::CONNECT => "connect",
        Method::TRACE => "trace",
        _ => return Cow::Owned(method.as_str().to_lowercase()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Case {
        method: &'static str,
        url: &'static str,
        verb: &'static str,
        group: &'static str,
        version: &'static str,
        namespace: &'static str,
        resource: &'static str,
        subresource: &'static str,
        name: &'static str,
    }

    macro_rules! case {
        ($method:literal $url:literal => $verb:literal $group:literal $version:literal
         ns=$namespace:literal $resource:literal sub=$subresource:literal name=$name:literal) => {
            Case {
                method: $method,
                url: $url,
                verb: $verb,
                group: $group,
                version: $version,
                namespace: $namespace,
                resource: $resource,
                subresource: $subresource,
                name: $name,
            }
        };
    }

    #[test]
    fn resource_requests() {
        let cases = [
            case!("GET" "/api/v1/namespaces" => "list" "" "v1" ns="" "namespaces" sub="" name=""),
            case!("GET" "/api/v1/namespaces/a" => "get" "" "v1" ns="a" "namespaces" sub="" name="a"),
            case!("PUT" "/api/v1/namespaces/a/status" => "update" "" "v1" ns="a" "namespaces" sub="status" name="a"),
            case!("PUT" "/api/v1/namespaces/a/finalize" => "update" "" "v1" ns="a" "namespaces" sub="finalize" name="a"),
            case!("GET" "/api/v1/namespaces/a/pods" => "list" "" "v1" ns="a" "pods" sub="" name=""),
            case!("GET" "/api/v1/namespaces/a/pods/" => "list" "" "v1" ns="a" "pods" sub="" name=""),
            case!("GET" "/api/v1/namespaces/a/pods?watch=1" => "watch" "" "v1" ns="a" "pods" sub="" name=""),
            case!("GET" "/api/v1/pods?watch=FALSE" => "list" "" "v1" ns="" "pods" sub="" name=""),
            case!("GET" "/api/v1/pods?watch" => "watch" "" "v1" ns="" "pods" sub="" name=""),
            case!("GET" "/api/v1/namespaces/a/pods/p?watch=1" => "get" "" "v1" ns="a" "pods" sub="" name="p"),
            case!("HEAD" "/api/v1/namespaces/a/pods/p" => "get" "" "v1" ns="a" "pods" sub="" name="p"),
            case!("POST" "/api/v1/namespaces/a/pods/p/binding" => "create" "" "v1" ns="a" "pods" sub="binding" name="p"),
            case!("POST" "/api/v1/namespaces/a/pods/p/exec?command=x" => "create" "" "v1" ns="a" "pods" sub="exec" name="p"),
            case!("GET" "/api/v1/namespaces/a/services/s/proxy/x/y/z" => "get" "" "v1" ns="a" "services" sub="proxy" name="s"),
            case!("DELETE" "/api/v1/namespaces/a/pods" => "deletecollection" "" "v1" ns="a" "pods" sub="" name=""),
            case!("DELETE" "/api/v1/namespaces/a/pods/p" => "delete" "" "v1" ns="a" "pods" sub="" name="p"),
            case!("GET" "/api/v1/watch/pods" => "watch" "" "v1" ns="" "pods" sub="" name=""),
            case!("GET" "/api/v1/watch/namespaces/a/pods/p" => "watch" "" "v1" ns="a" "pods" sub="" name="p"),
            case!("GET" "/api/v1/proxy/namespaces/a/pods/p/x" => "proxy" "" "v1" ns="a" "pods" sub="" name="p"),
            case!("PATCH" "/apis/coordination.k8s.io/v1/namespaces/a/leases/n" => "patch" "coordination.k8s.io" "v1" ns="a" "leases" sub="" name="n"),
            case!("GET" "/apis/apps/v1/deployments" => "list" "apps" "v1" ns="" "deployments" sub="" name=""),
            case!("GET" "/api/v1/nodes/%6E1/status" => "get" "" "v1" ns="" "nodes" sub="status" name="n1"),
            case!("GET" "/api/v1/namespaces/a%2Fpods" => "list" "" "v1" ns="a" "pods" sub="" name=""),
            case!("TRACE" "/api/v1/pods" => "" "" "v1" ns="" "pods" sub="" name=""),
            case!("GET" "/api/v1/watch" => "get" "" "v1" ns="" "" sub="" name=""),
            case!("GET" "/api/v1//pods" => "get" "" "v1" ns="" "" sub="" name="pods"),
        ];
        for case in cases {
            let (raw, query) = case.url.split_once('?').unwrap_or((case.url, ""));
            let path = decode_path(raw);
            let method: Method = case.method.parse().unwrap();
            let info = RequestInfo::parse(&method, &path, query);
            let url = case.url;
            assert!(info.is_resource, "{url}");
            assert_eq!(info.verb, case.verb, "{url}");
            assert_eq!(info.group, case.group, "{url}");
            assert_eq!(info.version, case.version, "{url}");
            assert_eq!(info.namespace, case.namespace, "{url}");
            assert_eq!(info.resource, case.resource, "{url}");
            assert_eq!(info.subresource, case.subresource, "{url}");
            assert_eq!(info.name, case.name, "{url}");
        }
    }

    #[test]
    fn other_requests() {
        for path in [
            "/",
            "",
            "/api",
            "/api/v1",
            "/apis",
            "/apis/apps",
            "/apis/apps/v1",
            "/healthz",
            "/readyz/etcd",
            "/version",
            "/openapi/v3/apis/apps/v1",
            "//",
            "/metrics",
            "/apiz/a/b/c",
        ] {
            let info = RequestInfo::parse(&Method::GET, path, "watch=1");
            assert!(!info.is_resource, "{path}");
            assert_eq!(info.verb, "get", "{path}");
            assert_eq!(info.resource, "", "{path}");
            assert!(!info.is_long_running(), "{path}");
        }
    }

    #[test]
    fn long_running_requests() {
        let long = |method, path, query| RequestInfo::parse(&method, path, query).is_long_running();
        assert!(long(Method::GET, "/api/v1/pods", "watch=true"));
        assert!(long(Method::GET, "/api/v1/namespaces/a/pods/p/log", ""));
        assert!(long(Method::POST, "/api/v1/namespaces/a/pods/p/exec", ""));
        assert!(long(Method::GET, "/api/v1/namespaces/a/services/s/proxy/x", ""));
        assert!(long(Method::GET, "/debug/pprof/profile", ""));
        assert!(!long(Method::GET, "/api/v1/pods", ""));
        assert!(!long(Method::POST, "/api/v1/namespaces/a/pods/p/binding", ""));
    }

    proptest! {
        #[test]
        fn any_path_and_query_is_read(
            method in "[A-Z]{1,8}",
            path in "(/|api|apis|v1|namespaces|watch|proxy|pods|status|%|%2F|%zz|é|[ -~]){0,14}",
            query in "(watch|=|&|;|%|1|\\+|[ -~]){0,10}",
        ) {
            let method: Method = method.parse().unwrap();
            let decoded = decode_path(&path);
            let info = RequestInfo::parse(&method, &decoded, &query);
            // What the parser names, the path holds.
            for part in [info.group, info.version, info.namespace, info.resource,
                info.subresource, info.name] {
                prop_assert!(decoded.contains(part));
            }
            prop_assert!(info.is_resource || info.resource.is_empty());
        }

        #[test]
        fn any_bytes_decode(text in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = percent_decode(&text);
            let _ = decode_path(&String::from_utf8_lossy(&text));
        }
    }
}
