//! The memory in which several processes step environments, and how they signal each other.
//!
//! One process, the parent, posts environments: it writes an action and marks the slot. The worker that owns the slot
//! steps the environment, writes what came out and marks the slot done; the parent takes it. A slot belongs to the
//! worker while it is posted, else to the parent, so nothing is written by two.

// Everything lies on cache lines of memory that starts on one.
#![allow(clippy::cast_ptr_alignment)]

mod memory;
mod signal;

use std::{
    ops::Range,
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release, SeqCst},
    },
    time::{Duration, Instant},
};

pub use self::memory::Handle;
use self::signal::{Bell, Spin};
use crate::{
    error::{Error, Result},
    memory::Block,
};

/// Bytes for what does not fit the regions: infos, mostly. A page costs memory only once it is written.
const MAIL_BYTES: usize = 1 << 16;
const LINE: usize = 64;

const IDLE: u32 = 0;
const POSTED: u32 = 1;
const DONE: u32 = 2;
/// The bit of a slot's flags that `received` clears.
const MESSAGE: u32 = 8;

/// Whether an environment said more than has a place in the memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum More {
    /// No.
    #[default]
    Nothing,
    /// Yes, and it lies in the mail, or with who stepped the environment.
    Kept,
    /// Yes, and it comes by another way than this memory.
    Message,
}

/// What a step gave besides the observation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Reward of the step.
    pub reward: f64,
    /// The episode ended by the rules of the task.
    pub terminated: bool,
    /// The episode was cut off.
    pub truncated: bool,
    /// What else there is to know.
    pub more: More,
}

/// One environment. Zeroed memory is an idle one.
#[repr(C, align(64))]
struct Slot {
    state: AtomicU32,
    flags: AtomicU32,
    /// Orders the slots that are done.
    ticket: AtomicU32,
    /// The next step is a reset.
    ended: AtomicU32,
    mail_bytes: AtomicU32,
    reward: AtomicU64,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// As many environments are done as were asked for.
    Ready,
    /// What this environment gave comes by another way, and its worker is stuck until it is received.
    Message(usize),
    /// The time is over.
    Late,
}

/// Sizes of everything, the same in each process.
#[derive(Clone, Debug)]
struct Plan {
    /// The environments of worker `w` are `starts[w]..starts[w + 1]`.
    starts: Vec<usize>,
    /// Offset and bytes per environment of each region.
    regions: Vec<(usize, usize)>,
    bells: usize,
    mail: usize,
    bytes: usize,
}

impl Plan {
    fn new(shares: &[usize], rows: &[usize]) -> Result<Self> {
        let mut starts = vec![0];
        for share in shares {
            starts.push(starts[starts.len() - 1] + share);
        }
        let num_envs = starts[shares.len()];
        if num_envs == 0 || num_envs > u32::MAX as usize / 4 {
            return Error::value(format!("num_envs: got {num_envs}, expected at least 1 and no more than 2^30"));
        }
        let mut bytes = 0;
        let mut place = |count: usize, each: usize| -> Result<usize> {
            let offset = bytes;
            let end = count.checked_mul(each).and_then(|len| len.checked_next_multiple_of(LINE));
            let end = end.and_then(|len| len.checked_add(offset)).filter(|end| isize::try_from(*end).is_ok());
            bytes = end.ok_or_else(|| Error::Value(format!("{count} rows of {each} bytes are too much memory")))?;
            Ok(offset)
        };
        place(num_envs, size_of::<Slot>())?;
        // The parent's bell, then one per worker, each with its word for commands.
        let bells = place(1 + shares.len(), 2 * LINE)?;
        let regions = rows.iter().map(|row| Ok((place(num_envs, *row)?, *row))).collect::<Result<_>>()?;
        let mail = place(num_envs, MAIL_BYTES)?;
        Ok(Self { starts, regions, bells, mail, bytes })
    }
}

/// The shared memory of a vector of environments, as one process sees it.
pub struct Board {
    memory: Block,
    plan: Plan,
    spin: Spin,
}

