//! Rows for some environments, every sampler and every shape of draw, against a model that keeps all rows.
#![allow(missing_docs)]

use std::collections::{BTreeMap, HashSet};

use drama_core::{
    DType, DynamicFrequency, Field, Prioritized, Ring, Role, Schema, Sequences, Starts, Steps, draw_recent,
    draw_uniform, gather_sequences, gather_transitions, seeded,
};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    No,
    Terminated,
    Truncated,
    Final,
}

/// The ring, and all rows ever added: the end of each, by environment. The reward of row `t` is `t`.
struct Model {
    ring: Ring,
    rows: Vec<Vec<End>>,
}

/// What a transition should be: reward, what follows, factor, rows used.
type Transition = (f64, i64, f32, i64);

impl Model {
    fn new(capacity: usize, num_envs: usize) -> Self {
        let field = Field::new("reward", DType::from_name("int64").unwrap(), vec![]).unwrap();
        let ring = Ring::new(Schema::new(vec![field]).unwrap(), capacity, num_envs).unwrap();
        Self { ring, rows: vec![Vec::new(); num_envs] }
    }

    fn add(&mut self, envs: &[usize], end: impl Fn(usize) -> End) {
        let rewards: Vec<u8> = envs.iter().flat_map(|&env| (self.rows[env].len() as i64).to_le_bytes()).collect();
        let ends: Vec<End> = envs.iter().map(|&env| end(env)).collect();
        let flags = |kinds: &[End]| ends.iter().map(|end| u8::from(kinds.contains(end))).collect::<Vec<_>>();
        let (terminated, truncated) = (flags(&[End::Terminated]), flags(&[End::Truncated, End::Final]));
        self.ring.add(1, Some(envs), &[Some(&rewards), Some(&terminated), Some(&truncated), None]).unwrap();
        for (&env, end) in envs.iter().zip(ends) {
            self.rows[env].push(end);
            if end == End::Final {
                let last = (-(self.rows[env].len() as i64)).to_le_bytes();
                self.ring.set_final(&[env], &[Some(&last), None, None, None]).unwrap();
            }
        }
    }

    fn held(&self) -> impl Iterator<Item = (usize, usize)> {
        let rows = |env: usize| {
            let count = self.rows[env].len();
            (count.saturating_sub(self.ring.rows_per_env())..count).map(move |t| (env, t))
        };
        (0..self.rows.len()).flat_map(rows)
    }

    /// Rows of the episode from `t` on.
    fn run(&self, env: usize, t: usize, limit: usize) -> usize {
        let rows = self.rows[env][t..].iter().take(limit);
        let before_end = rows.clone().take_while(|end| **end == End::No).count();
        (before_end + 1).min(rows.len())
    }

    /// Number of the oldest frame of a stack that ends at `t`.
    fn stack_start(&self, env: usize, t: usize, frames: usize) -> usize {
        let back = (1..frames).take_while(|&back| back <= t && self.rows[env][t - back] == End::No).count();
        t - back
    }

    fn stack_kept(&self, env: usize, t: usize, frames: usize) -> bool {
        self.stack_start(env, t, frames) >= self.rows[env].len().saturating_sub(self.ring.rows_per_env())
    }

    fn sequences(&self, length: usize, within: bool, frames: usize) -> HashSet<usize> {
        let fits = |&(env, t): &(usize, usize)| {
            (within || t + length <= self.rows[env].len()) && self.stack_kept(env, t, frames)
        };
        self.held().filter(fits).map(|(env, t)| self.ring.slot(env, t as u64)).collect()
    }

    fn transitions(&self, steps: usize, discount: f64, frames: usize) -> BTreeMap<usize, Transition> {
        let transition = |(env, t): (usize, usize)| {
            let used = self.run(env, t, steps);
            let after = t + used;
            let (next, goes_on) = match self.rows[env][after - 1] {
                End::Terminated => (0, 0.0),
                End::Final => (-(after as i64), 1.0),
                End::No if used == steps && after < self.rows[env].len() => (after as i64, 1.0),
                End::No | End::Truncated => return None,
            };
            let sum = (0..used).map(|k| discount.powi(k as i32) * (t + k) as f64).sum();
            let factor = (discount.powi(used as i32) * goes_on) as f32;
            let slot = self.ring.slot(env, t as u64);
            self.stack_kept(env, t, frames).then_some((slot, (sum, next, factor, used as i64)))
        };
        self.held().filter_map(transition).collect()
    }
}

