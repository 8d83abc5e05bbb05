//! Turns `proto/` into the Rust of `crates/common/src/proto`, which is kept in the tree: whoever only builds Muster
//! need not build the compiler of its protocol first.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use prost::Message as _;

/// What lies in the tree, and what the protocol's files say should.
pub struct Generated {
    /// Where.
    pub path: PathBuf,
    /// What should be there.
    pub bytes: Vec<u8>,
}

impl Generated {
    /// Whether it is there.
    pub fn is_current(&self) -> bool {
        fs::read(&self.path).is_ok_and(|found| found == self.bytes)
    }

    /// Puts it there.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self) -> Result<()> {
        fs::write(&self.path, &self.bytes).with_context(|| format!("writing {}", self.path.display()))
    }
}

/// Compiles every file below `proto/` of the tree at `root`: the code, and the descriptors that the reflection service
/// shows.
///
/// # Errors
/// A file of the protocol is wrong (told with its line), or cannot be read.
pub fn generate(root: &Path) -> Result<Vec<Generated>> {
    let protocol = root.join("proto");
    let files = files(&protocol.join("muster/v1"))?;
    let set = protox::compile(&files, [&protocol]).context("the protocol cannot be compiled")?;
    let descriptors = set.encode_to_vec();
    let out = tempfile::tempdir()?;
    tonic_prost_build::configure()
        .btree_map(".")
        .codec_path("crate::codec::ProtoCodec")
        .bytes(".muster.v1.LogFrame.data")
        .bytes(".muster.v1.TakePart.data")
        // They hold secrets.
        .skip_debug([".muster.v1.CreateTokenReply", ".muster.v1.MakeJoinTokenReply", ".muster.v1.EnrolRequest"])
        .out_dir(out.path())
        .compile_fds(set)?;
    let code = fs::read(out.path().join("muster.v1.rs"))?;
    let target = root.join("crates/common/src/proto");
    Ok(vec![
        Generated { path: target.join("muster.v1.rs"), bytes: code },
        Generated { path: target.join("muster.v1.bin"), bytes: descriptors },
    ])
}

/// Sorted: what is generated must not depend on how a folder lists its files.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "proto"));
    files.sort();
    ensure!(!files.is_empty(), "no protocol in {}", folder.display());
    Ok(files)
}
