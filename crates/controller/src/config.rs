//! What an operator may set, and the file in which it is written. Every problem of a file is told at once.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use muster_common::settings::{self, Key, Problem, words};
use muster_core::{
    access::Enforcement,
    cluster::{self, Placement},
};
use toml::de::DeValue;

/// What an operator may set.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where all state, logs and results are kept.
    pub data_dir: PathBuf,
    /// Where agents and people connect. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// An agent that is silent for this long ends its attempts itself.
    pub lease_ttl: Duration,
    /// How much longer the controller waits before it gives them to another.
    pub lease_margin: Duration,
    /// How often an agent says that it lives.
    pub heartbeat: Duration,
    /// A task that was lost with its agent this often is not tried again.
    pub losses_max: u16,
    /// How long finished jobs are kept.
    pub retention: Duration,
    /// Where a task goes when several agents have room.
    pub placement: Placement,
    /// Bytes of logs kept, all jobs together.
    pub log_quota: u64,
    /// Bytes of logs held in memory before they are stored, all jobs together.
    pub log_buffer: u64,
    /// How it secures connections; none: it speaks plain text, which only `listen` on this machine allows.
    pub tls: Option<Tls>,
    /// Plain text is spoken to other machines, too: whoever says so trusts the network.
    pub insecure: bool,
    /// Its place among others, where the store is etcd.
    pub cluster: Cluster,
    /// Who may do what.
    pub access: Access,
}

/// When callers must say who they are, and how long it is remembered what they did.
#[derive(Clone, Debug)]
pub struct Access {
    /// When they must.
    pub enforcement: Enforcement,
    /// A new token for an admin is made at the start, whatever others there are.
    pub new_admin_token: bool,
    /// Audit records that are kept.
    pub audit_keep: u64,
    /// How long audit records are kept.
    pub audit_age: Duration,
}

impl Default for Access {
    fn default() -> Self {
        let core = cluster::Config::default();
        Self {
            enforcement: Enforcement::default(),
            new_admin_token: false,
            audit_keep: core.audit_keep,
            audit_age: core.audit_age,
        }
    }
}

/// How connections are secured.
#[derive(Clone, Debug)]
pub struct Tls {
    /// PEM files of an authority and its key. None: Muster makes one and keeps it in the store.
    pub authority: Option<(PathBuf, PathBuf)>,
    /// More names and addresses under which this controller is reached.
    pub names: Vec<String>,
    /// How long certificates of agents last; they are renewed when two thirds of it are over.
    pub life: Duration,
}

impl Default for Tls {
    fn default() -> Self {
        // An agent that was off for a holiday comes back by itself.
        Self { authority: None, names: Vec::new(), life: Duration::from_secs(30 * 24 * 3600) }
    }
}

/// What a controller must know to be one of several.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// `etcd://host:port,…`; none: a store of its own in the data folder.
    pub store: Option<String>,
    /// Where the others reach this controller: a URL. None: where it listens.
    pub advertise: Option<String>,
    /// What it is called. None: where it is reached.
    pub name: Option<String>,
    /// How long a leader that is gone is waited for.
    pub session_ttl: Duration,
    /// Bytes of etcd past which new submissions are refused: well below etcd's own quota, which stops everything.
    pub budget: u64,
    /// The name it has at etcd, and the file with its password.
    pub user: Option<String>,
    /// See `user`.
    pub password_file: Option<PathBuf>,
    /// PEM files: who signs etcd's certificates, our own certificate for it, and that one's key.
    pub ca: Option<PathBuf>,
    /// See `ca`.
    pub certificate: Option<PathBuf>,
    /// See `ca`.
    pub key: Option<PathBuf>,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            store: None,
            advertise: None,
            name: None,
            session_ttl: Duration::from_secs(10),
            // Seven tenths of the quota that etcd has unless it is told otherwise.
            budget: (2 << 30) / 10 * 7,
            user: None,
            password_file: None,
            ca: None,
            certificate: None,
            key: None,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        let core = cluster::Config::default();
        Self {
            data_dir: PathBuf::from("muster-data"),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, muster_common::DEFAULT_PORT)),
            lease_ttl: core.lease_ttl,
            lease_margin: core.lease_margin,
            heartbeat: core.lease_ttl / 5,
            losses_max: core.losses_max,
            retention: core.retention,
            placement: core.placement,
            log_quota: 16 << 30,
            log_buffer: 64 << 20,
            tls: None,
            insecure: false,
            cluster: Cluster::default(),
            access: Access::default(),
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
        settings::parse(text, KEYS, |config, is_there| {
            if !is_there("heartbeat") {
                config.heartbeat = config.lease_ttl / 5;
            }
            config.contradiction()
        })
    }

    /// What the core is told of it.
    pub fn core(&self) -> cluster::Config {
        cluster::Config {
            lease_ttl: self.lease_ttl,
            lease_margin: self.lease_margin,
            losses_max: self.losses_max,
            retention: self.retention,
            placement: self.placement,
            audit_keep: self.access.audit_keep,
            audit_age: self.access.audit_age,
        }
    }

    fn contradiction(&self) -> Option<String> {
        // One heartbeat may be late or lost without an agent giving up its work.
        (self.heartbeat * 2 > self.lease_ttl).then(|| {
            let (heartbeat, ttl) = (self.heartbeat, self.lease_ttl);
            format!("`heartbeat` ({heartbeat:?}) must be at most half of `lease_ttl` ({ttl:?})")
        })
    }
}

