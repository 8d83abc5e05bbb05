//! What is generated is what lies in the tree.

use std::path::Path;

#[test]
fn the_generated_protocol_is_what_the_files_of_the_protocol_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for file in muster_proto::generate(&root).expect("the protocol compiles") {
        assert!(file.is_current(), "{} is out of date: run `cargo xtask proto`", file.path.display());
    }
}
