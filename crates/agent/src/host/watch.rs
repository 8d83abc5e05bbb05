//! Keeps looking at the machine: how it is, whether its labels changed, and whether there is disk for new work.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use muster_common::proto::v1::Load;
use muster_core::record::{Enforced, Offer};
use tokio::{sync::mpsc, task::spawn_blocking, time::timeout};
use tracing::{info, warn};

use super::{Machine, Overrides, labels, live};

/// Between two looks at how the machine is.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The executable for labels is run once in so many looks.
const LABELS_EVERY: u32 = 6;

/// For the directory of users to tell of one.
const USER_LIMIT: Duration = Duration::from_secs(10);

/// Whether tasks can be run at all; why not is for people. It may have to ask over a network.
pub type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What was seen.
#[derive(Debug)]
pub enum News {
    /// The machine offers something else; with the indices of the GPUs that may be given to tasks.
    Offer(Box<Offer>, Vec<u32>),
    /// How it is.
    Load(Load),
}

/// What keeps looking.
pub struct Watch {
    machine: Machine,
    overrides: Overrides,
    folder: PathBuf,
    labels: BTreeMap<String, String>,
    /// The labels cannot be had; told once.
    is_told: bool,
    /// Bytes that the disk should have free, while it has less.
    lacks: Option<u64>,
    check: Check,
    /// Why no task can be run.
    unable: Option<String>,
    offer: Offer,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("offer", &self.offer).finish_non_exhaustive()
    }
}

impl Watch {
    /// Looks for the first time. `check` is asked now, and again as long as it says no.
    pub async fn begin(overrides: Overrides, folder: PathBuf, check: Check) -> Self {
        let looked = folder.clone();
        // The driver of a GPU may take its time.
        let machine = spawn_blocking(move || Machine::look(&looked)).await;
        let machine = machine.unwrap_or_else(|_| Machine::look(&folder));
        let offer = machine.offer(&overrides, &BTreeMap::new());
        machine.warn_of(&overrides);
        let (labels, is_told, lacks, unable) = (BTreeMap::new(), false, None, None);
        let mut watch = Self { machine, overrides, folder, labels, is_told, lacks, check, unable, offer };
        watch.run_labels().await;
        watch.judge(live::disk(&watch.folder));
        watch.ask().await;
        watch.offer = watch.compose();
        if !watch.offer.unfit.is_empty() {
            warn!(why = watch.offer.unfit, "this agent takes no new work");
        }
        watch
    }

    /// Attempts are held to these, as became known after the first look.
    pub fn holds(&mut self, enforced: Vec<Enforced>) {
        self.machine.facts.enforced = enforced;
        self.offer = self.compose();
    }

    /// What the machine offers now.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// The indices of the GPUs that may be given to tasks now.
    pub fn gpus(&self) -> Vec<u32> {
        self.machine.gpu_indices(&self.offer)
    }

