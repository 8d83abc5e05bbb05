//! What ctl shows: its own stable structs, made from the protocol's messages. `docs/cli.md` documents every field.

pub(crate) mod access;
pub(crate) mod agent;
pub(crate) mod backup;
pub(crate) mod change;
pub(crate) mod explain;
pub(crate) mod group;
pub(crate) mod job;
pub(crate) mod queue;
pub(crate) mod recommend;
pub(crate) mod resources;
pub(crate) mod stats;
pub(crate) mod status;
pub(crate) mod tally;
pub(crate) mod task;
#[cfg(test)]
mod tests;
pub(crate) mod usage;

/// A text, none when it is empty.
pub(crate) fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// An instant as machines read it.
pub(crate) fn time_of(us: u64) -> Option<String> {
    crate::output::time::instant(us)
}
