//! Linux: finds the program that a person means, and says in words why it cannot be started.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, BufRead, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use nix::{
    errno::Errno,
    unistd::{AccessFlags, access},
};

use super::{start::Program, unix::SHELL};

/// A command that gives `text` to the shell.
pub(crate) fn shell(text: &str) -> Program {
    let mut program = Program::new(Path::new(SHELL), OsStr::new(SHELL));
    program.argument(OsStr::new("-c"));
    program.argument(OsStr::new(text));
    program
}

/// A command for `argv`, its program looked up in `path` from `cwd`; or why there is none.
pub(crate) fn find_program(argv: &[String], path: &OsStr, cwd: &Path) -> Result<Program, String> {
    let (name, arguments) = argv.split_first().ok_or("the command is empty: name a program")?;
    if name.is_empty() {
        return Err("the command's first word is empty: name a program".into());
    }
    let file = if name.contains('/') {
        cwd.join(name)
    } else {
        std::env::split_paths(path)
            .map(|folder| cwd.join(folder).join(name))
            .find(|file| access(file, AccessFlags::X_OK).is_ok() && file.is_file())
            .ok_or_else(|| not_found(name, path))?
    };
    let mut program = Program::new(&file, OsStr::new(name));
    arguments.iter().for_each(|argument| program.argument(OsStr::new(argument)));
    Ok(program)
}

fn not_found(name: &str, path: &OsStr) -> String {
    let near = nearest(name, path).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    format!("the program `{name}` was not found in PATH ({}){near}", path.to_string_lossy())
}

/// The program in `path` whose name is nearest, if it is near at all.
fn nearest(name: &str, path: &OsStr) -> Option<String> {
    let limit = 1 + name.len() / 4;
    std::env::split_paths(path)
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flat_map(|folder| folder.flatten())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .map(|other| (strsim::damerau_levenshtein(name, &other), other))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, other)| other)
}

/// Why `program` could not be started, in words for the person who wrote the job.
pub(crate) fn explain(program: &Program, cwd: &Path, error: &io::Error) -> String {
    if program.has_zero() {
        return "the command has a zero byte in an argument, which no program can be given".into();
    }
    let program = program.file();
    let shown = program.display();
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => match interpreter(program) {
            Some(line) => format!("{shown} asks for the interpreter `{line}` in its first line, which does not exist"),
            None => format!("the program {shown} does not exist on this agent"),
        },
        Some(Errno::EACCES) if program.is_dir() => format!("{shown} is a folder, not a program"),
        Some(Errno::EACCES) => match std::fs::metadata(program) {
            Ok(file) => format!(
                "{shown} is not executable (mode {:o}): `chmod +x` it, or name its interpreter",
                file.permissions().mode() & 0o7777
            ),
            Err(_) => format!("the agent's user may not run {shown} or enter {}", cwd.display()),
        },
        Some(Errno::ENOTDIR) => format!("a part of the path {shown} is not a folder"),
        Some(Errno::ENOEXEC) => {
            format!("{shown} is not a program for this machine: it has no `#!` line, or is built for another processor")
        }
        Some(Errno::E2BIG) => "the arguments and the environment together are larger than this machine takes".into(),
        Some(Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE) => {
            format!("this machine has no room for another process: {error}")
        }
        _ => format!("{shown} could not be started: {error}"),
    }
}

/// What the first line of a script asks for.
fn interpreter(program: &Path) -> Option<String> {
    let mut line = String::new();
    io::BufReader::new(File::open(program).ok()?).take(256).read_line(&mut line).ok()?;
    Some(line.strip_prefix("#!")?.trim().to_owned())
}

/// Whether trying again a little later may help.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE)
    )
}
