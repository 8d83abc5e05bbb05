//! What ctl proves who asks with: an access token from a file, the environment or the configuration. Never from the
//! command line, which everybody on the machine can read.

use std::{fmt, fs, path::Path};

use muster_common::token;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
};

use super::find;
use crate::{error::Error, exit::Exit};

/// A token is a hundred bytes.
const FILE_MAX: u64 = 4096;

/// Goes with every call. Without a token it says nothing.
#[derive(Clone, Default)]
pub(crate) struct Credential {
    header: Option<MetadataValue<Ascii>>,
}

impl fmt::Debug for Credential {
    /// Never the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.header.is_some() { "Credential(token)" } else { "Credential(none)" })
    }
}

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.header {
            request.metadata_mut().insert("authorization", header.clone());
        }
        Ok(request)
    }
}

/// The token that somebody gave: the flag, the variable, the configuration; in this order.
pub(crate) fn find(flag: Option<&Path>) -> Result<Credential, Error> {
    let file = find::file_path();
    let settings = file.as_deref().map(find::read).transpose()?.unwrap_or_default();
    choose(flag, token::from_environment().as_deref(), &settings, file.as_deref())
}

fn choose(
    flag: Option<&Path>,
    variable: Option<&str>,
    settings: &find::File,
    file: Option<&Path>,
) -> Result<Credential, Error> {
    if let Some(path) = flag {
        return from_file(path);
    }
    if let Some(text) = variable.filter(|text| !text.is_empty()) {
        return from_text(text, token::VARIABLE);
    }
    if let Some(path) = &settings.token_file {
        // Beside the file that names it, unless it says more.
        let folder = file.and_then(Path::parent).map(Path::to_owned).unwrap_or_default();
        return from_file(&folder.join(path));
    }
    match (&settings.token, file) {
        (Some(text), Some(file)) => from_text(text, &file.display().to_string()),
        _ => Ok(Credential::default()),
    }
}

fn from_file(path: &Path) -> Result<Credential, Error> {
    let refuse = |why: String| {
        Error::new(Exit::USAGE, format!("cannot read the access token in {}: {why}", path.display()))
            .next("name the file that holds it with --token-file")
    };
    let size = fs::metadata(path).map_err(|error| refuse(error.to_string()))?.len();
    if size > FILE_MAX {
        return Err(refuse(format!("it has {size} bytes, which no token has")));
    }
    let text = fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
    from_text(&text, &path.display().to_string())
}

/// Looked at before it is sent: another service's secret must not go to a controller, and a slip is told at once.
fn from_text(text: &str, place: &str) -> Result<Credential, Error> {
    let text = text.trim();
    token::parse(text).map_err(|error| Error::new(Exit::USAGE, format!("{place}: {error}")))?;
    let mut header: MetadataValue<Ascii> = format!("Bearer {text}")
        .parse()
        .map_err(|_| Error::new(Exit::USAGE, format!("{place}: this access token cannot be sent")))?;
    header.set_sensitive(true);
    Ok(Credential { header: Some(header) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(credential: &Credential) -> Option<String> {
        let request = credential.clone().call(Request::new(())).unwrap();
        request.metadata().get("authorization").map(|header| header.to_str().unwrap().to_owned())
    }

    #[test]
    fn the_flag_goes_before_the_variable_and_the_variable_before_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let tokens: Vec<_> = (0..4).map(|_| token::generate().text).collect();
        let (flag, named) = (dir.path().join("flag"), dir.path().join("named"));
        fs::write(&flag, format!("{}\n", tokens[0])).unwrap();
        fs::write(&named, &tokens[2]).unwrap();
        let config = dir.path().join("ctl.toml");
        let by_file = find::File { token_file: Some("named".into()), ..Default::default() };
        let by_text = find::File { token: Some(tokens[3].clone()), ..Default::default() };
        let cases = [
            (Some(flag.as_path()), Some(tokens[1].as_str()), &by_file, Some(0)),
            (None, Some(tokens[1].as_str()), &by_file, Some(1)),
            (None, Some(""), &by_file, Some(2)),
            (None, None, &by_text, Some(3)),
            (None, None, &find::File::default(), None),
        ];
        for (n, (flag, variable, settings, expected)) in cases.into_iter().enumerate() {
            let credential = choose(flag, variable, settings, Some(&config)).unwrap();
            assert_eq!(sent(&credential), expected.map(|at: usize| format!("Bearer {}", tokens[at])), "case {n}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused_before_it_is_sent_and_never_shown() {
        for text in ["hunter2", "muster_abcd2345_short"] {
            let error = choose(None, Some(text), &find::File::default(), None).unwrap_err();
            assert_eq!(error.exit(), Exit::USAGE);
            assert!(error.to_string().starts_with("MUSTER_TOKEN: this "), "{error}");
            assert!(!error.to_string().contains(text), "{error}");
        }
        let missing = choose(Some(Path::new("/nonexistent/token")), None, &find::File::default(), None).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/token"), "{missing}");
    }

    #[test]
    fn a_token_is_not_shown_by_accident() {
        let text = token::generate().text;
        let credential = from_text(&text, "x").unwrap();
        assert_eq!(format!("{credential:?}"), "Credential(token)");
        let request = credential.clone().call(Request::new(())).unwrap();
        assert!(!format!("{request:?}").contains(&text[16..]), "{request:?}");
    }
}
