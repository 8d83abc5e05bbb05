//! As whom a task runs, on the wire.

use muster_core::run_as::{RunAs, Scratch};

use super::{Error, unknown_value};
use crate::proto::v1;

pub(super) fn to_proto(run_as: &RunAs) -> v1::RunAs {
    v1::RunAs {
        user: run_as.user.clone(),
        group: run_as.group.clone(),
        groups: run_as.groups.clone().map(|names| v1::Groups { names }),
        umask: run_as.umask,
        nice: run_as.nice,
        no_new_privs: run_as.no_new_privs,
    }
}

pub(super) fn from_proto(run_as: v1::RunAs) -> RunAs {
    RunAs {
        user: run_as.user,
        group: run_as.group,
        groups: run_as.groups.map(|groups| groups.names),
        umask: run_as.umask,
        nice: run_as.nice,
        no_new_privs: run_as.no_new_privs,
    }
}

pub(super) fn scratch_to_proto(scratch: Scratch) -> v1::Scratch {
    match scratch {
        Scratch::None => v1::Scratch::None,
        Scratch::Private => v1::Scratch::Private,
        Scratch::KeepOnFailure => v1::Scratch::KeepOnFailure,
    }
}

pub(super) fn scratch_from_proto(scratch: i32) -> Result<Scratch, Error> {
    match v1::Scratch::try_from(scratch) {
        Ok(v1::Scratch::None) => Ok(Scratch::None),
        Ok(v1::Scratch::Private) => Ok(Scratch::Private),
        Ok(v1::Scratch::KeepOnFailure) => Ok(Scratch::KeepOnFailure),
        Err(_) => Err(unknown_value("scratch", scratch, "none, private and keep_on_failure")),
    }
}
