//! What two programs need to meet: the protocol, its translation, job files, telemetry, the clock.

pub mod clock;
pub mod codec;
pub mod jobfile;
#[cfg(muster_mutants)]
pub mod mutant;
pub mod precedence;
pub mod proto;
pub mod service;
pub mod settings;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod token;
pub mod wire;

/// Where a controller listens that was told nothing else; `ctl` tries it on this machine when nobody names a controller.
pub const DEFAULT_PORT: u16 = 7717;
