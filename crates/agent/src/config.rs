//! What an operator may set, and the file in which it is written. Every problem of a file is told at once.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use muster_common::{
    DEFAULT_PORT,
    jobfile::text,
    settings::{self, Key, Problem, words},
    tls::JoinToken,
};
use muster_core::validate;
use toml::de::DeValue;

use crate::{
    cgroup::Enforce,
    containers,
    exec::{Rules, guard},
    host,
    link::{Address, Credential},
};

/// What SIGTERM means: what a service manager sends to restart an agent and to stop it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnStop {
    /// What runs goes on in the keeper, for as long as its leases hold: an agent that is restarted within that loses
    /// nothing.
    #[default]
    Leave,
    /// What runs is ended.
    End,
}

impl std::str::FromStr for OnStop {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "leave" => Ok(Self::Leave),
            "end" => Ok(Self::End),
            _ => Err(format!("`{text}` is not known; write \"leave\" or \"end\"")),
        }
    }
}

/// What an operator may set.
#[derive(Clone, Debug)]
pub struct Config {
    /// The agent's own folder: its identity, its journal, its scratch and output spools.
    pub data_dir: PathBuf,
    /// It may be another machine's: somebody says that the agent there is gone, and this one goes on in its place.
    pub adopt_data: bool,
    /// Controllers, tried in turn: `https://host:port`.
    pub controllers: Vec<String>,
    /// What a person says instead of what was found on the machine.
    pub machine: host::Overrides,
    /// Bytes of output kept for one attempt whose task says nothing.
    pub log_limit: u64,
    /// Bytes of output of all attempts together that the controller does not have yet.
    pub log_quota: u64,
    /// Bytes of output kept for one attempt in a second whose task says nothing; none: no limit.
    pub log_rate: Option<u64>,
    /// The most that a task gets of that, whatever it asks for; none: no limit.
    pub log_rate_max: Option<u64>,
    /// What it joins with, if it has no certificate yet.
    pub join: Option<JoinToken>,
    /// Plain text is spoken to other machines, too: whoever says so trusts the network.
    pub insecure: bool,
    /// What it proves itself with to controllers that ask for an access token.
    pub credential: Credential,
    /// Whether attempts must be held to their limits.
    pub enforce: Enforce,
    /// As whom tasks run, and what they see of the agent's environment.
    pub rules: Rules,
    /// What SIGTERM means.
    pub on_stop: OnStop,
    /// How this program becomes the keeper that owns what runs, so that it outlives the agent; none: it lives and dies
    /// with us.
    pub keeper: Option<guard::Program>,
    /// How long what runs may go on when the agent is asked to stop; none: it is ended at once, with its grace.
    pub drain: Duration,
    /// What is allowed of containers.
    pub containers: containers::Settings,
    /// How this program becomes the guard that ends what a killed agent leaves; none: there is no guard.
    pub guard: Option<guard::Program>,
    /// How often somebody looks whether its loop turns; none: nobody does.
    pub look_every: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("muster-agent-data"),
            adopt_data: false,
            controllers: vec![format!("http://127.0.0.1:{DEFAULT_PORT}")],
            machine: host::Overrides::default(),
            log_limit: 256 << 20,
            log_quota: 4 << 30,
            log_rate: None,
            log_rate_max: None,
            join: None,
            insecure: false,
            credential: Credential::None,
            enforce: Enforce::Auto,
            rules: Rules::default(),
            on_stop: OnStop::default(),
            keeper: None,
            drain: Duration::ZERO,
            containers: containers::Settings::default(),
            guard: None,
            look_every: None,
        }
    }
}

impl Config {
    /// Reads a file; what it does not name keeps its default.
    ///
    /// # Errors
    /// See [`settings::Error`].
    pub fn read(path: &Path) -> Result<Self, settings::Error> {
        settings::read(path, Self::parse)
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// All that is wrong with it, in order of lines.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        settings::parse(text, KEYS, |_, _| None)
    }
}

