//! How processes hand work to each other and wait for it: slots with a state, and counters to sleep on.
//!
//! # Why nothing is lost
//!
//! **Slots.** A slot has one owner at a time. Whoever hands it over writes everything that goes with it first (action or
//! order; observation, reward, flags, mail) and then the state, with `Release`; the other side loads the state with
//! `Acquire` before it reads. So who sees the state sees all that was written before it. Mail goes through the kernel,
//! which writes it on the same processor before the state.
//!
//! **Rings.** Whoever has handed over slots advances the counter of the other side, with `Release`. A waiter loads the
//! counter (`Acquire`) *before* it looks at the slots. Then a slot that it does not see handed over belongs to a ring
//! that it has not counted: had it counted that ring, it would have seen the slot. So `m` missing slots mean at least
//! `m` rings to come, and the waiter may sleep until the counter has advanced by `m`. Rings for nothing only wake it
//! early, and it looks again.
//!
//! **Sleep.** The sleeper writes what it waits for and that it sleeps, then a `SeqCst` fence, then loads the counter.
//! The ringer advances the counter, then a `SeqCst` fence, then looks whether the other side sleeps. One of the fences
//! comes first. If it is the sleeper's, the ringer sees that it sleeps and for what, and wakes it; if it is the
//! ringer's, the sleeper sees the counter advanced, and does not sleep. Between that look and its sleep the kernel
//! compares the counter once more, under the lock that waking takes.
//!
//! `make test-signals` has loom run the code below in every order that the memory model allows (`mod model`).

#[cfg(not(all(test, loom)))]
use std::sync::atomic::{AtomicU32, AtomicU64, fence};
use std::{
    hint::spin_loop,
    sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst},
    time::{Duration, Instant},
};

#[cfg(all(test, loom))]
use loom::sync::atomic::{AtomicU32, AtomicU64, fence};

/// Longest time to burn before sleeping, and what it shrinks to when burning does not pay.
const LONGEST_SPIN: u32 = 100_000;
const SHORTEST_SPIN: u32 = 2_000;
/// Looks between two looks at the clock.
const BURST: u32 = if cfg!(all(test, loom)) { 1 } else { 32 };

const IDLE: u32 = 0;
const POSTED: u32 = 1;
const DONE: u32 = 2;

/// What a step gave besides the observation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Reward of the step.
    pub reward: f64,
    /// The episode ended by the rules of the task.
    pub terminated: bool,
    /// The episode was cut off.
    pub truncated: bool,
    /// There is more to know, which lies in the mail or with who stepped the environment.
    pub more: bool,
}

/// What goes to a worker and back: an environment to step, or an order. Zeroed memory is an idle one.
#[repr(C, align(64))]
#[cfg_attr(all(test, loom), derive(Default))]
pub(super) struct Slot {
    state: AtomicU32,
    flags: AtomicU32,
    /// Orders the slots that are done.
    ticket: AtomicU32,
    /// The next step is a reset.
    ended: AtomicU32,
    reward: AtomicU64,
    mail_len: AtomicU64,
}

impl Slot {
    /// Hands it to its worker.
    pub(super) fn post(&self) {
        self.state.store(POSTED, Release);
    }

    /// Whether it is its worker's.
    pub(super) fn posted(&self) -> bool {
        self.state.load(Acquire) == POSTED
    }

    /// Hands it back with results; slots of smaller tickets have been done for longer.
    pub(super) fn finish(&self, outcome: Outcome, ticket: u32) {
        let bits = [outcome.terminated, outcome.truncated, outcome.more];
        let flags = bits.iter().rev().fold(0, |flags, bit| flags << 1 | u32::from(*bit));
        self.flags.store(flags, Relaxed);
        self.reward.store(outcome.reward.to_bits(), Relaxed);
        self.ticket.store(ticket, Relaxed);
        self.state.store(DONE, Release);
    }

    /// Whether its results lie ready.
    pub(super) fn done(&self) -> bool {
        self.state.load(Acquire) == DONE
    }

    /// Takes it back, whatever its state; only from one that is done are there results.
    pub(super) fn take(&self) -> Outcome {
        self.state.store(IDLE, Relaxed);
        let flags = self.flags.load(Relaxed);
        Outcome {
            reward: f64::from_bits(self.reward.load(Relaxed)),
            terminated: flags & 1 != 0,
            truncated: flags & 2 != 0,
            more: flags & 4 != 0,
        }
    }

    pub(super) fn ticket(&self) -> u32 {
        self.ticket.load(Relaxed)
    }

    pub(super) fn ended(&self) -> bool {
        self.ended.load(Relaxed) != 0
    }

    pub(super) fn set_ended(&self, ended: bool) {
        self.ended.store(ended.into(), Relaxed);
    }

    pub(super) fn mail_len(&self) -> usize {
        self.mail_len.load(Relaxed) as usize
    }

    pub(super) fn set_mail_len(&self, len: usize) {
        self.mail_len.store(len as u64, Relaxed);
    }
}

