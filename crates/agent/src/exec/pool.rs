//! Threads that start processes: starting blocks until the program is loaded, and nothing else may wait for that.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

/// Work for the threads, oldest first. Bounded by its users: one entry for each live attempt.
pub(super) struct Pool<T> {
    queue: Mutex<Queue<T>>,
}

struct Queue<T> {
    waiting: VecDeque<T>,
    /// Threads without work. The last to become idle is the first to be woken: what it needs is
    /// still in its processor's caches.
    idle: Vec<Arc<Condvar>>,
    is_closed: bool,
}

impl<T: Send + 'static> Pool<T> {
    pub(super) fn new() -> Self {
        Self { queue: Mutex::new(Queue { waiting: VecDeque::new(), idle: Vec::new(), is_closed: false }) }
    }

    /// Starts `threads` threads that run `work` on each entry until the pool is closed.
    pub(super) fn start(self: &Arc<Self>, threads: usize, work: impl Fn(T) + Clone + Send + 'static) -> io::Result<()> {
        for _ in 0..threads {
            let (pool, work) = (Arc::clone(self), work.clone());
            std::thread::Builder::new().name("muster-spawn".into()).spawn(move || {
                let bell = Arc::new(Condvar::new());
                while let Some(entry) = pool.next(&bell) {
                    work(entry);
                }
            })?;
        }
        Ok(())
    }

    /// `Err`: the pool is closed.
    pub(super) fn push(&self, entry: T) -> Result<(), T> {
        let mut queue = self.lock();
        if queue.is_closed {
            return Err(entry);
        }
        queue.waiting.push_back(entry);
        let idle = queue.idle.pop();
        drop(queue);
        if let Some(bell) = idle {
            bell.notify_one();
        }
        Ok(())
    }

    /// Whether nothing waits for a thread.
    pub(super) fn is_idle(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    /// The threads end when they have done what is there.
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.is_closed = true;
        queue.idle.drain(..).for_each(|bell| bell.notify_one());
    }

    fn next(&self, bell: &Arc<Condvar>) -> Option<T> {
        let mut queue = self.lock();
        loop {
            if let Some(entry) = queue.waiting.pop_front() {
                return Some(entry);
            }
            if queue.is_closed {
                return None;
            }
            queue.idle.push(Arc::clone(bell));
            queue = bell.wait(queue).unwrap_or_else(PoisonError::into_inner);
            // Nobody rang if we still stand there: such things happen.
            queue.idle.retain(|other| !Arc::ptr_eq(other, bell));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
