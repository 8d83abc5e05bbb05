//! Everything that is proved on the tree itself and on the real binaries.

#[cfg(unix)]
mod access;
#[cfg(target_os = "linux")]
mod adopted;
mod tidy;

#[cfg(unix)]
mod backups;
#[cfg(target_os = "linux")]
mod booted;
#[cfg(unix)]
mod clock;
mod cluster;

#[cfg(unix)]
mod commands;
#[cfg(target_os = "linux")]
mod containers;
#[cfg(unix)]
mod crash;
#[cfg(unix)]
mod disk;
#[cfg(target_os = "linux")]
mod docker;
#[cfg(unix)]
mod etcd_store;
#[cfg(unix)]
mod exec;
#[cfg(unix)]
mod first_command;
#[cfg(unix)]
mod fleet;
#[cfg(unix)]
mod followers;
mod frozen;
#[cfg(target_os = "linux")]
mod heirs;
#[cfg(unix)]
mod hostile;
#[cfg(unix)]
mod identity;
#[cfg(target_os = "linux")]
mod interactive;
#[cfg(unix)]
mod keeper;
#[cfg(target_os = "linux")]
mod leases;
#[cfg(unix)]
mod limits;
#[cfg(target_os = "linux")]
mod live;
#[cfg(target_os = "linux")]
mod many;
#[cfg(unix)]
mod output;
#[cfg(target_os = "linux")]
mod packages;
#[cfg(unix)]
mod partition;
#[cfg(unix)]
mod peers;
#[cfg(unix)]
mod processes;
#[cfg(unix)]
mod promote;
#[cfg(unix)]
mod protocol;
#[cfg(unix)]
mod refusals;
#[cfg(target_os = "linux")]
mod screen;
#[cfg(target_os = "linux")]
mod settings;
#[cfg(target_os = "linux")]
mod terminal;
#[cfg(unix)]
mod traces;
#[cfg(target_os = "linux")]
mod units;
#[cfg(target_os = "linux")]
mod words;
#[cfg(target_os = "linux")]
mod yard;
