//! What an agent must be to run a task: label rules as text, and the one place that judges them.
//!
//! Grammar: `key` · `!key` · `key=value` · `key!=value` · `key in (a, b)` · `key notin (a, b)`. A key or
//! value that holds spaces, quotes or one of `,()=!` is written in double quotes, with `\` before `"` and `\`.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    str::FromStr,
};

use crate::{
    container,
    record::Offer,
    spec::{LabelRule, Requires},
};

/// What may be written as a label rule; the end of every error about one.
pub const LABEL_RULE_FORMS: &str =
    "`key`, `!key`, `key=value`, `key!=value`, `key in (a, b)` or `key notin (a, b)`; odd values in double quotes";

/// One thing that an agent is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// Another operating system.
    Os {
        /// Asked for.
        wanted: String,
        /// What the agent reports.
        there: String,
    },
    /// Another architecture.
    Arch {
        /// Asked for.
        wanted: String,
        /// What the agent reports.
        there: String,
    },
    /// A label rule that does not hold.
    Label {
        /// The rule.
        rule: LabelRule,
        /// The agent's value of that label; none: it has none.
        there: Option<String>,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Os { wanted, there } => write!(f, "needs os `{wanted}`, has `{there}`"),
            Self::Arch { wanted, there } => write!(f, "needs arch `{wanted}`, has `{there}`"),
            Self::Label { rule: LabelRule::Has(key), there: None } if key == container::LABEL => {
                write!(
                    f,
                    "cannot run containers: it has no label `{key}`, which an agent has that found an engine for them"
                )
            }
            Self::Label { rule, there: None } => write!(f, "needs label `{rule}`, has no label `{}`", rule.key()),
            Self::Label { rule, there: Some(there) } => {
                write!(f, "needs label `{rule}`, has `{}={}`", Word(rule.key()), Word(there))
            }
        }
    }
}

impl Requires {
    /// Whether `offer` is all that this asks for.
    pub fn matches(&self, offer: &Offer) -> bool {
        self.os.as_ref().is_none_or(|os| *os == offer.os)
            && self.arch.as_ref().is_none_or(|arch| *arch == offer.arch)
            && self.labels.iter().all(|rule| rule.holds(&offer.labels))
    }

    /// Everything that `offer` is not; empty exactly when it [`matches`](Self::matches).
    pub fn mismatches(&self, offer: &Offer) -> Vec<Mismatch> {
        let os = self.os.as_ref().filter(|os| **os != offer.os);
        let arch = self.arch.as_ref().filter(|arch| **arch != offer.arch);
        let os = os.map(|wanted| Mismatch::Os { wanted: wanted.clone(), there: offer.os.clone() });
        let arch = arch.map(|wanted| Mismatch::Arch { wanted: wanted.clone(), there: offer.arch.clone() });
        let labels = self
            .labels
            .iter()
            .filter(|rule| !rule.holds(&offer.labels))
            .map(|rule| Mismatch::Label { rule: rule.clone(), there: offer.labels.get(rule.key()).cloned() });
        os.into_iter().chain(arch).chain(labels).collect()
    }
}

impl LabelRule {
    /// The label that it is about.
    pub fn key(&self) -> &str {
        match self {
            Self::Has(key)
            | Self::Lacks(key)
            | Self::Is(key, _)
            | Self::IsNot(key, _)
            | Self::In(key, _)
            | Self::NotIn(key, _) => key,
        }
    }

    /// Whether it is true of `labels`.
    pub fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let there = labels.get(self.key());
        match self {
            Self::Has(_) => there.is_some(),
            Self::Lacks(_) => there.is_none(),
            Self::Is(_, value) => there == Some(value),
            Self::IsNot(_, value) => there != Some(value),
            Self::In(_, values) => there.is_some_and(|there| values.contains(there)),
            Self::NotIn(_, values) => there.is_none_or(|there| !values.contains(there)),
        }
    }
}

impl fmt::Display for LabelRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Has(key) => write!(f, "{}", Word(key)),
            Self::Lacks(key) => write!(f, "!{}", Word(key)),
            Self::Is(key, value) => write!(f, "{}={}", Word(key), Word(value)),
            Self::IsNot(key, value) => write!(f, "{}!={}", Word(key), Word(value)),
            Self::In(key, values) => write!(f, "{} in {}", Word(key), Words(values)),
            Self::NotIn(key, values) => write!(f, "{} notin {}", Word(key), Words(values)),
        }
    }
}

/// Whether `c` may stand in a word without quotes.
fn is_plain(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && !matches!(c, ',' | '(' | ')' | '=' | '!' | '"' | '\\')
}

