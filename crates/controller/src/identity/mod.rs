//! Who this controller is to others, and the authority in whose name it signs.

mod authority;
mod hosts;
mod own;

pub use self::{
    authority::{Authority, Error, key_hash},
    hosts::hosts,
    own::{Own, Ready},
};
