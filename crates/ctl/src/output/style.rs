//! Colours: where a terminal shows them and nobody said no.

use std::io::IsTerminal as _;

/// What a word means; how it looks is decided here alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    Plain,
    Head,
    Dim,
    Good,
    Bad,
    Busy,
    Warn,
}

/// `--color`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum When {
    /// On terminals, unless NO_COLOR is set.
    #[default]
    Auto,
    Always,
    Never,
}

/// Whether one stream shows colours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    on: bool,
}

impl Style {
    /// No colours.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self { on: false };

    /// For standard output.
    pub(crate) fn stdout(when: When) -> Self {
        Self::decide(when, std::io::stdout().is_terminal())
    }

    /// For standard error.
    pub(crate) fn stderr(when: When) -> Self {
        Self::decide(when, std::io::stderr().is_terminal())
    }

    fn decide(when: When, terminal: bool) -> Self {
        // https://no-color.org: any value but the empty one.
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let on = match when {
            When::Always => true,
            When::Never => false,
            When::Auto => terminal && !refused && !dumb,
        };
        Self { on }
    }

    /// Whether there are colours.
    pub(crate) fn is_on(self) -> bool {
        self.on
    }

    /// `text` as `look` looks on this stream.
    pub(crate) fn paint(self, look: Look, text: &str) -> String {
        let code = match look {
            Look::Plain => return text.to_owned(),
            Look::Head => "1",
            Look::Dim => "2",
            Look::Good => "32",
            Look::Bad => "31",
            Look::Busy => "36",
            Look::Warn => "33",
        };
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// How a state's word looks.
pub(crate) fn of_state(word: &str) -> Look {
    match word {
        "succeeded" | "connected" => Look::Good,
        "failed" | "lost" => Look::Bad,
        "running" => Look::Busy,
        "retrying" | "cancelled" | "silent" | "away" | "paused" | "cordoned" | "draining" | "drained" | "stopping"
        | "unfit" => Look::Warn,
        "skipped" | "waiting" | "scheduled" | "stopped" => Look::Dim,
        _ => Look::Plain,
    }
}
