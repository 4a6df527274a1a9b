use proptest::prelude::*;

use super::super::form::Form;
use super::super::kinds;
use super::super::table::{Stored, Table};
use super::*;

fn pods() -> &'static Kind {
    kinds::find("", "pods").unwrap()
}

/// A stored Pod as kube-apiserver would write one, with these labels.
pub(in super::super) fn stored(name: &str, node: &str, labels: &[(&str, &str)]) -> Bytes {
    let mut metadata = Vec::new();
    put_field(&mut metadata, 0x0a, name.as_bytes());
    put_field(&mut metadata, 0x1a, b"default");
    metadata.put_slice(NO_VERSION);
    metadata.put_slice(&[0x38, 1]);
    for (key, value) in labels {
        let mut entry = Vec::new();
        put_field(&mut entry, 0x0a, key.as_bytes());
        put_field(&mut entry, 0x12, value.as_bytes());
        put_field(&mut metadata, 0x5a, &entry);
    }
    let mut spec = Vec::new();
    put_field(&mut spec, 0x1a, b"Always");
    put_field(&mut spec, 0x52, node.as_bytes());
    let mut message = Vec::new();
    put_field(&mut message, 0x0a, &metadata);
    put_field(&mut message, 0x12, &spec);
    let mut out = Vec::new();
    put_envelope(&mut out, pods(), "Pod", message.len());
    out.put_slice(&message);
    out.put_slice(UNKNOWN_END);
    out.into()
}

#[test]
fn what_selectors_look_at_is_read() {
    let value = stored("p", "node-1", &[("b", "2"), ("a", "")]);
    let (message, labels) = read(pods(), &value).unwrap();
    assert_eq!(pods().field("spec.nodeName").unwrap().value(message.bytes()), "node-1");
    assert_eq!(pods().field("spec.restartPolicy").unwrap().value(message.bytes()), "Always");
    assert_eq!(labels.of(&message).collect::<Vec<_>>(), [("b", "2"), ("a", "")]);
}

#[test]
fn only_the_version_changes() {
    let value = stored("p", "node-1", &[("a", "1")]);
    let (message, labels) = read(pods(), &value).unwrap();
    let answer = object(pods(), message.shown(true), 1_234_567);
    let again = raw(pods(), &answer).unwrap();
    // Taken out again, the object is the stored one.
    let digits = b"1234567";
    let place = again.windows(9).position(|window| window == b"\x32\x071234567").unwrap();
    assert_eq!(&again[place + 2..place + 9], digits);
    let mut fields = Fields::of(again);
    let Ok(Some(Field { value: Value::Bytes(metadata), .. })) = fields.next() else { panic!() };
    assert_eq!(metadata.len(), message.shown(true).metadata_len(7));
    let mut back = Vec::new();
    let mut stripped = metadata.to_vec();
    let at = stripped.windows(9).position(|window| window == b"\x32\x071234567").unwrap();
    stripped.splice(at..at + 9, NO_VERSION.iter().copied());
    put_field(&mut back, 0x0a, &stripped);
    back.put_slice(&again[fields.at..]);
    assert_eq!(back, raw(pods(), &value).unwrap());
    assert_eq!(labels.of(&message).count(), 1);
}

#[test]
fn a_list_has_the_length_it_says() {
    let (message, _) = read(pods(), &stored("p", "n", &[])).unwrap();
    let next = "x".repeat(200);
    for (count, remaining) in [(0usize, None), (1, Some(1)), (3, Some(300)), (200, None)] {
        let ranges = remaining.map(|count| "y".repeat(count));
        let items = count * item_len(message.shown(true), 77);
        let mut out = Vec::new();
        let meta = ListMeta { version: 12_345, next: next.clone(), remaining, ranges };
        let length = begin_list(&mut out, pods(), &meta, items);
        for _ in 0..count {
            put_item(&mut out, message.shown(true), 77);
        }
        end_list(&mut out);
        assert_eq!(out.len(), length);
    }
}

/// Taken from kube-apiserver 1.36.3 by a watch.
#[test]
fn a_bookmark_is_that_of_kube_apiserver() {
    const SEEN: &str = "000000900a08424f4f4b4d41524b1283010a80016b3873000a090a0276311203506f64126b\
        0a360a0012001a0022002a003203323133380042006221\
        0a196b38732e696f2f696e697469616c2d6576656e74732d656e64120474727565\
        121c1a00320042004a0052005800600068008201008a01009a0100c20100\
        1a130a001a0022002a0032004a005a0072008801001a002200";
    let mut out = Vec::new();
    put_event(&mut out, pods(), "BOOKMARK", bookmark(pods(), true).shown(true), 213);
    let hex = out.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    assert_eq!(hex, SEEN.replace([' ', '\n'], ""));
}

#[test]
fn what_is_not_ours_is_refused() {
    let value = stored("p", "n", &[]);
    let mut json = value.to_vec();
    json.splice(..4, b"{\"a\":1}".iter().copied());
    let encrypted = Bytes::from_static(b"k8s:enc:aescbc:v1:key1:abc");
    let other = Bytes::from(
        value
            .iter()
            .copied()
            .map(|byte| if byte == b'P' { b'Q' } else { byte })
            .collect::<Vec<_>>(),
    );
    let (message, _) = read(pods(), &value).unwrap();
    let with_version = object(pods(), message.shown(true), 5);
    for bad in [Bytes::from(json), encrypted, other, with_version, Bytes::new()] {
        assert!(read(pods(), &bad).is_err());
    }
}

#[test]
fn json_of_what_is_stored() {
    let pod = Form { json: true, ..Form::default() };
    let (message, labels) = read(pods(), &stored("p", "n", &[("a", "<1>")])).unwrap();
    let stored = Stored { message, labels, indexed: None, revision: 7 };
    let table = Table::new([("default/p".into(), stored)], 7);
    let object = table.get("default/p").unwrap();
    let metadata = "\"metadata\":{\"name\":\"p\",\"namespace\":\"default\",\"resourceVersion\":\"7\",\
        \"generation\":1,\"labels\":{\"a\":\"\\u003c1\\u003e\"}}";
    let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    assert_eq!(
        text(pod.object(pods(), &object).unwrap()),
        format!(
            "{{\"kind\":\"Pod\",\"apiVersion\":\"v1\",{metadata},\
             \"spec\":{{\"containers\":null,\"restartPolicy\":\"Always\",\"nodeName\":\"n\"}},\
             \"status\":{{}}}}\n"
        )
    );
    let partial = Form { json: true, metadata: true, table: None };
    assert_eq!(
        text(partial.object(pods(), &object).unwrap()),
        format!(
            "{{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/v1\",{metadata}}}\n"
        )
    );
    let mut out = Vec::new();
    partial.put_bookmark(&mut out, pods(), 9, true).unwrap();
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "{\"type\":\"BOOKMARK\",\"object\":{\"kind\":\"PartialObjectMetadata\",\
         \"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{\"resourceVersion\":\"9\",\
         \"annotations\":{\"k8s.io/initial-events-end\":\"true\"}}}}\n"
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut value = MAGIC.to_vec();
        value.extend(tail);
        let _ = read(pods(), &Bytes::from(value));
    }

    #[test]
    fn any_change_of_a_byte_is_read(place in 0usize..100, byte in any::<u8>()) {
        let mut value = stored("p", "node", &[("a", "1")]).to_vec();
        let place = place % value.len();
        value[place] = byte;
        if let Ok((message, _)) = read(pods(), &Bytes::from(value)) {
            let _ = super::super::json::object(pods(), message.shown(true), 1);
        }
    }
}
