//! The forms of an answer: protobuf or JSON, of whole objects or of their metadata alone, or a table
//! for people.

use std::borrow::Cow;
use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};

use super::alone;
use super::custom;
use super::json;
use super::json::rows::{self, Include, Now};
use super::kinds::Kind;
use super::table::Object;
use super::wire::{self, ListMeta, Message, Unsupported};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const PROTOBUF_STREAM: &str = "application/vnd.kubernetes.protobuf;stream=watch";
const JSON: &str = "application/json";
/// kube-apiserver writes JSON for people to read to those who begin so
/// (`k8s.io/apiserver/pkg/endpoints/handlers/negotiation/negotiate.go`, `isPrettyPrint`).
const PEOPLE: [&str; 3] = ["curl", "Wget", "Mozilla/5.0"];

/// What an answer is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// JSON; else protobuf.
    pub json: bool,
    /// Metadata alone: `PartialObjectMetadata` of `meta.k8s.io/v1`.
    pub metadata: bool,
    /// A `Table` of `meta.k8s.io/v1`, in JSON.
    pub table: Option<Table>,
}

/// How a table is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// What rows have of their objects.
    pub include: Include,
    /// Whether its columns are told: once in a watch.
    pub columns: bool,
}

/// What is asked for: the verbs are shown differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// One object.
    Get,
    /// A list.
    List,
    /// A watch.
    Watch,
}

/// The kind of metadata alone.
pub(super) static PARTIAL: LazyLock<Kind> = LazyLock::new(|| Kind {
    group: "meta.k8s.io",
    version: "v1",
    api_version: "meta.k8s.io/v1".to_owned(),
    resource: "",
    name: "PartialObjectMetadata",
    list: "PartialObjectMetadataList".to_owned(),
    namespaced: false,
    prefix: "",
    cached: false,
    empty: Vec::new(),
    index: None,
    fields: Vec::new(),
    custom: false,
});

impl Form {
    /// The form that the client wants most; none where that is another one, or takes more than a
    /// look at the first media type.
    #[must_use]
    pub fn accepted(headers: &HeaderMap, asked: Asked) -> Option<Self> {
        let mut accept = headers.get_all(header::ACCEPT).iter();
        let value = match (accept.next(), accept.next()) {
            (None, _) => "",
            (Some(value), None) => value.to_str().ok()?,
            (Some(_), Some(_)) => return None,
        };
        let (first, more) = match value.split_once(',') {
            Some((first, _)) => (first, true),
            None => (value, false),
        };
        // Another order than that of the text.
        if value.contains("q=") {
            return None;
        }
        let mut parts = first.split(';').map(|part| part.trim_matches(' '));
        let json = match parts.next()? {
            PROTOBUF => false,
            JSON => true,
            "" | "*/*" if !more => true,
            _ => return None,
        };
        let (mut what, mut group, mut version, mut stream) = (None, None, None, None);
        for part in parts {
            let (name, value) = part.split_once('=')?;
            let place = match name {
                "as" => &mut what,
                "g" => &mut group,
                "v" => &mut version,
                "stream" => &mut stream,
                _ => return None,
            };
            if place.replace(value).is_some() {
                return None;
            }
        }
        if stream.is_some_and(|value| value != "watch" || asked != Asked::Watch) {
            return None;
        }
        let (mut metadata, mut table) = (false, None);
        match (what, group, version) {
            (None, None, None) => {}
            (Some("Table"), Some("meta.k8s.io"), Some("v1")) if json => {
                table = Some(Table { include: Include::Metadata, columns: true });
            }
            (Some(what), Some("meta.k8s.io"), Some("v1")) => {
                let list = asked == Asked::List;
                let known = if list { &PARTIAL.list } else { PARTIAL.name };
                metadata = (what == known).then_some(true)?;
            }
            _ => return None,
        }
        let agent = headers.get(header::USER_AGENT).map(HeaderValue::as_bytes);
        let person = |agent: &[u8]| PEOPLE.iter().any(|name| agent.starts_with(name.as_bytes()));
        if json && agent.is_some_and(person) {
            return None;
        }
        Some(Self { json, metadata, table })
    }

    /// Whether kube-apiserver makes of a stored object what this form does.
    #[must_use]
    pub fn fits(self, kind: &Kind) -> bool {
        // Of custom resources there is no protobuf but of their metadata, and no table.
        if kind.custom && (self.table.is_some() || !(self.json || self.metadata)) {
            return false;
        }
        self.table.is_none() || rows::has_rows(kind)
    }

