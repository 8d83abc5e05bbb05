//! The images that tests of containers run: a static busybox and nothing else.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// The image that every test has.
pub const IMAGE: &str = "localhost/muster-test:1";
/// One that has a program of its own, which is not what a task asks for.
pub const ENTRY_IMAGE: &str = "localhost/muster-entry:1";

/// A file that every image has, and no machine.
pub const MARK: &str = "/etc/muster-test-image";

/// What an engine imports for each of them.
pub const CHANGES: [(&str, &[&str]); 2] = [
    (IMAGE, &["--change", "ENV PATH=/bin", "--change", "WORKDIR /work"]),
    (
        ENTRY_IMAGE,
        &[
            "--change",
            "ENV PATH=/bin",
            "--change",
            "WORKDIR /work",
            "--change",
            "ENTRYPOINT [\"/bin/echo\", \"entry\"]",
        ],
    ),
];

/// Makes the archive of which they are made, in `folder`.
pub fn archive(folder: &Path) -> Result<PathBuf> {
    let root = folder.join("root");
    for folder in ["bin", "tmp", "etc", "work"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(root.join(MARK.trim_start_matches('/')), "")?;
    fs::copy(find("busybox").context("no busybox")?, root.join("bin/busybox"))?;
    for applet in ["sh", "sleep", "echo", "cat", "env", "ls", "pwd", "head", "tail", "true", "touch", "mv"] {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    let unloadable = root.join("bin/unloadable");
    fs::write(&unloadable, "#!/nowhere\n")?;
    fs::set_permissions(unloadable, fs::Permissions::from_mode(0o755))?;
    let archive = folder.join("root.tar");
    let packed = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".").output()?;
    ensure!(packed.status.success(), "tar failed: {}", String::from_utf8_lossy(&packed.stderr));
    Ok(archive)
}

/// A program of the search path, or of where those for root are.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|folder| folder.join(program)).find(|file| file.is_file())
}
