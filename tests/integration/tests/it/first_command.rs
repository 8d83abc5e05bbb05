//! The first command of the README, against what `wc` says.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use muster_integration::{binaries, ctl::Ctl};
use serde_json::Value;

/// Lines, words and bytes.
type Counts = [u64; 3];

#[test]
fn the_census_of_the_readme_counts_what_wc_counts() -> Result<()> {
    let tree = copy_of_the_tree()?;
    let mut command = Ctl::alone().command(&["run", "examples/census.toml", "-o", "json"])?;
    let output = command.current_dir(tree.path()).output().context("could not start ctl")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ctl run ended with {}:\n{errors}", output.status);
    let reply: Value = serde_json::from_slice(&output.stdout).context("ctl run printed no JSON")?;
    let found = counts_by_type(&reply["result"])?;
    let expected = wc_by_type(tree.path())?;
    ensure!(found == expected, "the census found {found:#?}\nwc says {expected:#?}");
    Ok(())
}

/// The files of the tree as git knows them, in a folder where nothing else appears while they are counted.
fn copy_of_the_tree() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir().context("could not make a folder")?;
    let git = |arguments: &[&str], at: &Path| -> Result<Vec<u8>> {
        let output = Command::new("git").current_dir(at).args(arguments).output().context("could not start git")?;
        ensure!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    };
    for name in paths(&git(&["ls-files", "-z"], binaries::root())?) {
        let (from, to) = (binaries::root().join(&name), folder.path().join(&name));
        if from.is_file() {
            fs::create_dir_all(to.parent().context("a file has a folder")?)?;
            fs::copy(&from, &to).with_context(|| format!("could not copy {}", from.display()))?;
        }
    }
    git(&["init", "-q"], folder.path())?;
    git(&["add", "-A"], folder.path())?;
    Ok(folder)
}

fn paths(zero_separated: &[u8]) -> Vec<PathBuf> {
    let text = String::from_utf8_lossy(zero_separated);
    text.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect()
}

fn wc_by_type(tree: &Path) -> Result<BTreeMap<String, Counts>> {
    let listed =
        Command::new("git").current_dir(tree).args(["ls-files", "-z"]).output().context("could not start git")?;
    let mut all: BTreeMap<String, Counts> = BTreeMap::new();
    for name in paths(&listed.stdout) {
        let output =
            Command::new("wc").current_dir(tree).env("LC_ALL", "C").arg("-lwc").arg("--").arg(&name).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let numbers: Vec<u64> = text.split_whitespace().take(3).filter_map(|word| word.parse().ok()).collect();
        let counts: Counts = numbers.try_into().ok().with_context(|| format!("wc said {text:?}"))?;
        let of_type = all.entry(type_of(&name)).or_default();
        of_type.iter_mut().zip(counts).for_each(|(sum, one)| *sum += one);
    }
    Ok(all)
}

/// What stands after the last dot of the file's name; `(none)` where there is no dot.
fn type_of(name: &Path) -> String {
    name.extension().map_or_else(|| "(none)".to_owned(), |extension| extension.to_string_lossy().into_owned())
}

fn counts_by_type(result: &Value) -> Result<BTreeMap<String, Counts>> {
    let types = result["types"].as_object().or_else(|| result.as_object()).context("the result is no object")?;
    let count = |of: &Value, what: &str| of[what].as_u64().with_context(|| format!("no `{what}` in {of}"));
    types
        .iter()
        .map(|(name, of)| Ok((name.clone(), [count(of, "lines")?, count(of, "words")?, count(of, "bytes")?])))
        .collect()
}
