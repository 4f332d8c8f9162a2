//! Drives the fuzz target of the loader with mutations of real saves.
#![allow(missing_docs)]

#[path = "../../fuzz/src/lib.rs"]
#[allow(unreachable_pub)] // It is a library of its own under cargo-fuzz.
mod target;

use std::sync::Mutex;

use proptest::prelude::*;

/// The target uses one directory per process.
static ONE: Mutex<()> = Mutex::new(());

fn run(input: &[u8]) {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    target::load_mutated(input);
    assert!(peak() < 256 << 20, "a save of some hundred bytes took {} bytes", peak());
}

/// The most memory that this process ever had, where Linux tells.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok()).unwrap_or(0) << 10
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn edits_of_a_save(mode in prop::sample::select(vec![0_u8, 1, 4, 5]), script in prop::collection::vec(any::<u8>(), 0..24)) {
        run(&[&[mode][..], &script].concat());
    }

    #[test]
    fn numbers_of_the_manifest(script in prop::collection::vec(any::<u8>(), 2..8)) {
        run(&[&[8][..], &script].concat());
    }

    #[test]
    fn values_of_any_kind_in_the_manifest(script in prop::collection::vec(any::<u8>(), 2..8)) {
        run(&[&[16][..], &script].concat());
    }

    #[test]
    fn arbitrary_files(mode in 0_u8..8, content in prop::collection::vec(any::<u8>(), 0..400)) {
        run(&[&[mode | 2][..], &content].concat());
    }

    /// One flipped or replaced digit keeps the manifest readable, so that numbers out of place reach the parser.
    #[test]
    fn signed_changes_of_a_number(at in any::<u16>(), value in 0_u8..8) {
        let [low, high] = at.to_le_bytes();
        run(&[4, low, high, 2, value]);
        run(&[4, low, high, 0, b'0' + value]);
        run(&[4, low, high, 3, 0]);
    }
}

#[test]
fn every_number_of_the_manifest() {
    for which in 0..100 {
        for value in 0..14 {
            run(&[8, which, value]);
        }
    }
}

#[test]
fn every_value_of_the_manifest_by_one_of_another_kind() {
    for which in 0..100 {
        for value in 128..142 {
            run(&[16, which, value]);
        }
    }
}

#[test]
fn an_untouched_save() {
    for mode in [0, 1, 4, 5, 8, 16] {
        run(&[mode]);
    }
}
