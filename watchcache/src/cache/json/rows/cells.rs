//! The cells of a row, resource by resource.

use std::collections::BTreeSet;

use super::super::text;
use super::age::{Now, human};
use super::view::View;

const NONE: &[u8] = b"<none>";
const UNKNOWN: &[u8] = b"<unknown>";

/// Cells that are written one after the other.
pub(super) struct Cells<'o> {
    out: &'o mut Vec<u8>,
    now: Now,
    first: bool,
    /// What a row says of its object, too.
    pub(super) conditions: Option<&'static str>,
}

impl<'o> Cells<'o> {
    pub(super) fn new(out: &'o mut Vec<u8>, now: Now) -> Self {
        Self { out, now, first: true, conditions: None }
    }

    /// Adds a text.
    pub(super) fn text(&mut self, text: impl AsRef<[u8]>) {
        super::super::separate(self.out, &mut self.first);
        text::put_text(self.out, text.as_ref());
    }

    /// Adds a number.
    pub(super) fn number(&mut self, number: i64) {
        super::super::separate(self.out, &mut self.first);
        text::put_number(self.out, number);
    }

    /// How long ago something was.
    pub(super) fn ago(&self, then: Option<i128>) -> String {
        match then {
            None => "<unknown>".to_owned(),
            Some(then) => human(self.now.since(then)),
        }
    }

    /// Adds the name of an object.
    pub(super) fn name(&mut self, object: View<'_>) {
        self.text(object.one("metadata").text("name"));
    }

    /// Adds the age of an object.
    pub(super) fn age(&mut self, object: View<'_>) {
        let age = self.ago(object.one("metadata").time("creationTimestamp"));
        self.text(age);
    }
}

/// The first that is not empty.
pub(super) fn or<'a>(text: &'a [u8], other: &'a [u8]) -> &'a [u8] {
    if text.is_empty() { other } else { text }
}

fn join<'a>(texts: impl IntoIterator<Item = impl AsRef<[u8]> + 'a>) -> Vec<u8> {
    let mut all = Vec::new();
    for (place, text) in texts.into_iter().enumerate() {
        if place > 0 {
            all.push(b',');
        }
        all.extend_from_slice(text.as_ref());
    }
    all
}

/// How many entries a map has.
fn entries(object: View<'_>, map: &str) -> i64 {
    i64::try_from(object.map(map).count()).unwrap_or(i64::MAX)
}

pub(super) fn node(object: View<'_>, cells: &mut Cells<'_>) {
    let (metadata, spec, status) =
        (object.one("metadata"), object.one("spec"), object.one("status"));
    let ready = status.list("conditions").rfind(|one| one.text("type") == b"Ready");
    let ready = match ready.map(|one| one.text("status")) {
        None => "Unknown",
        Some(b"True") => "Ready",
        Some(_) => "NotReady",
    };
    let disabled = if spec.flag("unschedulable") { ",SchedulingDisabled" } else { "" };
    let roles: BTreeSet<&[u8]> = metadata
        .map("labels")
        .filter_map(|(key, value)| match key.strip_prefix(b"node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None => (key == b"kubernetes.io/role").then_some(value),
        })
        .filter(|role| !role.is_empty())
        .collect();
    let info = status.one("nodeInfo");
    cells.name(object);
    cells.text(format!("{ready}{disabled}"));
    cells.text(or(&join(roles), NONE));
    cells.age(object);
    cells.text(info.text("kubeletVersion"));
    for kind in ["InternalIP", "ExternalIP"] {
        let address = status.list("addresses").find(|one| one.text("type") == kind.as_bytes());
        cells.text(address.map_or(NONE, |address| address.text("address")));
    }
    cells.text(or(info.text("osImage"), UNKNOWN));
    let mut kernel = or(info.text("kernelVersion"), UNKNOWN).to_vec();
    let architecture = info.text("architecture");
    if !architecture.is_empty() {
        kernel.extend([b" (", architecture, b")"].concat());
    }
    cells.text(kernel);
    cells.text(or(info.text("containerRuntimeVersion"), UNKNOWN));
}

/// Small letters, one for each, as Go's `strings.ToLower` makes them.
fn lower(text: &[u8]) -> String {
    let mut lower = String::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        lower.extend(chunk.valid().chars().filter_map(|letter| letter.to_lowercase().next()));
        lower.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    lower
}

