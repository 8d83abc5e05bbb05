//! The daemon on a machine: runs leased attempts as processes and reports what became of them.

pub mod app;
#[cfg(unix)]
pub mod cgroup;
#[cfg(windows)]
#[path = "cgroup/absent.rs"]
pub mod cgroup;
pub mod config;
pub mod containers;
pub mod exec;
pub mod host;
pub mod journal;
#[cfg(unix)]
pub mod keeper;
pub mod link;
pub mod logs;
#[cfg(unix)]
pub mod safe;
#[cfg(windows)]
#[path = "safe/absent.rs"]
pub mod safe;
pub mod supervisor;
mod visits;