struct Word<'a>(&'a str);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() && self.0.chars().all(is_plain) {
            return f.write_str(self.0);
        }
        f.write_char('"')?;
        for c in self.0.chars() {
            if matches!(c, '"' | '\\') {
                f.write_char('\\')?;
            }
            f.write_char(c)?;
        }
        f.write_char('"')
    }
}

struct Words<'a>(&'a [String]);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('(')?;
        for (n, word) in self.0.iter().enumerate() {
            write!(f, "{}{}", if n == 0 { "" } else { ", " }, Word(word))?;
        }
        f.write_char(')')
    }
}

/// A text that is no label rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no label rule: {problem}; write {LABEL_RULE_FORMS}")]
pub struct LabelRuleError {
    /// As it was written.
    pub text: String,
    /// What is wrong with it.
    pub problem: String,
}

impl FromStr for LabelRule {
    type Err = LabelRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Parser { rest: text.trim() }.rule().map_err(|problem| LabelRuleError { text: text.to_owned(), problem })
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn rule(&mut self) -> Result<LabelRule, String> {
        if self.take("!") {
            let key = self.key()?;
            return self.end(LabelRule::Lacks(key));
        }
        let key = self.key()?;
        let rule = if self.take("!=") {
            LabelRule::IsNot(key, self.word("a value")?)
        } else if self.take("==") || self.take("=") {
            LabelRule::Is(key, self.word("a value")?)
        } else if self.rest.is_empty() {
            LabelRule::Has(key)
        } else {
            match self.word("`in` or `notin`")?.as_str() {
                "in" => LabelRule::In(key, self.list()?),
                "notin" => LabelRule::NotIn(key, self.list()?),
                other => return Err(format!("`{other}` stands where `=`, `!=`, `in` or `notin` should")),
            }
        };
        self.end(rule)
    }

    fn end(&self, rule: LabelRule) -> Result<LabelRule, String> {
        if self.rest.is_empty() { Ok(rule) } else { Err(format!("`{}` is left over", self.rest)) }
    }

    /// Takes `token` and the space after it, if it is next.
    fn take(&mut self, token: &str) -> bool {
        let Some(rest) = self.rest.strip_prefix(token) else { return false };
        self.rest = rest.trim_start();
        true
    }

    fn key(&mut self) -> Result<String, String> {
        let key = self.word("a key")?;
        if key.is_empty() { Err("the key is empty".to_owned()) } else { Ok(key) }
    }

    fn list(&mut self) -> Result<Vec<String>, String> {
        if !self.take("(") {
            return Err("values stand in round brackets".to_owned());
        }
        let mut values = vec![self.word("a value")?];
        while self.take(",") {
            values.push(self.word("a value")?);
        }
        if self.take(")") { Ok(values) } else { Err("`,` or `)` is missing after a value".to_owned()) }
    }

    /// A plain or quoted word, and the space after it.
    fn word(&mut self, what: &str) -> Result<String, String> {
        if let Some(rest) = self.rest.strip_prefix('"') {
            return self.quoted(rest);
        }
        let end = self.rest.find(|c| !is_plain(c)).unwrap_or(self.rest.len());
        if end == 0 {
            return Err(format!("{what} is missing"));
        }
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        Ok(word.to_owned())
    }

