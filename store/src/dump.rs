//! `megacluster-store dump`: what a data directory holds, as JSON lines, for people and for programs
//! that hold a history against it. The directory is only read, and no store may run on it.
//!
//! One object a line, in the log's order; each has a `kind`, and its other fields are stable:
//!
//! ```text
//! {"kind":"snapshot","revision":7,"compact_revision":3}     if there is one; then its content:
//! {"kind":"lease","id":5,"ttl":60}
//! {"kind":"key","key":"L2E=","value":"MQ==","lease":5,"create_revision":2,"mod_revision":7,"version":3}
//!                                                           and then what was logged after it:
//! {"kind":"txn","revision":8,"class":"fsync","ops":[{"op":"put","key":"L2E=","value":"Mg==",
//!                              "lease":0,"create_revision":2,"version":4},{"op":"delete","key":"L2I="}]}
//! {"kind":"lease_grant","id":6,"ttl":60}
//! {"kind":"lease_revoke","id":6}
//! {"kind":"compact","revision":8}
//! {"kind":"end","revision":9,"compact_revision":8,"clean":true,"torn_bytes":0}
//! ```
//!
//! Keys and values are base64, ttl in seconds. `class` is the durability that the rules on the
//! command line give the transaction: the log itself does not say. `end` is last: the revision a
//! start would go on from, and the bytes of an unfinished write that it would cut off.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Parser;
use serde::Serialize;

use crate::core::KeyValue;
use crate::log::{
    self, Class, DurabilityRule, DurabilityRules, OpenError, Record, RuleError, SnapshotItem,
};

/// Flags of `megacluster-store dump`.
#[derive(Parser, Clone, Debug)]
#[command(
    name = "megacluster-store dump",
    version,
    about = "Prints a data directory as JSON lines"
)]
pub struct DumpFlags {
    /// The data directory of a store that does not run, or a copy of one.
    #[arg(long)]
    pub data_dir: PathBuf,
    /// As given to the store: decides the `class` of each transaction.
    #[arg(long, default_value = "fsync")]
    pub durability: Class,
    /// As given to the store.
    #[arg(long = "durability-rule", value_name = "PREFIX=MODE")]
    pub durability_rules: Vec<DurabilityRule>,
}

/// Why a data directory could not be printed to its end.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// Durability rules that don't fit.
    #[error(transparent)]
    Rules(#[from] RuleError),
    /// The directory can't be read, or what is in it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The output can't be written.
    #[error("write the dump: {0}")]
    Write(#[from] io::Error),
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line {
    Snapshot {
        revision: i64,
        compact_revision: i64,
    },
    Lease {
        id: i64,
        ttl: i64,
    },
    Key {
        key: String,
        value: String,
        lease: i64,
        create_revision: i64,
        mod_revision: i64,
        version: i64,
    },
    Txn {
        revision: i64,
        class: String,
        ops: Vec<Change>,
    },
    LeaseGrant {
        id: i64,
        ttl: i64,
    },
    LeaseRevoke {
        id: i64,
    },
    Compact {
        revision: i64,
    },
    End {
        revision: i64,
        compact_revision: i64,
        clean: bool,
        torn_bytes: u64,
    },
}

#[derive(Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Change {
    Put { key: String, value: String, lease: i64, create_revision: i64, version: i64 },
    Delete { key: String },
}

/// Prints the directory to `out`.
///
/// # Errors
/// [`DumpError`]; what was printed before is right, but not all: the line `end` is missing.
pub fn dump(flags: &DumpFlags, out: impl Write) -> Result<(), DumpError> {
    let rules = DurabilityRules::new(flags.durability, flags.durability_rules.clone())?;
    let recovered = log::look(&flags.data_dir)?;
    let mut out = Printer(BufWriter::new(out));
    if let Some(snapshot) = recovered.snapshot {
        let meta = snapshot.meta();
        let (revision, compact_revision) = (meta.revision, meta.compact_revision);
        out.line(&Line::Snapshot { revision, compact_revision })?;
        for item in snapshot {
            out.line(&snapshot_line(item?))?;
        }
    }
    for record in recovered.records {
        out.line(&record_line(record?, &rules))?;
    }
    out.line(&Line::End {
        revision: recovered.start_revision,
        compact_revision: recovered.compact_revision,
        clean: recovered.clean,
        torn_bytes: recovered.torn_bytes,
    })?;
    Ok(out.0.flush()?)
}

struct Printer<W: Write>(BufWriter<W>);

impl<W: Write> Printer<W> {
    fn line(&mut self, line: &Line) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, line)?;
        self.0.write_all(b"\n")
    }
}

fn snapshot_line(item: SnapshotItem) -> Line {
    match item {
        SnapshotItem::Lease { id, ttl } => Line::Lease { id, ttl },
        SnapshotItem::Key(kv) => {
            let fields = kv.fields();
            Line::Key {
                key: STANDARD.encode(fields.key),
                value: STANDARD.encode(fields.value),
                lease: fields.lease,
                create_revision: fields.create_revision,
                mod_revision: fields.mod_revision,
                version: fields.version,
            }
        }
    }
}

fn record_line(record: Record, rules: &DurabilityRules) -> Line {
    match record {
        Record::Txn { revision, ops } => {
            let class = ops.iter().map(|kv| rules.class(kv.key())).max().unwrap_or_default();
            Line::Txn { revision, class: class.to_string(), ops: ops.iter().map(change).collect() }
        }
        Record::LeaseGrant { id, ttl } => Line::LeaseGrant { id, ttl },
        Record::LeaseRevoke { id } => Line::LeaseRevoke { id },
        Record::Compact { revision } => Line::Compact { revision },
    }
}

fn change(kv: &KeyValue) -> Change {
    let fields = kv.fields();
    let key = STANDARD.encode(fields.key);
    if kv.is_tombstone() {
        return Change::Delete { key };
    }
    Change::Put {
        key,
        value: STANDARD.encode(fields.value),
        lease: fields.lease,
        create_revision: fields.create_revision,
        version: fields.version,
    }
}
