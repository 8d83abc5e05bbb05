//! What two programs need to meet: the protocol, its translation, job files, telemetry, the clock.

pub mod clock;
pub mod proto;
pub mod shutdown;
pub mod telemetry;
pub mod wire;
