//! Linux: what to start, kept as the kernel wants it, and `posix_spawn`.
//!
//! `std::process::Command` would do the same with an allocation and a tree node for each of twenty
//! variables, and with a new `/dev/null` for each process: a tenth of all that a short task costs.

use std::{
    ffi::{OsStr, c_char},
    fmt::{Arguments, Display},
    fs::File,
    io::{self, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    sync::LazyLock,
};

use nix::{libc, unistd::Pid};

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
    fn pointer(&self, at: usize) -> *mut c_char {
        self.strings[at..].as_ptr().cast_mut().cast()
    }

    fn pointers(&self, places: &[usize]) -> Vec<*mut c_char> {
        places.iter().map(|at| self.pointer(*at)).chain([std::ptr::null_mut()]).collect()
    }

    /// Starts it as the leader of a new process group, with no signal blocked and none ignored that
    /// we ignore. Blocks until the program is loaded, or could not be.
    pub(super) fn start(&self, standard: &Standard<'_>) -> io::Result<Pid> {
        if self.has_zero {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut actions = Actions::new()?;
        let nothing = NOTHING.as_ref().map_err(|error| io::Error::from(error.kind()))?;
        actions.give(standard.stdin.map_or_else(|| nothing.as_raw_fd(), |fd| fd.as_raw_fd()), 0)?;
        actions.give(standard.stdout.as_raw_fd(), 1)?;
        actions.give(standard.stderr.as_raw_fd(), 2)?;
        if let Some(folder) = self.folder {
            actions.enter(self.pointer(folder))?;
        }
        let attributes = Attributes::new()?;
        let (arguments, variables) = (self.pointers(&self.arguments), self.pointers(&self.variables));
        let mut pid = 0;
        // SAFETY: the path and every entry of both lists point to zero-terminated strings in
        // `self.strings`, which nobody changes during the call; both lists end with a null; actions
        // and attributes are initialised.
        #[expect(unsafe_code, reason = "posix_spawn, with a folder to start in")]
        let error = unsafe {
            libc::posix_spawn(
                &raw mut pid,
                self.pointer(self.file),
                &raw const actions.0,
                &raw const attributes.0,
                arguments.as_ptr(),
                variables.as_ptr(),
            )
        };
        checked(error).map(|()| Pid::from_raw(pid))
    }
}

/// These calls return their error.
fn checked(error: libc::c_int) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// What the child does before it becomes the program.
struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: initialises what it is given; assumed initialised only if it says so.
        #[expect(unsafe_code, reason = "posix_spawn's own types")]
        unsafe {
            checked(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
            Ok(Self(actions.assume_init()))
        }
    }

    fn give(&mut self, from: libc::c_int, to: libc::c_int) -> io::Result<()> {
        // SAFETY: initialised above; two integers.
        #[expect(unsafe_code, reason = "posix_spawn's own types")]
        checked(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, from, to) })
    }

    fn enter(&mut self, folder: *const c_char) -> io::Result<()> {
        // SAFETY: initialised above; the string is zero-terminated and copied by the call.
        #[expect(unsafe_code, reason = "posix_spawn's own types")]
        checked(unsafe { libc::posix_spawn_file_actions_addchdir_np(&raw mut self.0, folder) })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        #[expect(unsafe_code, reason = "posix_spawn's own types")]
        unsafe {
            libc::posix_spawn_file_actions_destroy(&raw mut self.0);
        }
    }
}

/// A group of its own, an empty signal mask, and SIGPIPE as programs expect it (Rust ignores it).
struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        let mut signals = MaybeUninit::uninit();
        let flags = libc::POSIX_SPAWN_SETPGROUP | libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        // SAFETY: each call initialises or changes what it is given, which lives here; assumed
        // initialised only after the call that does it succeeded.
        #[expect(unsafe_code, reason = "posix_spawn's own types")]
        unsafe {
            checked(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
            let mut made = Self(attributes.assume_init());
            libc::sigemptyset(signals.as_mut_ptr());
            let mut signals = signals.assume_init();
            checked(libc::posix_spawnattr_setflags(&raw mut made.0, flags as libc::c_short))?;
            checked(libc::posix_spawnattr_setpgroup(&raw mut made.0, 0))?;
            checked(libc::posix_spawnattr_setsigmask(&raw mut made.0, &raw const signals))?;
            libc::sigaddset(&raw mut signals, libc::SIGPIPE);
            checked(libc::posix_spawnattr_setsigdefault(&raw mut made.0, &raw const signals))?;
            Ok(made)
        }
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        #[expect(unsafe_code, reason = "posix_spawn's own types")]
        unsafe {
            libc::posix_spawnattr_destroy(&raw mut self.0);
        }
    }
}