/// Thousandths of a processor from what a person writes: `4`, `0.5`.
///
/// # Errors
/// What would be accepted.
pub fn cpus(text: &str) -> Result<u64, String> {
    let found = text.parse::<f64>().ok().filter(|cpus| (0.0..=1_000_000.0).contains(cpus));
    // Checked above: neither negative nor large nor NaN.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
    let found = found.map(|cpus| (cpus * 1000.0).round() as u64);
    found.ok_or_else(|| format!("`{text}` is no number of processors; write it as 4 or 0.5"))
}

/// Bytes from what a person writes: `16GiB`, `512MB`, `1073741824`.
///
/// # Errors
/// What would be accepted.
pub fn bytes(text: &str) -> Result<u64, String> {
    text.parse().or_else(|_| text::size(text))
}

/// The same of what would keep nothing at all if it were none.
fn some_bytes(text: &str) -> Result<u64, String> {
    bytes(text).and_then(|n| if n == 0 { Err("must be more than 0: nothing could be kept".to_owned()) } else { Ok(n) })
}

/// Bytes in a second; with none at all nothing would ever be kept.
fn rate(text: &str) -> Result<u64, String> {
    bytes(text)
        .and_then(|n| if n < 1000 { Err(format!("`{text}` is less than 1000 bytes in a second")) } else { Ok(n) })
}

const KEYS: &[Key<Config>] = &[
    ("data", |config, value| words(value).map(|path| config.data_dir = PathBuf::from(path))),
    ("controllers", |config, value| controllers(value).map(|list| config.controllers = list)),
    ("name", |config, value| {
        let checked = |name: String| validate::agent_name(&name).map(|()| name);
        words(value).and_then(checked).map(|name| config.machine.name = Some(name))
    }),
    ("cpus", |config, value| cpus(&number(value)).map(|n| config.machine.cpu_milli = Some(n))),
    ("memory", |config, value| bytes(&number(value)).map(|n| config.machine.memory = Some(n))),
    ("gpus", |config, value| count(value).map(|n| config.machine.gpus = Some(n))),
    ("resources", |config, value| {
        named(table(value, count)?, validate::resource_name).map(|found| config.machine.named = found)
    }),
    ("labels", |config, value| {
        named(table(value, words)?, validate::label_key).map(|found| config.machine.labels = found)
    }),
    ("labels_from", |config, value| words(value).map(|file| config.machine.labels_from = Some(file.into()))),
    ("reserve", |config, value| reserve(&mut config.machine.reserve, value)),
    ("drain", |config, value| {
        let limit = |text: String| text::duration(&text);
        words(value).and_then(limit).map(|limit| config.drain = limit)
    }),
    ("log_limit", |config, value| some_bytes(&number(value)).map(|n| config.log_limit = n)),
    ("join", |config, value| join(value).map(|token| config.join = Some(token))),
    ("insecure", |config, value| truth(value).map(|insecure| config.insecure = insecure)),
    ("log_quota", |config, value| some_bytes(&number(value)).map(|n| config.log_quota = n)),
    ("log_rate", |config, value| rate(&number(value)).map(|n| config.log_rate = Some(n))),
    ("log_rate_max", |config, value| rate(&number(value)).map(|n| config.log_rate_max = Some(n))),
    ("scratch_size", |config, value| some_bytes(&number(value)).map(|n| config.rules.scratch_size = Some(n))),
    ("limits", |config, value| limits(value).map(|enforce| config.enforce = enforce)),
    ("run_as", |config, value| run_as(value, &mut config.rules)),
    ("pass_env", |config, value| variables(value).map(|names| config.rules.pass_env = names)),
    ("on_stop", |config, value| words(value)?.parse().map(|on| config.on_stop = on)),
    ("containers", |config, value| containers::Settings::read(value).map(|found| config.containers = found)),
    ("token_file", |config, value| words(value).map(|file| config.credential = Credential::File(file.into()))),
];

/// A number as it stands there, or the text of a string: what follows says what it should have been.
fn number(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).map_or_else(|_| number.to_string(), |n| n.to_string())
        }
        DeValue::Float(number) => number.to_string(),
        DeValue::String(text) => text.to_string(),
        DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => "this".to_owned(),
    }
}