/// Draws with every sampler and checks which slots come.
fn check_draws(
    starts: &Starts<'_>,
    valid: &HashSet<usize>,
    dfs: &mut DynamicFrequency,
    prioritized: &mut Prioritized,
    seed: u64,
) {
    let (count, mut rng) = (valid.len(), seeded(seed));
    let exactly = |drawn: Vec<usize>| {
        assert_eq!(drawn.len(), count);
        assert_eq!(&drawn.into_iter().collect::<HashSet<_>>(), valid);
    };
    if count > 0 {
        exactly(draw_recent(starts, count).unwrap());
        exactly(draw_uniform(starts, count, false, &mut rng).unwrap());
        exactly(dfs.draw(starts, Role::WorldModel, count, &mut rng).unwrap());
        exactly(dfs.draw(starts, Role::Imagination, count, &mut rng).unwrap());
        exactly(prioritized.draw(starts, count, false, 0.5, &mut rng).unwrap().0);
        let (repeated, weights) = prioritized.draw(starts, 5, true, 0.5, &mut rng).unwrap();
        assert!(repeated.iter().all(|slot| valid.contains(slot)));
        assert!(weights.iter().all(|weight| (0.0..=1.0).contains(weight)) && weights.contains(&1.0));
        assert!(draw_uniform(starts, 5, true, &mut rng).unwrap().iter().all(|slot| valid.contains(slot)));
    }
    let mut errors = vec![
        draw_recent(starts, count + 1).unwrap_err(),
        draw_uniform(starts, count + 1, false, &mut rng).unwrap_err(),
        dfs.draw(starts, Role::WorldModel, count + 1, &mut rng).unwrap_err(),
        prioritized.draw(starts, count + 1, false, 0.5, &mut rng).unwrap_err(),
    ];
    if count == 0 {
        errors.push(draw_uniform(starts, 1, true, &mut rng).unwrap_err());
    }
    for error in errors {
        assert!(error.to_string().contains("exist"), "{error}");
    }
}

