//! Tasks that could run, by shape: what they ask for decides where they stand, so that a
//! scheduling round grows with the number of shapes and never with the number of tasks.

use std::{cmp::Reverse, collections::BTreeMap, collections::BTreeSet, sync::Arc};

use crate::{
    id::JobId,
    resources::Request,
    spec::{Priority, Requires},
};

/// One shape's number while somebody uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ShapeId(u32);

/// What makes tasks equal to the scheduler.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ShapeKey {
    pub(crate) queue: Arc<str>,
    pub(crate) request: Request,
    pub(crate) requires: Requires,
}

/// Neighbouring tasks of one job that stand in line together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) priority: Priority,
    pub(crate) job: JobId,
    pub(crate) first: u32,
    pub(crate) count: u32,
}

#[derive(Debug)]
struct Shape {
    key: Arc<ShapeKey>,
    users: u32,
    mean_us: u64,
    /// By priority, then in order of submission: start to count.
    lanes: BTreeMap<Reverse<Priority>, BTreeMap<(JobId, u32), u32>>,
}

/// Every shape in use, and who stands in line.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    shapes: BTreeMap<ShapeId, Shape>,
    index: BTreeMap<Arc<ShapeKey>, ShapeId>,
    busy: BTreeSet<ShapeId>,
    next: u32,
}

impl Ready {
    /// The shape of `key`, made if it is new; `release` it when it is no longer used.
    pub(crate) fn acquire(&mut self, key: ShapeKey) -> ShapeId {
        if let Some(id) = self.index.get(&key) {
            if let Some(shape) = self.shapes.get_mut(id) {
                shape.users += 1;
            }
            return *id;
        }
        let id = ShapeId(self.next);
        self.next = self.next.wrapping_add(1);
        let key = Arc::new(key);
        self.index.insert(Arc::clone(&key), id);
        self.shapes.insert(id, Shape { key, users: 1, mean_us: 0, lanes: BTreeMap::new() });
        id
    }

    /// One user less; without users the shape is forgotten.
    pub(crate) fn release(&mut self, id: ShapeId) {
        let Some(shape) = self.shapes.get_mut(&id) else { return };
        shape.users = shape.users.saturating_sub(1);
        if shape.users == 0 {
            self.index.remove(&shape.key);
            self.shapes.remove(&id);
            self.busy.remove(&id);
        }
    }

    /// What its tasks ask for.
    pub(crate) fn key(&self, id: ShapeId) -> Option<Arc<ShapeKey>> {
        self.shapes.get(&id).map(|shape| Arc::clone(&shape.key))
    }

    /// How long its tasks take, in microseconds; 0: not known yet.
    pub(crate) fn mean_us(&self, id: ShapeId) -> u64 {
        self.shapes.get(&id).map_or(0, |shape| shape.mean_us)
    }

    /// One of its tasks took this long. Grows fast and sinks slowly: too few leases sent ahead
    /// cost a little speed, too many keep work from other agents.
    pub(crate) fn learn(&mut self, id: ShapeId, took_us: u64) {
        let Some(shape) = self.shapes.get_mut(&id) else { return };
        let took = took_us.max(1);
        shape.mean_us = match shape.mean_us {
            0 => took,
            mean if took > mean => mean / 2 + took / 2,
            mean => (mean - mean / 8 + took / 8).max(1),
        };
    }

    /// Puts tasks in line. None of them may stand there already.
    pub(crate) fn push(&mut self, id: ShapeId, span: Span) {
        let Some(shape) = self.shapes.get_mut(&id) else { return };
        if span.count == 0 {
            return;
        }
        let lane = shape.lanes.entry(Reverse(span.priority)).or_default();
        let (mut first, mut count) = (span.first, span.count);
        if let Some((&(job, before), &n)) = lane.range(..(span.job, span.first)).next_back()
            && job == span.job
            && before + n == span.first
        {
            (first, count) = (before, n + count);
        }
        if let Some(n) = lane.remove(&(span.job, span.first + span.count)) {
            count += n;
        }
        lane.insert((span.job, first), count);
        self.busy.insert(id);
    }

    /// Takes tasks out of line, those of them that stand there.
    pub(crate) fn remove(&mut self, id: ShapeId, span: Span) {
        let Some(shape) = self.shapes.get_mut(&id) else { return };
        let Some(lane) = shape.lanes.get_mut(&Reverse(span.priority)) else { return };
        let end = span.first.saturating_add(span.count);
        while let Some((&(job, first), &count)) = lane.range(..(span.job, end)).next_back() {
            if job != span.job || first + count <= span.first {
                break;
            }
            lane.remove(&(job, first));
            if first + count > end {
                lane.insert((job, end), first + count - end);
            }
            if first < span.first {
                lane.insert((job, first), span.first - first);
                break;
            }
        }
        if lane.is_empty() {
            shape.lanes.remove(&Reverse(span.priority));
        }
        if shape.lanes.is_empty() {
            self.busy.remove(&id);
        }
    }

