use proptest::prelude::*;

use super::*;

/// A stored Pod as kube-apiserver would write one, with these labels.
fn stored(name: &str, node: &str, labels: &[(&str, &str)]) -> Bytes {
    let mut metadata = BytesMut::new();
    put_field(&mut metadata, 0x0a, name.as_bytes());
    put_field(&mut metadata, 0x1a, b"default");
    metadata.put_slice(NO_VERSION);
    metadata.put_slice(&[0x38, 1]);
    for (key, value) in labels {
        let mut entry = BytesMut::new();
        put_field(&mut entry, 0x0a, key.as_bytes());
        put_field(&mut entry, 0x12, value.as_bytes());
        put_field(&mut metadata, 0x5a, &entry);
    }
    let mut spec = BytesMut::new();
    put_field(&mut spec, 0x1a, b"Always");
    put_field(&mut spec, 0x52, node.as_bytes());
    let mut message = BytesMut::new();
    put_field(&mut message, 0x0a, &metadata);
    put_field(&mut message, 0x12, &spec);
    let mut out = BytesMut::new();
    put_envelope(&mut out, &PODS, "Pod", message.len());
    out.put_slice(&message);
    out.put_slice(UNKNOWN_END);
    out.freeze()
}

#[test]
fn what_selectors_look_at_is_read() {
    let (_, seen) = read(&PODS, &stored("p", "node-1", &[("b", "2"), ("a", "")])).unwrap();
    assert_eq!(&*seen.node, "node-1");
    let labels: Vec<_> = seen.labels.iter().map(|(key, value)| (&**key, &**value)).collect();
    assert_eq!(labels, [("a", ""), ("b", "2")]);
}

#[test]
fn only_the_version_changes() {
    let value = stored("p", "node-1", &[("a", "1")]);
    let (message, seen) = read(&PODS, &value).unwrap();
    let answer = object(&PODS, &message, 1_234_567);
    let again = raw(&PODS, &answer).unwrap();
    // Taken out again, the object is the stored one.
    let digits = b"1234567";
    let place = again.windows(9).position(|window| window == b"\x32\x071234567").unwrap();
    assert_eq!(&again[place + 2..place + 9], digits);
    let mut fields = Fields::of(&again);
    let Ok(Some(Field { value: Value::Bytes(metadata), .. })) = fields.next() else { panic!() };
    assert_eq!(metadata.len(), message.metadata_len(7));
    let mut back = BytesMut::new();
    let mut stripped = metadata.to_vec();
    let at = stripped.windows(9).position(|window| window == b"\x32\x071234567").unwrap();
    stripped.splice(at..at + 9, NO_VERSION.iter().copied());
    put_field(&mut back, 0x0a, &stripped);
    back.put_slice(&again[fields.at..]);
    assert_eq!(back, raw(&PODS, &value).unwrap());
    assert_eq!(seen.labels.len(), 1);
}

#[test]
fn a_list_has_the_length_it_says() {
    let (message, _) = read(&PODS, &stored("p", "n", &[])).unwrap();
    for count in [0usize, 1, 3, 200] {
        let items = count * item_len(&message, 77);
        let mut out = BytesMut::new();
        let length = begin_list(&mut out, &PODS, 12_345, items);
        for _ in 0..count {
            put_item(&mut out, &message, 77);
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
    let mut out = BytesMut::new();
    put_bookmark(&mut out, &PODS, 213, true);
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
    let (message, _) = read(&PODS, &value).unwrap();
    let with_version = object(&PODS, &message, 5);
    for bad in [Bytes::from(json), encrypted, other, with_version, Bytes::new()] {
        assert!(read(&PODS, &bad).is_err());
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut value = MAGIC.to_vec();
        value.extend(tail);
        let _ = read(&PODS, &Bytes::from(value));
    }

    #[test]
    fn any_change_of_a_byte_is_read(place in 0usize..100, byte in any::<u8>()) {
        let mut value = stored("p", "node", &[("a", "1")]).to_vec();
        let place = place % value.len();
        value[place] = byte;
        let _ = read(&PODS, &Bytes::from(value));
    }
}
