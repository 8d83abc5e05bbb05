//! Linux: open files that travel through a socket, and the clock that all processes of a machine share.

use std::{
    collections::VecDeque,
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    time::Duration,
};

use nix::{
    libc,
    time::{ClockId, clock_gettime},
};

/// `SCM_MAX_FD`: more do not go with one byte.
const FILES_MAX: usize = 253;
/// Room for as many descriptors, in words that are aligned as the kernel wants it.
const CONTROL: usize = 16 + FILES_MAX / 2;

/// Reads once, without waiting, and keeps the files that came with it. A process that may open no more of them gets
/// those that it may, and hears that some are lost. Returns how many bytes came, and whether all files did.
pub(crate) fn receive(socket: RawFd, into: &mut [u8], files: &mut VecDeque<OwnedFd>) -> io::Result<(usize, bool)> {
    let mut control = [0_u64; CONTROL];
    let mut part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: all zeros is a message header that names nothing.
    #[expect(unsafe_code, reason = "a structure of the system")]
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = std::mem::size_of_val(&control) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header names two buffers of this frame with their true lengths.
    #[expect(unsafe_code, reason = "a system call")]
    let got = unsafe { libc::recvmsg(socket, &raw mut header, flags) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel filled `control` with whole messages and set its length; each descriptor in them was made for
    // us by this call and belongs to nobody else.
    #[expect(unsafe_code, reason = "messages of the kernel's own form")]
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(&raw const header);
        while let Some(head) = message.as_ref() {
            if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
                let bytes = head.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
                let data = libc::CMSG_DATA(message).cast::<RawFd>();
                for at in 0..bytes / size_of::<RawFd>() {
                    files.push_back(OwnedFd::from_raw_fd(data.add(at).read_unaligned()));
                }
            }
            message = libc::CMSG_NXTHDR(&raw const header, message);
        }
    }
    Ok((got, header.msg_flags & libc::MSG_CTRUNC == 0))
}

/// How long this machine runs, on the clock that leases are counted on.
pub(crate) fn running_for() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}
