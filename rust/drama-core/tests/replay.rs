//! The buffer and its samplers against a model that keeps everything in plain vectors.
#![allow(missing_docs)]

mod common;

use std::collections::HashSet;

use common::{add, add_plain, ring, sequence, value};
use drama_core::{
    ChaCha8Rng, Counters, DType, DynamicFrequency, Error, Field, Result, Ring, Role, Schema, Starts,
    draw_uniform as draw_starts, gather, seeded,
};
use proptest::prelude::*;

fn draw_uniform(
    ring: &Ring,
    count: usize,
    length: usize,
    replacement: bool,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<usize>> {
    draw_starts(&Starts::sequences(ring, length)?, count, replacement, rng)
}

fn draw_dfs(
    dfs: &mut DynamicFrequency,
    ring: &Ring,
    role: Role,
    (count, length): (usize, usize),
    rng: &mut ChaCha8Rng,
) -> Result<Vec<usize>> {
    dfs.draw(&Starts::sequences(ring, length)?, role, count, rng)
}

/// Every row ever added, as (terminated, truncated), by row and environment.
type History = Vec<Vec<(bool, bool)>>;

#[derive(Clone, Debug)]
enum Step {
    Add(usize),
    Uniform(usize, usize, bool),
    Dfs(Role, usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let role = prop::sample::select(vec![Role::WorldModel, Role::Imagination]);
    prop_oneof![
        (1..12_usize).prop_map(Step::Add),
        (1..6_usize, 1..9_usize, any::<bool>()).prop_map(|(count, length, again)| Step::Uniform(count, length, again)),
        (role, 1..9_usize, 1..9_usize).prop_map(|(role, count, length)| Step::Dfs(role, count, length)),
    ]
}

/// Slots at which a sequence of `length` rows starts, from the definition.
fn valid_starts(ring: &Ring, length: usize) -> HashSet<usize> {
    let (rows, total) = (ring.rows_per_env() as u64, ring.total());
    let held = total.saturating_sub(rows)..total;
    let fits = held.filter(|t| t + length as u64 <= total);
    fits.flat_map(|t| (0..ring.num_envs()).map(move |env| env * rows as usize + (t % rows) as usize)).collect()
}

fn check_sequence(ring: &Ring, history: &History, start: usize, length: usize) {
    let env = start / ring.rows_per_env();
    let (values, [terminated, truncated, is_first]) = sequence(ring, start, length);
    let t = values[0] as u64 & 0xffff_ffff;
    assert!(t >= history.len().saturating_sub(ring.rows_per_env()) as u64, "an overwritten row");
    for step in 0..length {
        let row = t as usize + step;
        assert_eq!(values[step], value(env, row as u64));
        assert_eq!((terminated[step] != 0, truncated[step] != 0), history[row][env]);
        let after_end = row == 0 || history[row - 1][env].0 || history[row - 1][env].1;
        assert_eq!(is_first[step] != 0, after_end);
    }
}

/// What the counters should be.
struct Naive {
    n: Vec<u32>,
    b: Vec<u32>,
}

impl Naive {
    fn clear(&mut self, ring: &Ring, rows: u64) {
        for t in ring.total() - rows..ring.total() {
            for env in 0..ring.num_envs() {
                self.n[ring.slot(env, t)] = 0;
                self.b[ring.slot(env, t)] = 0;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn behaves_as_the_model(
        capacity in 1..60_usize,
        num_envs in 1..5_usize,
        steps in prop::collection::vec(step(), 1..40),
        seed in any::<u64>(),
    ) {
        let mut ring = ring(capacity, num_envs);
        let mut rng = seeded(seed);
        let mut dfs = DynamicFrequency::new(2.0, 0.5, 1.0, 1.0).unwrap();
        let mut naive = Naive { n: vec![0; ring.slots()], b: vec![0; ring.slots()] };
        let mut history: History = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Add(rows) => {
                    let end = |row, env| ((row * 7 + env * 3 + number) % 5 == 0, (row + env * 5 + number) % 7 == 0);
                    let ends: History = (0..rows).map(|row| (0..num_envs).map(|env| end(row, env)).collect()).collect();
                    add(&mut ring, &ends);
                    history.extend(ends);
                    naive.clear(&ring, rows as u64);
                }
                Step::Uniform(count, length, replacement) => {
                    let valid = if length <= ring.rows_per_env() { valid_starts(&ring, length) } else { HashSet::new() };
                    let enough = if replacement { !valid.is_empty() } else { count <= valid.len() };
                    let drawn = draw_uniform(&ring, count, length, replacement, &mut rng);
                    prop_assert_eq!(drawn.is_ok(), enough);
                    for start in drawn.into_iter().flatten() {
                        prop_assert!(valid.contains(&start));
                        check_sequence(&ring, &history, start, length);
                    }
                }
                Step::Dfs(role, count, length) => {
                    let valid = if length <= ring.rows_per_env() { valid_starts(&ring, length) } else { HashSet::new() };
                    let drawn = draw_dfs(&mut dfs, &ring, role, (count, length), &mut rng);
                    prop_assert_eq!(drawn.is_ok(), count <= valid.len());
                    let drawn = drawn.unwrap_or_default();
                    let distinct: HashSet<_> = drawn.iter().copied().collect();
                    prop_assert_eq!(distinct.len(), drawn.len());
                    for start in drawn {
                        prop_assert!(valid.contains(&start));
                        check_sequence(&ring, &history, start, length);
                        let counts = if role == Role::WorldModel { &mut naive.n } else { &mut naive.b };
                        counts[start] += 1;
                    }
                }
            }
            let counters = dfs.counters(&ring).unwrap();
            prop_assert_eq!((&counters.n, &counters.b), (&naive.n, &naive.b));
        }
    }

    #[test]
    fn a_restored_sampler_draws_as_the_one_it_came_from(
        rounds in prop::collection::vec((0..9_usize, 1..5_usize, 1..7_usize), 1..20),
        seed in any::<u64>(),
    ) {
        let mut ring = ring(40, 2);
        add_plain(&mut ring, 12);
        let mut dfs = DynamicFrequency::new(1.5, 0.25, 1.0, 1.0).unwrap();
        let mut rng = seeded(seed);
        for (rows, count, length) in rounds {
            add_plain(&mut ring, rows);
            let mut restored = DynamicFrequency::new(1.5, 0.25, 1.0, 1.0).unwrap();
            restored.import(dfs.export().clone()).unwrap();
            for role in [Role::WorldModel, Role::Imagination] {
                let mut same = rng.clone();
                let drawn = draw_dfs(&mut dfs, &ring, role, (count, length), &mut rng).unwrap();
                prop_assert_eq!(drawn, draw_dfs(&mut restored, &ring, role, (count, length), &mut same).unwrap());
            }
        }
    }
}

#[test]
fn all_starts_are_drawn_whatever_their_weights() {
    let mut ring = ring(400, 4);
    add_plain(&mut ring, 100);
    let mut dfs = DynamicFrequency::new(1.0, 1.0, 1.0, 1.0).unwrap();
    let n = (0..400).map(|slot| slot * 10_000).collect();
    dfs.import(Counters { n, b: vec![0; 400], seen: vec![100; 4], num_envs: 4 }).unwrap();
    let mut drawn = draw_dfs(&mut dfs, &ring, Role::WorldModel, (400, 1), &mut seeded(0)).unwrap();
    assert!(drawn.is_sorted(), "a weight e^10000 times another comes first");
    drawn.dedup();
    assert_eq!(drawn.len(), 400);
}

#[test]
fn a_block_is_as_its_rows() {
    const SIZE: usize = 24 << 10;
    let field = Field::new("obs", DType::from_name("uint8").unwrap(), vec![SIZE]).unwrap();
    let schema = Schema::new(vec![field]).unwrap();
    let mut rings: Vec<Ring> = (0..2).map(|_| Ring::new(schema.clone(), 120, 3).unwrap()).collect();
    // Within a lap, over its end, all of it, more than that; for some environments out of order.
    for (rows, envs) in [(30, None), (25, None), (40, None), (97, None), (1, Some([2, 0, 1])), (13, None)] {
        let order = envs.unwrap_or([0, 1, 2]);
        let number = |row: usize, at: usize| (rings[0].total() as usize + row) * 3 + order[at];
        let numbers: Vec<usize> = (0..rows * 3).map(|i| number(i / 3, i % 3)).collect();
        let obs: Vec<u8> = numbers.iter().flat_map(|n| (0..SIZE).map(move |i| ((n * 7 + i) % 251) as u8)).collect();
        let terminated: Vec<u8> = numbers.iter().map(|n| u8::from(n % 11 == 0)).collect();
        let truncated: Vec<u8> = numbers.iter().map(|n| u8::from(n % 13 == 0)).collect();
        let envs = envs.as_ref().map(|envs| &envs[..]);
        rings[0].add(rows, envs, &[Some(&obs), Some(&terminated), Some(&truncated), None]).unwrap();
        for (i, n) in numbers.iter().enumerate() {
            let part = |bytes: &[u8], size: usize| bytes[i * size..][..size].to_vec();
            let (obs, ends) = (part(&obs, SIZE), (part(&terminated, 1), part(&truncated, 1)));
            rings[1].add(1, Some(&[n % 3]), &[Some(&obs), Some(&ends.0), Some(&ends.1), None]).unwrap();
        }
        assert_eq!(rings[0].totals(), rings[1].totals());
        for env in 0..3 {
            let (held, count) = (rings[0].held(env), rings[0].filled(env));
            let all = |ring: &Ring| {
                let (mut obs, mut flags) = (vec![0; count * SIZE], vec![vec![9; count]; 3]);
                let outputs = std::iter::once(&mut obs).chain(&mut flags).map(|bytes| &mut bytes[..]).collect();
                gather(ring, &[ring.slot(env, held.start)], count, outputs).unwrap();
                (obs, flags)
            };
            assert!(all(&rings[0]) == all(&rings[1]), "{rows} rows, environment {env}");
        }
    }
}

#[test]
fn a_large_gather_uses_threads_and_gives_the_same() {
    let mut ring = ring(30_000, 3);
    add_plain(&mut ring, 15_000);
    let starts: Vec<usize> = (0..500).map(|i| ring.slot(i % 3, 5000 + i as u64 * 19)).collect();
    let mut x = vec![0; 500 * 400 * 16];
    let mut flags = vec![vec![0; 500 * 400]; 3];
    let mut outputs = vec![&mut x[..]];
    outputs.extend(flags.iter_mut().map(|flag| &mut flag[..]));
    gather(&ring, &starts, 400, outputs).unwrap();
    for (&start, sequence_bytes) in starts.iter().zip(x.chunks_exact(400 * 16)) {
        let values: Vec<i64> =
            sequence_bytes.chunks_exact(16).map(|row| i64::from_le_bytes(row[..8].try_into().unwrap())).collect();
        assert_eq!(values, sequence(&ring, start, 400).0);
    }
}

#[test]
fn errors_say_what_was_asked_for_and_what_exists() {
    let mut ring = ring(20, 2);
    let mut dfs = DynamicFrequency::new(1.0, 1.0, 1.0, 1.0).unwrap();
    let mut rng = seeded(0);
    let early = draw_dfs(&mut dfs, &ring, Role::WorldModel, (3, 4), &mut rng).unwrap_err().to_string();
    assert_eq!(early, "asked for 3 distinct starts of length 4, but only 0 exist");
    let early = draw_uniform(&ring, 3, 4, true, &mut rng).unwrap_err().to_string();
    assert_eq!(early, "asked for 3 starts of length 4, but none exist: each environment holds 0 rows");
    add_plain(&mut ring, 7);
    let many = draw_uniform(&ring, 9, 4, false, &mut rng).unwrap_err().to_string();
    assert_eq!(many, "asked for 9 distinct starts of length 4, but only 8 exist");
    let long = draw_uniform(&ring, 1, 11, true, &mut rng).unwrap_err().to_string();
    assert_eq!(long, "length must be from 1 to 10 (the rows kept per environment), got 11");
    let outside = gather(&ring, &[8], 1, Vec::new()).unwrap_err();
    assert!(matches!(outside, Error::Index(_)), "{outside}");
    let cut = gather(&ring, &[4], 4, Vec::new()).unwrap_err().to_string();
    assert_eq!(cut, "index 4 is followed by 3 rows, fewer than length 4");
}

#[test]
fn a_sampler_refuses_another_buffer() {
    let (mut one, mut other) = (ring(20, 2), ring(20, 4));
    add_plain(&mut one, 10);
    add_plain(&mut other, 5);
    let mut dfs = DynamicFrequency::new(1.0, 1.0, 1.0, 1.0).unwrap();
    draw_dfs(&mut dfs, &one, Role::WorldModel, (1, 1), &mut seeded(0)).unwrap();
    let mut alike = ring(20, 2);
    add_plain(&mut alike, 10);
    for ring in [&other, &alike] {
        let error = draw_dfs(&mut dfs, ring, Role::WorldModel, (1, 1), &mut seeded(0)).unwrap_err();
        assert!(error.to_string().contains("used with another buffer"), "{error}");
    }
    // What was taken over belongs to no buffer yet, and is refused by one that it does not fit.
    let counters = dfs.export().clone();
    dfs.import(counters).unwrap();
    let error = draw_dfs(&mut dfs, &other, Role::WorldModel, (1, 1), &mut seeded(0)).unwrap_err();
    assert!(error.to_string().contains("2 environments and 20 slots"), "{error}");
    let mut behind = ring(20, 2);
    add_plain(&mut behind, 9);
    let error = draw_dfs(&mut dfs, &behind, Role::WorldModel, (1, 1), &mut seeded(0)).unwrap_err();
    assert!(error.to_string().contains("another buffer"), "{error}");
    draw_dfs(&mut dfs, &alike, Role::WorldModel, (1, 1), &mut seeded(0)).unwrap();
}

#[test]
fn counts_saturate() {
    let mut ring = ring(1, 1);
    add_plain(&mut ring, 1);
    let mut dfs = DynamicFrequency::new(1e-300, 1.0, 1.0, 1.0).unwrap();
    dfs.import(Counters { n: vec![u32::MAX], b: vec![u32::MAX], seen: vec![1], num_envs: 1 }).unwrap();
    for role in [Role::WorldModel, Role::Imagination] {
        assert_eq!(draw_dfs(&mut dfs, &ring, role, (1, 1), &mut seeded(0)).unwrap(), [0]);
    }
    assert_eq!(dfs.export().n, [u32::MAX]);
}
