//! What there is and what is taken. Counts what is taken, not what is left: after a restart with a
//! smaller capacity, survivors may hold more than there is, and that must not come back as room.

use muster_core::resources::Request;

/// The resources of one agent.
#[derive(Debug)]
pub(super) struct Room {
    capacity: Request,
    taken: Request,
}

impl Room {
    pub(super) fn new(capacity: Request) -> Self {
        Self { capacity, taken: Request::default() }
    }

    /// All there is.
    pub(super) fn capacity(&self) -> &Request {
        &self.capacity
    }

    /// There is something else now; what is taken stays taken.
    pub(super) fn set_capacity(&mut self, capacity: Request) {
        self.capacity = capacity;
    }

    /// What is taken.
    pub(super) fn taken(&self) -> &Request {
        &self.taken
    }

    /// Whether `request` can be taken now.
    pub(super) fn has(&self, request: &Request) -> bool {
        let of = |from: &Request, name: &str| from.named.get(name).copied().unwrap_or(0);
        let fits = |wanted: u64, taken: u64, there: u64| wanted == 0 || taken.saturating_add(wanted) <= there;
        fits(request.cpu_milli, self.taken.cpu_milli, self.capacity.cpu_milli)
            && fits(request.memory, self.taken.memory, self.capacity.memory)
            && fits(request.gpus, self.taken.gpus, self.capacity.gpus)
            && request.named.iter().all(|(name, n)| fits(*n, of(&self.taken, name), of(&self.capacity, name)))
    }

    pub(super) fn take(&mut self, request: &Request) {
        self.taken.give(request);
    }

    pub(super) fn free(&mut self, request: &Request) {
        self.taken.take(request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpus(n: u64, licences: u64) -> Request {
        Request { gpus: n, named: [("licence".to_owned(), licences)].into(), ..Request::default() }
    }

    #[test]
    fn every_resource_is_counted_and_comes_back() {
        let mut room = Room::new(gpus(2, 3));
        assert!(room.has(&gpus(2, 3)));
        room.take(&gpus(1, 3));
        assert!(room.has(&gpus(1, 0)));
        assert!(!room.has(&gpus(1, 1)), "no licence is left");
        assert!(!room.has(&gpus(2, 0)), "one GPU is left");
        room.free(&gpus(1, 3));
        assert!(room.has(&gpus(2, 3)));
    }

    #[test]
    fn what_is_taken_past_the_capacity_never_comes_back_as_room() {
        let mut room = Room::new(gpus(1, 0));
        room.take(&gpus(1, 0));
        room.take(&gpus(1, 0));
        room.free(&gpus(1, 0));
        assert!(!room.has(&gpus(1, 0)), "one survivor still holds it");
        assert!(room.has(&Request::default()), "what asks for nothing always fits");
    }
}
