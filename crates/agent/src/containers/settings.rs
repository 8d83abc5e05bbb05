//! What an operator allows of containers: the table `[containers]` of the agent's configuration.

use std::path::{Path, PathBuf};

use muster_common::settings::words;
use muster_core::container::{Volume, check_image};
use serde::{Deserialize, Serialize};
use toml::de::DeValue;

#[cfg(unix)]
use super::mounts;

/// The keys of the table; the end of an error about another one.
const KEYS: &str = "engine, images, network, pull, volumes";

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// What runs containers.
    pub engine: Choice,
    /// Images that may be run; `*` stands for any text.
    pub images: Vec<String>,
    /// Folders of the machine that may be seen inside, each with all below it.
    pub volumes: Vec<Allowed>,
    /// The network that containers are in, as the engine names it.
    pub network: String,
    /// When an image is fetched.
    pub pull: Pull,
}

/// What runs containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Choice {
    /// What is found here; if there is nothing, tasks with an image go elsewhere.
    #[default]
    Auto,
    /// Podman, or the agent does not start.
    Podman,
    /// Docker, or the agent does not start.
    Docker,
    /// Nothing.
    Off,
}

/// A folder that may be seen inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    /// On the machine.
    pub path: PathBuf,
    /// Whether nothing in it may be changed.
    pub read_only: bool,
}

/// When an image is fetched from its registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pull {
    /// Before each attempt.
    Always,
    /// When it is not here.
    #[default]
    Missing,
    /// Before each attempt, if there is a newer one; what is here will do if nobody can be asked.
    Newer,
    /// Somebody else brings images here.
    Never,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            engine: Choice::Auto,
            images: vec!["*".to_owned()],
            volumes: Vec::new(),
            network: "host".to_owned(),
            pull: Pull::Missing,
        }
    }
}

impl Pull {
    /// As engines and people write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Missing => "missing",
            Self::Newer => "newer",
            Self::Never => "never",
        }
    }
}

impl Settings {
    /// The table as it stands in the file.
    ///
    /// # Errors
    /// What would be right.
    pub fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let table = value.as_table().ok_or_else(|| "must be a table: [containers]".to_owned())?;
        let mut settings = Self::default();
        for (key, value) in table {
            let (key, value) = (key.get_ref().as_ref(), value.get_ref());
            let read = match key {
                "engine" => words(value).and_then(|word| choice(&word)).map(|engine| settings.engine = engine),
                "images" => list(value).map(|images| settings.images = images),
                "volumes" => list(value).and_then(|texts| allowed(&texts)).map(|volumes| settings.volumes = volumes),
                "network" => words(value).and_then(network).map(|network| settings.network = network),
                "pull" => words(value).and_then(|word| pull(&word)).map(|pull| settings.pull = pull),
                other => return Err(format!("has `{other}`, which is not known; known are: {KEYS}")),
            };
            read.map_err(|expected| format!("has `{key}`, which {expected}"))?;
        }
        Ok(settings)
    }

    /// Whether `image` may be run.
    ///
    /// # Errors
    /// Why not, for the person who wrote the job.
    pub(crate) fn allow_image(&self, image: &str) -> Result<(), String> {
        check_image(image).map_err(|why| format!("the image {why}"))?;
        if self.images.iter().any(|pattern| matches(pattern, image)) {
            return Ok(());
        }
        let list = self.images.join(", ");
        Err(format!("the image {image} is not one that this agent runs; its configuration allows: {list}"))
    }

    /// Where `volume` really is, if it may be seen inside.
    ///
    /// # Errors
    /// Why not, for the person who wrote the job.
    pub(crate) fn allow_volume(&self, volume: &Volume) -> Result<PathBuf, String> {
        volume.check().map_err(|why| format!("the volume {volume} {why}"))?;
        let source = Path::new(&volume.source);
        // Whoever may not see a folder is not told whether it is there.
        if !self.volumes.iter().any(|one| source.starts_with(&one.path)) {
            return Err(self.refused(volume));
        }
        let real = source.canonicalize().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => format!("the volume {} does not exist on this agent", volume.source),
            _ => format!("the volume {} cannot be used: {error}", volume.source),
        })?;
        // A link in an allowed folder may lead out of it.
        if !self.is_allowed(&real, |_| true) {
            return Err(self.refused(volume));
        }
        if !volume.read_only && !self.is_allowed(&real, |one| !one.read_only) {
            return Err(format!("the volume {volume} may only be read on this agent; write {volume}:ro"));
        }
        #[cfg(unix)]
        if volume.read_only {
            self.refuse_mounts(&real, volume)?;
        }
        Ok(real)
    }

    /// Whether `real` lies in one of those allowed folders of which `holds` holds.
    fn is_allowed(&self, real: &Path, holds: impl Fn(&Allowed) -> bool) -> bool {
        let mut those = self.volumes.iter().filter(|one| holds(one));
        those.any(|one| one.path.canonicalize().is_ok_and(|at| real.starts_with(at)))
    }

    /// For reading only is what is mounted at the top: what is mounted below it could be written.
    #[cfg(unix)]
    fn refuse_mounts(&self, real: &Path, volume: &Volume) -> Result<(), String> {
        let mounts = std::fs::read("/proc/self/mountinfo").map_err(|error| {
            format!("the volume {volume} cannot be used: what is mounted in it cannot be told: {error}")
        })?;
        let may_write = |point: &Path| self.is_allowed(point, |one| !one.read_only);
        match mounts::written_below(&String::from_utf8_lossy(&mounts), real, may_write) {
            None => Ok(()),
            Some(point) => Err(format!(
                "the volume {volume} may only be read on this agent, and {} is mounted in it, for which no engine holds to \
                 that; name a folder without it, or have it mounted for reading only",
                point.display()
            )),
        }
    }

    fn refused(&self, volume: &Volume) -> String {
        let list: Vec<_> = self.volumes.iter().map(|one| one.path.display().to_string()).collect();
        let list = if list.is_empty() { "none".to_owned() } else { list.join(", ") };
        format!(
            "the volume {} is not in a folder that this agent shows to containers; its configuration allows: {list}",
            volume.source
        )
    }
}

