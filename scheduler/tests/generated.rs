//! The committed Rust of the protocol is what `scheduler.proto` gives. `UPDATE_GENERATED=1` writes
//! it anew. Needs no `protoc`.

use std::path::Path;

#[test]
fn generated_code_is_up_to_date() {
    let protocol = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/protocol");
    let descriptors = protox::compile(["scheduler.proto"], [&protocol]).expect("valid proto");
    let out = tempfile::tempdir().expect("temporary directory");
    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".")
        .emit_rerun_if_changed(false)
        .out_dir(out.path())
        .compile_fds(descriptors)
        .expect("generate");
    let name = "megacluster.scheduler.v1.rs";
    let fresh = std::fs::read_to_string(out.path().join(name)).expect("generated file");
    let committed = protocol.join("generated").join(name);
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        std::fs::write(&committed, &fresh).expect("write");
    }
    let current = std::fs::read_to_string(&committed).unwrap_or_default();
    assert!(current == fresh, "{}: run with UPDATE_GENERATED=1", committed.display());
}
