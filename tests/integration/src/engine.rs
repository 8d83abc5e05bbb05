//! What tests ask of an engine of containers, whichever it is.

use std::process::Output;

use anyhow::Result;

use crate::images::IMAGE;

/// An engine of a test's own, by its command line.
pub trait Client {
    /// How `ps` is told to show the label `name`.
    fn shows(&self, name: &str) -> String;

    /// Runs its client, which succeeds.
    fn run(&self, words: &[&str]) -> Result<Output>;

    /// All containers that it knows, running or not.
    fn containers(&self) -> Result<Vec<String>> {
        Ok(lines(&self.run(&["ps", "--all", "--format", "{{.Names}} {{.Status}}"])?))
    }

    /// The values that its containers have of one label.
    fn labels(&self, name: &str) -> Result<Vec<String>> {
        let mut values = lines(&self.run(&["ps", "--all", "--format", &self.shows(name)])?);
        values.sort();
        values.dedup();
        Ok(values)
    }

    /// Makes a container that never runs.
    fn create(&self, name: &str, label: &str) -> Result<()> {
        self.run(&["create", "--network=none", "--name", name, "--label", label, IMAGE, "true"]).map(|_| ())
    }
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}
