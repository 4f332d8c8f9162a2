//! Counters that one process waits on and others advance.

use std::{
    hint::spin_loop,
    sync::atomic::{
        AtomicU32,
        Ordering::{Relaxed, SeqCst},
    },
    time::{Duration, Instant},
};

/// Longest time to burn before sleeping, and what it shrinks to when burning does not pay.
const LONGEST_SPIN: u32 = 100_000;
const SHORTEST_SPIN: u32 = 2_000;

/// How long, in nanoseconds, it pays to burn a core before sleeping: long after a wait that was short, whether it was
/// slept through or not, and ever less after long ones.
pub(super) struct Spin {
    limit: AtomicU32,
    longest: u32,
}

impl Spin {
    /// `crowded` is for more processes than cores: then who spins keeps the core from whom it waits for.
    pub(super) fn new(crowded: bool) -> Self {
        let longest = if crowded { 0 } else { LONGEST_SPIN };
        Self { limit: AtomicU32::new(longest), longest }
    }

    /// Whether `done` came true in time.
    fn until(&self, done: impl Fn() -> bool) -> bool {
        let limit = Duration::from_nanos(self.limit.load(Relaxed).into());
        let start = Instant::now();
        loop {
            for _ in 0..32 {
                if done() {
                    return true;
                }
                spin_loop();
            }
            if start.elapsed() >= limit {
                return false;
            }
        }
    }

    /// Learns from a wait that took `time` in all.
    pub(super) fn learn(&self, time: Duration) {
        let limit = if time < 2 * Duration::from_nanos(LONGEST_SPIN.into()) {
            self.longest
        } else {
            (self.limit.load(Relaxed) / 2).max(SHORTEST_SPIN).min(self.longest)
        };
        self.limit.store(limit, Relaxed);
    }
}

/// A counter in shared memory, on a cache line of its own. Zeroed memory is a valid one.
#[repr(C, align(64))]
pub(super) struct Bell {
    count: AtomicU32,
    /// What the sleeper waits for the count to reach.
    target: AtomicU32,
    sleeping: AtomicU32,
}

impl Bell {
    pub(super) fn count(&self) -> u32 {
        self.count.load(SeqCst)
    }

    /// The count wraps around.
    pub(super) fn reached(&self, target: u32) -> bool {
        self.count().wrapping_sub(target) as i32 >= 0
    }

    /// Advances the count; wakes the sleeper if it has what it waits for, or anyway if `urgent`.
    pub(super) fn ring(&self, urgent: bool) {
        self.count.fetch_add(1, SeqCst);
        if self.sleeping.load(SeqCst) != 0 && (urgent || self.reached(self.target.load(SeqCst))) {
            wake(&self.count);
        }
    }

    /// Whether the count reached `target` while burning.
    pub(super) fn spin(&self, target: u32, spin: &Spin) -> bool {
        spin.until(|| self.reached(target))
    }

    /// Sleeps until the count reaches `target`, or an urgent ring, or `timeout`, or now and then for nothing. `ready`
    /// says, after everybody can know that this process sleeps, whether there is no need to.
    pub(super) fn sleep(&self, target: u32, timeout: Option<Duration>, ready: impl Fn() -> bool) {
        self.target.store(target, SeqCst);
        self.sleeping.store(1, SeqCst);
        let seen = self.count();
        if !self.reached(target) && !ready() {
            sleep(&self.count, seen, timeout);
        }
        self.sleeping.store(0, SeqCst);
    }
}

#[cfg(target_os = "linux")]
fn sleep(word: &AtomicU32, seen: u32, timeout: Option<Duration>) {
    use rustix::thread::futex;
    let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
    // A changed word, a signal and the end of the time are all reasons to look again.
    let _ = futex::wait(word, futex::Flags::empty(), seen, timeout.as_ref());
}

#[cfg(target_os = "linux")]
fn wake(word: &AtomicU32) {
    use rustix::thread::futex;
    // It cannot fail for an aligned word that exists.
    let _ = futex::wake(word, futex::Flags::empty(), 1);
}

/// No other system lets processes wait on a word of memory through a stable interface: look ever less often.
#[cfg(not(target_os = "linux"))]
fn sleep(word: &AtomicU32, seen: u32, timeout: Option<Duration>) {
    let start = Instant::now();
    let mut pause = Duration::from_micros(20);
    while word.load(SeqCst) == seen && timeout.is_none_or(|timeout| start.elapsed() < timeout) {
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(1));
    }
}

#[cfg(not(target_os = "linux"))]
fn wake(_: &AtomicU32) {}