const KEYS: &[Key<Config>] = &[
    ("data", |config, value| words(value).map(|path| config.data_dir = PathBuf::from(path))),
    ("listen", |config, value| address(value).map(|to| config.listen = to)),
    ("lease_ttl", |config, value| duration(value, Duration::from_secs(1)).map(|d| config.lease_ttl = d)),
    ("lease_margin", |config, value| duration(value, Duration::from_millis(100)).map(|d| config.lease_margin = d)),
    ("heartbeat", |config, value| duration(value, Duration::from_millis(100)).map(|d| config.heartbeat = d)),
    ("losses_max", |config, value| count(value).map(|n| config.losses_max = n)),
    ("retention", |config, value| duration(value, Duration::from_secs(1)).map(|d| config.retention = d)),
    ("placement", |config, value| placement(value).map(|p| config.placement = p)),
    ("log_quota", |config, value| bytes(value).map(|n| config.log_quota = n)),
    ("log_buffer", |config, value| bytes(value).map(|n| config.log_buffer = n)),
    ("tls", |config, value| tls(value).map(|tls| config.tls = tls)),
    ("insecure", |config, value| truth(value).map(|insecure| config.insecure = insecure)),
    ("store", |config, value| words(value).map(|to| config.cluster.store = Some(to))),
    ("advertise", |config, value| words(value).map(|to| config.cluster.advertise = Some(to))),
    ("name", |config, value| words(value).map(|name| config.cluster.name = Some(name))),
    ("session_ttl", |config, value| duration(value, Duration::from_secs(2)).map(|d| config.cluster.session_ttl = d)),
    ("store_budget", |config, value| bytes(value).map(|n| config.cluster.budget = n)),
    ("etcd_user", |config, value| words(value).map(|name| config.cluster.user = Some(name))),
    ("etcd_password_file", |config, value| words(value).map(|file| config.cluster.password_file = Some(file.into()))),
    ("etcd_ca", |config, value| words(value).map(|file| config.cluster.ca = Some(file.into()))),
    ("etcd_certificate", |config, value| words(value).map(|file| config.cluster.certificate = Some(file.into()))),
    ("etcd_key", |config, value| words(value).map(|file| config.cluster.key = Some(file.into()))),
    ("access", |config, value| access(&mut config.access, value)),
];

/// `[access]`
fn access(access: &mut Access, value: &DeValue<'_>) -> Result<(), String> {
    let table = value.as_table().ok_or_else(|| "must be a table: [access]".to_owned())?;
    for (key, value) in table {
        let value = value.get_ref();
        let name: &str = key.get_ref();
        let done = match name {
            "required" => value.as_bool().ok_or_else(|| "must be true or false".to_owned()).map(|required| {
                access.enforcement = if required { Enforcement::Always } else { Enforcement::WithTokens };
            }),
            "audit_keep" => integer(value)
                .and_then(|n| u64::try_from(n).ok())
                .filter(|n| (100..=10_000_000).contains(n))
                .ok_or_else(|| "must be a number from 100 to 10000000".to_owned())
                .map(|n| access.audit_keep = n),
            "audit_age" => duration(value, Duration::from_secs(3600)).map(|age| access.audit_age = age),
            _ => Err("is not known; known are: required, audit_keep, audit_age".to_owned()),
        };
        done.map_err(|expected| format!("has `{name}`, which {expected}"))?;
    }
    Ok(())
}

fn address(value: &DeValue<'_>) -> Result<SocketAddr, String> {
    let expected = "must be an address and a port, like \"0.0.0.0:7717\"";
    value.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| expected.to_owned())
}

fn duration(value: &DeValue<'_>, least: Duration) -> Result<Duration, String> {
    let expected = "must be a time like \"15s\", \"2m\" or \"30d\"";
    let found = value.as_str().and_then(|text| humantime::parse_duration(text).ok());
    let found = found.ok_or_else(|| expected.to_owned())?;
    if found < least { Err(format!("must be at least {least:?}")) } else { Ok(found) }
}

