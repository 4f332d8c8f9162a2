//! The memory in which several processes step environments.
//!
//! One process, the parent, posts environments: it writes an action and hands the slot over. The worker that owns the
//! slot steps the environment, writes what came out and hands the slot back. Beside its environments, each worker has a
//! desk: a slot for orders. What goes with a slot and has no region is its mail, which may be of any size. A slot, its
//! rows and its mail belong to the worker while it is posted, else to the parent, so nothing is written by two; how the
//! two sides learn of it is in `signal`.

// Everything lies on cache lines of memory that starts on one.
#![allow(clippy::cast_ptr_alignment)]

mod memory;
mod signal;

use std::{
    fs::File,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

pub use self::signal::Outcome;
use self::signal::{Bell, Slot, Spin};
use crate::{
    error::{Error, Result},
    memory::Block,
};

const LINE: usize = 64;

/// Sizes of everything, the same in each process.
#[derive(Clone, Debug)]
struct Plan {
    /// The environments of worker `w` are `starts[w]..starts[w + 1]`.
    starts: Vec<usize>,
    bells: usize,
    /// Offset and bytes per environment of each region.
    regions: Vec<(usize, usize)>,
    bytes: usize,
}

impl Plan {
    fn new(shares: &[usize], rows: &[usize]) -> Result<Self> {
        let mut starts = vec![0];
        for share in shares {
            starts.push(starts[starts.len() - 1] + share);
        }
        let num_envs = starts[shares.len()];
        if num_envs == 0 || num_envs + shares.len() > memory::MOST_SLOTS {
            return Error::value(format!("num_envs: got {num_envs}, expected at least 1 and less than 2^26"));
        }
        let mut bytes = 0;
        let mut place = |count: usize, each: usize| -> Result<usize> {
            let offset = bytes;
            let end = count.checked_mul(each).and_then(|len| len.checked_next_multiple_of(LINE));
            let end = end.and_then(|len| len.checked_add(offset)).filter(|end| isize::try_from(*end).is_ok());
            bytes = end.ok_or_else(|| Error::Value(format!("{count} rows of {each} bytes are too much memory")))?;
            Ok(offset)
        };
        // One for each environment, then the desks of the workers.
        place(num_envs + shares.len(), size_of::<Slot>())?;
        // The parent's, then one for each worker.
        let bells = place(1 + shares.len(), size_of::<Bell>())?;
        // Last, so that nothing else moves when they are laid out.
        let regions = rows.iter().map(|row| Ok((place(num_envs, *row)?, *row))).collect::<Result<_>>()?;
        Ok(Self { starts, bells, regions, bytes })
    }
}

/// The memory of a vector of environments, as one process sees it.
pub struct Board {
    memory: Block,
    plan: Plan,
    spin: Spin,
    crowded: bool,
    /// What the memory is a mapping of, if other processes have it too, and where the mail lies.
    file: Mutex<Option<File>>,
}

impl Board {
    /// A board on which worker `w` has `shares[w]` environments, without regions, for this process alone or to be
    /// `shared`. `crowded` is for more processes than cores.
    pub fn new(shares: &[usize], shared: bool, crowded: bool) -> Result<Self> {
        let plan = Plan::new(shares, &[])?;
        let mut file = if shared { Some(memory::shared()?) } else { None };
        Self::on(plan, &mut file, crowded)
    }

    /// The board that another process made with the same numbers on `file`.
    pub fn attach(shares: &[usize], file: File, crowded: bool) -> Result<Self> {
        Self::on(Plan::new(shares, &[])?, &mut Some(file), crowded)
    }

    /// The same board with a region of `rows[r]` bytes per environment for each `r`. It takes the place of this one,
    /// which keeps its view of the slots if it is shared, but neither file nor mail.
    pub fn with_regions(&self, rows: &[usize]) -> Result<Self> {
        let shares: Vec<_> = (0..self.num_workers()).map(|worker| self.share(worker).len()).collect();
        Self::on(Plan::new(&shares, rows)?, &mut self.file(), self.crowded)
    }

    fn on(plan: Plan, file: &mut Option<File>, crowded: bool) -> Result<Self> {
        let memory = match file {
            Some(file) => memory::map(plan.bytes, file)?,
            None => memory::private(plan.bytes)?,
        };
        Ok(Self { memory, plan, spin: Spin::new(crowded), crowded, file: file.take().into() })
    }

    /// What other processes attach with, if it is shared.
    pub fn file(&self) -> MutexGuard<'_, Option<File>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the file: no process will attach any more, and no mail be sent.
    pub fn close(&self) {
        self.file().take();
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

    /// The number of the slot through which a worker is given orders; all that is done with environments can be done
    /// with it, too.
    pub fn desk(&self, worker: usize) -> usize {
        self.check_worker(worker);
        self.num_envs() + worker
    }

    fn check_worker(&self, worker: usize) {
        assert!(worker < self.num_workers(), "there is no worker {worker}");
    }

    fn slot(&self, slot: usize) -> &Slot {
        assert!(slot < self.num_envs() + self.num_workers(), "there is no slot {slot}");
        // SAFETY: the slots come first in the memory, which is aligned for them and started zeroed; all fields are
        // atomic.
        unsafe { &*self.memory.pointer().cast::<Slot>().add(slot) }
    }

    fn bells(&self, index: usize) -> &Bell {
        assert!(index <= self.num_workers(), "there is no worker {}", index - 1);
        // SAFETY: the plan laid them there, aligned; they started zeroed, and all fields are atomic.
        unsafe { &*self.memory.pointer().add(self.plan.bells).cast::<Bell>().add(index) }
    }

    /// What the parent waits on.
    fn done(&self) -> &Bell {
        self.bells(0)
    }

    /// What a worker waits on.
    fn bell(&self, worker: usize) -> &Bell {
        self.bells(1 + worker)
    }

    /// Hands a slot, its action or order written, to its worker, who learns of it by `wake`.
    pub fn post(&self, slot: usize) {
        self.slot(slot).post();
    }

    /// Makes a worker look at its slots.
    pub fn wake(&self, worker: usize) {
        self.bell(worker).ring();
    }

    /// For a worker: waits for environments that are posted and runs `work` on each; returns once there is an order,
    /// or with the error of `work`. `wait` runs the waiting, which may take long.
    pub fn serve<E>(
        &self,
        worker: usize,
        mut work: impl FnMut(usize) -> Result<(), E>,
        wait: impl Fn(&(dyn Fn() + Sync)),
    ) -> Result<(), E> {
        let (bell, desk) = (self.bell(worker), self.desk(worker));
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
            if self.posted(desk) {
                return Ok(());
            }
            if worked {
                idle = false;
                continue;
            }
            // Rung for nothing: the parent measures how long an answer takes.
            if idle {
                self.done().ring();
            }
            wait(&|| bell.wait_past(seen, &self.spin));
            idle = true;
        }
    }

    /// Time from ringing at a worker that has nothing to do to its answer, or `None` after `timeout`.
    pub fn echo(&self, worker: usize, timeout: Duration) -> Option<Duration> {
        let start = Instant::now();
        let target = self.done().count().wrapping_add(1);
        self.wake(worker);
        self.done().wait(target, &self.spin, Some(timeout)).then(|| start.elapsed())
    }

    /// Whether a slot is its worker's.
    pub fn posted(&self, slot: usize) -> bool {
        self.slot(slot).posted()
    }

    /// Whether a slot's results lie ready.
    pub fn is_done(&self, slot: usize) -> bool {
        self.slot(slot).done()
    }

    /// Hands a slot's results to the parent.
    pub fn finish(&self, slot: usize, outcome: Outcome) {
        let done = self.done();
        self.slot(slot).finish(outcome, done.count());
        done.ring();
    }

    /// For the parent: takes a slot back, whatever its state; only from one that is done are there results.
    pub fn take(&self, slot: usize) -> Outcome {
        self.slot(slot).take()
    }

    /// Whether the next step of the environment is a reset.
    pub fn ended(&self, env: usize) -> bool {
        self.slot(env).ended()
    }

    /// Sets whether the next step of the environment is a reset. For who owns the slot.
    pub fn set_ended(&self, env: usize, ended: bool) {
        self.slot(env).set_ended(ended);
    }

    fn all_done(&self) -> impl Iterator<Item = usize> {
        (0..self.num_envs()).filter(|env| self.is_done(*env))
    }

    /// The environments that are done, longest first.
    pub fn ready(&self) -> Vec<usize> {
        let now = self.done().count();
        let mut envs: Vec<_> = self.all_done().collect();
        envs.sort_by_key(|env| std::cmp::Reverse(now.wrapping_sub(self.slot(*env).ticket())));
        envs
    }

    /// For the parent: waits until `wanted` environments are done, at most for `timeout`; says whether they are.
    pub fn wait(&self, wanted: usize, timeout: Duration) -> bool {
        self.done().wait_for(&self.spin, timeout, || wanted.saturating_sub(self.all_done().count()))
    }

    /// For the parent: waits until a worker has done what it was ordered, at most for `timeout`; says whether it has.
    pub fn wait_for_order(&self, worker: usize, timeout: Duration) -> bool {
        let desk = self.desk(worker);
        self.done().wait_for(&self.spin, timeout, || usize::from(!self.is_done(desk)))
    }

    /// Writes the mail of a slot. For who owns it.
    pub fn write_mail(&self, slot: usize, bytes: &[u8]) -> Result<()> {
        let to = self.slot(slot);
        memory::write_mail(self.file().as_ref().ok_or_else(no_mail)?, slot, bytes)?;
        to.set_mail_len(bytes.len());
        Ok(())
    }

    /// The mail of a slot, which may be read once. For who owns the slot, and has seen that there is some.
    pub fn read_mail(&self, slot: usize) -> Result<Vec<u8>> {
        let len = self.slot(slot).mail_len();
        memory::read_mail(self.file().as_ref().ok_or_else(no_mail)?, slot, len)
    }
}

fn no_mail() -> Error {
    Error::Runtime("mail is only for processes that share the memory".into())
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
