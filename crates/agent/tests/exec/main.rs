//! `exec` and `logs` with real processes of this machine.
#![cfg(unix)]

mod bench;
mod beside;
mod disks;
mod ends;
mod kills;
mod limits;
mod offers;
mod output;
mod run_as;
mod scratch;
mod skip;
mod survivors;
mod terminal;