fn numbers<const N: usize, T>(bytes: &[u8], from: fn([u8; N]) -> T) -> Vec<T> {
    bytes.chunks_exact(N).map(|chunk| from(chunk.try_into().unwrap())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn draws_of_every_shape_equal_the_model(
        (capacity, num_envs) in (1..50_usize, 1..5_usize),
        rounds in prop::collection::vec((1..25_usize, any::<u64>(), 1..5_usize, 1..4_usize, any::<bool>()), 1..6),
    ) {
        let mut model = Model::new(capacity, num_envs);
        let mut dfs = DynamicFrequency::new(2.0, 0.5, 1.0, 1.0).unwrap();
        let mut prioritized = Prioritized::new(0.7).unwrap();
        for (rows, seed, length, frames, within) in rounds {
            for row in 0..rows {
                let bits = |env: usize| seed.wrapping_mul(2 * (row * 7 + env) as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
                // Every other round adds to all environments together.
                let envs: Vec<usize> = (0..num_envs).rev().filter(|&env| seed % 2 == 0 || bits(env) % 3 > 0).collect();
                model.add(&envs, |env| match bits(env) / 3 % 9 {
                    0 => End::Terminated,
                    1 => End::Truncated,
                    2 => End::Final,
                    _ => End::No,
                });
            }
            let limit = model.ring.rows_per_env();
            let (length, frames) = (length.min(limit), frames.min(limit));
            let known: Vec<i64> = model.held().map(|(env, t)| model.ring.slot(env, t as u64) as i64).collect();
            let ring = &model.ring;

            let starts = if within { Starts::within_episodes(ring, length) } else { Starts::sequences(ring, length) };
            let valid = model.sequences(length, within, frames);
            check_draws(&starts.unwrap().stacked(frames), &valid, &mut dfs, &mut prioritized, seed);
            prioritized.priorities(ring).unwrap();
            let priorities: Vec<f64> = known.iter().map(|&slot| 0.1 + (seed % 5 + slot as u64 % 4) as f64).collect();
            prioritized.update(&known, &priorities).unwrap();
            for &slot in &valid {
                let (mut rewards, mut flags, mut mask) = (vec![9; length * frames * 8], vec![vec![9; length]; 3], vec![9; length]);
                let stacks = [frames];
                let sequences = Sequences { length, within_episode: within, stacks: &stacks };
                let mut outputs = vec![&mut rewards[..]];
                outputs.extend(flags.iter_mut().map(|flag| &mut flag[..]));
                if within {
                    outputs.push(&mut mask);
                }
                gather_sequences(ring, &[slot], &sequences, outputs).unwrap();
                let (env, t) = ring.row_of(slot);
                let real = if within { model.run(env, t as usize, length) } else { length };
                let mut expected = Vec::new();
                for at in t as usize..t as usize + real {
                    let first = model.stack_start(env, at, frames);
                    expected.extend((0..frames).map(|frame| (at + frame + 1).saturating_sub(frames).max(first) as i64));
                }
                expected.resize(length * frames, 0);
                prop_assert_eq!(numbers(&rewards, i64::from_le_bytes), expected);
                let is_real = |at: usize| u8::from(at < real);
                prop_assert!(!within || mask == (0..length).map(is_real).collect::<Vec<_>>());
            }

            let starts = Starts::transitions(ring, length, &[0]).unwrap().stacked(frames);
            let expected = model.transitions(length, 0.5, frames);
            check_draws(&starts, &expected.keys().copied().collect(), &mut dfs, &mut prioritized, seed);
            let slots: Vec<usize> = expected.keys().copied().collect();
            let widths = [4, 1, 1, 1, 8, 4, 8];
            let mut columns: Vec<Vec<u8>> = widths.iter().map(|width| vec![9; width * slots.len()]).collect();
            let outputs = columns.iter_mut().map(|column| &mut column[..]).collect();
            gather_transitions(ring, &slots, &Steps { steps: length, discount: 0.5, stacks: &[], next: &[0] }, outputs).unwrap();
            let rewards = numbers(&columns[0], f32::from_le_bytes).into_iter().map(f64::from);
            let (next, factors) = (numbers(&columns[4], i64::from_le_bytes), numbers(&columns[5], f32::from_le_bytes));
            let used = numbers(&columns[6], i64::from_le_bytes);
            let got: Vec<Transition> =
                rewards.zip(next).zip(factors).zip(used).map(|(((sum, next), factor), used)| (sum, next, factor, used)).collect();
            // Halves of small numbers: every sum is exact.
            prop_assert_eq!(got, expected.into_values().collect::<Vec<_>>());
        }
    }
}

/// So few starts that each draw but the first meets only what came since the one before.
#[test]
fn rare_starts_are_all_drawn_while_rows_come_and_go() {
    for (steps, frames, num_envs) in [(1, 1, 1), (3, 1, 2), (2, 4, 2), (1, 9, 1)] {
        let mut model = Model::new(400 * num_envs, num_envs);
        let mut rng = seeded(7);
        let (mut dfs, mut prioritized) =
            (DynamicFrequency::new(2.0, 0.5, 1.0, 1.0).unwrap(), Prioritized::new(0.6).unwrap());
        for row in 0..1500 {
            let every: Vec<usize> = (0..num_envs).collect();
            let rare = |env| match (row + 31 * env) % 97 {
                5 => End::Final,
                40..44 => End::No,
                60 => End::Terminated,
                _ => End::Truncated,
            };
            model.add(&every, rare);
            if row % 13 > 0 {
                continue;
            }
            let expected: Vec<usize> = model.transitions(steps, 0.5, frames).into_keys().collect();
            let next = [0];
            let starts = Starts::transitions(&model.ring, steps, &next).unwrap().stacked(frames);
            if expected.is_empty() {
                assert!(draw_uniform(&starts, 1, true, &mut rng).is_err());
                assert!(dfs.draw(&starts, Role::WorldModel, 1, &mut rng).is_err());
                assert!(prioritized.draw(&starts, 1, true, 0.4, &mut rng).is_err());
                continue;
            }
            let mut draws: [&mut dyn FnMut(usize) -> drama_core::Result<Vec<usize>>; 3] = [
                &mut |count| draw_uniform(&starts, count, false, &mut seeded(row as u64)),
                &mut |count| dfs.draw(&starts, Role::Imagination, count, &mut seeded(row as u64)),
                &mut |count| Ok(prioritized.draw(&starts, count, false, 0.4, &mut seeded(row as u64))?.0),
            ];
            for draw in &mut draws {
                let mut drawn = draw(expected.len()).unwrap();
                drawn.sort_unstable();
                assert_eq!(drawn, expected, "row {row}, {steps} steps, {frames} frames");
                let error = draw(expected.len() + 1).unwrap_err().to_string();
                assert!(error.contains(&format!("only {} exist", expected.len())), "{error}");
            }
            let newest_first = (0..=row as u64).rev().take(model.ring.rows_per_env()).flat_map(|t| {
                let of_all = |env| model.ring.slot(env, t);
                (0..num_envs).map(of_all).filter(|slot| expected.binary_search(slot).is_ok()).collect::<Vec<_>>()
            });
            let newest_first: Vec<_> = newest_first.collect();
            for count in 1..=expected.len() {
                assert_eq!(draw_recent(&starts, count).unwrap(), newest_first[..count]);
            }
            let error = draw_recent(&starts, expected.len() + 1).unwrap_err().to_string();
            assert!(error.contains(&format!("only {} exist", expected.len())), "{error}");
            let many = draw_uniform(&starts, 50 * expected.len(), true, &mut rng).unwrap();
            assert_eq!(many.into_iter().collect::<HashSet<_>>().len(), expected.len());
        }
    }
}

#[test]
fn a_start_without_a_transition_is_refused() {
    let mut model = Model::new(10, 1);
    model.add(&[0], |_| End::No);
    let steps = Steps { steps: 1, discount: 0.5, stacks: &[], next: &[0] };
    for slot in [0, 1, 10, usize::MAX] {
        let error = gather_transitions(&model.ring, &[slot], &steps, Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), format!("index {slot} starts no transition of 1 steps"));
    }
}
