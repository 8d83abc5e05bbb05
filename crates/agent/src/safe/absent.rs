//! Where there are no keepers there is no safe either.

/// There is none.
#[derive(Clone, Copy, Debug)]
pub enum Safe {}
