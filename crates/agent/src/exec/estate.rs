//! What a keeper has of its safe, and what of an earlier keeper's work must stay as it is.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use super::os;
use crate::safe::Safe;

/// See the module.
#[derive(Clone, Debug)]
#[cfg_attr(windows, allow(dead_code, reason = "nobody has one there"))]
pub struct Estate {
    pub(crate) safe: Safe,
    /// The mark of all processes, which stays the same from keeper to keeper.
    pub(crate) cookie: Arc<str>,
    pub(crate) sluice: Arc<os::Sluice>,
    /// There was a keeper before us, whose work goes on.
    pub(crate) is_heir: bool,
    /// Numbers of its cgroups that are in use.
    pub(crate) slots: BTreeSet<u64>,
    /// Its folders that are in use.
    pub(crate) folders: BTreeSet<PathBuf>,
}

impl Estate {
    /// Numbers of cgroups that are not ended.
    pub(super) fn slots_of(estate: Option<&Self>) -> BTreeSet<u64> {
        estate.filter(|estate| estate.is_heir).map(|heir| heir.slots.clone()).unwrap_or_default()
    }
}