/// Whether `text` is what `pattern` says, in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

fn choice(word: &str) -> Result<Choice, String> {
    match word {
        "auto" => Ok(Choice::Auto),
        "podman" => Ok(Choice::Podman),
        "docker" => Ok(Choice::Docker),
        "off" => Ok(Choice::Off),
        _ => Err("must be \"auto\", \"podman\", \"docker\" or \"off\"".to_owned()),
    }
}

fn pull(word: &str) -> Result<Pull, String> {
    [Pull::Always, Pull::Missing, Pull::Newer, Pull::Never]
        .into_iter()
        .find(|pull| pull.word() == word)
        .ok_or_else(|| "must be \"missing\", \"never\", \"always\" or \"newer\"".to_owned())
}

fn network(word: String) -> Result<String, String> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':' | '/' | ',' | '=');
    if word.starts_with(|c: char| c.is_ascii_alphanumeric()) && word.chars().all(is_good) {
        return Ok(word);
    }
    Err("must be \"host\", \"private\", \"none\" or the name of a network".to_owned())
}

fn list(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let expected = || "must be a list of texts".to_owned();
    let list = value.as_array().ok_or_else(expected)?;
    list.iter().map(|value| value.get_ref().as_str().map(str::to_owned).ok_or_else(expected)).collect()
}

