//! What an agent must be: system, architecture, label rules.

use std::sync::LazyLock;

use muster_core::spec::{LabelRule, Requires};

use super::{
    kind::Kind,
    near::nearest,
    read::{Element, Field, Read, Reader, Table, field},
    tree::{Node, Value},
};

impl Table for Requires {
    const NAME: &'static str = "requires";

    fn fields() -> &'static [Field<Self>] {
        static FIELDS: LazyLock<Vec<Field<Requires>>> = LazyLock::new(|| {
            vec![
                field(
                    "os",
                    |r: &mut Requires, v: Machine<OS>| r.os = Some(v.0),
                    "The system. Any, if it is not given.",
                ),
                field(
                    "arch",
                    |r: &mut Requires, v: Machine<ARCH>| r.arch = Some(v.0),
                    "The architecture. Any, if it is not given.",
                ),
                field(
                    "labels",
                    |r: &mut Requires, v: Vec<LabelRule>| r.labels = v,
                    "Rules on the agent's labels; all must hold.",
                ),
            ]
        });
        &FIELDS
    }
}

impl Read for Requires {
    fn kind() -> Kind {
        Kind::Table(Self::shape())
    }

    fn wants() -> String {
        "a table ([below](#requires))".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        let mut requires = Self::default();
        requires.fill(reader, node).then_some(requires)
    }
}

impl Read for LabelRule {
    fn kind() -> Kind {
        Kind::Text
    }

    fn wants() -> String {
        "a rule: `\"key\"`, `\"!key\"`, `\"key=value\"`, `\"key!=value\"`, `\"key in (a, b)\"` or `\"key notin (a, b)\"`".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Text(text) => reader.judge(node, text.parse::<LabelRule>().map_err(|error| error.to_string())),
            _ => reader.mistyped(node, &Self::wants()),
        }
    }
}

impl Element for LabelRule {
    fn blank() -> Self {
        Self::Has(String::new())
    }
}

/// A system or an architecture, by the word that agents report.
pub(super) struct Machine<const WHAT: usize>(pub(super) String);

/// `Machine<OS>` and `Machine<ARCH>`.
pub(super) const OS: usize = 0;
pub(super) const ARCH: usize = 1;

/// The words of `std::env::consts` that agents report, and those that people write in their place.
const KNOWN: [&[&str]; 2] = [
    &["linux", "windows", "macos", "freebsd", "netbsd", "openbsd"],
    &["x86_64", "aarch64", "x86", "arm", "riscv64", "powerpc64", "s390x", "loongarch64"],
];
const OTHERWISE: &[(&str, &str)] = &[
    ("darwin", "macos"),
    ("win32", "windows"),
    ("amd64", "x86_64"),
    ("x64", "x86_64"),
    ("arm64", "aarch64"),
    ("i686", "x86"),
];

impl<const WHAT: usize> Read for Machine<WHAT> {
    fn kind() -> Kind {
        Kind::Text
    }

    fn wants() -> String {
        let known = KNOWN[WHAT].iter().take(2).map(|word| format!("`\"{word}\"`")).collect::<Vec<_>>().join(", ");
        format!("the word that agents report: {known}, …")
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        let word = String::read(reader, node)?;
        if !KNOWN[WHAT].contains(&word.as_str()) {
            let ours = OTHERWISE.iter().find(|(theirs, _)| *theirs == word).map(|(_, ours)| *ours);
            let near = ours.or_else(|| nearest(&word, KNOWN[WHAT].iter().copied()));
            let hint = near.map_or(String::new(), |near| format!("; did you mean {near:?}?"));
            reader.warn(node.at, format!("no agent is known to report {word:?}{hint}"));
        }
        Some(Self(word))
    }
}
