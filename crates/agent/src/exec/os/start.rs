//! Linux: what to start, kept as the kernel wants it.
//!
//! `std::process::Command` would do the same with an allocation and a tree node for each of twenty
//! variables, and with a new `/dev/null` for each process: a tenth of all that a short task costs.

use std::{
    ffi::{OsStr, OsString, c_char},
    fmt::{Arguments, Display},
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr,
    sync::LazyLock,
};

use nix::unistd::Pid;

use super::{
    child::{self, Ids, Plan},
    unix,
    unstarted::Unstarted,
    who::Who,
};
use crate::cgroup::Place;

/// An empty stdin, opened once.
static NOTHING: LazyLock<io::Result<File>> = LazyLock::new(|| File::open("/dev/null"));

/// A program, its arguments, its environment and its folder.
pub(crate) struct Program {
    /// All strings, each with a zero behind it.
    strings: Vec<u8>,
    file: usize,
    folder: Option<usize>,
    arguments: Vec<usize>,
    variables: Vec<usize>,
    /// A string had a zero of its own, which no program can be given.
    has_zero: bool,
}

/// What a process gets as its three standard descriptors.
pub(super) struct Standard<'a> {
    /// None: nothing to read.
    pub(super) stdin: Option<BorrowedFd<'a>>,
    pub(super) stdout: BorrowedFd<'a>,
    pub(super) stderr: BorrowedFd<'a>,
    /// All three are a terminal, which becomes that of its session.
    pub(super) is_terminal: bool,
}

/// What holds a process from its first instruction on.
#[derive(Clone, Copy, Default)]
pub(crate) struct Confines<'a> {
    /// Its cgroups; none: there are none here.
    pub(crate) place: Option<&'a Place>,
    /// Without cgroups: bytes of data that each of its processes may have. Not of address space, which many programs
    /// take far more of than they use.
    pub(crate) data_limit: Option<u64>,
    /// As whom it runs; none: as we do.
    pub(crate) who: Option<&'a Who>,
    /// It goes beside another process, whose cgroups these are, and enters them by itself.
    pub(crate) joins: Option<&'a [RawFd]>,
}

impl Program {
    /// `file` is where it is; `name` is what it finds as its own name.
    pub(crate) fn new(file: &Path, name: &OsStr) -> Self {
        let mut program = Self {
            strings: Vec::with_capacity(1024),
            file: 0,
            folder: None,
            arguments: Vec::with_capacity(8),
            variables: Vec::with_capacity(32),
            has_zero: false,
        };
        program.file = program.keep(file.as_os_str().as_bytes());
        program.argument(name);
        program
    }

    /// One more argument.
    pub(crate) fn argument(&mut self, argument: &OsStr) {
        let at = self.keep(argument.as_bytes());
        self.arguments.push(at);
    }

    /// A variable; each name once. The environment has nothing but these.
    pub(crate) fn variable(&mut self, name: &OsStr, value: &OsStr) {
        self.variables.push(self.strings.len());
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(b'=');
        self.keep(value.as_bytes());
    }

    /// A variable that is a number.
    pub(crate) fn number(&mut self, name: &str, value: impl Display) {
        self.variables.push(self.strings.len());
        self.format(format_args!("{name}={value}\0"));
    }

    /// All variables, as `NAME=value`.
    pub(crate) fn variables(&self) -> Vec<OsString> {
        self.variables.iter().map(|at| self.string(*at).to_owned()).collect()
    }

    /// Where it starts.
    pub(crate) fn folder(&mut self, folder: &Path) {
        self.folder = Some(self.keep(folder.as_os_str().as_bytes()));
    }

    /// Where the program is.
    pub(crate) fn file(&self) -> &Path {
        Path::new(self.string(self.file))
    }

    /// Whether it has a string that cannot be handed over.
    pub(crate) fn has_zero(&self) -> bool {
        self.has_zero
    }

    fn keep(&mut self, bytes: &[u8]) -> usize {
        let at = self.strings.len();
        self.has_zero |= bytes.contains(&0);
        self.strings.extend_from_slice(bytes);
        self.strings.push(0);
        at
    }

    fn format(&mut self, text: Arguments<'_>) {
        let _never_fails = self.strings.write_fmt(text);
    }

    fn string(&self, at: usize) -> &OsStr {
        let bytes = self.strings.get(at..).unwrap_or_default();
        OsStr::from_bytes(bytes.split(|byte| *byte == 0).next().unwrap_or_default())
    }

    /// Valid while nothing is added.
    fn pointer(&self, at: usize) -> *const c_char {
        self.strings[at..].as_ptr().cast()
    }

    fn pointers(&self, places: &[usize]) -> Vec<*const c_char> {
        places.iter().map(|at| self.pointer(*at)).chain([ptr::null()]).collect()
    }

    /// Starts it as the leader of a new process group, or of a session on its terminal, with its signals as the system has them. Blocks until the program
    /// is loaded, or could not be.
    pub(super) fn start(&self, standard: &Standard<'_>, confines: Confines<'_>) -> Result<(Pid, OwnedFd), Unstarted> {
        if self.has_zero {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        let nothing = NOTHING.as_ref().map_err(|error| io::Error::from(error.kind()))?;
        let stdin = standard.stdin.map_or_else(|| nothing.as_raw_fd(), |fd| fd.as_raw_fd());
        let (arguments, variables) = (self.pointers(&self.arguments), self.pointers(&self.variables));
        // Every string lies in `self.strings`, which nobody changes during the call.
        child::start(&Plan {
            file: self.pointer(self.file),
            folder: self.folder.map_or(ptr::null(), |folder| self.pointer(folder)),
            arguments: arguments.as_ptr(),
            variables: variables.as_ptr(),
            standard: [stdin, standard.stdout.as_raw_fd(), standard.stderr.as_raw_fd()],
            cgroup: confines.place.and_then(|place| place.slot()?.v2()).map(|folder| folder.as_raw_fd()),
            data_limit: confines.data_limit,
            ids: confines.who.and_then(|who| who.identity.as_ref()).map(|identity| Ids {
                uid: identity.uid,
                gid: identity.gid,
                groups: identity.groups.as_ptr(),
                group_count: identity.groups.len(),
            }),
            umask: confines.who.and_then(|who| who.umask).unwrap_or_else(unix::task_umask),
            nice: confines.who.and_then(|who| who.nice),
            is_beside: confines.joins.is_some(),
            joins: confines.joins.unwrap_or_default().as_ptr(),
            join_count: confines.joins.map_or(0, <[_]>::len),
            is_on_terminal: standard.is_terminal,
            no_new_privs: confines.who.is_some_and(|who| who.no_new_privs),
        })
    }
}