fn truth(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| "must be true or false".to_owned())
}

/// `tls = true`, or a table.
fn tls(value: &DeValue<'_>) -> Result<Option<Tls>, String> {
    let Some(table) = value.as_table() else {
        let is_on = truth(value).map_err(|_| "must be true, or a table like [tls]".to_owned())?;
        return Ok(is_on.then(Tls::default));
    };
    let (mut tls, mut ca, mut ca_key) = (Tls::default(), None, None);
    for (key, value) in table {
        let (name, value) = (key.get_ref(), value.get_ref());
        let set = match &**name {
            "ca" => words(value).map(|path| ca = Some(PathBuf::from(path))),
            "ca_key" => words(value).map(|path| ca_key = Some(PathBuf::from(path))),
            "names" => list(value).map(|names| tls.names = names),
            "life" => duration(value, Duration::from_secs(3)).map(|life| tls.life = life),
            _ => return Err(format!("has `{name}`, which is not known; known are: ca, ca_key, names, life")),
        };
        set.map_err(|expected| format!("has `{name}`, which {expected}"))?;
    }
    tls.authority = match (ca, ca_key) {
        (None, None) => None,
        (Some(ca), Some(key)) => Some((ca, key)),
        _ => return Err("needs `ca` and `ca_key` together, or none of them".to_owned()),
    };
    Ok(Some(tls))
}

fn list(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let expected = || "must be a list of texts like [\"muster.example.org\"]".to_owned();
    value.as_array().ok_or_else(expected)?.iter().map(|value| words(value.get_ref()).map_err(|_| expected())).collect()
}

fn count(value: &DeValue<'_>) -> Result<u16, String> {
    let found = integer(value).and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    found.ok_or_else(|| format!("must be a number from 1 to {}", u16::MAX))
}

fn placement(value: &DeValue<'_>) -> Result<Placement, String> {
    match value.as_str() {
        Some("pack") => Ok(Placement::Pack),
        Some("spread") => Ok(Placement::Spread),
        _ => Err("must be \"pack\" or \"spread\"".to_owned()),
    }
}

