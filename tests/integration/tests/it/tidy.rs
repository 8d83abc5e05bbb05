//! The rules about the tree itself, each proved on a small tree that breaks it. Standard library only.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A file may grow to this many lines before its first `#[cfg(test)]`.
const FILE_LINES_MAX: usize = 500;

/// Which rooms of the controller may open which doors. A room may always use itself.
const ROOMS: &[(&str, &[&str])] = &[
    (
        "app",
        &[
            "backup",
            "config",
            "dashboard",
            "dispatch",
            "engine",
            "etcd",
            "grpc",
            "identity",
            "leader",
            "logs",
            "notify",
            "rest",
            "store",
            "view",
        ],
    ),
    ("backup", &["logs", "store"]),
    ("config", &[]),
    ("dashboard", &["engine", "view"]),
    ("dispatch", &[]),
    ("engine", &["dispatch", "store", "view"]),
    // Connections only: what is kept there is for those who use them.
    ("etcd", &[]),
    // `dispatch`: the agents' stream is opened and closed here.
    ("grpc", &["backup", "dispatch", "engine", "identity", "leader", "logs", "view"]),
    // Signs and is shown; what is stored of it comes and goes through the engine.
    ("identity", &[]),
    // The authority that it renews is the store's.
    ("leader", &["etcd", "store"]),
    ("logs", &[]),
    ("notify", &["view"]),
    ("rest", &["engine", "leader", "logs", "view"]),
    ("store", &["etcd"]),
    ("view", &[]),
];

/// The only packages `crates/core` may name under `[dependencies]`.
const CORE_DEPENDENCIES: &[&str] = &["serde", "sha2", "thiserror"];

/// What may not be depended on, by crate: (who, what, why).
const FORBIDDEN_DEPENDENCIES: &[(&str, &str, &str)] = &[
    ("common", "muster-controller", "common is below the programs"),
    ("common", "muster-agent", "common is below the programs"),
    ("controller", "muster-agent", "controller and agent meet over the wire only"),
    ("agent", "muster-controller", "controller and agent meet over the wire only"),
    ("agent", "muster-ctl", "ctl is above the daemons"),
    ("controller", "muster-ctl", "ctl is above the daemons"),
];

/// Crates that only some places may name: (crate, where it may stand). A place that ends in `/` is a folder.
const NAMED_ONLY_IN: &[(&str, &[&str])] = &[
    (
        "etcd_client",
        &["crates/controller/src/etcd/", "crates/controller/src/store/etcd/", "crates/controller/src/leader"],
    ),
    ("redb", &["crates/controller/src/store"]),
    ("object_store", &["crates/controller/src/logs"]),
    (
        "tonic",
        &[
            "crates/common/",
            "crates/controller/src/grpc",
            // Serves what `grpc` made: the listener and the shutdown are the app's.
            "crates/controller/src/app",
            // The codes of its answers.
            "crates/controller/src/etcd/error.rs",
            "crates/agent/src/link",
            // The bulk connection.
            "crates/agent/src/logs",
            "crates/ctl/",
        ],
    ),
];

/// Where `unsafe` may be lifted, and nowhere else.
const UNSAFE_ROOMS: &[&str] = &["crates/agent/src/exec/os", "crates/agent/src/host"];

/// Long files we already have, with today's length. A number here may only go down.
const RATCHET: &[(&str, usize)] = &[];

/// How a file begins that a program wrote: another test says that it is current.
const GENERATED: &str = "// This file is @generated";

struct Tree {
    root: PathBuf,
    found: Vec<String>,
}

/// Every breach of a rule in the tree at `root`, one sentence each.
fn check(root: &Path) -> Vec<String> {
    let mut tree = Tree { root: root.to_path_buf(), found: Vec::new() };
    for folder in ["crates", "tests", "tools", "xtask"] {
        for path in rust_files(&root.join(folder)) {
            let text = fs::read_to_string(&path).expect("a listed file is readable");
            if text.starts_with(GENERATED) {
                continue;
            }
            let name = path.strip_prefix(root).expect("listed under root").to_string_lossy().replace('\\', "/");
            tree.check_file(&name, &text);
        }
    }
    tree.check_core_dependencies();
    tree.check_crate_dependencies();
    tree.found
}

impl Tree {
    fn report(&mut self, name: &str, what: impl AsRef<str>) {
        self.found.push(format!("{name}: {}", what.as_ref()));
    }

