//! `cargo xtask proto`: writes the generated protocol into the tree.

use std::path::Path;

use anyhow::Result;

fn main() -> Result<()> {
    for file in muster_proto::generate(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))? {
        file.write()?;
    }
    Ok(())
}