    /// Who is next in a shape: highest priority, then oldest job, then lowest index.
    pub(crate) fn head(&self, id: ShapeId) -> Option<Span> {
        let (Reverse(priority), lane) = self.shapes.get(&id)?.lanes.first_key_value()?;
        let (&(job, first), &count) = lane.first_key_value()?;
        Some(Span { priority: *priority, job, first, count })
    }

    /// Shapes in which somebody stands in line.
    pub(crate) fn busy(&self) -> impl Iterator<Item = ShapeId> + '_ {
        self.busy.iter().copied()
    }

    /// Everybody in line, for the invariants.
    pub(crate) fn spans(&self) -> impl Iterator<Item = Span> + '_ {
        self.shapes.values().flat_map(|shape| {
            shape.lanes.iter().flat_map(|(Reverse(priority), lane)| {
                lane.iter().map(|(&(job, first), &count)| Span { priority: *priority, job, first, count })
            })
        })
    }

    /// How many tasks of the shape stand before this one.
    pub(crate) fn ahead_of(&self, id: ShapeId, priority: Priority, job: JobId, index: u32) -> u64 {
        let Some(shape) = self.shapes.get(&id) else { return 0 };
        let higher = shape.lanes.range(..Reverse(priority)).flat_map(|(_, lane)| lane.values().copied());
        let older = shape.lanes.get(&Reverse(priority)).into_iter().flat_map(|lane| {
            lane.range(..(job, index)).map(
                |(&(owner, first), &count)| {
                    if owner == job { count.min(index - first) } else { count }
                },
            )
        });
        higher.chain(older).map(u64::from).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(cpu_milli: u64) -> ShapeKey {
        ShapeKey {
            queue: Arc::from("default"),
            request: Request { cpu_milli, ..Request::default() },
            requires: Requires::default(),
        }
    }

    fn span(job: u64, first: u32, count: u32) -> Span {
        Span { priority: Priority::NORMAL, job: JobId(job), first, count }
    }

    fn drain(ready: &mut Ready, id: ShapeId) -> Vec<(u64, u32)> {
        let mut order = Vec::new();
        while let Some(head) = ready.head(id) {
            order.push((head.job.0, head.first));
            ready.remove(id, Span { count: 1, ..head });
        }
        order
    }

    #[test]
    fn higher_priority_then_older_job_then_lower_index() {
        let mut ready = Ready::default();
        let id = ready.acquire(key(1000));
        ready.push(id, span(2, 0, 2));
        ready.push(id, span(1, 5, 1));
        ready.push(id, Span { priority: Priority::HIGH, ..span(3, 0, 1) });
        assert_eq!(drain(&mut ready, id), vec![(3, 0), (1, 5), (2, 0), (2, 1)]);
        assert_eq!(ready.busy().count(), 0);
    }

    #[test]
    fn neighbours_merge_into_one_span() {
        let mut ready = Ready::default();
        let id = ready.acquire(key(1000));
        ready.push(id, span(1, 0, 2));
        ready.push(id, span(1, 3, 2));
        ready.push(id, span(1, 2, 1));
        assert_eq!(ready.head(id), Some(span(1, 0, 5)));
    }

    #[test]
    fn equal_shapes_are_one_and_are_forgotten_with_their_last_user() {
        let mut ready = Ready::default();
        let (a, b) = (ready.acquire(key(1)), ready.acquire(key(1)));
        assert_eq!(a, b);
        ready.release(a);
        assert!(ready.key(a).is_some());
        ready.release(b);
        assert!(ready.key(a).is_none());
    }

    #[test]
    fn the_place_in_line_counts_priorities_and_older_jobs() {
        let mut ready = Ready::default();
        let id = ready.acquire(key(1));
        ready.push(id, span(1, 0, 10));
        ready.push(id, span(2, 0, 10));
        ready.push(id, Span { priority: Priority::HIGH, ..span(9, 0, 3) });
        assert_eq!(ready.ahead_of(id, Priority::NORMAL, JobId(2), 4), 3 + 10 + 4);
    }

    proptest! {
        #[test]
        fn lanes_hold_exactly_what_a_set_would(ops in proptest::collection::vec((any::<bool>(), 1_u64..3, 0_u32..40, 1_u32..12), 1..60)) {
            let mut ready = Ready::default();
            let id = ready.acquire(key(1));
            let mut model = BTreeSet::new();
            for (add, job, first, count) in ops {
                if add {
                    for index in first..first + count {
                        if model.insert((job, index)) {
                            ready.push(id, span(job, index, 1));
                        }
                    }
                } else {
                    for index in first..first + count {
                        model.remove(&(job, index));
                    }
                    ready.remove(id, span(job, first, count));
                }
            }
            prop_assert_eq!(drain(&mut ready, id), model.into_iter().collect::<Vec<_>>());
        }
    }
}
