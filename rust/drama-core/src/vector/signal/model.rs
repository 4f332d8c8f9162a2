//! Every order in which two or three processes can run slots and bells, tried out by loom.

use loom::{
    cell::UnsafeCell,
    sync::{Arc, Condvar, Mutex},
    thread,
};

use super::*;

const LONG: Duration = Duration::from_secs(1 << 30);

/// What the kernel keeps for a word that is slept on.
#[derive(Default)]
pub(super) struct Kernel {
    lock: Mutex<()>,
    woken: Condvar,
}

impl Bell {
    pub(super) fn sleep(&self, seen: u32, _: Option<Duration>) {
        let lock = self.kernel.lock.lock().unwrap();
        if self.count.load(Relaxed) == seen {
            drop(self.kernel.woken.wait(lock).unwrap());
        }
    }

    pub(super) fn wake(&self) {
        let _lock = self.kernel.lock.lock().unwrap();
        self.kernel.woken.notify_one();
    }
}

/// One environment with its regions, which are no atomics: loom fails where two touch them at once, or where one does
/// not see what the other wrote.
#[derive(Default)]
struct Env {
    slot: Slot,
    action: UnsafeCell<u32>,
    observation: UnsafeCell<u32>,
}

/// Two environments at most, the bells of the parent and of a worker.
#[derive(Default)]
struct Memory {
    envs: [Env; 2],
    done: Bell,
    bell: Bell,
}

impl Memory {
    fn post(&self, env: usize, action: u32) {
        // SAFETY: loom watches.
        self.envs[env].action.with_mut(|place| unsafe { *place = action });
        self.envs[env].slot.post();
    }

    /// What a worker does for an environment.
    fn work(&self, env: usize) {
        let Env { slot, action, observation } = &self.envs[env];
        // SAFETY: loom watches.
        let action = action.with(|place| unsafe { *place });
        // SAFETY: as above.
        observation.with_mut(|place| unsafe { *place = action + 1 });
        slot.set_ended(true);
        slot.set_mail_len(action as usize);
        slot.finish(Outcome { reward: f64::from(action), truncated: true, ..Outcome::default() }, self.done.count());
        self.done.ring();
    }

    /// What a worker does until it has worked `times`; as `Board::serve`.
    fn serve(&self, times: usize) {
        let mut worked = 0;
        loop {
            let seen = self.bell.count();
            for env in 0..2 {
                if self.envs[env].slot.posted() {
                    self.work(env);
                    worked += 1;
                }
            }
            if worked == times {
                return;
            }
            self.bell.wait_past(seen, &Spin::new(true));
        }
    }

    /// What the parent does until `wanted` environments are done; as `Board::wait`.
    fn wait(&self, wanted: usize) {
        let missing = || wanted.saturating_sub(self.envs.iter().filter(|env| env.slot.done()).count());
        assert!(self.done.wait_for(&Spin::new(true), LONG, missing));
    }

    fn check(&self, env: usize, action: u32) {
        let Env { slot, observation, .. } = &self.envs[env];
        assert!(slot.done());
        assert_eq!(slot.take(), Outcome { reward: f64::from(action), truncated: true, ..Outcome::default() });
        assert!(slot.ended());
        assert_eq!(slot.mail_len(), action as usize);
        // SAFETY: loom watches.
        assert_eq!(observation.with(|place| unsafe { *place }), action + 1);
    }
}

/// The parent posts, rings and waits; the worker may be anywhere meanwhile, asleep or just before.
#[test]
fn a_step_there_and_back() {
    loom::model(|| {
        let memory = Arc::new(Memory::default());
        let worker = {
            let memory = Arc::clone(&memory);
            thread::spawn(move || memory.serve(1))
        };
        memory.post(0, 7);
        memory.bell.ring();
        memory.wait(1);
        memory.check(0, 7);
        worker.join().unwrap();
    });
}

/// The second step meets what the first left behind: targets, a worker that sleeps or is about to.
#[test]
fn two_steps_there_and_back() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let memory = Arc::new(Memory::default());
        let worker = {
            let memory = Arc::clone(&memory);
            thread::spawn(move || memory.serve(2))
        };
        for action in [3, 4] {
            memory.post(0, action);
            memory.bell.ring();
            memory.wait(1);
            memory.check(0, action);
        }
        worker.join().unwrap();
    });
}

/// Two workers finish at once, and the parent sleeps until both have: the target that it sleeps for is never too high.
#[test]
fn two_workers_finish() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let memory = Arc::new(Memory::default());
        memory.post(0, 5);
        memory.post(1, 6);
        let workers = [0, 1].map(|env| {
            let memory = Arc::clone(&memory);
            thread::spawn(move || memory.work(env))
        });
        memory.wait(2);
        memory.check(0, 5);
        memory.check(1, 6);
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

/// A ring for nothing wakes, and takes nothing away from those to come.
#[test]
fn a_ring_for_nothing() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let memory = Arc::new(Memory::default());
        memory.post(0, 5);
        let worker = {
            let memory = Arc::clone(&memory);
            thread::spawn(move || {
                memory.done.ring();
                memory.work(0);
            })
        };
        memory.wait(1);
        memory.check(0, 5);
        worker.join().unwrap();
    });
}
