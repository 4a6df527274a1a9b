//! The cells of what carries traffic: services, their endpoints, ingresses, network policies.

use super::cells::{Cells, NONE, UNKNOWN, UNSET, balanced, join, or};
use super::view::View;

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
    cells.labels(spec.map("selector"));
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

/// The hosts of the first rules.
fn hosts(spec: View<'_>) -> Vec<u8> {
    let (mut hosts, mut more, mut rules) = (Vec::new(), false, 0);
    for rule in spec.list("rules") {
        rules += 1;
        more |= hosts.len() == SHOWN;
        let host = rule.text("host");
        if !more && !host.is_empty() {
            hosts.push(host);
        }
    }
    let mut text = if hosts.is_empty() { b"*".to_vec() } else { join(hosts) };
    if more {
        text.extend(format!(" + {} more...", rules - SHOWN).into_bytes());
    }
    text
}

pub(super) fn ingress(object: View<'_>, cells: &mut Cells<'_>) {
    let spec = object.one("spec");
    cells.name(object);
    cells.text(spec.maybe_text("ingressClassName").unwrap_or(NONE));
    cells.text(hosts(spec));
    cells.text(join(balanced(object.one("status"))));
    cells.text(if spec.has("tls") { "80, 443" } else { "80" });
    cells.age(object);
}

pub(super) fn ingress_class(object: View<'_>, cells: &mut Cells<'_>) {
    let spec = object.one("spec");
    cells.class_name(object, &[b"ingressclass.kubernetes.io/is-default-class"]);
    cells.text(spec.text("controller"));
    cells.text(match spec.maybe("parameters") {
        None => NONE.to_vec(),
        Some(about) => {
            let group = about.maybe_text("apiGroup");
            let group = group.map(|group| [b".", group].concat()).unwrap_or_default();
            [about.text("kind"), &group, b"/", about.text("name")].concat()
        }
    });
    cells.age(object);
}

pub(super) fn network_policy(object: View<'_>, cells: &mut Cells<'_>) {
    cells.name(object);
    cells.selector(Some(object.one("spec").one("podSelector")), NONE, b"<error>");
    cells.age(object);
}
