//! Work that several threads share.

use std::{
    num::NonZero,
    sync::{Mutex, PoisonError},
    thread,
};

/// Below this size a second thread costs more than it saves.
const BYTES_PER_THREAD: usize = 1 << 20;
/// What a thread should take at a time: one that begins late or is held up delays little.
pub(crate) const BYTES_PER_SHARE: usize = 256 << 10;

/// Cores that this process may use, by its affinity and by the quotas of its control groups.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// How many threads copying `bytes` bytes is worth.
pub(crate) fn workers(bytes: usize) -> usize {
    let worth = bytes / BYTES_PER_THREAD;
    // Asking the system takes tens of microseconds: only where it can matter.
    if worth > 1 { worth.min(cores()) } else { 1 }
}

/// Lets `workers` threads, the calling one among them, do what `next` hands out, until it has no more. Threads are made
/// per call, so a process may fork at any time; where none can be had, those that there are do its part.
pub(crate) fn share_out<T: Send>(workers: usize, next: impl FnMut() -> Option<T> + Send, work: impl Fn(T) + Sync) {
    let next = Mutex::new(next);
    let run = || {
        loop {
            let item = (next.lock().unwrap_or_else(PoisonError::into_inner))();
            match item {
                Some(item) => work(item),
                None => return,
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..workers {
            let _ = thread::Builder::new().spawn_scoped(scope, run);
        }
        run();
    });
}
