//! Problems of job files, printed the way compilers do.

use std::fmt::Write as _;

use muster_common::jobfile;

use super::Source;
use crate::{
    model::change::Finding,
    output::{Output, style::Look, table::plain},
};

/// Prints one finding on standard error.
pub(crate) fn show(output: Output, source: &Source, look: Look, finding: &jobfile::Finding) {
    let word = if look == Look::Bad { "error" } else { "warning" };
    let head = output.error_style.paint(look, word);
    output.note(Look::Plain, &text(source, &head, finding));
}

/// The same for machines.
pub(crate) fn machine(severity: &'static str, finding: &jobfile::Finding) -> Finding {
    Finding {
        severity,
        line: finding.line,
        column: finding.column,
        path: finding.path.clone(),
        message: finding.message.clone(),
    }
}

/// `file:line:col: error: message`, the line, and a caret below the place.
fn text(source: &Source, head: &str, finding: &jobfile::Finding) -> String {
    let message = if finding.path.is_empty() {
        finding.message.clone()
    } else {
        format!("{}: {}", finding.path, finding.message)
    };
    // A command line has no lines that a person could look at.
    let Some(name) = &source.name else { return format!("{head}: {message}") };
    let (line, column) = (finding.line, finding.column.max(1));
    if line == 0 {
        return format!("{name}: {head}: {message}");
    }
    let mut out = format!("{name}:{line}:{column}: {head}: {message}");
    let Some(shown) = source.text.lines().nth(line - 1).filter(|shown| !shown.trim().is_empty()) else { return out };
    let number = line.to_string();
    let before: String = shown.chars().take(column - 1).collect();
    let space = " ".repeat(console::measure_text_width(&plain(&before)));
    // Tabs are one column in `plain`, so that the caret stands where the eye is.
    let _ = write!(out, "\n  {number} | {}\n  {} | {space}^", plain(shown), " ".repeat(number.len()));
    out
}

#[cfg(test)]
mod tests {
    use muster_common::jobfile::{Finding, Format};

    use super::*;

    fn source(name: Option<&str>) -> Source {
        let text = "name = \"x\"\n\ttaks = 1\n".to_owned();
        Source { name: name.map(str::to_owned), text, format: Format::Toml, folder: "".into() }
    }

    fn finding(line: usize, column: usize) -> Finding {
        Finding { line, column, path: String::new(), message: "unknown key `taks`; did you mean `tasks`?".into() }
    }

    #[test]
    fn a_problem_shows_its_line_with_a_caret_below_it() {
        let wanted = "\
job.toml:2:2: error: unknown key `taks`; did you mean `tasks`?
  2 |  taks = 1
    |  ^";
        assert_eq!(text(&source(Some("job.toml")), "error", &finding(2, 2)), wanted);
    }

    #[test]
    fn a_place_outside_of_the_file_is_no_harm() {
        let text_of = |line, column| text(&source(Some("f")), "error", &finding(line, column));
        assert!(text_of(99, 1).starts_with("f:99:1: error:"), "{}", text_of(99, 1));
        assert!(text_of(1, 999).ends_with('^'), "{}", text_of(1, 999));
        assert!(text_of(0, 0).starts_with("f: error:"), "{}", text_of(0, 0));
    }

    #[test]
    fn a_problem_of_a_command_line_names_no_line() {
        assert!(text(&source(None), "error", &finding(1, 1)).starts_with("error: unknown key"));
    }
}
