//! Request headers. As grpc-go does it, what repeats goes into the dynamic table with its first
//! use, so that a request's headers are a few bytes.

/// The methods that are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Range,
    Put,
    Txn,
    Compact,
    Watch,
}

impl Method {
    const ALL: usize = 5;

    fn path(self) -> &'static str {
        match self {
            Self::Range => "/etcdserverpb.KV/Range",
            Self::Put => "/etcdserverpb.KV/Put",
            Self::Txn => "/etcdserverpb.KV/Txn",
            Self::Compact => "/etcdserverpb.KV/Compact",
            Self::Watch => "/etcdserverpb.Watch/Watch",
        }
    }
}

/// A header's name: an entry of the static table, or the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Static(u8),
    Text(&'static str),
}

const AUTHORITY: Name = Name::Static(1);
const PATH: Name = Name::Static(4);
const CONTENT_TYPE: Name = Name::Static(31);
const USER_AGENT: Name = Name::Static(58);
/// Whole entries of the static table.
const POST: u8 = 0x80 | 3;
const HTTP: u8 = 0x80 | 6;
/// The first index of the dynamic table.
const DYNAMIC: usize = 62;

/// Encodes request headers for one connection.
#[derive(Debug)]
pub(super) struct Encoder {
    authority: String,
    /// The dynamic table, oldest first. It never comes near the 4096 bytes that a peer keeps unless
    /// it says otherwise.
    table: Vec<(Name, String)>,
    indexing: bool,
    /// The table's size of zero was not told yet.
    announce: bool,
    cache: [Vec<u8>; Method::ALL],
}

impl Encoder {
    /// An encoder for a peer that keeps a dynamic table of so many bytes.
    pub(super) fn new(authority: String, table_size: u32) -> Self {
        let indexing = table_size >= 4096;
        Self {
            authority,
            table: Vec::new(),
            indexing,
            announce: !indexing,
            cache: Default::default(),
        }
    }

    /// Writes the header block of a call.
    pub(super) fn block(&mut self, method: Method, out: &mut Vec<u8>) {
        let cached = &self.cache[method as usize];
        if !cached.is_empty() {
            out.extend_from_slice(cached);
            return;
        }
        let (entries, announced) = (self.table.len(), !self.announce);
        let start = out.len();
        self.encode(method, out);
        if self.table.len() != entries {
            // A new entry moves the index of every other.
            self.cache = Default::default();
        } else if announced {
            self.cache[method as usize] = out[start..].to_vec();
        }
    }

    fn encode(&mut self, method: Method, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.announce) {
            // Our side of the table has no bytes.
            out.push(0x20);
        }
        out.extend_from_slice(&[POST, HTTP]);
        let authority = self.authority.clone();
        self.field(out, PATH, method.path());
        self.field(out, AUTHORITY, &authority);
        self.field(out, CONTENT_TYPE, "application/grpc");
        self.field(out, USER_AGENT, "megacluster-bench");
        self.field(out, Name::Text("te"), "trailers");
    }

    /// A field by its index in the dynamic table, or as a literal that enters it.
    fn field(&mut self, out: &mut Vec<u8>, name: Name, value: &str) {
        let known = self.table.iter().rev().position(|(n, v)| *n == name && v == value);
        if let Some(back) = known {
            // Far below the 127 at which an index takes a second byte.
            out.push(0x80 | u8::try_from(DYNAMIC + back).unwrap_or(0));
            return;
        }
        let form = if self.indexing { 0x40 } else { 0 };
        match name {
            // Below 15, where the prefix of a literal without indexing ends, or by its text.
            Name::Static(index) if self.indexing || index < 15 => out.push(form | index),
            Name::Static(31) => text_name(out, form, "content-type"),
            Name::Static(_) => text_name(out, form, "user-agent"),
            Name::Text(name) => text_name(out, form, name),
        }
        string(out, value);
        if self.indexing {
            self.table.push((name, value.to_owned()));
        }
    }
}

fn text_name(out: &mut Vec<u8>, form: u8, name: &str) {
    out.push(form);
    string(out, name);
}

/// A string without Huffman coding; all of ours are shorter than 127 bytes.
fn string(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len().min(126)).unwrap_or(0));
    out.extend_from_slice(&text.as_bytes()[..text.len().min(126)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(encoder: &mut Encoder, method: Method) -> Vec<u8> {
        let mut out = Vec::new();
        encoder.block(method, &mut out);
        out
    }

    #[test]
    fn what_repeats_is_an_index() {
        let mut encoder = Encoder::new("a:1".into(), 4096);
        let first = block(&mut encoder, Method::Put);
        assert!(first.len() > 60);
        // Oldest entry last: path 66, authority 65, content type 64, agent 63, te 62.
        let again = [0x83, 0x86, 0xc2, 0xc1, 0xc0, 0xbf, 0xbe];
        assert_eq!(block(&mut encoder, Method::Put), again);
        assert_eq!(block(&mut encoder, Method::Put), again);
        // One more path: all others move by one.
        assert!(block(&mut encoder, Method::Range).len() > 20);
        let moved = [0x83, 0x86, 0xc3, 0xc2, 0xc1, 0xc0, 0xbf];
        assert_eq!(block(&mut encoder, Method::Put), moved);
    }

    #[test]
    fn a_peer_without_a_table_gets_literals() {
        let mut encoder = Encoder::new("a:1".into(), 0);
        let first = block(&mut encoder, Method::Put);
        let second = block(&mut encoder, Method::Put);
        assert_eq!(first[0], 0x20);
        assert_eq!(first[1..], second);
        assert_eq!(block(&mut encoder, Method::Put), second);
    }
}