/// Without blanks before and after.
fn trimmed(text: &[u8]) -> &[u8] {
    let blank = |letter: char| letter.is_whitespace();
    let mut rest = text;
    while let Some(chunk) = rest.utf8_chunks().next() {
        let valid = chunk.valid().trim_start_matches(blank);
        rest = rest.get(chunk.valid().len() - valid.len()..).unwrap_or_default();
        if !valid.is_empty() || !chunk.invalid().is_empty() {
            break;
        }
    }
    while let Some(chunk) = rest.utf8_chunks().last().filter(|chunk| chunk.invalid().is_empty()) {
        let valid = chunk.valid().trim_end_matches(blank);
        let cut = chunk.valid().len() - valid.len();
        rest = rest.get(..rest.len() - cut).unwrap_or_default();
        if cut == 0 || !valid.is_empty() {
            break;
        }
    }
    rest
}

pub(super) fn event(object: View<'_>, cells: &mut Cells<'_>) {
    let first = object.time("firstTimestamp").or(object.time("eventTime"));
    let mut last = object.time("lastTimestamp").or(first);
    let mut count = object.number("count");
    if let Some(series) = object.maybe("series") {
        last = series.time("lastObservedTime");
        count = series.number("count");
    } else if count == 0 {
        count = 1;
    }
    let about = object.one("involvedObject");
    let mut target = lower(about.text("kind")).into_bytes();
    if !about.text("name").is_empty() {
        target.push(b'/');
        target.extend_from_slice(about.text("name"));
    }
    let source = object.one("source");
    let mut from = or(source.text("component"), object.text("reportingComponent")).to_vec();
    let instance = or(source.text("host"), object.text("reportingInstance"));
    if !instance.is_empty() {
        from.extend([b", ", instance].concat());
    }
    let last = cells.ago(last);
    cells.text(last);
    cells.text(object.text("type"));
    cells.text(object.text("reason"));
    cells.text(target);
    cells.text(about.text("fieldPath"));
    cells.text(from);
    cells.text(trimmed(object.text("message")));
    let first = cells.ago(first);
    cells.text(first);
    cells.number(count);
    cells.name(object);
}

pub(super) fn config_map(object: View<'_>, cells: &mut Cells<'_>) {
    cells.name(object);
    cells.number(entries(object, "data") + entries(object, "binaryData"));
    cells.age(object);
}

pub(super) fn secret(object: View<'_>, cells: &mut Cells<'_>) {
    cells.name(object);
    cells.text(object.text("type"));
    cells.number(entries(object, "data"));
    cells.age(object);
}

pub(super) fn namespace(object: View<'_>, cells: &mut Cells<'_>) {
    cells.name(object);
    cells.text(object.one("status").text("phase"));
    cells.age(object);
}

pub(super) fn service_account(object: View<'_>, cells: &mut Cells<'_>) {
    cells.name(object);
    cells.age(object);
}

pub(super) fn lease(object: View<'_>, cells: &mut Cells<'_>) {
    cells.name(object);
    cells.text(object.one("spec").text("holderIdentity"));
    cells.age(object);
}

pub(super) fn stateful_set(object: View<'_>, cells: &mut Cells<'_>) {
    let spec = object.one("spec");
    cells.name(object);
    let ready = object.one("status").number("readyReplicas");
    cells.text(format!("{ready}/{}", spec.number("replicas")));
    cells.age(object);
    for field in ["name", "image"] {
        let containers = spec.one("template").one("spec").list("containers");
        cells.text(join(containers.map(|container| container.text(field))));
    }
}

/// The addresses of a load balancer, each once, in order.
fn balanced(status: View<'_>) -> BTreeSet<&[u8]> {
    let ingress = status.one("loadBalancer").list("ingress");
    ingress
        .map(|one| or(one.text("ip"), one.text("hostname")))
        .filter(|address| !address.is_empty())
        .collect()
}

