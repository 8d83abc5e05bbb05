//! A build without the drawing: it says so, and how to have it.

use std::{io, time::Duration};

use crate::{picture::Picture, view::View};

fn absent() -> io::Error {
    let text = "this ctl was built without it; `cargo install --path crates/ctl --features top` has it, and so has a \
                build of the whole workspace";
    io::Error::new(io::ErrorKind::Unsupported, text)
}

/// # Errors
/// Always.
pub async fn run<F>(_first: Picture, _view: View, _look: F, _interval: Duration, _colours: bool) -> io::Result<()>
where
    F: AsyncFnMut() -> Picture,
{
    Err(absent())
}

/// # Errors
/// Always.
pub fn frame(_picture: &Picture, _view: &View, _size: (u16, u16)) -> io::Result<String> {
    Err(absent())
}
