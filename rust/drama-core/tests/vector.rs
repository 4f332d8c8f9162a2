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

use drama_core::{Board, Outcome};
use proptest::prelude::*;

const LONG: Duration = Duration::from_secs(60);

/// A worker that adds the action in region 0 to the observation in region 1, until it is given an order.
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

/// The same board as two processes see it.
fn boards(shares: &[usize], rows: &[usize], crowded: bool) -> (Arc<Board>, Arc<Board>) {
    if cfg!(any(target_os = "linux", target_os = "macos")) {
        let board = Board::new(shares, true, crowded).unwrap();
        let file = board.file().as_ref().unwrap().try_clone().unwrap();
        let other = Board::attach(shares, file, crowded).unwrap();
        (Arc::new(board.with_regions(rows).unwrap()), Arc::new(other.with_regions(rows).unwrap()))
    } else {
        let board = Arc::new(Board::new(shares, false, crowded).unwrap().with_regions(rows).unwrap());
        (Arc::clone(&board), board)
    }
}

/// Makes a worker return from serving.
fn summon(board: &Board, worker: usize) {
    board.post(board.desk(worker));
    board.wake(worker);
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
            (0..3).for_each(|worker| board.wake(worker));
            assert!(board.wait(6, LONG));
            for (env, expected) in expected.iter().enumerate() {
                assert!(board.is_done(env));
                let outcome = board.take(env);
                assert_eq!((outcome.reward, outcome.truncated), (*expected as f64, expected % 2 == 1));
            }
            if round % 500 == 0 {
                thread::sleep(Duration::from_millis(2)); // long enough for everybody to fall asleep
            }
        }
        (0..3).for_each(|worker| summon(&board, worker));
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
    (0..2).for_each(|worker| board.wake(worker));
    for _ in 0..2000 {
        assert!(board.wait(2, LONG));
        let ready = board.ready();
        assert_eq!(ready.iter().collect::<BTreeSet<_>>().len(), ready.len());
        for env in &ready[..2] {
            steps[*env] += 1;
            assert!(board.take(*env).reward.total_cmp(&(steps[*env] as f64)).is_eq());
            post(&board, *env, 1);
            board.wake(board.worker(*env));
        }
    }
    assert!(board.wait(4, LONG));
    (0..2).for_each(|worker| summon(&board, worker));
    for worker in workers {
        worker.join().unwrap();
    }
}

#[test]
fn waiting_ends_with_time() {
    let (board, other) = boards(&[2], &[8], false);
    assert!(!board.wait(1, Duration::from_millis(20)));
    board.post(0);
    board.post(1);
    let worker = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50)); // the other side sleeps by now
        other.finish(1, Outcome { more: true, ..Outcome::default() });
    });
    assert!(board.wait(1, LONG));
    worker.join().unwrap();
    assert!(!board.wait(2, Duration::from_millis(1)));
    assert!(board.take(1).more);
    assert!(board.posted(0));
    assert!(board.ready().is_empty());
}

/// Orders and answers of any size go to and fro, while other workers step.
#[test]
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn orders_are_answered() {
    let (board, other) = boards(&[1, 1], &[8, 8], false);
    let workers: Vec<_> = (0..2)
        .map(|worker| {
            let other = Arc::clone(&other);
            thread::spawn(move || {
                loop {
                    adder(&other, worker);
                    let desk = other.desk(worker);
                    let mut mail = other.read_mail(desk).unwrap();
                    if mail.is_empty() {
                        return;
                    }
                    mail.reverse();
                    other.write_mail(desk, &mail).unwrap();
                    other.finish(desk, Outcome::default());
                }
            })
        })
        .collect();
    for round in 0..300_usize {
        let order: Vec<_> = (0..=round * round * 40).map(|i| (i % 251) as u8).collect();
        post(&board, 0, 1);
        board.wake(0);
        board.write_mail(board.desk(1), &order).unwrap();
        summon(&board, 1);
        assert!(board.wait_for_order(1, LONG));
        board.take(board.desk(1));
        let answer = board.read_mail(board.desk(1)).unwrap();
        assert!(answer.iter().eq(order.iter().rev()));
        assert!(board.wait(1, LONG));
        board.take(0);
    }
    assert!(!board.wait_for_order(0, Duration::from_millis(1)));
    for worker in 0..2 {
        board.write_mail(board.desk(worker), b"").unwrap();
        summon(&board, worker);
    }
    for worker in workers {
        worker.join().unwrap();
    }
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
    summon(&board, 0);
    worker.join().unwrap();
    assert_eq!(board.echo(0, Duration::from_millis(20)), None);
}