fn join(value: &DeValue<'_>) -> Result<JoinToken, String> {
    words(value)?.parse().map_err(|_| "must be a token of `ctl admin join-token`".to_owned())
}

/// `[limits]`, which has one key so far.
fn limits(value: &DeValue<'_>) -> Result<Enforce, String> {
    let table = value.as_table().ok_or_else(|| "must be a table: [limits]".to_owned())?;
    table.iter().try_fold(Enforce::default(), |_, (key, value)| match key.get_ref().as_ref() {
        "enforce" => words(value.get_ref())
            .and_then(|word| word.parse())
            .map_err(|expected| format!("has `enforce`, which {expected}")),
        other => Err(format!("has `{other}`, which is not known; known is: enforce")),
    })
}

/// `[run_as]`: whom tasks may be.
fn run_as(value: &DeValue<'_>, rules: &mut Rules) -> Result<(), String> {
    let table = value.as_table().ok_or_else(|| "must be a table: [run_as]".to_owned())?;
    for (key, value) in table {
        let told = |expected| format!("has `{}`, which {expected}", key.get_ref());
        match key.get_ref().as_ref() {
            "user" => rules.user = Some(words(value.get_ref()).map_err(told)?),
            "users" => rules.users = Some(list(value.get_ref()).map_err(told)?),
            _ => return Err(told("is not known; known are: user, users".to_owned())),
        }
    }
    Ok(())
}

/// What is kept for the system: `{ cpus = 0.5, memory = "1GiB", disk = "2GiB" }`.
fn reserve(reserve: &mut host::Reserve, value: &DeValue<'_>) -> Result<(), String> {
    for (name, text) in table(value, |value| Ok(number(value)))? {
        let told = |error: String| format!("has `{name}`, which {error}");
        match name.as_str() {
            "cpus" => reserve.cpu_milli = cpus(&text).map_err(told)?,
            "memory" => reserve.memory = bytes(&text).map_err(told)?,
            "disk" => reserve.disk = Some(bytes(&text).map_err(told)?),
            _ => return Err(format!("has `{name}`, which is not known; known are: cpus, memory, disk")),
        }
    }
    Ok(())
}

fn variables(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let names = list(value)?;
    match names.iter().find(|name| name.contains('=') || name.starts_with("MUSTER_")) {
        Some(name) => Err(format!("has {name:?}, which is no name of a variable that can be passed on")),
        None => Ok(names),
    }
}

fn list(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let expected = || "must be a list of texts: [\"a\", \"b\"]".to_owned();
    let list = value.as_array().ok_or_else(expected)?;
    list.iter().map(|entry| words(entry.get_ref()).map_err(|_| expected())).collect()
}

fn truth(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| "must be true or false".to_owned())
}

fn count(value: &DeValue<'_>) -> Result<u64, String> {
    let found = value.as_integer().and_then(|number| u64::from_str_radix(number.as_str(), number.radix()).ok());
    found.ok_or_else(|| "must be a whole number, 0 or more".to_owned())
}

fn controllers(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let expected = || "must be a list like [\"https://host:7717\"]".to_owned();
    let list = value.as_array().filter(|list| !list.is_empty()).ok_or_else(expected)?;
    let address = |value: &DeValue<'_>| {
        let text = value.as_str().ok_or_else(expected)?;
        text.parse::<Address>().map_err(|error| format!("has a bad entry: {error}"))?;
        Ok(text.to_owned())
    };
    list.iter().map(|value| address(value.get_ref())).collect()
}

/// A table whose names jobs can name.
fn named<T>(table: BTreeMap<String, T>, check: fn(&str) -> Result<(), String>) -> Result<BTreeMap<String, T>, String> {
    let wrong = table.keys().find_map(|name| check(name).err());
    wrong.map_or(Ok(table), |problem| Err(format!("has what no job can name: {problem}")))
}

