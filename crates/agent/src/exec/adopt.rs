//! Goes on with attempts that an earlier keeper started, each from where it was left.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use muster_core::{id::Token, state::End};
use tracing::{info, warn};

use super::{
    Estate, Exec, ExecEvent,
    attempt::Attempt,
    confined::Confined,
    contained,
    deposit::{Deposit, Kept},
    ending::Cause,
    os,
    room::{Room, head_of, span_of},
};
use crate::{cgroup::Limits, logs::Spool};

impl Estate {
    /// What of an earlier keeper's work must stay as it is while the next one prepares itself.
    pub(crate) fn spares(kept: &[Kept]) -> (BTreeSet<u64>, BTreeSet<PathBuf>) {
        let live = || kept.iter().filter(|kept| kept.is_there());
        let slots = live().filter_map(|kept| kept.slot).collect();
        let folders = live().filter_map(|kept| Some(kept.folder()?.to_owned())).collect();
        (slots, folders)
    }
}

impl Kept {
    /// Whether anything of it may live still.
    fn is_there(&self) -> bool {
        self.end().is_none_or(|end| matches!(end, ExecEvent::Ended { end: End::KillFailed, .. }))
    }
}

impl Exec {
    /// Takes them up. Before anything else is started: what they wrote and nobody kept is kept first.
    pub(crate) fn adopt(&self, kept: Vec<Kept>) {
        let room = &self.room;
        let Some(estate) = &room.estate else { return };
        let mut attempts = Vec::new();
        let mut spools: BTreeMap<Token, Spool> = BTreeMap::new();
        for kept in kept {
            let order = Arc::clone(&kept.order);
            if !kept.is_there() {
                room.links.spools.tell_again(head_of(&order));
                continue;
            }
            if kept.end().is_none() {
                spools.insert(order.token, room.resume_spool(&order));
            }
            attempts.push(kept);
        }
        estate.sluice.each(|chamber| {
            match chamber.left() {
                Ok(Some((mark, bytes))) => {
                    if let Some(spool) = spools.get_mut(&mark.token) {
                        spool.take_again(mark.stream, mark.offset, room.clock.wall(), &bytes);
                    }
                }
                Ok(None) => {}
                Err(error) => warn!(%error, "what an earlier keeper had read cannot be found"),
            }
            let _seeks = chamber.leave();
        });
        info!(attempts = attempts.len(), "what an earlier keeper started goes on");
        let _context = room.runtime.enter();
        for kept in attempts {
            let spool = spools.remove(&kept.order.token);
            go_on(room, estate, kept, spool);
        }
    }

    /// Kills what an earlier keeper had just begun, of which nothing is known. Leases end meanwhile, so nobody waits for it but
    /// who asks what became of that.
    pub(crate) fn end_strays(&self, limit: Duration) {
        self.instances.has_strays.store(true, Ordering::Relaxed);
        let (room, instances) = (Arc::clone(&self.room), Arc::clone(&self.instances));
        tokio::spawn(async move {
            let survivors = room.hunter.hunt_strays(limit).await;
            instances.has_strays.store(!survivors.is_empty(), Ordering::Relaxed);
            if !survivors.is_empty() {
                warn!(processes = survivors.len(), "processes of an earlier keeper cannot be killed");
            }
        });
    }
}

fn go_on(room: &Arc<Room>, estate: &Estate, mut kept: Kept, spool: Option<Spool>) {
    let Some(control) = room.live.add(kept.order.token) else { return };
    let (stdin, fed) = kept.files.stdin.take().map_or((None, None), |(stdin, fed)| (Some(stdin), Some(fed)));
    let deposit = Some(Deposit::of(estate, &kept, fed));
    let Kept { order, started, identity, began, slot, from, scratch, unenforced, gpus, state, files, .. } = kept;
    room.base.gpus.lock().keep(order.token, gpus);
    let stage = state.stage();
    if let (Some(Cause::Wish(reason)), Some(due)) = (stage.cause, stage.due) {
        control.kill(reason, due);
    }
    let mut limits = Limits::of(&order.spec);
    // Those of disks must be lifted when it is killed.
    let _said_before = room.groups.find_disks(&mut limits, &room.works_in(&order, scratch.as_ref()));
    let place = slot.and_then(|slot| room.groups.adopt(slot, &limits, from, files.peak));
    let mut confined = Confined { place, data_limit: None, unenforced };
    if contained::has_daemon(room.containers.as_ref(), &order) {
        // What was made below it is there, wherever a new one would be.
        let _known = confined.shelter();
    }
    let (spent, span) = (state.spent(), span_of(&order));
    let attempt = Attempt { room: Arc::clone(room), order, control, confined, scratch, started, began, span, deposit };
    let Some(spool) = spool else { return room.track(attempt.survive(spent)) };
    match os::take_over(identity, files.handle, files.outputs, stdin) {
        Ok(running) => room.track(attempt.run(running, spool, stage)),
        Err(error) => {
            let has_output = spool.finish();
            let why = format!("its process could not be watched any more and was killed: {error}");
            room.track(async move { attempt.lose(why, has_output).await });
        }
    }
}
