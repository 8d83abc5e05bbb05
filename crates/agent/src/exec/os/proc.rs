//! Reads `/proc`: who is there, who belongs to whom, and who carries our cookie in its environment.
//!
//! The environment survives `setsid`, double forks and changes of the process group; only a task
//! that hides on purpose (`env -i` and a new session, with its parents dead) escapes it.

use std::{collections::BTreeSet, fs::File, io::Read, path::Path};

/// Marks a process as started by one run of one agent.
pub(crate) const INSTANCE: &str = crate::exec::env::INSTANCE;
/// The variable that says which attempt it belongs to.
pub(crate) const TOKEN: &str = "MUSTER_TOKEN";

/// A kernel thread, in the flags of `/proc/<pid>/stat` (`include/linux/sched.h`).
const PF_KTHREAD: u64 = 0x0020_0000;

/// One process as `/proc/<pid>/stat` tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: i32,
    pub(crate) name: String,
    pub(crate) state: u8,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
    pub(crate) flags: u64,
    /// Its threads that did not end; itself counts until it is reaped.
    pub(crate) threads: u64,
    pub(crate) start: u64,
}

impl Stat {
    /// Reads one process; `None` when it is gone.
    pub(crate) fn read(pid: i32) -> Option<Self> {
        Self::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name may hold anything, brackets and spaces too: what counts is after the last `)`.
    fn parse(text: &[u8]) -> Option<Self> {
        let open = text.iter().position(|byte| *byte == b'(')?;
        let close = text.iter().rposition(|byte| *byte == b')')?;
        let pid = std::str::from_utf8(text.get(..open)?).ok()?.trim().parse().ok()?;
        let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |index: usize| fields.get(index).and_then(|field| field.parse::<i64>().ok());
        Some(Self {
            pid,
            name: String::from_utf8_lossy(text.get(open + 1..close)?).into_owned(),
            state: *fields.first()?.as_bytes().first()?,
            parent: number(1)?.try_into().ok()?,
            group: number(2)?.try_into().ok()?,
            session: number(3)?.try_into().ok()?,
            flags: fields.get(6)?.parse().ok()?,
            threads: fields.get(17)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
        })
    }

    /// A zombie is dead; its parent has only not asked yet. But one of which other threads run is only without its first.
    pub(crate) fn is_dead(&self) -> bool {
        match self.state {
            b'Z' => self.threads <= 1,
            state => matches!(state, b'X' | b'x'),
        }
    }
}

/// A process that lives, and whose it is.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) stat: Stat,
    /// It carries one of the cookies that were asked for; the token beside it, if it has one.
    pub(crate) marked: Option<Option<u64>>,
}

/// Everybody who lives at about one time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scan {
    pub(crate) seen: Vec<Seen>,
    /// A user's process showed no environment: it may have been in the middle of an `exec`.
    pub(crate) unsure: bool,
}

/// Who lives in the session that this process leads.
pub(super) fn session(leader: i32) -> BTreeSet<i32> {
    let Ok(folder) = std::fs::read_dir("/proc") else { return BTreeSet::new() };
    let pids = folder.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let stats = pids.filter_map(Stat::read).filter(|stat| stat.session == leader && !stat.is_dead());
    stats.map(|stat| stat.pid).collect()
}

/// Looks at every process but our own. `cookies` are values of [`INSTANCE`].
pub(crate) fn scan(cookies: &[&str]) -> Scan {
    scan_for(&cookies.iter().map(|cookie| format!("{INSTANCE}={cookie}")).collect::<Vec<_>>())
}

/// The same, where those are marked who have one of these variables, each a name with its value.
pub(super) fn scan_for(variables: &[String]) -> Scan {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let mut scan = Scan::default();
    let mut environment = Vec::new();
    let Ok(folder) = std::fs::read_dir("/proc") else { return scan };
    for entry in folder.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if pid == own {
            continue;
        }
        let Some(stat) = Stat::read(pid) else { continue };
        if stat.is_dead() || stat.flags & PF_KTHREAD != 0 {
            continue;
        }
        let readable = read_into(Path::new(&format!("/proc/{pid}/environ")), &mut environment);
        scan.unsure |= readable && environment.is_empty();
        let marked = variables
            .iter()
            .any(|variable| contains(&environment, variable.as_bytes()))
            .then(|| token_of(&environment));
        scan.seen.push(Seen { stat, marked });
    }
    scan
}

impl Scan {
    /// Every process of one attempt: those that carry its token, those in the group of its leader
    /// (whose number is safe while the leader is not reaped), and all that hang on them.
    pub(crate) fn of_attempt(&self, token: u64, leader: Option<i32>) -> Vec<&Seen> {
        self.closure(|seen| seen.marked == Some(Some(token)) || leader == Some(seen.stat.group))
    }

    /// Every process that carries a cookie and a token that is not live, and all that hang on them.
    pub(crate) fn of_strays(&self, is_live: impl Fn(u64) -> bool) -> Vec<&Seen> {
        self.closure(|seen| matches!(seen.marked, Some(Some(token)) if !is_live(token)))
    }