    fn check_file(&mut self, name: &str, text: &str) {
        let product = before_tests(text);
        if !product.trim_start().starts_with("//!") {
            self.report(name, "no `//!` line saying what this file is for");
        }
        self.check_length(name, product);
        let code = without_comments(product);
        if code.contains("#![allow") || code.contains("#![expect") {
            // `clippy::allow_attributes` looks at outer attributes only.
            self.report(name, "`#![allow]` silences a whole module; use `#[expect]` on the item");
        }
        if text.lines().any(|line| line.trim_start().starts_with("#[ignore")) {
            self.report(name, "an ignored test proves nothing; make it run or delete it");
        }
        // Tests ship nowhere: they may set up what the room itself may not know.
        let is_tests = name.ends_with("/tests.rs") || name.contains("/tests/");
        if name.starts_with("crates/") && !is_tests {
            self.check_product(name, &code);
            self.check_rooms(name, &code);
        }
    }

    fn check_length(&mut self, name: &str, product: &str) {
        let lines = product.lines().count();
        let max = RATCHET.iter().find(|(file, _)| *file == name).map_or(FILE_LINES_MAX, |(_, max)| *max);
        if lines > max {
            self.report(name, format!("{lines} lines, the most is {max}"));
        }
    }

    fn check_product(&mut self, name: &str, code: &str) {
        if code.contains(".unwrap()") || code.contains(".unwrap_err()") {
            self.report(name, "`.unwrap()`; return an error, or `expect` with the reason why it cannot happen");
        }
        for word in ["unbounded_channel(", "mpsc::channel()"] {
            if code.contains(word) {
                self.report(name, format!("`{word}` has no bound; say what happens when it is full"));
            }
        }
        let lifts_unsafe = code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl");
        if lifts_unsafe && !UNSAFE_ROOMS.iter().any(|room| name.starts_with(room)) {
            self.report(name, format!("`unsafe` stands only in {}", UNSAFE_ROOMS.join(", ")));
        }
        for (krate, places) in NAMED_ONLY_IN {
            if names_crate(code, krate) && !places.iter().any(|place| name.starts_with(place)) {
                self.report(name, format!("only {} may name `{krate}`", places.join(", ")));
            }
        }
    }

    fn check_rooms(&mut self, name: &str, code: &str) {
        let Some(inside) = name.strip_prefix("crates/controller/src/") else { return };
        let room = inside.split(['/', '.']).next().unwrap_or_default();
        if matches!(room, "lib" | "main") {
            return;
        }
        let Some((_, doors)) = ROOMS.iter().find(|(from, _)| *from == room) else {
            self.report(name, format!("room `{room}` is not in ROOMS"));
            return;
        };
        if code.contains("super::super") {
            self.report(name, "`super::super` hides which room it reaches; write `crate::`");
        }
        for target in crate_targets(code) {
            if target != room && !doors.contains(&target.as_str()) {
                self.report(name, format!("`{room}` must not use `crate::{target}`"));
            }
        }
    }

    fn check_core_dependencies(&mut self) {
        for package in dependencies(&self.root.join("crates/core/Cargo.toml")) {
            if !CORE_DEPENDENCIES.contains(&package.as_str()) {
                self.report("crates/core", format!("`{package}` is not a dependency a pure crate may have"));
            }
        }
    }

    fn check_crate_dependencies(&mut self) {
        for (who, what, why) in FORBIDDEN_DEPENDENCIES {
            if dependencies(&self.root.join("crates").join(who).join("Cargo.toml")).iter().any(|name| name == what) {
                self.report(&format!("crates/{who}"), format!("depends on `{what}`: {why}"));
            }
        }
    }
}

/// The packages under `[dependencies]`, and under those of a platform. Development dependencies ship nowhere.
fn dependencies(manifest: &Path) -> Vec<String> {
    let text = fs::read_to_string(manifest).unwrap_or_default();
    let mut inside = false;
    let mut names = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == "[dependencies]" || line.starts_with("[target.") && line.ends_with(".dependencies]");
        } else if inside && !line.is_empty() && !line.starts_with('#') {
            names.push(line.split(['.', '=', ' ']).next().unwrap_or_default().to_owned());
        }
    }
    names
}

/// Whether a path in `code` starts with this crate. `tonic::`, but not `opentelemetry_tonic::` nor `self.tonic`.
fn names_crate(code: &str, krate: &str) -> bool {
    code.match_indices(krate).any(|(at, _)| {
        let before = code[..at].chars().next_back().unwrap_or(' ');
        let after = &code[at + krate.len()..];
        let is_start = !(before.is_alphanumeric() || matches!(before, '_' | '.' | ':' | '"'));
        is_start && (after.starts_with("::") || code[..at].ends_with("use ") && after.starts_with([';', ' ']))
    })
}

/// First path segments after `crate::`, in plain and in grouped form.
fn crate_targets(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in code.match_indices("crate::").map(|(at, hit)| &code[at + hit.len()..]) {
        match rest.strip_prefix('{') {
            Some(group) => group_heads(group, &mut found),
            None => drop(found.insert(ident(rest))),
        }
    }
    found
}