    fn quoted(&mut self, text: &'a str) -> Result<String, String> {
        let mut word = String::new();
        let mut chars = text.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    let used = self.rest.len() - text.len() + at + 1;
                    self.rest = self.rest[used..].trim_start();
                    return Ok(word);
                }
                '\\' => word.push(chars.next().ok_or("nothing follows the last `\\`")?.1),
                c => word.push(c),
            }
        }
        Err("a quote is not closed".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(text: &str) -> LabelRule {
        text.parse().unwrap()
    }

    fn offer(labels: &[(&str, &str)]) -> Offer {
        Offer {
            os: "linux".to_owned(),
            arch: "x86_64".to_owned(),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..Offer::default()
        }
    }

    #[test]
    fn every_form_of_a_rule_is_read() {
        let s = str::to_owned;
        let table = [
            ("gpu", LabelRule::Has(s("gpu"))),
            ("  gpu ", LabelRule::Has(s("gpu"))),
            ("in", LabelRule::Has(s("in"))),
            ("!gpu", LabelRule::Lacks(s("gpu"))),
            ("! gpu", LabelRule::Lacks(s("gpu"))),
            ("zone=eu-1", LabelRule::Is(s("zone"), s("eu-1"))),
            ("zone = eu-1", LabelRule::Is(s("zone"), s("eu-1"))),
            ("zone==eu-1", LabelRule::Is(s("zone"), s("eu-1"))),
            ("zone!=eu-1", LabelRule::IsNot(s("zone"), s("eu-1"))),
            ("zone != eu-1", LabelRule::IsNot(s("zone"), s("eu-1"))),
            ("zone=\"\"", LabelRule::Is(s("zone"), s(""))),
            ("zone in (a, b)", LabelRule::In(s("zone"), vec![s("a"), s("b")])),
            ("zone in(a,b)", LabelRule::In(s("zone"), vec![s("a"), s("b")])),
            ("zone notin ( \"a, b\" ,c )", LabelRule::NotIn(s("zone"), vec![s("a, b"), s("c")])),
            ("\"my key\"=\"say \\\"hi\\\\\\\"\"", LabelRule::Is(s("my key"), s("say \"hi\\\""))),
            ("muster.dev/größe=ü", LabelRule::Is(s("muster.dev/größe"), s("ü"))),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_text_that_is_no_rule_is_refused_with_the_reason() {
        let table = [
            ("", "a key is missing"),
            ("!", "a key is missing"),
            ("\"\"", "the key is empty"),
            ("zone=", "a value is missing"),
            ("zone=a b", "`b` is left over"),
            ("zone near (a)", "`near` stands where"),
            ("zone in a", "values stand in round brackets"),
            ("zone in ()", "a value is missing"),
            ("zone in (a", "`,` or `)` is missing"),
            ("zone in (a b)", "`,` or `)` is missing"),
            ("zone in (a) b", "`b` is left over"),
            ("zone=\"a", "a quote is not closed"),
            ("zone=\"a\\", "nothing follows"),
            ("a!b", "`in` or `notin` is missing"),
        ];
        for (text, problem) in table {
            let error = text.parse::<LabelRule>().unwrap_err();
            assert!(error.problem.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn a_rule_holds_exactly_where_it_says() {
        // rule, of zone=a, of zone=b, of no zone
        let table = [
            ("zone", true, true, false),
            ("!zone", false, false, true),
            ("zone=a", true, false, false),
            ("zone!=a", false, true, true),
            ("zone in (a, c)", true, false, false),
            ("zone notin (a, c)", false, true, true),
        ];
        for (text, a, b, none) in table {
            let rule = rule(text);
            assert_eq!(rule.holds(&offer(&[("zone", "a")]).labels), a, "{text} of a");
            assert_eq!(rule.holds(&offer(&[("zone", "b")]).labels), b, "{text} of b");
            assert_eq!(rule.holds(&offer(&[("rack", "a")]).labels), none, "{text} of none");
        }
    }

    #[test]
    fn all_that_an_agent_is_not_is_said_at_once() {
        let requires = Requires {
            os: Some("windows".to_owned()),
            arch: Some("aarch64".to_owned()),
            labels: vec![rule("zone in (a, b)"), rule("rack"), rule("tier=1")],
        };
        let texts: Vec<_> =
            requires.mismatches(&offer(&[("zone", "c"), ("tier", "1")])).iter().map(Mismatch::to_string).collect();
        let expected = [
            "needs os `windows`, has `linux`",
            "needs arch `aarch64`, has `x86_64`",
            "needs label `zone in (a, b)`, has `zone=c`",
            "needs label `rack`, has no label `rack`",
        ];
        assert_eq!(texts, expected);
    }

    fn rules() -> impl Strategy<Value = LabelRule> {
        let key = prop_oneof!["[a-z./-]{1,8}", "\\PC{1,6}", any::<String>()].prop_filter("a key", |k| !k.is_empty());
        let value = prop_oneof!["[a-z0-9]{0,4}", any::<String>()];
        let values = prop::collection::vec(value.clone(), 1..4);
        (key, value, values, 0..6).prop_map(|(key, value, values, form)| match form {
            0 => LabelRule::Has(key),
            1 => LabelRule::Lacks(key),
            2 => LabelRule::Is(key, value),
            3 => LabelRule::IsNot(key, value),
            4 => LabelRule::In(key, values),
            _ => LabelRule::NotIn(key, values),
        })
    }

    proptest! {
        #[test]
        fn a_rule_survives_its_own_text(rule in rules()) {
            prop_assert_eq!(rule.to_string().parse(), Ok(rule));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[a-z !=(),\"\\\\ü]{0,24}") {
            if let Ok(rule) = text.parse::<LabelRule>() {
                prop_assert_eq!(rule.to_string().parse(), Ok(rule));
            }
        }

        #[test]
        fn an_agent_matches_exactly_when_nothing_mismatches(
            labels in prop::collection::btree_map("[ab]", "[ab]", 0..3),
            rules in prop::collection::vec("[ab](=[ab]|!=[ab]| in \\([ab]\\)| notin \\([ab], [ab]\\)|)", 0..4),
            os in prop::option::of("linux|windows"),
        ) {
            let requires = Requires { os, arch: None, labels: rules.iter().map(|text| rule(text)).collect() };
            let offer = Offer { labels, ..offer(&[]) };
            prop_assert_eq!(requires.matches(&offer), requires.mismatches(&offer).is_empty());
        }
    }
}
