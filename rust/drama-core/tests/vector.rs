//! Boards with threads in the place of worker processes.

// Regions start on cache lines.
#![allow(clippy::cast_ptr_alignment)]

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use drama_core::{Board, More, Outcome, Wait};
use proptest::prelude::*;

const LONG: Duration = Duration::from_secs(60);

/// A worker that adds the action in region 0 to the observation in region 1, until summoned.
fn adder(board: &Board, worker: usize) {
    let work = |env| -> Result<(), ()> {
        let (action, _) = board.row(0, env);
        let (observation, _) = board.row(1, env);
        // SAFETY: rows of 8 bytes, and the slot is this worker's.
        let sum = unsafe {
            let sum = observation.cast::<u64>().read() + action.cast::<u64>().read();
            observation.cast::<u64>().write(sum);
            sum
        };
        board.finish(env, Outcome { reward: sum as f64, truncated: sum % 2 == 1, ..Outcome::default() });
        Ok(())
    };
    board.serve(worker, work, |wait| wait()).unwrap();
}

fn post(board: &Board, env: usize, action: u64) {
    // SAFETY: a row of 8 bytes, and the slot is the parent's.
    unsafe { board.row(0, env).0.cast::<u64>().write(action) };
    board.post(env);
}

fn boards(shares: &[usize], rows: &[usize], crowded: bool) -> (Arc<Board>, Arc<Board>) {
    if cfg!(any(target_os = "linux", target_os = "macos")) {
        let (board, handle) = Board::new(shares, rows, true, crowded).unwrap();
        let other = Board::attach(shares, rows, &handle.unwrap(), crowded).unwrap();
        (Arc::new(board), Arc::new(other))
    } else {
        let board = Arc::new(Board::new(shares, rows, false, crowded).unwrap().0);
        (Arc::clone(&board), board)
    }
}

#[test]
fn every_step_arrives_once() {
    for crowded in [false, true] {
        let (board, other) = boards(&[3, 1, 2], &[8, 8], crowded);
        let workers: Vec<_> = (0..3)
            .map(|worker| {
                let other = Arc::clone(&other);
                thread::spawn(move || adder(&other, worker))
            })
            .collect();
        let mut expected = [0; 6];
        for round in 0..3000_u64 {
            for (env, expected) in expected.iter_mut().enumerate() {
                let action = round * env as u64 + 1;
                *expected += action;
                post(&board, env, action);
            }
            (0..3).for_each(|worker| board.ring(worker));
            assert_eq!(board.wait(6, LONG), Wait::Ready);
            for (env, expected) in expected.iter().enumerate() {
                assert!(board.is_done(env));
                let outcome = board.take(env);
                assert_eq!((outcome.reward, outcome.truncated), (*expected as f64, expected % 2 == 1));
            }
            if round % 500 == 0 {
                thread::sleep(Duration::from_millis(2)); // long enough for everybody to fall asleep
            }
        }
        (0..3).for_each(|worker| board.summon(worker));
        for worker in workers {
            worker.join().unwrap();
        }
    }
}

#[test]
fn some_are_ready_before_others() {
    let (board, other) = boards(&[2, 2], &[8, 8], true);
    let workers: Vec<_> = (0..2)
        .map(|worker| {
            let other = Arc::clone(&other);
            thread::spawn(move || adder(&other, worker))
        })
        .collect();
    let mut steps = [0_u64; 4];
    (0..4).for_each(|env| post(&board, env, 1));
    (0..2).for_each(|worker| board.ring(worker));
    for _ in 0..2000 {
        assert_eq!(board.wait(2, LONG), Wait::Ready);
        let ready = board.ready();
        assert_eq!(ready.iter().collect::<BTreeSet<_>>().len(), ready.len());
        for env in &ready[..2] {
            steps[*env] += 1;
            assert!(board.take(*env).reward.total_cmp(&(steps[*env] as f64)).is_eq());
            post(&board, *env, 1);
            board.ring(board.worker(*env));
        }
    }
    assert_eq!(board.wait(4, LONG), Wait::Ready);
    (0..2).for_each(|worker| board.summon(worker));
    for worker in workers {
        worker.join().unwrap();
    }
}

#[test]
fn waiting_ends_with_time_and_with_messages() {
    let (board, other) = boards(&[2], &[8], false);
    assert_eq!(board.wait(1, Duration::from_millis(20)), Wait::Late);
    board.post(0);
    board.post(1);
    let worker = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50)); // the other side sleeps by now
        other.finish(1, Outcome { more: More::Message, ..Outcome::default() });
    });
    assert_eq!(board.wait(2, LONG), Wait::Message(1));
    worker.join().unwrap();
    board.received(1);
    assert_eq!(board.wait(2, Duration::from_millis(1)), Wait::Late);
    assert_eq!(board.wait(1, LONG), Wait::Ready);
    assert_eq!(board.take(1).more, More::Kept);
    assert!(board.posted(0));
    assert!(board.ready().is_empty());
}

