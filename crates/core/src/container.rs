//! What a task runs in, if not on the machine itself: an image, and the folders of the machine that are seen in it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The label of agents that can run containers; its value is what they run them with.
pub const LABEL: &str = "muster.containers";
/// The longest name of an image: what a registry takes for a name, a tag and a digest together.
const MAX_IMAGE: usize = 512;
/// Words that engines read as the kind of a place, where an image's name is meant: `oci:layout` is a folder.
const PLACES: &[&str] = &[
    "atomic",
    "containers-storage",
    "dir",
    "docker",
    "docker-archive",
    "docker-daemon",
    "oci",
    "oci-archive",
    "ostree",
    "sif",
    "tarball",
];

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// As an engine names it: `docker.io/library/alpine:3`.
    pub image: String,
    /// What of the machine is seen inside.
    pub volumes: Vec<Volume>,
}

/// A folder or file of the machine that is seen in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Where it is on the machine.
    pub source: String,
    /// Where it is seen.
    pub target: String,
    /// Whether nothing can be changed through it.
    pub read_only: bool,
}

/// Whether `image` is the name of an image, and nothing that an engine would take for a flag, a folder or an address.
///
/// # Errors
/// What is wrong with it.
pub fn check_image(image: &str) -> Result<(), String> {
    if image.is_empty() {
        return Err("is empty; give the name of an image, like \"docker.io/library/alpine:3\"".to_owned());
    }
    if image.len() > MAX_IMAGE {
        return Err(format!("has {} bytes; at most {MAX_IMAGE} are accepted", image.len()));
    }
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphanumeric())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
    };
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let is_digest = |digest: &str| digest.split_once(':').is_some_and(|(kind, hash)| is_word(kind) && is_word(hash));
    let (folder, last) = name.rsplit_once('/').map_or((None, name), |(folder, last)| (Some(folder), last));
    let (last, tag) = last.split_once(':').map_or((last, None), |(last, tag)| (last, Some(tag)));
    // A registry may have a port.
    let is_host = |host: &str| match host.split_once(':') {
        Some((host, port)) => is_word(host) && port.parse::<u16>().is_ok(),
        None => is_word(host),
    };
    let is_folder = |folder: &str| {
        let mut words = folder.split('/');
        words.next().is_some_and(is_host) && words.all(is_word)
    };
    let is_good =
        is_word(last) && tag.is_none_or(is_word) && folder.is_none_or(is_folder) && digest.is_none_or(is_digest);
    if !is_good {
        return Err(format!(
            "{image:?} is no name of an image; write it like \"alpine\", \"docker.io/library/alpine:3\" or \
             \"registry.example.com:5000/team/tool@sha256:…\""
        ));
    }
    if folder.is_none() && tag.is_some() && PLACES.contains(&last) {
        return Err(format!("{image:?} names a place where an image could be; only names of images are accepted"));
    }
    Ok(())
}

impl Volume {
    /// Whether both ends can be.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        for (which, path) in [("source", &self.source), ("target", &self.target)] {
            if !path.starts_with('/') {
                return Err(format!("has the {which} {path:?}, which is not named from the root"));
            }
            if path.contains([':', ',', '\0', '\n']) {
                return Err(format!("has the {which} {path:?}, which holds `:`, `,` or the end of a line"));
            }
            if path.split('/').any(|word| word == "..") {
                return Err(format!("has the {which} {path:?}, which goes up with `..`"));
            }
        }
        if self.target.split('/').all(|word| word.is_empty() || word == ".") {
            return Err("would hide the whole image behind it; give a folder in the container".to_owned());
        }
        Ok(())
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}{}", self.source, self.target, if self.read_only { ":ro" } else { "" })
    }
}

/// A text that is no volume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no volume: {problem}; write it as \"/on/the/machine:/in/the/container\", with \":ro\" behind it if \
         nothing may be changed"
)]
pub struct VolumeError {
    /// As it was written.
    pub text: String,
    /// What is wrong with it.
    pub problem: String,
}

impl FromStr for Volume {
    type Err = VolumeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |problem: &str| VolumeError { text: text.to_owned(), problem: problem.to_owned() };
        let mut words = text.split(':');
        let (Some(source), Some(target)) = (words.next(), words.next()) else {
            return Err(refuse("it says only one place"));
        };
        let read_only = match (words.next(), words.next()) {
            (None | Some("rw"), None) => false,
            (Some("ro"), None) => true,
            _ => return Err(refuse("what stands behind the second place is neither `ro` nor `rw`")),
        };
        let volume = Self { source: source.to_owned(), target: target.to_owned(), read_only };
        volume.check().map_err(|problem| refuse(&format!("it {problem}")))?;
        Ok(volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_are_told_from_flags_folders_and_addresses() {
        let good = [
            "alpine",
            "alpine:3",
            "docker.io/library/alpine:3.20",
            "localhost/muster-test:1",
            "registry.example.com:5000/team/a_b-c.d:v1",
            "tool@sha256:0123abcd",
            "r.example.com/tool:1@sha256:0123abcd",
            "oci/tool:1",
            "oci",
        ];
        for image in good {
            assert_eq!(check_image(image), Ok(()), "{image}");
        }
        let bad = [
            "",
            "-v",
            "--privileged",
            "/etc",
            "./x",
            "../x",
            "a//b",
            "a/",
            "a:",
            "a:b:c",
            "a b",
            "a\n",
            "a,b",
            "a@b",
            "a@sha256:",
            "docker://alpine",
            "dir:/etc",
            "oci:layout",
            "docker-archive:x",
            "host:port/tool",
            "a/-b",
        ];
        for image in bad {
            assert!(check_image(image).is_err(), "{image:?}");
        }
        assert!(check_image(&"a".repeat(513)).is_err());
    }

    #[test]
    fn a_volume_is_read_and_written_the_same_or_refused_with_the_reason() {
        for text in ["/data:/data", "/a b:/c:ro"] {
            assert_eq!(text.parse::<Volume>().unwrap().to_string(), text);
        }
        assert_eq!("/a:/b:rw".parse::<Volume>().unwrap().to_string(), "/a:/b");
        let table = [
            ("", "only one place"),
            ("/data", "only one place"),
            ("data:/data", "not named from the root"),
            ("/data:data", "not named from the root"),
            ("/data:/x/../y", "goes up"),
            ("/data/..:/y", "goes up"),
            ("/data:/", "hide the whole image"),
            ("/data:/./", "hide the whole image"),
            ("/data:/data:z", "neither `ro` nor `rw`"),
            ("/data:/data:ro:ro", "neither `ro` nor `rw`"),
            ("/a,b:/c", "holds `:`, `,`"),
        ];
        for (text, problem) in table {
            let error = text.parse::<Volume>().unwrap_err();
            assert!(error.problem.contains(problem), "{text}: {error}");
        }
    }
}
