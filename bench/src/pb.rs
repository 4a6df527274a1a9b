//! etcd's messages (`api/etcdserverpb/rpc.proto`), as far as load needs them: requests written
//! field by field, answers walked without a copy.

/// A key's bytes in requests.
pub(crate) type Key<'a> = &'a [u8];

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

const fn varint_length(value: usize) -> usize {
    let mut length = 1;
    let mut rest = value >> 7;
    while rest > 0 {
        length += 1;
        rest >>= 7;
    }
    length
}

fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    length(out, field, value.len());
    out.extend_from_slice(value);
}

fn length(out: &mut Vec<u8>, field: u8, length: usize) {
    out.push(field << 3 | 2);
    varint(out, length as u64);
}

fn int(out: &mut Vec<u8>, field: u8, value: i64) {
    out.push(field << 3);
    varint(out, value.cast_unsigned());
}

const fn bytes_length(value: usize) -> usize {
    1 + varint_length(value) + value
}

/// `PutRequest`.
pub(crate) fn put(out: &mut Vec<u8>, key: Key<'_>, value: &Value<'_>) {
    bytes(out, 1, key);
    length(out, 2, value.len());
    value.write(out);
}

/// A value to put: some bytes of its own, then bytes from elsewhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Value<'a> {
    pub(crate) head: &'a [u8],
    pub(crate) body: &'a [u8],
}

impl Value<'_> {
    fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.head);
        out.extend_from_slice(self.body);
    }
}

/// `RangeRequest` of one key, or of `key..end`.
pub(crate) fn range(out: &mut Vec<u8>, key: Key<'_>, end: Key<'_>) {
    bytes(out, 1, key);
    if !end.is_empty() {
        bytes(out, 2, end);
    }
}

/// `TxnRequest` of kube-apiserver's update (`client/v3/kubernetes/client.go`, `OptimisticPut`): put
/// if the key's revision is still `revision`, else get it.
pub(crate) fn compare_and_put(out: &mut Vec<u8>, key: Key<'_>, revision: i64, value: &Value<'_>) {
    // Compare: result EQUAL is 0, target MOD is 2.
    length(out, 1, 2 + bytes_length(key.len()) + 1 + varint_of(revision));
    int(out, 2, 2);
    bytes(out, 3, key);
    int(out, 6, revision);
    let put_length = bytes_length(key.len()) + bytes_length(value.len());
    length(out, 2, bytes_length(put_length));
    length(out, 2, put_length);
    put(out, key, value);
    length(out, 3, bytes_length(bytes_length(key.len())));
    length(out, 1, bytes_length(key.len()));
    bytes(out, 1, key);
}

/// One more put for a `TxnRequest` without a compare.
pub(crate) fn txn_put(out: &mut Vec<u8>, key: Key<'_>, value: &Value<'_>) {
    let put_length = bytes_length(key.len()) + bytes_length(value.len());
    length(out, 2, bytes_length(put_length));
    length(out, 2, put_length);
    put(out, key, value);
}

/// Bytes that [`txn_put`] takes.
pub(crate) const fn txn_put_length(key: usize, value: usize) -> usize {
    bytes_length(bytes_length(bytes_length(key) + bytes_length(value)))
}

/// `CompactionRequest`.
pub(crate) fn compact(out: &mut Vec<u8>, revision: i64) {
    int(out, 1, revision);
}

/// `WatchRequest` that creates a watch of `key..end` with an id.
pub(crate) fn watch(out: &mut Vec<u8>, key: Key<'_>, end: Key<'_>, id: i64, prev_kv: bool) {
    let mut create = Vec::new();
    bytes(&mut create, 1, key);
    bytes(&mut create, 2, end);
    if prev_kv {
        int(&mut create, 6, 1);
    }
    int(&mut create, 7, id);
    bytes(out, 1, &create);
}

fn varint_of(value: i64) -> usize {
    let bits = 64 - value.cast_unsigned().leading_zeros();
    (bits.max(1).div_ceil(7)) as usize
}

/// One field of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field<'a> {
    /// A number.
    Int(u64),
    /// Bytes, or a message.
    Bytes(&'a [u8]),
}

/// The fields of a message in the order in which they stand. It ends early where the message is not
/// well-formed: what is missing then shows as a failed call.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Field<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Int(self.varint()?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                let (value, rest) = self.rest.split_at_checked(length)?;
                self.rest = rest;
                Field::Bytes(value)
            }
            _ => return None,
        };
        Some((key >> 3, field))
    }
}

/// What a unary call answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The header's revision.
    pub(crate) revision: i64,
    /// Of a transaction: whether its compares held.
    pub(crate) succeeded: bool,
    /// Of a range: keys in the answer.
    pub(crate) kvs: usize,
    /// Of a range, also within a transaction: the last key's revision.
    pub(crate) mod_revision: i64,
}

