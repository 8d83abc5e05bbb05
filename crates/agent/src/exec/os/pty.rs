//! Linux: a terminal for a command: the command's end, which looks like any terminal to it, and ours, behind which a person sits.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{OpenOptionsExt, PermissionsExt, fchown},
    },
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    libc,
    pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
    sys::termios::{InputFlags, SetArg, SpecialCharacterIndices, tcgetattr, tcsetattr},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    start::{Confines, Program, Standard},
    unix::Begun,
    unstarted::Unstarted,
};
use crate::exec::beside::Size;

/// Its user reads and writes it, and whoever writes to terminals of others (the group `tty`): as grantpt(3) leaves it.
const MODE: u32 = 0o620;

/// Our end, which the runtime watches. When it is dropped the kernel hangs up: SIGHUP to the leader of the session and to
/// who is in front.
pub(crate) struct Pty(AsyncFd<OwnedFd>);

/// Both ends, before anything runs there.
pub(super) struct Ends {
    ours: OwnedFd,
    theirs: File,
}

impl Ends {
    /// A new terminal of this size that belongs to `owner`; none: to us.
    pub(super) fn open(size: Size, owner: Option<u32>) -> io::Result<Self> {
        // Nobody who is started by another thread gets it: it would never hang up.
        let ours = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let mut options = OpenOptions::new();
        let theirs = options.read(true).write(true).custom_flags(libc::O_NOCTTY).open(ptsname_r(&ours)?)?;
        // First the mode: afterwards it may be another's.
        theirs.set_permissions(PermissionsExt::from_mode(MODE))?;
        if owner.is_some() {
            fchown(&theirs, owner, None)?;
        }
        let mut modes = tcgetattr(&theirs)?;
        // So that it takes back whole letters while a line is typed.
        modes.input_flags |= InputFlags::IUTF8;
        tcsetattr(&theirs, SetArg::TCSANOW, &modes)?;
        let ours = OwnedFd::from(ours);
        set_size(&ours, size)?;
        Ok(Self { ours, theirs })
    }

    /// Starts `program` there, as the leader of a session of its own. Returns it with our end.
    pub(super) fn start(self, program: &Program, confines: Confines<'_>) -> Result<(Begun, OwnedFd), Unstarted> {
        let theirs = self.theirs.as_fd();
        let standard = Standard { stdin: Some(theirs), stdout: theirs, stderr: theirs, is_terminal: true };
        Ok((Begun::start(program, &standard, confines)?, self.ours))
    }
}

impl Pty {
    /// Must be called inside a runtime.
    pub(super) fn new(ours: OwnedFd) -> io::Result<Self> {
        // SAFETY: `AsyncFd` owns the descriptor from here on, and nobody else closes it.
        #[expect(unsafe_code, reason = "tokio asks for the promise that the descriptor stays open")]
        let ours = unsafe { AsyncFd::register_with_interest(ours, Interest::READABLE | Interest::WRITABLE) }?;
        Ok(Self(ours))
    }

    /// What was written there, at the end of `into`, into the room that it has; 0: nobody has it open any more. Cancel safe.
    pub(crate) async fn read(&self, into: &mut Vec<u8>) -> io::Result<usize> {
        let from = into.len();
        into.resize(into.capacity(), 0);
        let read = self.0.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, &mut into[from..])?)).await;
        into.truncate(from + read.as_ref().map_or(0, |len| *len));
        match read {
            // What the kernel says of a terminal whose other end is closed, once all of it was read.
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => Ok(0),
            read => read,
        }
    }

    /// Types all of this; waits while nobody reads what was typed before.
    pub(crate) async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let len = self.0.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)).await?;
            bytes = &bytes[len..];
        }
        Ok(())
    }

    /// Types what ends the input there (Ctrl-D, unless somebody chose another).
    pub(crate) async fn write_end(&self) -> io::Result<()> {
        let modes = tcgetattr(self.0.get_ref())?;
        self.write(&[modes.control_chars[SpecialCharacterIndices::VEOF as usize]]).await
    }

    /// Gives it another size; who is in front hears of it by SIGWINCH.
    pub(crate) fn resize(&self, size: Size) -> io::Result<()> {
        set_size(self.0.get_ref(), size)
    }
}

fn set_size(terminal: &OwnedFd, size: Size) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: reads a structure that lives here, by a descriptor that is open.
    #[expect(unsafe_code, reason = "nix has no call for it")]
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn what_was_written_before_the_other_end_was_closed_is_read_whole_and_then_there_is_an_end() {
        let Ends { ours, mut theirs } = Ends::open(Size { columns: 80, rows: 24 }, None).expect("a terminal");
        // Several reads, and less than the kernel keeps.
        let lines = "a line of some letters\n".repeat(100);
        theirs.write_all(lines.as_bytes()).expect("there is room");
        drop(theirs);
        let (pty, mut seen) = (Pty::new(ours).expect("watched"), Vec::new());
        loop {
            let mut piece = Vec::with_capacity(100);
            if pty.read(&mut piece).await.expect("no error") == 0 {
                break;
            }
            seen.extend(piece);
        }
        assert_eq!(String::from_utf8(seen).expect("text"), lines.replace('\n', "\r\n"));
    }
}
