//! Where there are no keepers there is no safe either.

use std::convert::Infallible;

/// Nobody has one.
#[derive(Clone, Debug)]
pub struct Safe(Infallible);

impl Safe {
    /// See the module.
    pub fn never(&self) -> ! {
        match self.0 {}
    }
}