    /// As it goes on in a watch after its first event.
    #[must_use]
    pub fn after_first(mut self) -> Self {
        if let Some(table) = &mut self.table {
            table.columns = false;
        }
        self
    }

    /// The content type of an answer.
    #[must_use]
    pub fn content_type(self, asked: Asked) -> &'static str {
        match (self.json, asked) {
            (true, _) => JSON,
            (false, Asked::Watch) => PROTOBUF_STREAM,
            (false, _) => PROTOBUF,
        }
    }

    /// The kind that is shown.
    fn kind(self, kind: &'static Kind) -> &'static Kind {
        if self.metadata { &PARTIAL } else { kind }
    }

    /// What of a message may be shown.
    fn read<'a>(self, kind: &Kind, message: &'a Message) -> Cow<'a, Message> {
        if self.metadata { alone::metadata(kind, message) } else { Cow::Borrowed(message) }
    }

    fn shown(self, message: &Message) -> wire::Shown<'_> {
        message.shown(!self.metadata)
    }

    /// Whether it is a custom resource that is shown as a whole.
    fn is_custom(self, kind: &Kind) -> bool {
        kind.custom && !self.metadata
    }

    /// An object.
    pub fn object(self, kind: &'static Kind, object: &Object) -> Result<Bytes, Unsupported> {
        if self.is_custom(kind) {
            let mut out = Vec::with_capacity(object.message.bytes().len());
            custom::put(&mut out, &object.message, object.revision);
            out.push(b'\n');
            return Ok(out.into());
        }
        if let Some(Table { include, columns }) = self.table {
            let mut out = Vec::new();
            let what = (&object.message, object.revision);
            rows::put_table(&mut out, (kind, &PARTIAL), what, (include, columns), Now::read())?;
            out.push(b'\n');
            return Ok(out.into());
        }
        let message = self.read(kind, &object.message);
        let (kind, message) = (self.kind(kind), self.shown(&message));
        if self.json {
            return json::object(kind, message, object.revision);
        }
        Ok(wire::object(kind, message, object.revision))
    }

    /// Begins a list, and says how many bytes all of it will have where that is known.
    pub fn begin_list<'a>(
        self,
        out: &mut Vec<u8>,
        kind: &'static Kind,
        meta: &ListMeta,
        objects: impl Iterator<Item = &'a Object>,
    ) -> Option<usize> {
        if let Some(table) = self.table {
            rows::begin(out, kind, meta, table.columns);
            return None;
        }
        if self.is_custom(kind) {
            custom::begin_list(out, kind);
            return None;
        }
        if self.json {
            json::begin_list(out, self.kind(kind), meta);
            return None;
        }
        let length =
            |one: &Object| wire::item_len(self.shown(&self.read(kind, &one.message)), one.revision);
        Some(wire::begin_list(out, self.kind(kind), meta, objects.map(length).sum()))
    }

    /// Adds an item of a list.
    pub fn put_item(
        self,
        out: &mut Vec<u8>,
        kind: &'static Kind,
        object: &Object,
        first: bool,
    ) -> Result<(), Unsupported> {
        if self.json {
            out.push(if first { b'[' } else { b',' });
        }
        if let Some(table) = self.table {
            let what = (&object.message, object.revision);
            return rows::put_row(out, (kind, &PARTIAL), what, table.include, Now::read());
        }
        if self.is_custom(kind) {
            custom::put(out, &object.message, object.revision);
            return Ok(());
        }
        let message = self.read(kind, &object.message);
        let (kind, message) = (self.kind(kind), self.shown(&message));
        if self.json {
            return json::put_item(out, kind, message, object.revision, self.metadata);
        }
        wire::put_item(out, message, object.revision);
        Ok(())
    }

    /// What a list says of itself after its items, where that is its place.
    #[must_use]
    pub fn list_end(self, kind: &Kind, meta: &ListMeta) -> Option<Vec<u8>> {
        self.is_custom(kind).then(|| custom::list_end(kind, meta))
    }

    /// Ends a list.
    pub fn end_list(self, out: &mut Vec<u8>, kind: &Kind, empty: bool, end: Option<&[u8]>) {
        if let Some(end) = end {
            out.extend_from_slice(if empty { b"[]" } else { b"]" });
            return out.extend_from_slice(end);
        }
        if !self.json {
            return wire::end_list(out);
        }
        // kube-apiserver makes an empty list of objects sure to be one, but not the list of
        // metadata that it turns that into.
        let items: &[u8] = match self.table {
            Some(_) => rows::no_rows(kind),
            None if self.metadata => b"null",
            None => b"[]",
        };
        json::end_list(out, empty.then_some(items));
    }

    /// Adds an event of a watch.
    pub fn put_event(
        self,
        out: &mut Vec<u8>,
        kind: &'static Kind,
        what: &str,
        (message, version): (&Message, u64),
    ) -> Result<(), Unsupported> {
        if let Some(Table { include, columns }) = self.table {
            let (kinds, wanted) = ((kind, &*PARTIAL), (include, columns));
            return rows::put_event(out, kinds, what, (message, version), wanted, Now::read());
        }
        if self.is_custom(kind) {
            custom::put_event(out, what, message, version);
            return Ok(());
        }
        let message = self.read(kind, message);
        let (kind, message) = (self.kind(kind), self.shown(&message));
        if self.json {
            return json::put_event(out, kind, what, message, version);
        }
        wire::put_event(out, kind, what, message, version);
        Ok(())
    }

    /// Adds a bookmark.
    pub fn put_bookmark(
        self,
        out: &mut Vec<u8>,
        kind: &'static Kind,
        version: u64,
        initial_events_end: bool,
    ) -> Result<(), Unsupported> {
        if self.is_custom(kind) {
            custom::put_bookmark(out, kind, version, initial_events_end);
            return Ok(());
        }
        let message = wire::bookmark(self.kind(kind), initial_events_end);
        self.put_event(out, kind, "BOOKMARK", (&message, version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTOBUF_TABLE: &str =
        "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json";

    fn accepted(accept: &'static str, asked: Asked) -> Option<(bool, bool)> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        Form::accepted(&headers, asked).map(|form| (form.json, form.metadata))
    }

    #[test]
    fn what_clients_ask_for() {
        use Asked::{Get, List, Watch};
        for asked in [Get, List, Watch] {
            for (accept, expected) in [
                ("application/vnd.kubernetes.protobuf,application/json", Some((false, false))),
                ("application/vnd.kubernetes.protobuf", Some((false, false))),
                ("application/json", Some((true, false))),
                ("application/json, */*", Some((true, false))),
                ("application/json , application/vnd.kubernetes.protobuf", Some((true, false))),
                ("", Some((true, false))),
                ("*/*", Some((true, false))),
                ("*/*,application/vnd.kubernetes.protobuf", None),
                ("application/*", None),
                ("application/yaml", None),
                ("application/cbor,application/json", None),
                ("application/json;q=0.5,application/vnd.kubernetes.protobuf", None),
                ("application/json;pretty=1", None),
                (PROTOBUF_TABLE, None),
                ("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", None),
                ("application/json;as=TableList;v=v1;g=meta.k8s.io", None),
                ("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1beta1", None),
                ("application/json;as=PartialObjectMetadata;v=v1", None),
            ] {
                assert_eq!(accepted(accept, asked), expected, "{accept}");
            }
        }
        for asked in [Get, List, Watch] {
            let mut headers = HeaderMap::new();
            let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,\
                           application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
            headers.insert(header::ACCEPT, HeaderValue::from_static(kubectl));
            let table = Form::accepted(&headers, asked).unwrap();
            assert_eq!(table.table.map(|table| table.columns), Some(true));
            assert_eq!((table.json, table.metadata), (true, false));
            assert_eq!(table.after_first().table.map(|table| table.columns), Some(false));
        }
        let list = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;\
                    g=meta.k8s.io;v=v1,application/json";
        let one = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
        assert_eq!(accepted(list, List), Some((false, true)));
        assert_eq!(accepted(list, Watch), None);
        assert_eq!(accepted(one, Watch), Some((true, true)));
        assert_eq!(accepted(one, Get), Some((true, true)));
        assert_eq!(accepted(one, List), None);
        let stream = "application/json;stream=watch";
        assert_eq!((accepted(stream, Watch), accepted(stream, List)), (Some((true, false)), None));
        assert_eq!(Form::accepted(&HeaderMap::new(), List).map(|form| form.json), Some(true));
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, HeaderValue::from_static("curl/8"));
        assert_eq!(Form::accepted(&headers, List), None);
        headers.insert(header::ACCEPT, HeaderValue::from_static(PROTOBUF));
        assert_eq!(Form::accepted(&headers, List).map(|form| form.json), Some(false));
    }
}
