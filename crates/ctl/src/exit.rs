//! The exit codes of ctl: a promise to scripts. `docs/exit-codes.md` lists every one of them (tested).

/// What the process ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit(pub(crate) u8);

impl Exit {
    /// It was done; for `run`, `wait` and `submit --wait`: the work succeeded.
    pub(crate) const OK: Self = Self(0);
    /// The work failed: at least one task of it did.
    pub(crate) const FAILED: Self = Self(1);
    /// The command line or a file it names is wrong; nothing was submitted or changed.
    pub(crate) const USAGE: Self = Self(2);
    /// No work, agent or queue of that name.
    pub(crate) const NOT_FOUND: Self = Self(3);
    /// No controller answered.
    pub(crate) const UNREACHABLE: Self = Self(4);
    /// The controller refused: no right to it, a limit, a conflict, or a state that does not allow it.
    pub(crate) const REFUSED: Self = Self(5);
    /// The work was cancelled.
    pub(crate) const CANCELLED: Self = Self(6);
    /// `--timeout` of the wait passed first; the work goes on.
    pub(crate) const WAIT_TIMED_OUT: Self = Self(7);
    /// A fault of Muster or of this machine (a full disk, an answer that makes no sense).
    pub(crate) const FAULT: Self = Self(8);
    /// The work was skipped, all of it: what it waited for did not end as it asks.
    pub(crate) const SKIPPED: Self = Self(9);
    /// `run` of a single task: it was stopped at its time limit. The number of timeout(1).
    pub(crate) const TASK_TIMED_OUT: Self = Self(124);
    /// `run` of a single task: no process could be started. The number that shells use.
    pub(crate) const NOT_STARTED: Self = Self(126);
    /// Ctrl-C. 128 + SIGINT, as shells count.
    pub(crate) const INTERRUPTED: Self = Self(130);
    /// `run` of a single task: killed for its memory limit. 128 + SIGKILL.
    pub(crate) const OUT_OF_MEMORY: Self = Self(137);

    /// Every constant with its name in the documents.
    #[cfg(test)]
    pub(crate) const ALL: [(Self, &str); 14] = [
        (Self::OK, "ok"),
        (Self::FAILED, "failed"),
        (Self::USAGE, "usage"),
        (Self::NOT_FOUND, "not-found"),
        (Self::UNREACHABLE, "unreachable"),
        (Self::REFUSED, "refused"),
        (Self::CANCELLED, "cancelled"),
        (Self::WAIT_TIMED_OUT, "wait-timed-out"),
        (Self::FAULT, "fault"),
        (Self::SKIPPED, "skipped"),
        (Self::TASK_TIMED_OUT, "task-timed-out"),
        (Self::NOT_STARTED, "not-started"),
        (Self::INTERRUPTED, "interrupted"),
        (Self::OUT_OF_MEMORY, "out-of-memory"),
    ];

    /// A task's own exit code. Windows knows codes past a byte; what does not fit is 1.
    pub(crate) fn of_process(code: i32) -> Self {
        u8::try_from(code).map_or(Self::FAILED, Self)
    }

    /// A task that a signal ended, as shells count.
    pub(crate) fn of_signal(number: i32) -> Self {
        u8::try_from(number.saturating_add(128)).map_or(Self::FAILED, Self)
    }

    /// The graver of two ends, for a command that waits for several jobs.
    #[must_use]
    pub(crate) fn and(self, other: Self) -> Self {
        let rank = |exit| match exit {
            Self::OK => 0,
            Self::SKIPPED => 1,
            Self::CANCELLED => 2,
            Self::FAILED => 3,
            _ => 4,
        };
        if rank(other) > rank(self) { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::Exit;

    #[test]
    fn every_exit_code_stands_in_the_document_with_its_number_and_name() {
        let text = include_str!("../../../docs/exit-codes.md");
        for (exit, name) in Exit::ALL {
            let row = format!("| {} | `{name}` |", exit.0);
            assert!(text.contains(&row), "docs/exit-codes.md has no row that starts with {row}");
        }
    }

    #[test]
    fn the_document_lists_no_code_that_does_not_exist() {
        let rows = include_str!("../../../docs/exit-codes.md").lines().filter_map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            Some((cells.next()?.parse::<u8>().ok()?, cells.next()?.to_owned()))
        });
        for (number, name) in rows {
            let known = Exit::ALL.iter().any(|(exit, word)| exit.0 == number && name == format!("`{word}`"));
            assert!(known, "docs/exit-codes.md lists {number} {name}, which no constant stands for");
        }
    }

    #[test]
    fn a_process_code_passes_through_and_a_signal_counts_from_128() {
        let table = [(0, 0), (3, 3), (255, 255), (256, 1), (-1, 1)];
        for (code, exit) in table {
            assert_eq!(Exit::of_process(code), Exit(exit), "exit code {code}");
        }
        assert_eq!(Exit::of_signal(9), Exit(137));
        assert_eq!(Exit::of_signal(15), Exit(143));
        assert_eq!(Exit::of_signal(i32::MAX), Exit::FAILED);
    }

    #[test]
    fn of_several_ends_the_gravest_counts() {
        assert_eq!(Exit::OK.and(Exit::FAILED), Exit::FAILED);
        assert_eq!(Exit::FAILED.and(Exit::CANCELLED), Exit::FAILED);
        assert_eq!(Exit::CANCELLED.and(Exit::OK), Exit::CANCELLED);
        assert_eq!(Exit::SKIPPED.and(Exit::CANCELLED), Exit::CANCELLED);
        assert_eq!(Exit::OK.and(Exit::SKIPPED), Exit::SKIPPED);
        assert_eq!(Exit::FAILED.and(Exit::WAIT_TIMED_OUT), Exit::WAIT_TIMED_OUT);
    }
}
