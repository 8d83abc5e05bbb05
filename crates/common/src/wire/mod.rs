//! Bytes become meaning here, and meaning becomes bytes: the one translation between `muster.v1`
//! and `core`. What comes in is checked; what cannot be is refused with the place it is at.

pub mod access;
pub mod facts;
mod identity;
pub mod link;
pub mod record;
mod run_as;
pub mod spec;
pub mod work;

/// Why something that came from a wire or a disk was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A message says what cannot be. Its sender is at fault; sending it again is of no use.
    #[error("{path}: {problem}")]
    Field {
        /// Where: `tasks[2].role`.
        path: String,
        /// What, and what would be accepted.
        problem: String,
    },
    /// A name in the store that no version of Muster gave.
    #[error("`{key}` is no key of a Muster store; take away what does not belong there")]
    Key {
        /// As it was found, made printable.
        key: String,
    },
    /// A record that a newer Muster wrote. It is not touched.
    #[error("record `{key}` has version {found} and this build knows up to {known}; start a newer muster-controller")]
    Newer {
        /// Its key.
        key: String,
        /// What it says.
        found: u32,
        /// The highest version that this build reads.
        known: u32,
    },
    /// A record that cannot be read as what its key says.
    #[error("record `{key}` is damaged")]
    Damaged {
        /// Its key.
        key: String,
        /// What was found.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    fn field(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Field { path: path.into(), problem: problem.into() }
    }

    /// The same, seen from the message around it.
    fn inside(self, outer: impl std::fmt::Display) -> Self {
        match self {
            Self::Field { path, problem } => Self::Field { path: format!("{outer}.{path}"), problem },
            other @ (Self::Key { .. } | Self::Newer { .. } | Self::Damaged { .. }) => other,
        }
    }
}

/// An empty text on the wire is none.
fn text(value: Option<&str>) -> String {
    value.unwrap_or_default().to_owned()
}

/// An empty text on the wire is none.
fn some_text<T: for<'a> From<&'a str>>(value: &str) -> Option<T> {
    (!value.is_empty()).then(|| T::from(value))
}

fn required<T>(value: Option<T>, path: &str) -> Result<T, Error> {
    value.ok_or_else(|| Error::field(path, "is missing"))
}

fn narrow<T: TryFrom<N>, N: Copy + std::fmt::Display>(value: N, path: &str) -> Result<T, Error> {
    T::try_from(value).map_err(|_| Error::field(path, format!("{value} is out of range")))
}

fn unknown_value(path: &str, value: i32, known: &str) -> Error {
    Error::field(path, format!("{value} is not known to this build; it knows {known}"))
}

#[cfg(test)]
mod tests;
