//! The committed code of `src/pb/generated` is what the `.proto` files beside it give.

use std::{error::Error, fs, path::Path};

#[test]
fn generated_code_is_current() -> Result<(), Box<dyn Error>> {
    let pb = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/pb");
    let files = protox::compile(["etcdserverpb.proto", "health.proto"], [pb.join("proto")])?;
    let out = tempfile::tempdir()?;
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".mvccpb.KeyValue", "crate::core::KeyValue")
        .out_dir(out.path())
        .compile_fds(files)?;
    let update = std::env::var_os("UPDATE_GENERATED").is_some();
    for package in ["authpb", "etcdserverpb", "grpc.health.v1", "mvccpb"] {
        let name = format!("{package}.rs");
        let wanted = fs::read_to_string(out.path().join(&name))?;
        let committed = pb.join("generated").join(&name);
        if update {
            fs::write(&committed, &wanted)?;
        }
        let found = fs::read_to_string(&committed).unwrap_or_default();
        assert!(found == wanted, "{name} is not current: run with UPDATE_GENERATED=1");
    }
    Ok(())
}