fn external(object: View<'_>) -> Vec<u8> {
    let spec = object.one("spec");
    let named = join(spec.texts("externalIPs"));
    let has_named = spec.has("externalIPs");
    match spec.text("type") {
        b"ClusterIP" | b"NodePort" if has_named => named,
        b"ClusterIP" | b"NodePort" => NONE.to_vec(),
        b"LoadBalancer" => {
            let balanced = join(balanced(object.one("status")));
            match (balanced.is_empty(), has_named) {
                (true, false) => b"<pending>".to_vec(),
                (true, true) => named,
                (false, false) => balanced,
                (false, true) => join([balanced, named]),
            }
        }
        b"ExternalName" => spec.text("externalName").to_vec(),
        _ => UNKNOWN.to_vec(),
    }
}

pub(super) fn service(object: View<'_>, cells: &mut Cells<'_>) {
    let spec = object.one("spec");
    cells.name(object);
    cells.text(spec.text("type"));
    cells.text(spec.texts("clusterIPs").next().unwrap_or(NONE));
    cells.text(external(object));
    let ports = join(spec.list("ports").map(|port| {
        let number = port.number("port");
        let numbers = match port.number("nodePort") {
            of_node @ 1.. => format!("{number}:{of_node}/"),
            _ => format!("{number}/"),
        };
        [numbers.as_bytes(), port.text("protocol")].concat()
    }));
    cells.text(or(&ports, NONE));
    cells.age(object);
    let mut selector: Vec<_> =
        spec.map("selector").map(|(key, value)| [key, b"=", value].concat()).collect();
    selector.sort_unstable();
    cells.text(or(&join(selector), NONE));
}

/// At most three, and how many more there are.
const SHOWN: usize = 3;

fn some_of<'a>(texts: impl Iterator<Item = impl AsRef<[u8]> + 'a>) -> Vec<u8> {
    let all: Vec<_> = texts.collect();
    let mut some = join(all.iter().take(SHOWN).map(AsRef::as_ref));
    if all.len() > SHOWN {
        some.extend(format!(" + {} more...", all.len() - SHOWN).into_bytes());
    }
    some
}

pub(super) fn endpoint_slice(object: View<'_>, cells: &mut Cells<'_>) {
    const UNSET: &[u8] = b"<unset>";
    cells.name(object);
    cells.text(object.text("addressType"));
    let ports = some_of(object.list("ports").map(|port| match port.maybe_number("port") {
        Some(number) => number.to_string().into_bytes(),
        None if port.has("name") => port.text("name").to_vec(),
        None => b"*".to_vec(),
    }));
    cells.text(or(&ports, UNSET));
    let addresses = object.list("endpoints").flat_map(|endpoint| endpoint.texts("addresses"));
    cells.text(or(&some_of(addresses), UNSET));
    cells.age(object);
}

pub(super) fn endpoints(object: View<'_>, cells: &mut Cells<'_>) {
    let addresses = object.list("subsets").flat_map(|subset| {
        let addresses: Vec<_> = subset.list("addresses").map(|one| one.text("ip")).collect();
        let mut ports: Vec<_> =
            subset.list("ports").map(|port| Some(port.number("port"))).collect();
        if ports.is_empty() {
            // Of a headless Service.
            ports.push(None);
        }
        ports.into_iter().flat_map(move |port| {
            let one = move |ip: &[u8]| match port {
                None => ip.to_vec(),
                // `net.JoinHostPort`.
                Some(port) if ip.contains(&b':') => {
                    [b"[", ip, b"]:", port.to_string().as_bytes()].concat()
                }
                Some(port) => [ip, b":", port.to_string().as_bytes()].concat(),
            };
            addresses.clone().into_iter().map(one)
        })
    });
    cells.name(object);
    let some = some_of(addresses);
    cells.text(if object.has("subsets") { some.as_slice() } else { NONE });
    cells.age(object);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_as_gos() {
        assert_eq!(lower("PodÄİΣ".as_bytes()), "podäiσ");
        assert_eq!(lower(b"A\xffB"), "a\u{fffd}b");
        for (text, expected) in [
            ("", ""),
            (" \n\t ", ""),
            (" a b\u{a0}\u{85}\u{2003}", "a b"),
            ("\u{200b}a", "\u{200b}a"),
        ] {
            assert_eq!(trimmed(text.as_bytes()), expected.as_bytes(), "{text:?}");
        }
        assert_eq!(trimmed(b" \xff "), b"\xff");
        assert_eq!(trimmed(b"\xff \xe2\x82"), b"\xff \xe2\x82");
    }
}
