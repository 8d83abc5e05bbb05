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
    /// Whose certificates are believed; none: nobody said.
    pub(crate) ca: Option<Trusted>,
    /// Plain text is spoken to other machines, too.
    pub(crate) insecure: bool,
}

/// The file with the CA's certificate, and who named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trusted {
    pub(crate) ca: PathBuf,
    pub(crate) source: String,
}

/// How a connection may be made, as somebody said it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Security<'a> {
    pub(crate) ca: Option<&'a Path>,
    pub(crate) insecure: bool,
}

impl Place {
    /// `HOST:PORT` of each controller. Refuses what this ctl cannot speak, before anything is sent in a way that nobody
    /// asked for.
    pub(crate) fn hosts(&self) -> Result<Vec<String>, Error> {
        let refuse = |what: String| {
            Error::new(Exit::USAGE, format!("`{}` ({}): {what}", self.url, self.source))
                .next("write it like https://HOST:7717, or 127.0.0.1:7717; several with commas between them")
        };
        let host = |text: &str| {
            let text = text.trim();
            let text = match text.split_once("://") {
                None => text.trim_end_matches('/'),
                Some(("http" | "https", rest)) => rest.trim_end_matches('/'),
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

    /// Whom to believe; none: plain text is spoken. Refuses plain text to other machines, unless somebody asked for it.
    pub(crate) fn trusted(&self) -> Result<Option<&Trusted>, Error> {
        let refuse = |what: &str| Error::new(Exit::USAGE, format!("`{}` ({}): {what}", self.url, self.source));
        // Without a scheme it is as the others are, and TLS where a CA is named.
        let schemes = self.url.split(',').filter_map(|text| text.trim().split_once("://").map(|(scheme, _)| scheme));
        let (mut secure, mut plain) = (false, false);
        for scheme in schemes {
            match scheme {
                "https" => secure = true,
                _ => plain = true,
            }
        }
        if secure && plain {
            return Err(refuse("all addresses are https://, or none").next("all controllers speak TLS, or none does"));
        }
        if secure || (!plain && self.ca.is_some()) {
            return self.ca.as_ref().map(Some).ok_or_else(|| {
                refuse("https needs to know whom to trust").next(
                    "name the CA's certificate with --ca FILE, MUSTER_CA or `ca` in ctl.toml; the controller keeps it as \
                     `ca.pem` in its data folder",
                )
            });
        }
        let hosts = self.hosts()?;
        let elsewhere = hosts.iter().find(|host| {
            !muster_common::tls::is_loopback(host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name))
        });
        match elsewhere {
            Some(host) if !self.insecure => Err(refuse(&format!("{host} is another machine, and plain text can be read on the way")).next(
                "use https:// with --ca FILE; or say --insecure (MUSTER_INSECURE=1, `insecure = true` in ctl.toml) on a \
                 network that you trust",
            )),
            _ => Ok(None),
        }
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
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) controller: Option<String>,
    pub(super) ca: Option<PathBuf>,
    #[serde(default)]
    pub(super) insecure: bool,
    /// An access token, or better: where it is.
    pub(super) token: Option<String>,
    /// See `token`.
    pub(super) token_file: Option<PathBuf>,
}

impl fmt::Debug for File {
    /// Never the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("controller", &self.controller).finish_non_exhaustive()
    }
}

/// The address that somebody named; none when nobody did.
pub(crate) fn named(flag: Option<&str>, security: &Security<'_>) -> Result<Option<Place>, Error> {
    let variable = env::var(VARIABLE).ok();
    choose(flag, variable.as_deref(), file_path().as_deref(), security)
}

/// The address to try when nobody named one.
pub(crate) fn fallback(security: &Security<'_>) -> Result<Place, Error> {
    let file = file_path().map(|path| read(&path)).transpose()?.unwrap_or_default();
    let ca = trusted(security, &file, file_path().as_deref());
    let scheme = if ca.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://127.0.0.1:{}", muster_common::DEFAULT_PORT);
    Ok(Place { url, source: Source::Default, ca, insecure: false })
}

fn choose(
    flag: Option<&str>,
    variable: Option<&str>,
    path: Option<&Path>,
    security: &Security<'_>,
) -> Result<Option<Place>, Error> {
    let file = path.map(read).transpose()?.unwrap_or_default();
    let ca = trusted(security, &file, path);
    let insecure = security.insecure || file.insecure;
    let place = |text: &str, source| Place { url: url(text, ca.is_some()), source, ca: ca.clone(), insecure };
    if let Some(text) = flag {
        return Ok(Some(place(text, Source::Flag)));
    }
    if let Some(text) = variable.filter(|text| !text.is_empty()) {
        return Ok(Some(place(text, Source::Variable)));
    }
    let (Some(text), Some(path)) = (&file.controller, path) else { return Ok(None) };
    Ok(Some(place(text, Source::File(path.to_owned()))))
}

fn trusted(security: &Security<'_>, file: &File, path: Option<&Path>) -> Option<Trusted> {
    if let Some(ca) = security.ca {
        return Some(Trusted { ca: ca.to_owned(), source: "--ca or MUSTER_CA".to_owned() });
    }
    let ca = file.ca.clone()?;
    Some(Trusted { ca, source: path.map_or_else(String::new, |path| path.display().to_string()) })
}

/// `host:port` is enough; it is TLS where a CA is named.
fn url(text: &str, secure: bool) -> String {
    match (text.contains("://"), secure) {
        (true, _) => text.to_owned(),
        (false, true) => format!("https://{text}"),
        (false, false) => format!("http://{text}"),
    }
}

pub(super) fn read(path: &Path) -> Result<File, Error> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(File::default()),
        Err(error) => return Err(Error::new(Exit::USAGE, format!("cannot read {}: {error}", path.display()))),
    };
    toml::from_str(&text).map_err(|error| {
        // Its own text would quote the line, which may hold a token.
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let quotes = error.message().contains(muster_common::token::PREFIX);
        let why = if quotes { "this is not what belongs there" } else { error.message() };
        Error::new(Exit::USAGE, format!("{} is not as it should be: line {line}: {why}", path.display()))
            .next("it may hold controller = \"https://HOST:PORT\", ca = \"FILE\", insecure = true, and token_file = \"FILE\" or token = \"…\"")
    })
}