impl Board {
    /// A board on which worker `w` has `shares[w]` environments, with a region of `rows[r]` bytes per environment for
    /// each `r`. If it is to be `shared`, also gives what another process attaches with.
    pub fn new(shares: &[usize], rows: &[usize], shared: bool, crowded: bool) -> Result<(Self, Option<Handle>)> {
        let plan = Plan::new(shares, rows)?;
        let (memory, handle) = if shared {
            let (memory, handle) = memory::shared(plan.bytes)?;
            (memory, Some(handle))
        } else {
            (memory::private(plan.bytes)?, None)
        };
        Ok((Self { memory, plan, spin: Spin::new(crowded) }, handle))
    }

    /// The board that another process made with the same numbers.
    pub fn attach(shares: &[usize], rows: &[usize], handle: &Handle, crowded: bool) -> Result<Self> {
        let plan = Plan::new(shares, rows)?;
        let memory = memory::map(plan.bytes, handle)?;
        Ok(Self { memory, plan, spin: Spin::new(crowded) })
    }

    /// Number of environments.
    pub fn num_envs(&self) -> usize {
        self.plan.starts[self.plan.starts.len() - 1]
    }

    /// The environments of a worker.
    pub fn share(&self, worker: usize) -> Range<usize> {
        self.plan.starts[worker]..self.plan.starts[worker + 1]
    }

    /// Number of workers.
    pub fn num_workers(&self) -> usize {
        self.plan.starts.len() - 1
    }

    /// The worker that steps an environment.
    pub fn worker(&self, env: usize) -> usize {
        self.plan.starts.partition_point(|start| *start <= env) - 1
    }

    /// Address of a region, and its bytes per environment. They stay while the board lives.
    pub fn region(&self, index: usize) -> (*mut u8, usize) {
        let (offset, row) = self.plan.regions[index];
        // SAFETY: the plan laid the region inside the memory.
        (unsafe { self.memory.pointer().add(offset) }, row)
    }

    /// Address of one environment's row of a region, and its bytes.
    pub fn row(&self, index: usize, env: usize) -> (*mut u8, usize) {
        self.check(env);
        let (pointer, row) = self.region(index);
        // SAFETY: the region has a row for each environment.
        (unsafe { pointer.add(env * row) }, row)
    }

    fn check(&self, env: usize) {
        assert!(env < self.num_envs(), "there is no environment {env}");
    }

    fn slot(&self, env: usize) -> &Slot {
        self.check(env);
        // SAFETY: the slots come first in the memory, which is aligned for them and started zeroed; all fields are
        // atomic.
        unsafe { &*self.memory.pointer().cast::<Slot>().add(env) }
    }

    fn line(&self, index: usize) -> *mut u8 {
        // SAFETY: there are two lines for each bell.
        unsafe { self.memory.pointer().add(self.plan.bells + index * LINE) }
    }

    /// What the parent waits on.
    fn done(&self) -> &Bell {
        // SAFETY: the line is aligned, started zeroed, and holds nothing else.
        unsafe { &*self.line(0).cast::<Bell>() }
    }

    /// What a worker waits on.
    fn bell(&self, worker: usize) -> &Bell {
        assert!(worker < self.num_workers(), "there is no worker {worker}");
        // SAFETY: as in `done`.
        unsafe { &*self.line(2 + 2 * worker).cast::<Bell>() }
    }

    /// Whether the worker is to listen elsewhere.
    fn call(&self, worker: usize) -> &AtomicU32 {
        assert!(worker < self.num_workers(), "there is no worker {worker}");
        // SAFETY: as in `done`.
        unsafe { &*self.line(3 + 2 * worker).cast::<AtomicU32>() }
    }

    /// Hands an environment, its action written, to its worker, who learns of it by `ring`.
    pub fn post(&self, env: usize) {
        self.slot(env).state.store(POSTED, Release);
    }

    /// Makes a worker look at its environments.
    pub fn ring(&self, worker: usize) {
        self.bell(worker).ring(false);
    }