    /// Looks on, and tells what changed, until nobody listens. What comes by `changes` is what a person says from now on.
    pub async fn run(mut self, mut changes: mpsc::Receiver<Overrides>, news: mpsc::Sender<News>) {
        let mut looks = 0_u32;
        loop {
            let changed = tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => None,
                Some(overrides) = changes.recv() => Some(overrides),
                () = news.closed() => return,
            };
            looks = looks.wrapping_add(1);
            let is_changed = changed.is_some();
            if let Some(overrides) = changed {
                self.overrides = Overrides { name: self.overrides.name.take(), ..overrides };
                self.machine.warn_of(&self.overrides);
            }
            if is_changed || looks.is_multiple_of(LABELS_EVERY) {
                self.run_labels().await;
            }
            self.judge(live::disk(&self.folder));
            if self.unable.is_some() {
                self.ask().await;
            }
            let load = live::look(&self.folder);
            if news.send(News::Load(load)).await.is_err() || !self.tell_offer(&news).await {
                return;
            }
        }
    }

    async fn tell_offer(&mut self, news: &mpsc::Sender<News>) -> bool {
        let offer = self.compose();
        if offer == self.offer {
            return true;
        }
        self.offer = offer;
        info!(capacity = ?self.offer.capacity, labels = ?self.offer.labels, unfit = self.offer.unfit, "the machine offers something else");
        news.send(News::Offer(Box::new(self.offer.clone()), self.gpus())).await.is_ok()
    }

    fn compose(&self) -> Offer {
        let mut offer = self.machine.offer(&self.overrides, &self.labels);
        if let Some(why) = &self.unable {
            offer.unfit = format!("no task can run there: {why}");
        } else if let Some(reserved) = self.lacks {
            let reserved =
                if reserved < 1 << 20 { format!("{} KiB", reserved >> 10) } else { format!("{} MiB", reserved >> 20) };
            offer.unfit = format!("its disk has less than the {reserved} free that are reserved for the system");
        }
        offer
    }

    async fn ask(&mut self) {
        let check = Arc::clone(&self.check);
        let asked = timeout(USER_LIMIT, spawn_blocking(move || check())).await;
        self.unable = match asked {
            Ok(Ok(answer)) => answer.err(),
            Ok(Err(_)) | Err(_) => Some(format!("whom tasks run as is not told within {} s", USER_LIMIT.as_secs())),
        };
    }

    /// Whether there is disk for new work. With a tenth more than the reserve it is fit again, so that it does not
    /// change its mind with every file.
    fn judge(&mut self, disk: Option<(u64, u64)>) {
        let Some((all, free)) = disk else {
            self.lacks = None;
            return;
        };
        let reserve = self.overrides.reserve.of_disk(all);
        let needed = if self.lacks.is_some() { reserve.saturating_add(reserve / 10) } else { reserve };
        self.lacks = (free < needed).then_some(reserve);
    }

    /// Labels of before stay where the executable fails: a slip of it must not take work from the machine.
    async fn run_labels(&mut self) {
        let Some(program) = &self.overrides.labels_from else {
            self.labels.clear();
            return;
        };
        match labels::of(program).await {
            Ok(labels) => (self.labels, self.is_told) = (labels, false),
            Err(error) if !self.is_told => {
                self.is_told = true;
                warn!(error = %crate::link::chain(&error), "labels_from: the labels of before stay");
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use muster_core::record::Gpu;

    use super::*;
    use crate::host::Reserve;

    #[tokio::test]
    async fn a_machine_without_disk_for_new_work_says_so_until_there_is_some_more_than_it_needs() {
        let reserve = Reserve { disk: Some(100 << 20), ..Reserve::default() };
        let overrides = Overrides { reserve, ..Overrides::default() };
        let mut watch = Watch::begin(overrides, std::env::temp_dir(), anybody()).await;
        let table = [
            (Some(500), false),
            (Some(99), true),
            (Some(105), true),
            (Some(111), false),
            (Some(105), false),
            (Some(0), true),
            (None, false),
        ];
        for (mib, unfit) in table {
            watch.judge(mib.map(|mib: u64| (1 << 40, mib << 20)));
            assert_eq!(watch.lacks.is_some(), unfit, "{mib:?}");
            assert_eq!(watch.compose().unfit.contains("100 MiB"), unfit);
        }
        // Where nobody says, a little is kept, of a small disk less.
        watch.overrides.reserve = Reserve::default();
        for (all, free, unfit) in [
            (1 << 40, 65 << 20, false),
            (1 << 40, 63 << 20, true),
            (1 << 40, 70 << 20, true),
            (1 << 40, 71 << 20, false),
            (16 << 20, 1 << 20, false),
            (16 << 20, 700 << 10, true),
            (0, 0, false),
        ] {
            watch.judge(Some((all, free)));
            assert_eq!(watch.lacks.is_some(), unfit, "{free} of {all}");
        }
        watch.overrides.reserve.disk = Some(0);
        watch.judge(Some((1 << 40, 0)));
        assert_eq!(watch.lacks, None, "nothing is to be kept");
    }

    fn anybody() -> Check {
        Arc::new(|| Ok(()))
    }

    #[tokio::test]
    async fn an_agent_that_can_run_no_task_says_why_until_it_can() {
        let is_there = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&is_there);
        let check: Check = Arc::new(move || match asked.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("there is no user `batch`".to_owned()),
        });
        let mut watch = Watch::begin(Overrides::default(), std::env::temp_dir(), check).await;
        assert_eq!(watch.offer().unfit, "no task can run there: there is no user `batch`");
        is_there.store(true, Ordering::Relaxed);
        watch.ask().await;
        assert_eq!(watch.compose().unfit, "");
    }

    #[tokio::test]
    async fn no_more_gpus_are_offered_than_the_driver_reaches() {
        let gpu = |index| Gpu { index, ..Gpu::default() };
        let overrides = Overrides { gpus: Some(8), ..Overrides::default() };
        let mut watch = Watch::begin(overrides, std::env::temp_dir(), anybody()).await;
        (watch.machine.gpus, watch.machine.facts.gpus) = (2, vec![gpu(0), gpu(3)]);
        watch.offer = watch.compose();
        assert_eq!((watch.offer().capacity.gpus, watch.gpus()), (2, vec![0, 3]));
        // Without a driver that tells, a person knows best.
        (watch.machine.gpus, watch.machine.facts.gpus) = (0, Vec::new());
        watch.offer = watch.compose();
        assert_eq!((watch.offer().capacity.gpus, watch.gpus()), (8, (0..8).collect()));
    }

    #[tokio::test]
    async fn what_a_person_says_anew_is_offered_and_the_name_stays() {
        let before = Overrides { name: Some("north".into()), cpu_milli: Some(4000), ..Overrides::default() };
        let watch = Watch::begin(before, std::env::temp_dir(), anybody()).await;
        let (say, changes) = mpsc::channel(1);
        let (news, mut heard) = mpsc::channel(4);
        let running = tokio::spawn(watch.run(changes, news));
        say.send(Overrides { name: Some("south".into()), cpu_milli: Some(1000), ..Overrides::default() })
            .await
            .expect("heard");
        let offer = loop {
            if let News::Offer(offer, _) = heard.recv().await.expect("it is told") {
                break offer;
            }
        };
        assert_eq!((offer.name.as_str(), offer.capacity.cpu_milli), ("north", 1000));
        drop(heard);
        running.await.expect("it ends when nobody listens");
    }
}