    /// Every process that carries a cookie, and all that hang on them.
    pub(crate) fn of_any(&self) -> Vec<&Seen> {
        self.closure(|seen| seen.marked.is_some())
    }

    /// Adds children, and members of groups and sessions that one of them leads, until nobody is added.
    fn closure(&self, belongs: impl Fn(&Seen) -> bool) -> Vec<&Seen> {
        let mut chosen: BTreeSet<i32> = BTreeSet::new();
        loop {
            let before = chosen.len();
            for seen in &self.seen {
                let stat = &seen.stat;
                let hangs_on = [stat.parent, stat.group, stat.session].iter().any(|pid| chosen.contains(pid));
                if belongs(seen) || hangs_on {
                    chosen.insert(stat.pid);
                }
            }
            if chosen.len() == before {
                return self.seen.iter().filter(|seen| chosen.contains(&seen.stat.pid)).collect();
            }
        }
    }
}

/// Whether it could be read at all.
fn read_into(path: &Path, into: &mut Vec<u8>) -> bool {
    into.clear();
    File::open(path).and_then(|mut file| file.read_to_end(into)).is_ok()
}

fn contains(environment: &[u8], variable: &[u8]) -> bool {
    environment.split(|byte| *byte == 0).any(|found| found == variable)
}

fn token_of(environment: &[u8]) -> Option<u64> {
    let value = environment
        .split(|byte| *byte == 0)
        .find_map(|variable| variable.strip_prefix(TOKEN.as_bytes())?.strip_prefix(b"="))?;
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_confuse_the_reader() {
        let text = b"77 (a) b (c) S 5 6 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 99 1";
        let stat = Stat::parse(text).expect("parses");
        assert_eq!((stat.pid, stat.name.as_str(), stat.state), (77, "a) b (c", b'S'));
        assert_eq!((stat.parent, stat.group, stat.session, stat.start), (5, 6, 7, 12345));
    }

    #[test]
    fn a_zombie_of_which_threads_run_lives() {
        let table = [
            ("S 5 6 7", 1, false),
            ("Z 5 6 7", 1, true),
            ("Z 5 6 7", 0, true),
            ("Z 5 6 7", 2, false),
            ("X 5 6 7", 2, true),
        ];
        for (state, threads, is_dead) in table {
            let text = format!("77 (a) {state} 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 {threads} 0 12345 99 1");
            let stat = Stat::parse(text.as_bytes()).expect("parses");
            assert_eq!(stat.is_dead(), is_dead, "{text}");
        }
    }

    #[test]
    fn a_torn_or_foreign_line_is_nobody() {
        for text in [&b""[..], b"(", b")(", b"1 (a) S", b"x (a) S 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"] {
            assert_eq!(Stat::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn our_own_parent_is_seen() {
        let parent = nix::unistd::getppid().as_raw();
        assert!(scan(&[]).seen.iter().any(|seen| seen.stat.pid == parent));
    }

    fn seen(pid: i32, parent: i32, group: i32, session: i32, token: Option<u64>) -> Seen {
        let stat = Stat { pid, name: "x".into(), state: b'S', parent, group, session, flags: 0, threads: 1, start: 1 };
        Seen { stat, marked: token.map(Some) }
    }

    fn pids(found: Vec<&Seen>) -> Vec<i32> {
        found.iter().map(|seen| seen.stat.pid).collect()
    }

    #[test]
    fn an_attempt_is_its_cookie_its_group_and_all_that_hang_on_them() {
        let scan = Scan {
            seen: vec![
                seen(9, 8, 9, 9, None),      // a child of 8 that hid its environment in its own session
                seen(10, 1, 9, 9, None),     // in the group of 9
                seen(8, 1, 8, 8, Some(5)),   // carries the token
                seen(20, 1, 7, 1, None),     // in the leader's group
                seen(30, 1, 30, 1, Some(6)), // another attempt
                seen(31, 1, 31, 31, None),   // a stranger
            ],
            unsure: false,
        };
        assert_eq!(pids(scan.of_attempt(5, Some(7))), [9, 10, 8, 20]);
        assert_eq!(pids(scan.of_attempt(5, None)), [9, 10, 8]);
        assert_eq!(pids(scan.of_any()), [9, 10, 8, 30]);
    }

    #[test]
    fn a_cookie_counts_only_as_a_whole_variable() {
        let needle = format!("{INSTANCE}=ab").into_bytes();
        for (text, found) in [
            (format!("{INSTANCE}=ab\0"), true),
            (format!("A=1\0{INSTANCE}=ab\0B=2\0"), true),
            (format!("X{INSTANCE}=ab\0"), false),
            (format!("{INSTANCE}=abc\0"), false),
            (String::new(), false),
        ] {
            assert_eq!(contains(text.as_bytes(), &needle), found, "{text:?}");
        }
        assert_eq!(token_of(b"A=1\0MUSTER_TOKEN=17\0"), Some(17));
        assert_eq!(token_of(b"XMUSTER_TOKEN=17\0"), None);
    }
}