/// `$XDG_CONFIG_HOME/muster/ctl.toml`, `~/.config/muster/ctl.toml`, `%APPDATA%\muster\ctl.toml`.
pub(super) fn file_path() -> Option<PathBuf> {
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

    fn nothing() -> Security<'static> {
        Security::default()
    }

    fn flag(text: &str, security: &Security<'_>) -> Place {
        choose(Some(text), None, None, security).unwrap().unwrap()
    }

    #[test]
    fn a_slip_in_the_file_is_told_by_its_place_and_shows_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ctl.toml");
        let secret = muster_common::token::generate().text;
        let slips = [
            (format!("insecure = true\ntoken = {secret}\n"), "line 2"),
            (format!("token = \"{secret}\n"), "line 1"),
            (format!("\n\ntokn = \"{secret}\"\n"), "line 3: unknown field `tokn`"),
            (format!("token = [\"{secret}\"]\n"), "line 1"),
        ];
        for (text, place) in slips {
            fs::write(&file, &text).unwrap();
            let error = read(&file).unwrap_err().to_string();
            assert!(!error.contains(&secret[16..40]), "{error}");
            assert!(error.contains("ctl.toml") && error.contains(place), "{error}");
        }
        fs::write(&file, format!("token = \"{secret}\"\n")).unwrap();
        assert!(!format!("{:?}", read(&file).unwrap()).contains(&secret[16..40]), "a secret is shown by accident");
    }

    #[test]
    fn the_flag_goes_before_the_variable_and_the_variable_before_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ctl.toml");
        fs::write(&file, "controller = \"http://file:1\"\n").unwrap();
        let place = |flag, variable| {
            let place = choose(flag, variable, Some(&file), &nothing()).unwrap().unwrap();
            (place.url, place.source)
        };
        assert_eq!(place(Some("flag:1"), Some("http://var:1")), ("http://flag:1".into(), Source::Flag));
        assert_eq!(place(None, Some("https://var:1")), ("https://var:1".into(), Source::Variable));
        assert_eq!(place(None, Some("")), ("http://file:1".into(), Source::File(file.clone())));
        assert_eq!(choose(None, None, Some(&dir.path().join("none.toml")), &nothing()).unwrap(), None);
        assert_eq!(choose(None, None, None, &nothing()).unwrap(), None);
    }

    #[test]
    fn a_scheme_that_is_not_spoken_is_refused_and_never_taken_as_another() {
        let check = |text: &str| flag(text, &nothing()).hosts();
        assert_eq!(check("host:1").unwrap(), ["host:1"]);
        assert_eq!(check("http://a:1/,b,http://[::1]:5").unwrap(), ["a:1", "b:7717", "[::1]:5"]);
        assert_eq!(check("https://a:1").unwrap(), ["a:1"]);
        for text in ["ftp://host:1", "://host:1", "a:1,ftp://b:1"] {
            let error = check(text).unwrap_err();
            assert_eq!(error.exit(), Exit::USAGE, "{text}");
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn plain_text_goes_to_this_machine_or_where_somebody_insists() {
        let ca = Path::new("ca.pem");
        let secure = Security { ca: Some(ca), insecure: false };
        let insecure = Security { ca: None, insecure: true };
        for text in ["127.0.0.1:1", "http://localhost", "http://[::1]:5,127.0.0.1"] {
            assert_eq!(flag(text, &nothing()).trusted().unwrap(), None, "{text}");
        }
        for text in ["10.0.0.1:1", "http://host", "127.0.0.1:1,http://host:1"] {
            let error = flag(text, &nothing()).trusted().unwrap_err().to_string();
            assert!(error.contains("--insecure") && error.contains("https://"), "{text}: {error}");
            assert_eq!(flag(text, &insecure).trusted().unwrap(), None, "{text}");
        }
        assert!(flag("https://host", &nothing()).trusted().unwrap_err().to_string().contains("--ca FILE"));
        assert!(flag("https://a,http://127.0.0.1", &secure).trusted().unwrap_err().to_string().contains("or none"));
        for text in ["https://host", "host:1", "https://a,b"] {
            assert_eq!(flag(text, &secure).trusted().unwrap().unwrap().ca, ca, "{text}");
        }
        // Who writes http means it.
        assert_eq!(flag("http://127.0.0.1:1", &secure).trusted().unwrap(), None);
    }

    #[test]
    fn a_config_file_names_the_ca_and_a_flag_goes_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ctl.toml");
        fs::write(&file, "controller = \"host:1\"\nca = \"/etc/ca.pem\"\n").unwrap();
        let place = choose(None, None, Some(&file), &nothing()).unwrap().unwrap();
        assert_eq!(
            (&*place.url, place.trusted().unwrap().unwrap().ca.as_path()),
            ("https://host:1", Path::new("/etc/ca.pem"))
        );
        let security = Security { ca: Some(Path::new("mine.pem")), insecure: false };
        let place = choose(None, None, Some(&file), &security).unwrap().unwrap();
        assert_eq!(place.trusted().unwrap().unwrap().ca, Path::new("mine.pem"));
    }

    #[test]
    fn a_config_file_with_an_unknown_key_is_refused_with_what_it_may_hold() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ctl.toml");
        fs::write(&file, "controler = \"x\"\n").unwrap();
        let error = choose(None, None, Some(&file), &nothing()).unwrap_err();
        assert_eq!(error.exit(), Exit::USAGE);
        let text = error.to_string();
        assert!(text.contains("controler") && text.contains("it may hold"), "{text}");
    }
}
