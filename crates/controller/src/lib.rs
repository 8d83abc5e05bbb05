//! The controller: owns the state of all work. Also a library, so that `ctl dev` runs it in its own process.

pub mod app;
pub mod backup;
pub mod config;
pub mod dispatch;
pub mod engine;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod grpc;
pub mod identity;
#[cfg(feature = "etcd")]
pub mod leader;
pub mod logs;
pub mod store;
pub mod view;
