//! `import` and `export` over mTLS: the real binary between stores that take only their own CA's
//! clients.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states its expectation so")]

mod support;

use std::fs;
use std::path::Path;

use megacluster_store::pb::etcdserverpb::kv_client::KvClient;
use megacluster_store::pb::etcdserverpb::{PutRequest, RangeRequest, RangeResponse};
use support::{Ca, Store};
use tokio::process::Command;

/// Flags of a connection, with a certificate of this CA, each behind a prefix.
fn flags(store: &Store, client: &Ca, prefix: &str, dir: &Path) -> Vec<String> {
    let (cert, key) = client.leaf("client");
    let mut flags = vec![format!("--{prefix}endpoints=https://{}", store.address())];
    for (name, text) in [("cacert", &store.ca.pem), ("cert", &cert), ("key", &key)] {
        let path = dir.join(format!("{prefix}{name}.pem"));
        fs::write(&path, text).unwrap();
        flags.push(format!("--{prefix}{name}={}", path.display()));
    }
    flags
}

/// Whether it went well, and all that it said.
async fn run(command: &str, arguments: &[String]) -> (bool, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_megacluster-store"));
    let output = program.arg(command).args(arguments).kill_on_drop(true).output().await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

async fn everything(store: &Store) -> RangeResponse {
    let all = RangeRequest { key: "/".into(), range_end: "0".into(), ..Default::default() };
    KvClient::new(store.connect().await).range(all).await.unwrap().into_inner()
}

async fn filled() -> Store {
    let store = Store::start(&[]).await;
    let mut kv = KvClient::new(store.connect().await);
    for n in 0..20 {
        let key = format!("/k/{:02}", n % 10);
        let put = PutRequest { key: key.into(), value: "v".into(), ..Default::default() };
        kv.put(put).await.unwrap();
    }
    store
}

#[tokio::test]
async fn an_import_needs_the_right_certificates() {
    let source = filled().await;
    let dir = tempfile::tempdir().unwrap();
    let data = format!("--data-dir={}", dir.path().join("data").display());
    let stranger = Ca::new("stranger");
    let refused = [flags(&source, &stranger, "", dir.path()), vec![data.clone()]].concat();
    let (well, said) = run("import", &refused).await;
    assert!(!well && !said.contains("panicked"), "{said}");
    // No certificate at all.
    let bare = [flags(&source, &source.ca, "", dir.path())[..2].to_vec(), vec![data.clone()]];
    let (well, said) = run("import", &bare.concat()).await;
    assert!(!well && !said.contains("panicked"), "{said}");

    let right = [flags(&source, &source.ca, "", dir.path()), vec![data.clone()]].concat();
    let (well, said) = run("import", &right).await;
    assert!(well, "{said}");
    let before = everything(&source).await;
    let imported = Store::start(&[&data]).await;
    let after = everything(&imported).await;
    assert_eq!((after.kvs.len(), &after.kvs), (10, &before.kvs));
    assert_eq!(after.header.unwrap().revision, before.header.unwrap().revision);
    source.server.finish().await;
    imported.server.finish().await;
}

#[tokio::test]
async fn an_export_has_certificates_for_both_ends() {
    let (source, target) = (filled().await, Store::start(&[]).await);
    let dir = tempfile::tempdir().unwrap();
    let from = flags(&source, &source.ca, "", dir.path());
    // Each end takes only its own CA's clients.
    let crossed = [from.clone(), flags(&target, &source.ca, "target-", dir.path())].concat();
    let (well, said) = run("export", &crossed).await;
    assert!(!well && !said.contains("panicked"), "{said}");
    assert_eq!(everything(&target).await.kvs.len(), 0);

    let to = flags(&target, &target.ca, "target-", dir.path());
    let (well, said) = run("export", &[from, to, vec!["--final".to_owned()]].concat()).await;
    assert!(well, "{said}");
    let (before, after) = (everything(&source).await, everything(&target).await);
    let pairs = |found: &RangeResponse| {
        found.kvs.iter().map(|kv| (kv.key().to_vec(), kv.value().to_vec())).collect::<Vec<_>>()
    };
    assert_eq!(pairs(&after), pairs(&before));
    assert!(after.header.unwrap().revision >= before.header.unwrap().revision);
    source.server.finish().await;
    target.server.finish().await;
}