#[test]
fn a_worker_answers_the_bell_but_not_when_it_is_gone() {
    let (board, other) = boards(&[1], &[8, 8], false);
    assert_eq!(board.echo(0, Duration::from_millis(20)), None);
    let worker = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20)); // The first ring comes before the worker listens.
        adder(&other, 0);
    });
    for _ in 0..100 {
        assert!(board.echo(0, LONG).is_some());
    }
    board.summon(0);
    worker.join().unwrap();
    assert_eq!(board.echo(0, Duration::from_millis(20)), None);
}

#[test]
fn what_was_asked_of_the_dead_is_forgotten() {
    let (board, other) = boards(&[1], &[8, 8], false);
    board.summon(0);
    board.forget(0);
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let worker = thread::spawn(move || {
        adder(&other, 0);
        count.fetch_add(1, SeqCst);
    });
    post(&board, 0, 4);
    board.ring(0);
    assert_eq!(board.wait(1, LONG), Wait::Ready);
    assert_eq!(served.load(SeqCst), 0);
    board.summon(0);
    worker.join().unwrap();
}

#[test]
fn mail_is_kept_apart_and_limited() {
    let (board, other) = boards(&[1, 1], &[8], false);
    assert!(other.write_mail(0, b"first"));
    assert!(other.write_mail(1, b""));
    assert!(other.write_mail(0, &vec![7; 1 << 16]));
    assert!(!other.write_mail(1, &vec![9; (1 << 16) + 1]));
    assert_eq!(board.read_mail(0), vec![7; 1 << 16]);
    assert_eq!(board.read_mail(1), b"");
}

#[test]
fn what_cannot_be_is_refused() {
    assert!(Board::new(&[0, 0], &[8], false, false).is_err());
    assert!(Board::new(&[], &[8], false, false).is_err());
    assert!(Board::new(&[2], &[usize::MAX / 2], false, false).is_err());
    assert!(Board::new(&[1], &[usize::MAX - 3], true, false).is_err());
}

#[cfg(target_os = "linux")]
#[test]
fn another_size_of_memory_is_refused() {
    let (_board, handle) = Board::new(&[2], &[8], true, false).unwrap();
    let error = Board::attach(&[2], &[8 << 20], &handle.unwrap(), false).err().unwrap();
    assert!(error.to_string().contains("the other process made"), "{error}");
}

proptest! {
    /// Regions, rows and mail of different environments never overlap, and regions start on cache lines.
    #[test]
    fn everything_has_its_own_place(
        shares in prop::collection::vec(0_usize..5, 1..4),
        rows in prop::collection::vec(0_usize..200, 0..4),
    ) {
        prop_assume!(shares.iter().sum::<usize>() > 0);
        let board = Board::new(&shares, &rows, false, false).unwrap().0;
        let envs = shares.iter().sum::<usize>();
        prop_assert_eq!(board.num_envs(), envs);
        for worker in 0..shares.len() {
            prop_assert!(board.share(worker).all(|env| board.worker(env) == worker));
        }
        for (region, row) in rows.iter().enumerate() {
            prop_assert_eq!(board.region(region).0 as usize % 64, 0);
            for env in 0..envs {
                let (pointer, len) = board.row(region, env);
                prop_assert_eq!(len, *row);
                // SAFETY: the row has this many bytes.
                unsafe { std::ptr::write_bytes(pointer, (region * envs + env) as u8, len) };
            }
        }
        for env in 0..envs {
            board.write_mail(env, &vec![255; 1 << 16]);
            board.set_ended(env, env % 2 == 0);
            board.finish(env, Outcome { reward: env as f64, terminated: env % 3 == 0, ..Outcome::default() });
        }
        for region in 0..rows.len() {
            for env in 0..envs {
                let (pointer, len) = board.row(region, env);
                // SAFETY: the row has this many bytes.
                let bytes = unsafe { std::slice::from_raw_parts(pointer, len) };
                prop_assert!(bytes.iter().all(|byte| *byte == (region * envs + env) as u8));
            }
        }
        for env in 0..envs {
            prop_assert_eq!(board.ended(env), env % 2 == 0);
            let outcome = board.take(env);
            prop_assert_eq!((outcome.reward, outcome.terminated, outcome.more), (env as f64, env % 3 == 0, More::Nothing));
        }
    }
}
