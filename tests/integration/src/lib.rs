//! What the process tests and the bench share: real binaries in folders of their own, waits with limits, and a witness
//! that knows nothing of the product.
#![cfg(unix)]

pub mod binaries;
pub mod certificates;
pub mod collector;
pub mod ctl;
pub mod daemon;
#[cfg(target_os = "linux")]
pub mod docker;
#[cfg(target_os = "linux")]
pub mod engine;
#[cfg(unix)]
pub mod etcd;
#[cfg(target_os = "linux")]
pub mod images;
#[cfg(target_os = "linux")]
pub mod podman;
pub mod probe;
pub mod proxy;
pub mod secure;
pub mod skip;
pub mod system;
pub mod wait;
pub mod witness;