/// Reads a `PutResponse`, `TxnResponse` or `CompactionResponse`.
pub(crate) fn write_answer(message: &[u8]) -> Answer {
    let mut answer = Answer::default();
    for field in Fields::new(message) {
        match field {
            (1, Field::Bytes(header)) => answer.revision = revision(header),
            (2, Field::Int(succeeded)) => answer.succeeded = succeeded == 1,
            // ResponseOp: the range's answer is field 1.
            (3, Field::Bytes(op)) => {
                if let Some((1, Field::Bytes(range))) = Fields::new(op).next() {
                    let inner = range_answer(range);
                    answer.kvs += inner.kvs;
                    answer.mod_revision = inner.mod_revision;
                }
            }
            _ => {}
        }
    }
    answer
}

/// Reads a `RangeResponse`.
pub(crate) fn range_answer(message: &[u8]) -> Answer {
    let mut answer = Answer::default();
    for field in Fields::new(message) {
        match field {
            (1, Field::Bytes(header)) => answer.revision = revision(header),
            (2, Field::Bytes(kv)) => {
                answer.kvs += 1;
                answer.mod_revision = number(kv, 3);
            }
            _ => {}
        }
    }
    answer
}

fn revision(header: &[u8]) -> i64 {
    number(header, 3)
}

fn number(message: &[u8], wanted: u64) -> i64 {
    Fields::new(message)
        .find_map(|field| match field {
            (number, Field::Int(value)) if number == wanted => Some(value.cast_signed()),
            _ => None,
        })
        .unwrap_or(0)
}

/// What a `WatchResponse` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) created: bool,
    pub(crate) canceled: bool,
    pub(crate) events: u64,
}

/// Reads a `WatchResponse`, and gives each event's value.
pub(crate) fn watch_answer(message: &[u8], mut value: impl FnMut(&[u8])) -> News {
    let mut news = News::default();
    for field in Fields::new(message) {
        match field {
            (3, Field::Int(created)) => news.created = created == 1,
            (4, Field::Int(canceled)) => news.canceled = canceled == 1,
            (11, Field::Bytes(event)) => {
                news.events += 1;
                let kv = Fields::new(event).find_map(|field| match field {
                    (2, Field::Bytes(kv)) => Some(kv),
                    _ => None,
                });
                let found = Fields::new(kv.unwrap_or_default()).find_map(|field| match field {
                    (5, Field::Bytes(value)) => Some(value),
                    _ => None,
                });
                value(found.unwrap_or_default());
            }
            _ => {}
        }
    }
    news
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All fields, messages within messages too, as text.
    fn show(message: &[u8]) -> String {
        let fields = Fields::new(message).map(|(number, field)| match field {
            Field::Int(value) => format!("{number}:{value}"),
            Field::Bytes(b) if b.starts_with(b"k") || b.starts_with(b"hv") => {
                format!("{number}:{}", String::from_utf8_lossy(b))
            }
            Field::Bytes(b) => format!("{number}:{{{}}}", show(b)),
        });
        fields.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn requests_have_the_fields_of_etcds_protocol() {
        let value = Value { head: b"h", body: b"v" };
        let mut out = Vec::new();
        compare_and_put(&mut out, b"key", 300, &value);
        assert_eq!(show(&out), "1:{2:2 3:key 6:300} 2:{2:{1:key 2:hv}} 3:{1:{1:key}}");
        let mut out = Vec::new();
        compare_and_put(&mut out, b"key", 0, &value);
        assert!(show(&out).starts_with("1:{2:2 3:key 6:0} "));
        let mut out = Vec::new();
        txn_put(&mut out, b"key", &value);
        assert_eq!(show(&out), "2:{2:{1:key 2:hv}}");
        assert_eq!(out.len(), txn_put_length(3, 2));
        let mut out = Vec::new();
        watch(&mut out, b"key", b"kez", 5, true);
        assert_eq!(show(&out), "1:{1:key 2:kez 6:1 7:5}");
    }

    #[test]
    fn answers_are_read() {
        let mut header = Vec::new();
        int(&mut header, 3, 77);
        let mut kv = Vec::new();
        bytes(&mut kv, 1, b"key");
        int(&mut kv, 3, 70);
        bytes(&mut kv, 5, b"hv");
        let mut range = Vec::new();
        bytes(&mut range, 2, &kv);
        let mut op = Vec::new();
        bytes(&mut op, 1, &range);
        let mut txn = Vec::new();
        bytes(&mut txn, 1, &header);
        bytes(&mut txn, 3, &op);
        let wanted = Answer { revision: 77, succeeded: false, kvs: 1, mod_revision: 70 };
        assert_eq!(write_answer(&txn), wanted);
        let mut event = Vec::new();
        bytes(&mut event, 2, &kv);
        let mut response = Vec::new();
        bytes(&mut response, 1, &header);
        bytes(&mut response, 11, &event);
        bytes(&mut response, 11, &event);
        let mut values = Vec::new();
        let news = watch_answer(&response, |value| values.push(value.to_vec()));
        assert_eq!(news, News { created: false, canceled: false, events: 2 });
        assert_eq!(values, [b"hv", b"hv"]);
        // Cut off anywhere it must not be read past its end.
        for end in 0..response.len() {
            let _ = watch_answer(&response[..end], |_| {});
        }
    }
}
