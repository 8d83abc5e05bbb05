//! Threads that start processes: starting blocks until the program is loaded, and nothing else may wait for that.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

/// Work for the threads, oldest first. Bounded by its users: one entry for each live attempt.
pub(super) struct Pool<T> {
    queue: Mutex<Queue<T>>,
    more: Condvar,
}

struct Queue<T> {
    waiting: VecDeque<T>,
    is_closed: bool,
}

impl<T: Send + 'static> Pool<T> {
    pub(super) fn new() -> Self {
        let queue = Queue { waiting: VecDeque::new(), is_closed: false };
        Self { queue: Mutex::new(queue), more: Condvar::new() }
    }

    /// Starts `threads` threads that run `work` on each entry until the pool is closed.
    pub(super) fn start(self: &Arc<Self>, threads: usize, work: impl Fn(T) + Clone + Send + 'static) -> io::Result<()> {
        for _ in 0..threads {
            let (pool, work) = (Arc::clone(self), work.clone());
            std::thread::Builder::new().name("muster-spawn".into()).spawn(move || {
                while let Some(entry) = pool.next() {
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
        drop(queue);
        self.more.notify_one();
        Ok(())
    }

    /// Whether nothing waits for a thread.
    pub(super) fn is_idle(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    /// The threads end when they have done what is there.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.more.notify_all();
    }

    fn next(&self) -> Option<T> {
        let mut queue = self.lock();
        loop {
            if let Some(entry) = queue.waiting.pop_front() {
                return Some(entry);
            }
            if queue.is_closed {
                return None;
            }
            queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