/// How long, in nanoseconds, it pays to burn a core before sleeping: long after a wait that was short, whether it was
/// slept through or not, and ever less after long ones.
pub(super) struct Spin {
    limit: std::sync::atomic::AtomicU32,
    longest: u32,
}

impl Spin {
    /// `crowded` is for more processes than cores: then who spins keeps the core from whom it waits for.
    pub(super) fn new(crowded: bool) -> Self {
        let longest = if crowded { 0 } else { LONGEST_SPIN };
        Self { limit: longest.into(), longest }
    }

    /// Whether `done` came true in time.
    fn until(&self, done: impl Fn() -> bool) -> bool {
        let limit = Duration::from_nanos(self.limit.load(Relaxed).into());
        let start = Instant::now();
        loop {
            for _ in 0..BURST {
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
    fn learn(&self, time: Duration) {
        let limit = if time < 2 * Duration::from_nanos(LONGEST_SPIN.into()) {
            self.longest
        } else {
            (self.limit.load(Relaxed) / 2).max(SHORTEST_SPIN).min(self.longest)
        };
        self.limit.store(limit, Relaxed);
    }
}

/// A counter in shared memory, on a cache line of its own, that one process waits on and others advance. Zeroed memory
/// is a valid one.
#[repr(C, align(64))]
#[cfg_attr(all(test, loom), derive(Default))]
pub(super) struct Bell {
    count: AtomicU32,
    /// What the sleeper waits for the count to reach.
    target: AtomicU32,
    sleeping: AtomicU32,
    #[cfg(all(test, loom))]
    kernel: model::Kernel,
}

impl Bell {
    /// To be read before the slots are looked at.
    pub(super) fn count(&self) -> u32 {
        self.count.load(Acquire)
    }

    /// The count wraps around.
    fn reached(&self, target: u32) -> bool {
        self.count().wrapping_sub(target) as i32 >= 0
    }

    /// Advances the count, after slots have been handed over; wakes the sleeper if it has what it waits for.
    pub(super) fn ring(&self) {
        self.count.fetch_add(1, Release);
        fence(SeqCst);
        if self.sleeping.load(Relaxed) != 0 && self.reached(self.target.load(Relaxed)) {
            self.wake();
        }
    }

    /// Waits until nothing is `missing`, at most for `timeout`; says whether that is so.
    pub(super) fn wait_for(&self, spin: &Spin, timeout: Duration, missing: impl Fn() -> usize) -> bool {
        let start = Instant::now();
        let complete = loop {
            let count = self.count();
            let missing = missing();
            if missing == 0 {
                break true;
            }
            let Some(left) = timeout.checked_sub(start.elapsed()) else {
                break false;
            };
            self.wait(count.wrapping_add(missing as u32), spin, Some(left));
        };
        spin.learn(start.elapsed());
        complete
    }

    /// Waits until the count is no longer what was `seen`.
    pub(super) fn wait_past(&self, seen: u32, spin: &Spin) {
        let start = Instant::now();
        while self.count() == seen {
            self.wait(seen.wrapping_add(1), spin, None);
        }
        spin.learn(start.elapsed());
    }

    /// Burns and sleeps until the count has reached `target`, or `timeout`, or now and then for nothing; says whether
    /// it has.
    pub(super) fn wait(&self, target: u32, spin: &Spin, timeout: Option<Duration>) -> bool {
        if spin.until(|| self.reached(target)) {
            return true;
        }
        self.target.store(target, Relaxed);
        self.sleeping.store(1, Relaxed);
        fence(SeqCst);
        let seen = self.count();
        if !self.reached(target) {
            self.sleep(seen, timeout);
        }
        self.sleeping.store(0, Relaxed);
        self.reached(target)
    }
}

#[cfg(all(target_os = "linux", not(all(test, loom))))]
impl Bell {
    fn sleep(&self, seen: u32, timeout: Option<Duration>) {
        use rustix::thread::futex;
        let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
        // A changed word, a signal and the end of the time are all reasons to look again.
        let _ = futex::wait(&self.count, futex::Flags::empty(), seen, timeout.as_ref());
    }

    fn wake(&self) {
        use rustix::thread::futex;
        // It cannot fail for an aligned word that exists.
        let _ = futex::wake(&self.count, futex::Flags::empty(), 1);
    }
}

/// No other system lets processes wait on a word of memory through a stable interface: look ever less often.
#[cfg(all(not(target_os = "linux"), not(all(test, loom))))]
impl Bell {
    fn sleep(&self, seen: u32, timeout: Option<Duration>) {
        let start = Instant::now();
        let mut pause = Duration::from_micros(20);
        while self.count() == seen && timeout.is_none_or(|timeout| start.elapsed() < timeout) {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
        }
    }

    #[allow(clippy::unused_self)]
    fn wake(&self) {}
}

#[cfg(all(test, loom))]
mod model;
