//! Whatever a file holds, it becomes a good spec or findings; never a panic, never something in between.

use muster_core::validate;
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::jobfile::{schema, syntax};

const FORMATS: [Format; 3] = [Format::Toml, Format::Yaml, Format::Json];

/// Every good and bad file that the tests and examples have.
fn files() -> Vec<(String, Format)> {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/jobfile/tests/bad");
    let mut files = Vec::new();
    for folder in [examples(), own] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if let Some(format) = Format::of_path(&path) {
                files.push((std::fs::read_to_string(path).unwrap(), format));
            }
        }
    }
    files
}

/// What slips into a file.
#[rustfmt::skip]
const PIECES: &[&str] = &[
    "\"", "'", "[", "]", "{", "}", ":", ",", "\n", "  ", "- ", "&a ", "*a", "<<: *a", "[[tasks]]\n", "[tasks.a]\n",
    "= ", "null", "true", "-1", "1e999", "0x1F", "99999999999999999999", "\0", "é", "\u{1F600}", "\\", "#", "---\n",
    "!!int ", "|\n", "\t", "\r",
];

/// Texts that mean something in a job file.
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "", "a", "t", "0-9", "5s", "1GiB", "high", "success", "retry", "setup", "17", "17.a", "a:any", "linux", "+1m",
    "2030-01-01T00:00:00Z", "k=v", "\0",
];

/// Keys of every table.
#[rustfmt::skip]
const KEYS: &[&str] = &[
    "name", "run", "shell", "env", "cpus", "memory", "gpus", "resources", "requires", "os", "labels", "priority",
    "timeout", "retries", "max", "delay", "factor", "cap", "jitter", "after", "task", "job", "on", "array", "from",
    "to", "step", "range", "items", "role", "tags", "start_at", "queue", "defaults", "tasks", "t", "x",
];

/// A spec that `check` accepts, or findings that lie in the file.
fn holds(text: &str, format: Format) {
    match parse(text, format, &context()) {
        Ok(parsed) => assert_eq!(validate::check(&parsed.spec), []),
        Err(found) => {
            assert!(!found.is_empty());
            let rows: Vec<&str> = text.split('\n').collect();
            for finding in found {
                let row =
                    rows.get(finding.line.wrapping_sub(1)).unwrap_or_else(|| panic!("{finding} is not in the file"));
                assert!(
                    finding.column >= 1 && finding.column <= row.chars().count() + 2,
                    "{finding} is not in {row:?}"
                );
            }
        }
    }
}

/// What a person's slip, or a fuzzer, does to a file.
#[derive(Clone, Debug)]
enum Slip {
    Cut(prop::sample::Index, usize),
    Insert(prop::sample::Index, String),
    Double(prop::sample::Index, prop::sample::Index),
}

fn slip() -> impl Strategy<Value = Slip> {
    let pieces = prop::sample::select(PIECES);
    prop_oneof![
        (any::<prop::sample::Index>(), 1usize..30).prop_map(|(at, length)| Slip::Cut(at, length)),
        (any::<prop::sample::Index>(), pieces.prop_map(str::to_owned)).prop_map(|(at, text)| Slip::Insert(at, text)),
        (any::<prop::sample::Index>(), ".{0,4}").prop_map(|(at, text)| Slip::Insert(at, text)),
        (any::<prop::sample::Index>(), any::<prop::sample::Index>()).prop_map(|(from, to)| Slip::Double(from, to)),
    ]
}

fn apply(text: &str, slip: &Slip) -> String {
    let letters: Vec<char> = text.chars().collect();
    if letters.is_empty() {
        return text.to_owned();
    }
    match slip {
        Slip::Cut(at, length) => {
            let at = at.index(letters.len());
            letters.iter().enumerate().filter(|(i, _)| *i < at || *i >= at + length).map(|(_, c)| *c).collect()
        }
        Slip::Insert(at, piece) => {
            let (head, tail) = letters.split_at(at.index(letters.len()));
            head.iter().copied().chain(piece.chars()).chain(tail.iter().copied()).collect()
        }
        Slip::Double(from, to) => {
            let (a, b) = (from.index(letters.len()), to.index(letters.len()));
            let piece = &letters[a.min(b)..a.max(b).min(a.min(b) + 200)];
            letters[..b].iter().chain(piece).chain(&letters[b..]).collect()
        }
    }
}

/// Any value that a JSON file can hold, rich in what jobs are made of.
fn json() -> impl Strategy<Value = Value> {
    let words = prop::sample::select(WORDS);
    let keys = prop::sample::select(KEYS);
    let numbers = prop::sample::select(vec![0.0, -0.0, 0.5, 1.0, 1e-9, 1e18, 4e9, -1.5]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..2000).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        numbers.prop_map(Value::from),
        words.prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(keys.clone().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A good job in which something is put in the place of something.
fn job() -> impl Strategy<Value = Value> {
    let good: Vec<Value> = files()
        .into_iter()
        .filter(|(text, format)| parse(text, *format, &context()).is_ok())
        .map(|(text, format)| syntax::parse(&text, format).unwrap().to_json().unwrap())
        .collect();
    (prop::sample::select(good), any::<prop::sample::Index>(), json(), any::<bool>()).prop_map(
        |(mut job, at, value, is_added)| {
            let mut places = vec![String::new()];
            pointers(&job, "", &mut places);
            let place = at.get(&places).clone();
            if let Some(target) = job.pointer_mut(&place) {
                match (target, value) {
                    (Value::Object(map), Value::Object(more)) if is_added => map.extend(more),
                    (target, value) => *target = value,
                }
            }
            job
        },
    )
}

fn pointers(value: &Value, path: &str, found: &mut Vec<String>) {
    let mut child = |key: String, value: &Value| {
        let path = format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
        pointers(value, &path, found);
        found.push(path);
    };
    match value {
        Value::Array(list) => list.iter().enumerate().for_each(|(i, value)| child(i.to_string(), value)),
        Value::Object(map) => map.iter().for_each(|(key, value)| child(key.clone(), value)),
        _ => {}
    }
}

#[test]
fn a_file_cut_anywhere_never_panics() {
    for (text, format) in files() {
        // Every place in a short file, a hundred and fifty in a long one.
        let step = text.len() / 150 + 1;
        for end in (0..text.len()).step_by(step).filter(|end| text.is_char_boundary(*end)) {
            holds(&text[..end], format);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_mutated_file_is_refused_or_whole(file in prop::sample::select(files()), slips in prop::collection::vec(slip(), 1..6)) {
        let (text, format) = file;
        holds(&slips.iter().fold(text, |text, slip| apply(&text, slip)), format);
    }

    #[test]
    fn any_text_is_refused_or_whole(text in "(?s).{0,200}") {
        FORMATS.iter().for_each(|format| holds(&text, *format));
    }

    #[test]
    fn what_the_reader_accepts_the_schema_accepts(job in job()) {
        thread_local!(static SCHEMA: jsonschema::Validator = jsonschema::options().build(&schema()).unwrap());
        let text = job.to_string();
        holds(&text, Format::Json);
        if parse(&text, Format::Json, &context()).is_ok() {
            prop_assert!(SCHEMA.with(|schema| schema.is_valid(&job)), "{text}");
        }
    }

    #[test]
    fn json_means_the_same_as_yaml(job in job()) {
        let text = job.to_string();
        let json = parse(&text, Format::Json, &context()).map(|parsed| parsed.spec).map_err(|found| lines(&found));
        let yaml = parse(&text, Format::Yaml, &context()).map(|parsed| parsed.spec).map_err(|found| lines(&found));
        prop_assert_eq!(json, yaml);
    }
}
