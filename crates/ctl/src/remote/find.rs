//! Where the controller is: the flag, the variable, the config file, the default; in this order.

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{error::Error, exit::Exit};

/// The variable that names the controller.
pub(crate) const VARIABLE: &str = "MUSTER_CONTROLLER";

/// A controller's address and who named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) url: String,
    pub(crate) source: Source,
}

impl Place {
    /// `HOST:PORT` of each controller. Refuses what this ctl cannot speak, before anything is sent in a way that nobody
    /// asked for.
    pub(crate) fn hosts(&self) -> Result<Vec<String>, Error> {
        let refuse = |what: String| {
            Error::new(Exit::USAGE, format!("`{}` ({}): {what}", self.url, self.source))
                .next("write it like http://127.0.0.1:7717, or 127.0.0.1:7717; several with commas between them")
        };
        let host = |text: &str| {
            let text = text.trim();
            let text = match text.split_once("://") {
                None | Some(("http", _)) => text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/'),
                Some((scheme, _)) => return Err(refuse(format!("`{scheme}` is not spoken here"))),
            };
            if text.is_empty() || text.contains(['/', ' ', '@']) {
                return Err(refuse("an address is no host and port".to_owned()));
            }
            // The colon of a port stands behind the bracket of an IPv6 address.
            let has_port = text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            Ok(if has_port { text.to_owned() } else { format!("{text}:{}", muster_common::DEFAULT_PORT) })
        };
        self.url.split(',').map(host).collect()
    }
}

/// Who named the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Flag,
    Variable,
    File(PathBuf),
    Default,
    /// The system that this very process started.
    Inside,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("--controller"),
            Self::Variable => f.write_str(VARIABLE),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("the default"),
            Self::Inside => f.write_str("this process"),
        }
    }
}

/// `ctl.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    controller: Option<String>,
}

/// The address that somebody named; none when nobody did.
pub(crate) fn named(flag: Option<&str>) -> Result<Option<Place>, Error> {
    let variable = env::var(VARIABLE).ok();
    choose(flag, variable.as_deref(), file_path().as_deref())
}

/// The address to try when nobody named one.
pub(crate) fn fallback() -> Place {
    Place { url: format!("http://127.0.0.1:{}", muster_common::DEFAULT_PORT), source: Source::Default }
}

fn choose(flag: Option<&str>, variable: Option<&str>, file: Option<&Path>) -> Result<Option<Place>, Error> {
    if let Some(text) = flag {
        return Ok(Some(Place { url: url(text), source: Source::Flag }));
    }
    if let Some(text) = variable.filter(|text| !text.is_empty()) {
        return Ok(Some(Place { url: url(text), source: Source::Variable }));
    }
    let Some(path) = file else { return Ok(None) };
    let controller = read(path)?.controller;
    Ok(controller.map(|text| Place { url: url(&text), source: Source::File(path.to_owned()) }))
}

/// `host:port` is enough.
fn url(text: &str) -> String {
    if text.contains("://") { text.to_owned() } else { format!("http://{text}") }
}

fn read(path: &Path) -> Result<File, Error> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(File::default()),
        Err(error) => return Err(Error::new(Exit::USAGE, format!("cannot read {}: {error}", path.display()))),
    };
    toml::from_str(&text).map_err(|error| {
        let error = error.to_string();
        Error::new(Exit::USAGE, format!("{} is not as it should be:\n{}", path.display(), error.trim_end()))
            .next("it may hold one line: controller = \"http://HOST:PORT\"")
    })
}

/// `$XDG_CONFIG_HOME/muster/ctl.toml`, `~/.config/muster/ctl.toml`, `%APPDATA%\muster\ctl.toml`.
fn file_path() -> Option<PathBuf> {
    let folder = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = if cfg!(windows) {
        folder("APPDATA")
    } else {
        folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")))
    };
    Some(config?.join("muster").join("ctl.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_goes_before_the_variable_and_the_variable_before_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ctl.toml");
        fs::write(&file, "controller = \"http://file:1\"\n").unwrap();
        let place = |flag, variable| choose(flag, variable, Some(&file)).unwrap().unwrap();
        assert_eq!(
            place(Some("flag:1"), Some("http://var:1")),
            Place { url: "http://flag:1".into(), source: Source::Flag }
        );
        assert_eq!(place(None, Some("https://var:1")), Place { url: "https://var:1".into(), source: Source::Variable });
        assert_eq!(place(None, Some("")), Place { url: "http://file:1".into(), source: Source::File(file.clone()) });
        assert_eq!(choose(None, None, Some(&dir.path().join("none.toml"))).unwrap(), None);
        assert_eq!(choose(None, None, None).unwrap(), None);
    }

    #[test]
    fn a_scheme_that_is_not_spoken_is_refused_and_never_taken_as_another() {
        let check = |text: &str| Place { url: url(text), source: Source::Flag }.hosts();
        assert_eq!(check("host:1").unwrap(), ["host:1"]);
        assert_eq!(check("http://a:1/,b,http://[::1]:5").unwrap(), ["a:1", "b:7717", "[::1]:5"]);
        for text in ["https://host:1", "ftp://host:1", "://host:1", "a:1,https://b:1"] {
            let error = check(text).unwrap_err();
            assert_eq!(error.exit(), Exit::USAGE, "{text}");
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn a_config_file_with_an_unknown_key_is_refused_with_what_it_may_hold() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ctl.toml");
        fs::write(&file, "controler = \"x\"\n").unwrap();
        let error = choose(None, None, Some(&file)).unwrap_err();
        assert_eq!(error.exit(), Exit::USAGE);
        let text = error.to_string();
        assert!(text.contains("controler") && text.contains("may hold one line"), "{text}");
    }
}
