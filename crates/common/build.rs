//! Compiles the protocol without a protoc binary.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let files = ["admin", "agent", "backup", "identity", "muster", "record", "spec", "work"]
        .map(|name| root.join(format!("muster/v1/{name}.proto")));
    for file in &files {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    let set = protox::compile(&files, [&root])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // For the reflection service.
    fs::write(out.join("muster.bin"), set.encode_to_vec())?;
    tonic_prost_build::configure()
        .btree_map(".")
        .bytes(".muster.v1.LogFrame.data")
        .bytes(".muster.v1.TakePart.data")
        .compile_fds(set)?;
    Ok(())
}