fn table<T>(value: &DeValue<'_>, entry: fn(&DeValue<'_>) -> Result<T, String>) -> Result<BTreeMap<String, T>, String> {
    let table = value.as_table().ok_or_else(|| "must be a table of names and values".to_owned())?;
    let one = |(key, value): (&toml::Spanned<toml::de::DeString<'_>>, &toml::Spanned<DeValue<'_>>)| {
        let name = key.get_ref().to_string();
        entry(value.get_ref()).map_err(|expected| format!("has `{name}`, which {expected}")).map(|value| (name, value))
    };
    table.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_sets_what_it_names_and_leaves_the_rest() {
        let text = "data = '/srv/agent'\ncontrollers = ['http://a:1', 'b:2']\nname = 'big'\ncpus = 1.5\n\
                    memory = '2GiB'\ngpus = 2\nlog_limit = 1_000\nlog_rate = '1MB'\nlog_rate_max = '8MiB'\nscratch_size = '3GB'\n[resources]\nlicence = 3\n[labels]\nzone = 'a'\n";
        let config = Config::parse(text).expect("it is right");
        assert_eq!(config.data_dir, PathBuf::from("/srv/agent"));
        assert_eq!(config.controllers, ["http://a:1", "b:2"]);
        assert_eq!(config.machine.name.as_deref(), Some("big"));
        assert_eq!((config.machine.cpu_milli, config.machine.gpus), (Some(1500), Some(2)));
        assert_eq!((config.machine.memory, config.log_limit), (Some(2 << 30), 1000));
        assert_eq!((config.log_rate, config.log_rate_max), (Some(1_000_000), Some(8 << 20)));
        assert_eq!(config.rules.scratch_size, Some(3_000_000_000));
        assert_eq!(config.machine.named.get("licence"), Some(&3));
        assert_eq!(config.machine.labels.get("zone").map(String::as_str), Some("a"));
        assert_eq!(config.log_quota, Config::default().log_quota);
        let text =
            "labels_from = '/etc/muster/labels'\ndrain = '5m'\n[reserve]\ncpus = 0.5\nmemory = '1GiB'\ndisk = 7\n";
        let config = Config::parse(text).expect("it is right");
        assert_eq!(config.machine.labels_from, Some(PathBuf::from("/etc/muster/labels")));
        assert_eq!(config.drain, Duration::from_secs(300));
        assert_eq!(config.machine.reserve, host::Reserve { cpu_milli: 500, memory: 1 << 30, disk: Some(7) });
        for (text, start) in [
            ("log_limit = 0", "`log_limit` must be more than 0"),
            ("log_quota = '0GiB'", "`log_quota` must be more than 0"),
            ("scratch_size = 0", "`scratch_size` must be more than 0"),
            ("reserve = 1", "`reserve` must be a table"),
            ("reserve = { fish = 1 }", "`reserve` has `fish`, which is not known; known are: cpus"),
            ("reserve = { cpus = 'many' }", "`reserve` has `cpus`, which `many` is no number of processors"),
            ("log_rate = 0", "`log_rate` `0` is less than 1000 bytes in a second"),
            ("drain = 'soon'", "`drain` "),
        ] {
            let problems = Config::parse(text).expect_err("it is wrong");
            assert!(problems[0].message.starts_with(start), "{problems:?}");
        }
    }

    /// What a package puts into /etc, as it is and with each of its examples taken up.
    #[test]
    fn the_file_that_is_installed_and_each_line_of_it_can_be_used() {
        let text = include_str!("../../../deploy/etc/agent.toml");
        let installed = Config::parse(text).expect("it is right");
        assert_eq!(installed.data_dir, PathBuf::from("/var/lib/muster-agent"));
        let examples: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix('#')).filter(|line| !line.starts_with(' ')).collect();
        assert!(examples.len() > 5, "{examples:?}");
        for example in examples.into_iter().filter(|example| !example.is_empty() && !example.starts_with("join")) {
            Config::parse(example).unwrap_or_else(|problems| panic!("{example}: {problems:?}"));
        }
    }

    #[test]
    fn what_nobody_could_name_is_told_with_its_line() {
        for (text, part) in [
            ("name = 'a b'", "`name` the name of an agent `a b` holds ' '"),
            ("name = '-x'", "`name` the name of an agent `-x` must start with"),
            ("labels = { zone = 'a', 'my zone' = 'a' }", "the key `my zone` holds ' '"),
            ("resources = { cpus = 2 }", "write `cpus` beside `resources`"),
            ("resources = { 'a/b' = 2 }", "`a/b` holds '/'"),
        ] {
            let problem = Config::parse(text).expect_err("it is wrong")[0].to_string();
            assert!(problem.starts_with("line 1: ") && problem.contains(part), "{problem}");
        }
    }

    #[test]
    fn limits_may_be_demanded() {
        let how = |text: &str| Config::parse(text).map(|config| config.enforce);
        assert_eq!(how("[limits]\nenforce = 'required'\n").expect("it is right"), Enforce::Required);
        assert_eq!(how("[limits]\n").expect("it is right"), Enforce::Auto);
        for (text, start) in [
            ("limits = true", "line 1: `limits` must be a table"),
            ("[limits]\nenforce = 'yes'", "line 1: `limits` has `enforce`, which must be \"required\""),
            ("[limits]\nforce = 'off'", "line 1: `limits` has `force`, which is not known"),
        ] {
            let problem = how(text).expect_err("it is wrong")[0].to_string();
            assert!(problem.starts_with(start), "{problem} does not start with {start}");
        }
    }

    #[test]
    fn whom_tasks_may_be_and_what_they_see_is_in_the_file() {
        let text = "pass_env = ['HTTP_PROXY']\n[run_as]\nuser = 'nobody'\nusers = ['alice', 'bob']\n";
        let rules = Config::parse(text).expect("it is right").rules;
        assert_eq!((rules.user.as_deref(), rules.pass_env), (Some("nobody"), vec!["HTTP_PROXY".to_owned()]));
        assert_eq!(rules.users, Some(vec!["alice".to_owned(), "bob".to_owned()]));
        for (text, start) in [
            ("run_as = 'nobody'", "line 1: `run_as` must be a table"),
            ("[run_as]\nusers = 'nobody'", "line 1: `run_as` has `users`, which must be a list of texts"),
            ("[run_as]\ngroup = 'x'", "line 1: `run_as` has `group`, which is not known; known are: user, users"),
            ("pass_env = ['MUSTER_TOKEN']", "line 1: `pass_env` has \"MUSTER_TOKEN\", which is no name"),
        ] {
            let problem = Config::parse(text).expect_err("it is wrong")[0].to_string();
            assert!(problem.starts_with(start), "{problem} does not start with {start}");
        }
    }

    #[test]
    fn an_empty_file_is_the_default() {
        let config = Config::parse("# nothing\n").expect("it is right");
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
    }

    #[test]
    fn every_problem_is_told_at_once_with_its_line_and_what_would_be_right() {
        let text = "nmae = 'x'\ncontrollers = []\ncpus = -1\nmemory = '7 fish'\ngpus = 'two'\nxyz = 1\n\
                    data = ''\nlabels = { zone = 1 }\n";
        let problems: Vec<_> = Config::parse(text).expect_err("it is wrong").iter().map(ToString::to_string).collect();
        let starts = [
            "line 1: `nmae` is not known; did you mean `name`?",
            "line 2: `controllers` must be a list like",
            "line 3: `cpus` `-1` is no number of processors",
            "line 4: `memory` \"7 fish\" is no size",
            "line 5: `gpus` must be a whole number",
            "line 6: `xyz` is not known; known are: data, controllers, name",
            "line 7: `data` must not be empty",
            "line 8: `labels` has `zone`, which must be a text in quotes",
        ];
        assert_eq!(problems.len(), starts.len(), "{problems:#?}");
        for (problem, start) in problems.iter().zip(starts) {
            assert!(problem.starts_with(start), "{problem} does not start with {start}");
        }
    }
}