    /// Makes a worker return from `next`.
    pub fn summon(&self, worker: usize) {
        self.call(worker).store(1, SeqCst);
        self.ring(worker);
    }

    /// What was asked of a worker that died is not for the next one.
    pub fn forget(&self, worker: usize) {
        self.call(worker).store(0, SeqCst);
    }

    /// For a worker: waits for environments that are posted and runs `work` on each; returns once summoned, or with
    /// the error of `work`. `wait` runs the waiting, which may take long.
    pub fn serve<E>(
        &self,
        worker: usize,
        mut work: impl FnMut(usize) -> Result<(), E>,
        wait: impl Fn(&(dyn Fn() + Sync)),
    ) -> Result<(), E> {
        let (bell, call) = (self.bell(worker), self.call(worker));
        // A ring from before is answered as well.
        let mut idle = true;
        loop {
            let seen = bell.count();
            let mut worked = false;
            for env in self.share(worker) {
                if self.posted(env) {
                    work(env)?;
                    worked = true;
                }
            }
            if call.swap(0, SeqCst) != 0 {
                return Ok(());
            }
            if worked {
                idle = false;
                continue;
            }
            // Rung for nothing: the parent measures how long an answer takes.
            if idle {
                self.done().ring(false);
            }
            wait(&|| {
                let (start, target) = (Instant::now(), seen.wrapping_add(1));
                if !bell.spin(target, &self.spin) {
                    while bell.count() == seen {
                        bell.sleep(target, None, || false);
                    }
                }
                self.spin.learn(start.elapsed());
            });
            idle = true;
        }
    }

    /// Time from ringing at a worker that has nothing to do to its answer, or `None` after `timeout`.
    pub fn echo(&self, worker: usize, timeout: Duration) -> Option<Duration> {
        let start = Instant::now();
        let target = self.done().count().wrapping_add(1);
        self.ring(worker);
        if !self.done().spin(target, &self.spin) {
            self.done().sleep(target, Some(timeout), || false);
        }
        self.done().reached(target).then(|| start.elapsed())
    }

    /// Whether the environment is its worker's to step.
    pub fn posted(&self, env: usize) -> bool {
        self.slot(env).state.load(Acquire) == POSTED
    }

    /// Whether the environment's results lie ready.
    pub fn is_done(&self, env: usize) -> bool {
        self.slot(env).state.load(Acquire) == DONE
    }

    /// Hands an environment's results to the parent.
    pub fn finish(&self, env: usize, outcome: Outcome) {
        let (slot, done) = (self.slot(env), self.done());
        let message = outcome.more == More::Message;
        let bits = [outcome.terminated, outcome.truncated, outcome.more != More::Nothing, message];
        let flags = bits.iter().rev().fold(0, |flags, bit| flags << 1 | u32::from(*bit));
        slot.flags.store(flags, Relaxed);
        slot.reward.store(outcome.reward.to_bits(), Relaxed);
        slot.ticket.store(done.count(), Relaxed);
        slot.state.store(DONE, Release);
        done.ring(message);
    }

    fn outcome(&self, env: usize) -> Outcome {
        let slot = self.slot(env);
        let flags = slot.flags.load(Relaxed);
        Outcome {
            reward: f64::from_bits(slot.reward.load(Relaxed)),
            terminated: flags & 1 != 0,
            truncated: flags & 2 != 0,
            more: match (flags & 4 != 0, flags & MESSAGE != 0) {
                (_, true) => More::Message,
                (true, false) => More::Kept,
                (false, false) => More::Nothing,
            },
        }
    }

    /// For the parent: takes an environment back, whatever its state; only for one that is done are there results.
    pub fn take(&self, env: usize) -> Outcome {
        self.slot(env).state.store(IDLE, Relaxed);
        self.outcome(env)
    }

    /// For the parent: the message of an environment that is done has been received.
    pub fn received(&self, env: usize) {
        let flags = &self.slot(env).flags;
        flags.store(flags.load(Relaxed) & !MESSAGE, Relaxed);
    }

