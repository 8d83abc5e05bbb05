//! Figures: what was measured, what it must reach, and how both are printed.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::json;

/// What a figure must reach.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
    /// Nothing: it explains another figure.
    None,
}

/// All that was measured so far.
pub(crate) struct Figures {
    json: bool,
    only: Option<String>,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    value: Option<f64>,
    unit: &'static str,
    target: Target,
    why_missing: Option<String>,
}

impl Figures {
    pub(crate) fn new(json: bool, only: Option<String>) -> Self {
        Self { json, only, rows: Vec::new() }
    }

    /// Whether one of these is asked for, so that its measurement is worth its time.
    pub(crate) fn wants(&self, names: &[&str]) -> bool {
        self.only.as_ref().is_none_or(|only| names.iter().any(|name| name.contains(only)))
    }

    /// One measured figure. Printed at once as JSON, or later in the table.
    pub(crate) fn add(&mut self, name: &str, value: f64, unit: &'static str, target: Target) {
        self.row(Row { name: name.to_owned(), value: Some(value), unit, target, why_missing: None });
    }

    /// Takes the outcome of a measurement; what could not be measured stands in the table with its reason.
    pub(crate) fn outcome(&mut self, name: &str, outcome: Result<()>) {
        if let Err(error) = outcome {
            let why = format!("{error:#}");
            self.row(Row {
                name: name.to_owned(),
                value: None,
                unit: "",
                target: Target::None,
                why_missing: Some(why),
            });
        }
    }

    fn row(&mut self, row: Row) {
        if self.json {
            show(&row.json());
        } else {
            eprintln!("{}", row.line());
        }
        self.rows.push(row);
    }

    /// The table.
    pub(crate) fn close(&self) {
        if !self.json {
            let header = format!("{:<34} {:>12} {:<6} {:>12}  {}", "figure", "value", "unit", "target", "met");
            let lines: Vec<_> = std::iter::once(header).chain(self.rows.iter().map(Row::line)).collect();
            show(&lines.join("\n"));
        }
    }
}

impl Row {
    fn met(&self) -> Option<bool> {
        let value = self.value?;
        match self.target {
            Target::AtLeast(target) => Some(value >= target),
            Target::AtMost(target) => Some(value <= target),
            Target::None => None,
        }
    }

    fn json(&self) -> String {
        let target = match self.target {
            Target::AtLeast(target) | Target::AtMost(target) => Some(target),
            Target::None => None,
        };
        let mut object = json!({
            "name": self.name, "value": self.value, "unit": self.unit, "target": target, "met": self.met(),
        });
        if let Some(why) = &self.why_missing {
            object["why_missing"] = why.as_str().into();
        }
        object.to_string()
    }

    fn line(&self) -> String {
        let target = match self.target {
            Target::AtLeast(target) => format!(">= {target}"),
            Target::AtMost(target) => format!("<= {target}"),
            Target::None => String::new(),
        };
        let met = match self.met() {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "",
        };
        let value = self.value.map_or_else(|| "-".to_owned(), number);
        let mut line = format!("{:<34} {value:>12} {:<6} {target:>12}  {met}", self.name, self.unit);
        if let Some(why) = &self.why_missing {
            // Never fails: it writes to a text.
            let _ = write!(line, "not measured: {why}");
        }
        line
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// The middle of some values; the lower one of two.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    share(values, 0.5)
}

/// The value below which this share of the values lies.
pub(crate) fn share(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let at = ((values.len() as f64 * share).ceil() as usize).saturating_sub(1);
    values.get(at).copied().unwrap_or(f64::NAN)
}

#[expect(clippy::print_stdout, reason = "the figures are this program's output")]
fn show(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: f64, target: Target) -> Row {
        Row { name: "x".to_owned(), value: Some(value), unit: "s", target, why_missing: None }
    }

    #[test]
    fn a_target_is_met_from_its_own_side_and_at_its_edge() {
        let table = [
            (Target::AtLeast(2.0), 2.0, Some(true)),
            (Target::AtLeast(2.0), 1.9, Some(false)),
            (Target::AtMost(2.0), 2.0, Some(true)),
            (Target::AtMost(2.0), 2.1, Some(false)),
            (Target::None, 1.0, None),
        ];
        for (target, value, met) in table {
            assert_eq!(row(value, target).met(), met, "{value}");
        }
    }

    #[test]
    fn json_has_the_promised_keys() {
        let json: serde_json::Value = serde_json::from_str(&row(1.5, Target::AtMost(2.0)).json()).unwrap();
        assert_eq!(json, json!({"name": "x", "value": 1.5, "unit": "s", "target": 2.0, "met": true}));
    }

    #[test]
    fn shares_are_taken_from_sorted_values() {
        let mut values = [5.0, 1.0, 3.0, 2.0, 4.0];
        assert_eq!(median(&mut values), 3.0);
        assert_eq!(share(&mut values, 0.99), 5.0);
        assert_eq!(share(&mut values, 0.2), 1.0);
    }
}
