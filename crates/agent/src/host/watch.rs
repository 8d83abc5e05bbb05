//! Keeps looking at the machine: how it is, whether its labels changed, and whether there is disk for new work.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use muster_common::proto::v1::Load;
use muster_core::record::{Enforced, Offer};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{Machine, Overrides, labels, live};

/// Between two looks at how the machine is.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The executable for labels is run once in so many looks.
const LABELS_EVERY: u32 = 6;

/// What was seen.
#[derive(Debug)]
pub enum News {
    /// The machine offers something else; with the indices of the GPUs that may be given to tasks.
    Offer(Box<Offer>, Vec<u32>),
    /// How it is.
    Load(Load),
}

/// What keeps looking.
#[derive(Debug)]
pub struct Watch {
    machine: Machine,
    overrides: Overrides,
    folder: PathBuf,
    labels: BTreeMap<String, String>,
    /// The labels cannot be had; told once.
    is_told: bool,
    unfit: bool,
    offer: Offer,
}

impl Watch {
    /// Looks for the first time.
    pub async fn begin(overrides: Overrides, folder: PathBuf) -> Self {
        let looked = folder.clone();
        // The driver of a GPU may take its time.
        let machine = tokio::task::spawn_blocking(move || Machine::look(&looked)).await;
        let machine = machine.unwrap_or_else(|_| Machine::look(&folder));
        let offer = machine.offer(&overrides, &BTreeMap::new());
        let (labels, is_told, unfit) = (BTreeMap::new(), false, false);
        let mut watch = Self { machine, overrides, folder, labels, is_told, unfit, offer };
        watch.run_labels().await;
        watch.judge(live::disk_free(&watch.folder));
        watch.offer = watch.compose();
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
            }
            if is_changed || looks.is_multiple_of(LABELS_EVERY) {
                self.run_labels().await;
            }
            self.judge(live::disk_free(&self.folder));
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
        if self.unfit {
            let reserved = self.overrides.reserve.disk >> 20;
            offer.unfit = format!("its disk has less than the {reserved} MiB free that are reserved for the system");
        }
        offer
    }

    /// Whether there is disk for new work. With a tenth more than the reserve it is fit again, so that it does not
    /// change its mind with every file.
    fn judge(&mut self, disk_free: Option<u64>) {
        let reserve = self.overrides.reserve.disk;
        let needed = if self.unfit { reserve.saturating_add(reserve / 10) } else { reserve };
        self.unfit = disk_free.is_some_and(|free| free < needed);
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
    use super::*;
    use crate::host::Reserve;

    #[tokio::test]
    async fn a_machine_without_disk_for_new_work_says_so_until_there_is_some_more_than_it_needs() {
        let reserve = Reserve { disk: 100 << 20, ..Reserve::default() };
        let overrides = Overrides { reserve, ..Overrides::default() };
        let mut watch = Watch::begin(overrides, std::env::temp_dir()).await;
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
            watch.judge(mib.map(|mib: u64| mib << 20));
            assert_eq!(watch.unfit, unfit, "{mib:?}");
            assert_eq!(watch.compose().unfit.contains("100 MiB"), unfit);
        }
    }

    #[tokio::test]
    async fn what_a_person_says_anew_is_offered_and_the_name_stays() {
        let before = Overrides { name: Some("north".into()), cpu_milli: Some(4000), ..Overrides::default() };
        let watch = Watch::begin(before, std::env::temp_dir()).await;
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