    /// Whether the next step of the environment is a reset.
    pub fn ended(&self, env: usize) -> bool {
        self.slot(env).ended.load(Relaxed) != 0
    }

    /// Sets whether the next step of the environment is a reset. For who owns the slot.
    pub fn set_ended(&self, env: usize, ended: bool) {
        self.slot(env).ended.store(ended.into(), Relaxed);
    }

    /// The environments that are done, longest first.
    pub fn ready(&self) -> Vec<usize> {
        let now = self.done().count();
        let mut envs: Vec<_> = (0..self.num_envs()).filter(|env| self.is_done(*env)).collect();
        envs.sort_by_key(|env| std::cmp::Reverse(now.wrapping_sub(self.slot(*env).ticket.load(Relaxed))));
        envs
    }

    /// How many environments are done, and one of them whose message is to be received.
    fn survey(&self) -> (usize, Option<usize>) {
        let (mut ready, mut message) = (0, None);
        for env in 0..self.num_envs() {
            if self.is_done(env) {
                ready += 1;
                if self.slot(env).flags.load(Relaxed) & MESSAGE != 0 {
                    message = Some(env);
                }
            }
        }
        (ready, message)
    }

    /// For the parent: waits until `wanted` environments are done, at most for `timeout`.
    pub fn wait(&self, wanted: usize, timeout: Duration) -> Wait {
        let start = Instant::now();
        let wait = self.wait_since(start, wanted, timeout);
        self.spin.learn(start.elapsed());
        wait
    }

    fn wait_since(&self, start: Instant, wanted: usize, timeout: Duration) -> Wait {
        let done = self.done();
        loop {
            let count = done.count();
            let (ready, message) = self.survey();
            if let Some(env) = message {
                return Wait::Message(env);
            }
            if ready >= wanted {
                return Wait::Ready;
            }
            let target = count.wrapping_add((wanted - ready) as u32);
            if done.spin(target, &self.spin) {
                continue;
            }
            let Some(left) = timeout.checked_sub(start.elapsed()) else {
                return Wait::Late;
            };
            done.sleep(target, Some(left), || {
                let (ready, message) = self.survey();
                message.is_some() || ready >= wanted
            });
        }
    }

    /// Writes to the mail of an environment; says whether it fits. For who owns the slot.
    pub fn write_mail(&self, env: usize, bytes: &[u8]) -> bool {
        let fits = bytes.len() <= MAIL_BYTES;
        if fits {
            self.slot(env).mail_bytes.store(bytes.len() as u32, Relaxed);
            // SAFETY: the environment has this much room, which only the owner of the slot touches.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.mail(env), bytes.len()) };
        }
        fits
    }

    /// The mail of an environment. For who owns the slot, and has seen that there is some.
    pub fn read_mail(&self, env: usize) -> Vec<u8> {
        let len = (self.slot(env).mail_bytes.load(Relaxed) as usize).min(MAIL_BYTES);
        // SAFETY: as in `write_mail`.
        unsafe { std::slice::from_raw_parts(self.mail(env), len) }.to_vec()
    }

    fn mail(&self, env: usize) -> *mut u8 {
        // SAFETY: the plan laid out room for each environment.
        unsafe { self.memory.pointer().add(self.plan.mail + env * MAIL_BYTES) }
    }
}

/// Ends this process soon after its parent, whatever it is doing then.
#[cfg(unix)]
pub fn die_with_parent(parent: u32) -> std::io::Result<()> {
    use rustix::process::{Signal, getpid, getppid, kill_process};
    let orphan = move || getppid().is_none_or(|pid| pid.as_raw_nonzero().get() as u32 != parent);
    let watch = move || {
        while !orphan() {
            std::thread::sleep(Duration::from_millis(200));
        }
        // Nothing in here needs to be cleaned up, and a signal cannot get stuck in an exit handler.
        let _ = kill_process(getpid(), Signal::KILL);
    };
    std::thread::Builder::new().name("drama-orphan".into()).spawn(watch).map(drop)
}