fn bytes(value: &DeValue<'_>) -> Result<u64, String> {
    const UNITS: &[(&str, u64)] = &[("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40), ("B", 1)];
    let of_text = |text: &str| {
        let (digits, unit) = UNITS.iter().find_map(|(unit, size)| Some((text.strip_suffix(unit)?, size)))?;
        digits.trim().parse::<u64>().ok()?.checked_mul(*unit)
    };
    let found = integer(value).and_then(|n| u64::try_from(n).ok()).or_else(|| value.as_str().and_then(of_text));
    found.filter(|n| *n >= 1 << 20).ok_or_else(|| "must be at least 1 MiB, like \"64 MiB\" or \"16 GiB\"".to_owned())
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let number = value.as_integer()?;
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_sets_what_it_names_and_leaves_the_rest() {
        let text = "data = '/srv/muster'\nlisten = '0.0.0.0:9000'\nlease_ttl = '4s'\nretention = '7d'\n\
                    placement = 'spread'\nlosses_max = 2\nlog_quota = '2 GiB'\nlog_buffer = 8_388_608\n";
        let config = Config::parse(text).expect("it is right");
        assert_eq!(config.data_dir, PathBuf::from("/srv/muster"));
        assert_eq!(config.listen, SocketAddr::from(([0, 0, 0, 0], 9000)));
        assert_eq!((config.lease_ttl, config.heartbeat), (Duration::from_secs(4), Duration::from_millis(800)));
        assert_eq!(config.retention, Duration::from_secs(7 * 24 * 3600));
        assert_eq!((config.placement, config.losses_max), (Placement::Spread, 2));
        assert_eq!((config.log_quota, config.log_buffer), (2 << 30, 8 << 20));
        assert_eq!(config.lease_margin, Config::default().lease_margin);
    }

    #[test]
    fn tls_is_a_word_or_a_table() {
        assert!(Config::parse("tls = true").unwrap().tls.is_some());
        assert!(Config::parse("tls = false").unwrap().tls.is_none());
        let text = "insecure = true\n[tls]\nca = 'a'\nca_key = 'b'\nnames = ['x', '10.0.0.1']\nlife = '7d'\n";
        let config = Config::parse(text).expect("it is right");
        let tls = config.tls.expect("it is on");
        assert_eq!(tls.authority, Some(("a".into(), "b".into())));
        assert_eq!((tls.names.len(), tls.life, config.insecure), (2, Duration::from_secs(7 * 24 * 3600), true));
        for (text, problem) in [
            ("tls = 'yes'", "must be true, or a table"),
            ("tls = { ca = 'a' }", "`ca` and `ca_key` together"),
            ("tls = { cert = 'a' }", "known are: ca, ca_key, names, life"),
            ("tls = { life = '1s' }", "has `life`, which must be at least 3s"),
            ("tls = { names = 'x' }", "has `names`, which must be a list"),
            ("insecure = 1", "must be true or false"),
        ] {
            let problems = Config::parse(text).expect_err(text);
            assert!(problems[0].message.contains(problem), "{text}: {}", problems[0]);
        }
    }

    #[test]
    fn the_table_of_access_says_who_is_asked_and_what_is_kept() {
        let parse = |text: &str| Config::parse(text).map(|config| config.access);
        assert_eq!(parse("").unwrap().enforcement, Enforcement::WithTokens);
        let access = parse("[access]\nrequired = true\naudit_keep = 1000\naudit_age = '90d'\n").unwrap();
        assert_eq!((access.enforcement, access.audit_keep), (Enforcement::Always, 1000));
        assert_eq!(access.audit_age, Duration::from_secs(90 * 24 * 3600));
        let wrong = [
            ("access = 1", "`access` must be a table"),
            ("[access]\nrequired = 'yes'", "`access` has `required`, which must be true or false"),
            ("[access]\naudit_keep = 1", "`access` has `audit_keep`, which must be a number from 100"),
            ("[access]\nreqiured = true", "known are: required, audit_keep, audit_age"),
        ];
        for (text, part) in wrong {
            let problem = parse(text).expect_err("it is wrong")[0].to_string();
            assert!(problem.contains(part), "{problem}");
        }
    }

    /// What a package puts into /etc, as it is and with each of its examples taken up.
    #[test]
    fn the_file_that_is_installed_and_each_line_of_it_can_be_used() {
        let text = include_str!("../../../deploy/etc/controller.toml");
        let installed = Config::parse(text).expect("it is right");
        assert_eq!(installed.data_dir, PathBuf::from("/var/lib/muster"));
        let examples: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix('#')).filter(|line| !line.starts_with(' ')).collect();
        assert!(examples.len() > 5, "{examples:?}");
        for example in examples.into_iter().filter(|example| !example.is_empty()) {
            Config::parse(example).unwrap_or_else(|problems| panic!("{example}: {problems:?}"));
        }
    }

    #[test]
    fn an_empty_file_is_the_default() {
        let config = Config::parse("# nothing\n").expect("it is right");
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
    }

    #[test]
    fn every_problem_is_told_at_once_with_its_line_and_what_would_be_right() {
        let text = "lissten = '127.0.0.1:1'\nlisten = 'here'\n\nlosses_max = 0\nretention = '1 fortnight'\nxyz = 1\n\
                    log_quota = '3'\nlease_ttl = 15\nplacement = 'random'\ndata = ''\n";
        let problems: Vec<_> = Config::parse(text).expect_err("it is wrong").iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "line 1: `lissten` is not known; did you mean `listen`?",
                "line 2: `listen` must be an address and a port, like \"0.0.0.0:7717\"",
                "line 4: `losses_max` must be a number from 1 to 65535",
                "line 5: `retention` must be a time like \"15s\", \"2m\" or \"30d\"",
                "line 6: `xyz` is not known; known are: data, listen, lease_ttl, lease_margin, heartbeat, losses_max, \
                 retention, placement, log_quota, log_buffer, tls, insecure, store, advertise, name, session_ttl, \
                 store_budget, etcd_user, etcd_password_file, etcd_ca, etcd_certificate, etcd_key, access",
                "line 7: `log_quota` must be at least 1 MiB, like \"64 MiB\" or \"16 GiB\"",
                "line 8: `lease_ttl` must be a time like \"15s\", \"2m\" or \"30d\"",
                "line 9: `placement` must be \"pack\" or \"spread\"",
                "line 10: `data` must not be empty",
            ]
        );
    }

    #[test]
    fn a_heartbeat_that_cannot_hold_a_lease_is_refused() {
        let problems = Config::parse("lease_ttl = '2s'\nheartbeat = '1500ms'").expect_err("it is wrong");
        assert_eq!(problems[0].message, "`heartbeat` (1.5s) must be at most half of `lease_ttl` (2s)");
    }

    #[test]
    fn a_text_that_is_no_toml_names_the_line() {
        let problems = Config::parse("data = 'x'\nlisten = \n").expect_err("it is wrong");
        assert_eq!(problems[0].line, 2, "{problems:?}");
    }
}