#[test]
fn what_was_asked_of_the_dead_is_forgotten() {
    let (board, other) = boards(&[1], &[8, 8], false);
    summon(&board, 0);
    board.take(board.desk(0));
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let worker = thread::spawn(move || {
        adder(&other, 0);
        count.fetch_add(1, SeqCst);
    });
    post(&board, 0, 4);
    board.wake(0);
    assert!(board.wait(1, LONG));
    assert_eq!(served.load(SeqCst), 0);
    summon(&board, 0);
    worker.join().unwrap();
}

#[test]
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn mail_is_kept_apart() {
    let (board, other) = boards(&[1, 1], &[8], false);
    for (slot, mail) in [(0, vec![1; 3]), (1, vec![]), (board.desk(0), vec![2; 9]), (board.desk(1), vec![3; 5 << 20])] {
        other.write_mail(slot, &[9; 20]).unwrap();
        other.write_mail(slot, &mail).unwrap();
    }
    assert_eq!(board.read_mail(0).unwrap(), [1; 3]);
    assert!(board.read_mail(1).unwrap().is_empty());
    assert_eq!(board.read_mail(board.desk(0)).unwrap(), [2; 9]);
    assert_eq!(board.read_mail(board.desk(1)).unwrap(), vec![3; 5 << 20]);
    board.close();
    assert!(board.write_mail(0, b"x").unwrap_err().to_string().contains("mail is only for"));
    other.write_mail(0, b"x").unwrap();
}

/// Large mail takes no memory once it is read.
#[test]
#[cfg(target_os = "linux")]
fn large_mail_gives_its_memory_back() {
    use std::os::unix::fs::MetadataExt;
    let (board, other) = boards(&[1], &[8], false);
    let blocks = || board.file().as_ref().unwrap().metadata().unwrap().blocks();
    let before = blocks();
    other.write_mail(0, &vec![7; 32 << 20]).unwrap();
    assert!(blocks() - before >= (32 << 20) / 512);
    board.read_mail(0).unwrap();
    assert!(blocks() - before < (1 << 20) / 512);
}

#[test]
fn what_cannot_be_is_refused() {
    assert!(Board::new(&[0, 0], false, false).is_err());
    assert!(Board::new(&[], false, false).is_err());
    assert!(Board::new(&[1 << 27], false, false).is_err());
    assert!(Board::new(&[2], false, false).unwrap().with_regions(&[usize::MAX / 2]).is_err());
    assert!(Board::new(&[1], false, false).unwrap().with_regions(&[usize::MAX - 3]).is_err());
    if cfg!(target_os = "linux") {
        assert!(Board::new(&[1], true, false).unwrap().with_regions(&[1 << 40]).is_err());
    }
}

proptest! {
    /// Regions, rows and mail of different environments never overlap, and regions start on cache lines.
    #[test]
    fn everything_has_its_own_place(
        shares in prop::collection::vec(0_usize..5, 1..4),
        rows in prop::collection::vec(0_usize..200, 0..4),
    ) {
        prop_assume!(shares.iter().sum::<usize>() > 0);
        let (board, _) = boards(&shares, &rows, false);
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
            if cfg!(any(target_os = "linux", target_os = "macos")) {
                board.write_mail(env, &vec![255; 1 << 16]).unwrap();
            }
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
            prop_assert_eq!((outcome.reward, outcome.terminated, outcome.more), (env as f64, env % 3 == 0, false));
        }
    }
}
