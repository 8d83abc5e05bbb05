//! A test that cannot run here says so, and why; where nobody looks, that is a failure. As those of `tests/integration` do.

use std::{env, fs::OpenOptions, io::Write as _};

/// The name of the test in which it stands, as libtest says it.
macro_rules! here {
    () => {
        crate::skip::name(std::any::type_name_of_val(&|| ()))
    };
}
pub(crate) use here;

/// Of `exec::limits::a_test::{{closure}}`, what libtest says.
pub(crate) fn name(of_what_stands_in_it: &'static str) -> &'static str {
    let inside = of_what_stands_in_it.trim_end_matches("::{{closure}}");
    inside.split_once("::").map_or(inside, |(_program, name)| name)
}

/// Notes that `test` could not run. `cargo xtask test` collects these and counts them as skipped.
pub(crate) fn skip(test: &str, why: &str) {
    let in_ci = env::var("CI").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"));
    assert!(!in_ci, "{test} cannot run here: {why}");
    let Some(log) = env::var_os("MUSTER_SKIP_LOG") else {
        return eprintln!("skipped: {test}: {why}");
    };
    let mut log = OpenOptions::new().append(true).create(true).open(log).expect("the skip log opens");
    writeln!(log, "{test}\t{why}").expect("the skip log is written");
}

#[tokio::test]
async fn a_test_knows_what_libtest_calls_it() {
    assert_eq!(here!(), "skip::a_test_knows_what_libtest_calls_it");
    assert_eq!([name("exec::a::b::{{closure}}::{{closure}}"), name("exec::c")], ["a::b", "c"]);
}
