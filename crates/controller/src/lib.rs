//! The controller: owns the state of all work. Also a library, so that `ctl dev` runs it in its own process.

pub mod app;
pub mod config;
pub mod dispatch;
pub mod engine;
pub mod grpc;
pub mod logs;
pub mod store;
pub mod view;