fn allowed(texts: &[String]) -> Result<Vec<Allowed>, String> {
    let one = |text: &String| {
        let (path, read_only) = text.strip_suffix(":ro").map_or((text.as_str(), false), |path| (path, true));
        let path = PathBuf::from(path);
        let is_whole = path.is_absolute() && !path.components().any(|part| part == std::path::Component::ParentDir);
        let volume = Allowed { path, read_only };
        if is_whole { Ok(volume) } else { Err(format!("names {text:?}; write \"/a/folder\" or \"/a/folder:ro\"")) }
    };
    texts.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn read(text: &str) -> Result<Settings, String> {
        Config::parse(text).map(|config| config.containers).map_err(|problems| problems[0].to_string())
    }

    fn allowing(volumes: &[String]) -> Settings {
        Settings { volumes: allowed(volumes).expect("they are right"), ..Settings::default() }
    }

    #[test]
    fn a_file_says_what_is_allowed_or_hears_what_is_wrong() {
        let text = "[containers]\nengine = 'podman'\nimages = ['localhost/*']\nvolumes = ['/data', '/srv:ro']\n\
                    network = 'none'\npull = 'never'\n";
        let settings = read(text).expect("it is right");
        assert_eq!(settings.engine, Choice::Podman);
        assert_eq!(
            (settings.images, settings.network, settings.pull),
            (vec!["localhost/*".into()], "none".into(), Pull::Never)
        );
        assert_eq!(settings.volumes.iter().map(|one| one.read_only).collect::<Vec<_>>(), [false, true]);
        assert_eq!(read("[containers]\n"), Ok(Settings::default()));
        assert_eq!(read("[containers]\nengine = 'docker'\n").map(|settings| settings.engine), Ok(Choice::Docker));
        let table = [
            ("containers = 1", "`containers` must be a table"),
            ("[containers]\nengine = 'lxc'", "`containers` has `engine`, which must be \"auto\""),
            ("[containers]\nimage = 'x'", "`containers` has `image`, which is not known; known are: engine"),
            ("[containers]\nimages = 'x'", "`containers` has `images`, which must be a list"),
            ("[containers]\nvolumes = ['data']", "`containers` has `volumes`, which names \"data\""),
            ("[containers]\nvolumes = ['/data/../etc']", "`containers` has `volumes`, which names"),
            ("[containers]\nnetwork = '-v'", "`containers` has `network`, which must be \"host\""),
            ("[containers]\npull = 'now'", "`containers` has `pull`, which must be \"missing\""),
        ];
        for (text, start) in table {
            let problem = read(text).expect_err("it is wrong");
            assert!(problem.contains(start), "{problem} does not say {start}");
        }
    }

    #[test]
    fn a_star_stands_for_any_text() {
        let table = [
            ("*", "alpine", true),
            ("alpine", "alpine", true),
            ("alpine", "alpine:3", false),
            ("alpine:*", "alpine:3", true),
            ("*/team/*:v1", "r.example.com/team/tool:v1", true),
            ("*/team/*:v1", "r.example.com/other/tool:v1", false),
            ("localhost/*", "evil.example.com/localhost/x", false),
            ("a*a", "a", false),
            ("", "alpine", false),
        ];
        for (pattern, image, is_allowed) in table {
            assert_eq!(matches(pattern, image), is_allowed, "{pattern} of {image}");
        }
        let settings = Settings { images: vec!["localhost/*".into()], ..Settings::default() };
        let why = settings.allow_image("alpine").expect_err("it is not in the list");
        assert!(why.contains("its configuration allows: localhost/*"), "{why}");
        assert!(Settings::default().allow_image("--privileged").is_err());
    }

    #[cfg(unix)]
    #[test]
    fn only_what_lies_in_an_allowed_folder_is_seen_links_or_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        for name in ["open", "open/in", "openly", "closed", "kept"] {
            std::fs::create_dir(at(name)).expect("ours");
        }
        std::os::unix::fs::symlink(at("closed"), at("open/out")).expect("ours");
        let settings = allowing(&[at("open"), format!("{}:ro", at("kept"))]);
        let see = |source: String, read_only| {
            settings
                .allow_volume(&Volume { source, target: "/x".into(), read_only })
                .map(|path| path.display().to_string())
        };
        assert_eq!(see(at("open/in"), false), Ok(std::fs::canonicalize(at("open/in")).unwrap().display().to_string()));
        assert!(see(at("open"), false).is_ok() && see(at("kept"), true).is_ok());
        for (source, start) in [
            (at("closed"), "is not in a folder"),
            (at("openly"), "is not in a folder"),
            (at("open/out"), "is not in a folder"),
            (at("nowhere"), "is not in a folder"),
            (at("open/nowhere"), "does not exist"),
            (at("open/../closed"), "goes up"),
            (at("kept"), "may only be read"),
        ] {
            let why = see(source, false).expect_err("it is refused");
            assert!(why.contains(start), "{why} does not say {start}");
        }
        let why = allowing(&["/:ro".to_owned()]).allow_volume(&"/:/x:ro".parse().unwrap());
        assert!(why.is_err_and(|why| why.contains(" is mounted in it")), "the root has more mounted below");
        let why = Settings::default().allow_volume(&"/etc:/etc:ro".parse().unwrap()).expect_err("nothing is allowed");
        assert!(why.ends_with("its configuration allows: none"), "{why}");
    }
}
