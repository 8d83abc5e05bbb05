//! Linux: finds the program that a person means.

use std::{ffi::OsStr, path::Path};

use nix::unistd::{AccessFlags, access};

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