/// The first names of `{a::{b, c}, d}`, after its opening brace.
fn group_heads(group: &str, found: &mut BTreeSet<String>) {
    let mut depth = 0_usize;
    let mut at_start = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_start = true,
            c if depth == 0 && at_start && !c.is_whitespace() => {
                found.insert(ident(&group[at..]));
                at_start = false;
            }
            _ => {}
        }
    }
}

fn ident(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// What ships: a file up to its tests.
fn before_tests(text: &str) -> &str {
    let marks = ["#[cfg(test)]", "#[cfg(all(test"];
    let end = marks.iter().filter_map(|mark| text.find(mark)).min();
    &text[..end.unwrap_or(text.len())]
}

fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut files = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

#[test]
fn this_tree_keeps_its_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    assert!(root.join("crates/core/src/lib.rs").is_file(), "{} is not the root of the tree", root.display());
    let found = check(&root);
    assert!(found.is_empty(), "{} breaches:\n{}", found.len(), found.join("\n"));
}

/// What `check` says about a tree of this one file.
fn breaches(name: &str, text: &str) -> Vec<String> {
    let root = tempfile::tempdir().expect("a temporary folder can be made");
    let path = root.path().join(name);
    fs::create_dir_all(path.parent().expect("the name has a folder")).expect("a folder can be made");
    fs::write(&path, text).expect("a file can be written");
    check(root.path())
}

#[test]
fn each_rule_sees_its_breach() {
    let long = format!("//! a\n{}", "\n".repeat(FILE_LINES_MAX));
    let cases: &[(&str, &str, &str)] = &[
        ("crates/core/src/a.rs", "fn f() {}", "no `//!` line"),
        ("xtask/src/a.rs", "fn f() {}", "no `//!` line"),
        ("crates/core/src/a.rs", &long, "501 lines"),
        ("crates/core/src/a.rs", "//! a\n#![allow(dead_code)]", "silences a whole module"),
        ("tests/x/a.rs", "//! a\n#[ignore]\n#[test]", "an ignored test"),
        ("crates/core/src/a.rs", "//! a\nfn f() { g().unwrap() }", "`.unwrap()`"),
        ("crates/core/src/a.rs", "//! a\nfn f() { mpsc::channel() }", "has no bound"),
        ("crates/ctl/src/a.rs", "//! a\nfn f() { unsafe { g() } }", "`unsafe` stands only in"),
        ("crates/controller/src/engine/a.rs", "//! a\nuse tonic::Status;", "may name `tonic`"),
        ("crates/controller/src/store/redb.rs", "//! a\nuse etcd_client;", "may name `etcd_client`"),
        ("crates/controller/src/attic/a.rs", "//! a", "room `attic` is not in ROOMS"),
        ("crates/controller/src/view/a.rs", "//! a\nuse crate::engine::Handle;", "`view` must not use `crate::engine`"),
        (
            "crates/controller/src/rest/a.rs",
            "//! a\nuse crate::{view::{A, B}, store};",
            "`rest` must not use `crate::store`",
        ),
        ("crates/controller/src/store/a.rs", "//! a\nuse super::super::view;", "`super::super` hides"),
        ("crates/core/Cargo.toml", "[dependencies]\ntokio.workspace = true", "`tokio` is not a dependency"),
        ("crates/agent/Cargo.toml", "[dependencies]\nmuster-controller.workspace = true", "over the wire only"),
    ];
    for (name, text, expected) in cases {
        let found = breaches(name, text);
        assert!(
            found.len() == 1 && found[0].contains(expected),
            "{name} {text:?}: expected {expected:?}, got {found:?}"
        );
    }
}

#[test]
fn what_is_allowed_is_no_breach() {
    let cases: &[(&str, &str)] = &[
        ("crates/core/src/a.rs", "//! a\nfn f() {}\n#[cfg(test)]\nmod tests { fn g() { f().unwrap() } }"),
        ("crates/controller/src/view/tests.rs", "//! a\nuse crate::engine; fn g() { f().unwrap() }"),
        ("crates/controller/src/grpc/tests/a.rs", "//! a\nuse crate::store;"),
        ("crates/core/src/a.rs", "//! a\n// never `.unwrap()` here\n"),
        ("crates/controller/src/grpc/a.rs", "//! a\nuse tonic::Status;\nuse crate::{engine::Handle, view};"),
        ("crates/agent/src/exec/os/linux.rs", "//! a\nfn f() { unsafe { g() } }"),
        ("crates/controller/src/engine/a.rs", "//! a\nfn f() { self.tonic::<u8>(); my_tonic::g() }"),
        (
            "crates/core/Cargo.toml",
            "[dependencies]\nserde.workspace = true\n[dev-dependencies]\nproptest.workspace = true",
        ),
        ("crates/controller/Cargo.toml", "[dev-dependencies]\nmuster-agent.workspace = true"),
    ];
    for (name, text) in cases {
        assert_eq!(breaches(name, text), [""; 0], "{name} {text:?}");
    }
}
