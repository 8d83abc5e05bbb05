//! The live screen of a cluster. It knows no controller: who uses it brings a [`Picture`] now and then.

#[cfg(not(feature = "screen"))]
mod absent;
#[cfg(feature = "screen")]
mod draw;
#[cfg(feature = "screen")]
mod live;
mod picture;
mod view;

#[cfg(not(feature = "screen"))]
pub use absent::{frame, run};
#[cfg(feature = "screen")]
pub use live::{frame, run};
pub use picture::{Agent, End, Picture, Queue, Share, Task, Totals};
pub use view::{Key, Sort, View};
