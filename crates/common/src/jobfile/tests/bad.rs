//! Bad files: each file of `bad/` has beside it what is said about it, to the letter.

use super::*;

/// Set to write what is said in place of what should be said: look at the difference before you keep it.
const BLESS: &str = "MUSTER_BLESS";

#[test]
fn every_bad_file_is_refused_with_exactly_its_findings() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/jobfile/tests/bad");
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let Some(format) = Format::of_path(&path) else { continue };
        let said = bad(&std::fs::read_to_string(&path).unwrap(), format).join("\n") + "\n";
        // Where the tree lies is not part of what is said.
        let said = said.replace(examples().to_str().unwrap(), "EXAMPLES");
        let golden = path.with_added_extension("out");
        seen += 1;
        if std::env::var_os(BLESS).is_some() {
            std::fs::write(&golden, &said).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if said != expected {
            wrong.push(format!("{}\nsaid:\n{said}\nexpected:\n{expected}", path.display()));
        }
    }
    assert!(seen > 30, "only {seen} bad files in {}", folder.display());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_file_beyond_the_limit_is_refused_unread() {
    let text = "#".repeat(crate::jobfile::MAX_FILE + 1);
    assert_eq!(bad(&text, Format::Toml), ["has 67108865 bytes; a job file has at most 67108864"]);
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.toml");
    let load = |path: &std::path::Path| lines(&crate::jobfile::load(path, PathBuf::from("/"), NOW).unwrap_err());
    assert!(load(&path)[0].starts_with("cannot be read: "), "{:?}", load(&path));
    std::fs::write(&path, b"name = 'j'\nx = '\xff'\n").unwrap();
    assert_eq!(load(&path), ["2:1: is not UTF-8 text"]);
    assert_eq!(load(folder.path()), ["has no ending that tells its format; call it .toml, .yaml or .json"]);
}

#[test]
fn a_flood_of_findings_is_cut() {
    let text: String = (0..5000).map(|n| format!("key{n} = 1\n")).collect();
    assert_eq!(bad(&text, Format::Toml).len(), 1000);
}

#[test]
fn a_misspelt_text_of_any_length_and_script_is_placed_by_characters() {
    assert_eq!(
        bad("name = 'j'\ntasks.a = { env = { \"é\" = 'ü', B = 1 } }\n", Format::Toml),
        ["2:36: tasks.a.env.B: is the number 1; it takes text, in quotes: \"1\""]
    );
}
