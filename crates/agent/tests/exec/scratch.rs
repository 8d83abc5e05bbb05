//! Folders that serve one attempt after another: none sees what another one left there, however it hides that.

use std::{os::unix::fs::MetadataExt, path::Path};

use muster_common::clock::Clock;
use muster_core::state::End;

use crate::bench::{Bench, shell, wait_for};

/// So long after its last change a folder need not be looked into, if that time is the old one: 3 s, and one more for file
/// systems that tell whole seconds.
const SETTLED_S: u64 = 4;

/// Runs `text`, and returns its folder and what it saw there first.
async fn begins_with(bench: &mut Bench, text: &str) -> (String, String) {
    let (over, out, err) = bench.output(shell(&format!("pwd; ls -A; echo --; {text}"))).await;
    assert_eq!(over.end, End::Succeeded, "{}: {err}", over.why);
    let (folder, rest) = out.split_once('\n').expect("a folder");
    (folder.to_owned(), rest.split_once("--").expect("its end").0.to_owned())
}

/// Waits until the last change of a folder is so long past that the next one has another time.
async fn settled(folder: &Path) {
    let is_settled = || {
        let changed = u64::try_from(std::fs::metadata(folder).ok()?.ctime()).ok()?;
        (Clock::system().wall().0 / 1_000_000 >= changed + SETTLED_S).then_some(())
    };
    wait_for("a folder that was left alone", is_settled).await;
}

#[tokio::test]
async fn what_one_attempt_leaves_in_its_folder_no_other_one_sees() {
    let mut bench = Bench::new().await;
    let leavers = ["touch left && touch -d @1 .", "mkdir a && mv a left"];
    let (mut folder, seen) = begins_with(&mut bench, "").await;
    assert_eq!(seen, "");
    for leaver in leavers {
        // A folder that was empty for long is handed on unseen, unless its time of change is another.
        settled(Path::new(&folder)).await;
        let (same, seen) = begins_with(&mut bench, "").await;
        assert_eq!((same.as_str(), seen.as_str()), (folder.as_str(), ""), "an empty folder serves the next one");
        let (same, seen) = begins_with(&mut bench, leaver).await;
        assert_eq!((same.as_str(), seen.as_str()), (folder.as_str(), ""), "and the one after it");
        let (next, seen) = begins_with(&mut bench, "").await;
        assert_eq!(seen, "", "after `{leaver}`");
        folder = next;
    }
}
