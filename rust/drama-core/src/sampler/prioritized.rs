//! Proportional prioritized sampling.

use rand::Rng;

use super::{
    follow::{StartTree, follow},
    tree::Weight,
};
use crate::{
    error::{Error, Result},
    memory::{room, table, try_collect},
    ring::{Ring, split},
    starts::{RANGES, STARTS, Starts},
};

/// The priorities of every slot, as they are saved.
#[derive(Clone, Debug, PartialEq)]
pub struct Priorities {
    /// Priority of each slot.
    pub values: Vec<f64>,
    /// The largest priority so far, which new rows get.
    pub largest: f64,
    /// Rows that the priorities know of, by environment.
    pub seen: Vec<u64>,
}

impl Priorities {
    /// A copy, where there is room for it.
    pub fn try_clone(&self) -> Result<Self> {
        let values = try_collect(self.values.iter().copied(), "the priorities of a sampler")?;
        Ok(Self { values, largest: self.largest, seen: try_collect(self.seen.iter().copied(), RANGES)? })
    }
}

/// A sampler whose weights are `priority^alpha`; bound to the first ring it is used with.
pub struct Prioritized {
    alpha: f64,
    priorities: Priorities,
    /// The ring that it is used with.
    bound: Option<u64>,
    tree: Option<StartTree>,
    /// Slots whose priority is not in the tree yet.
    changed: Vec<usize>,
}

impl Prioritized {
    /// A sampler with all priorities at 1.
    pub fn new(alpha: f64) -> Result<Self> {
        check_exponent("alpha", alpha)?;
        let priorities = Priorities { values: Vec::new(), largest: 1.0, seen: Vec::new() };
        Ok(Self { alpha, priorities, bound: None, tree: None, changed: Vec::new() })
    }

    /// The priorities, brought up to date with `ring`.
    pub fn priorities(&mut self, ring: &Ring) -> Result<&Priorities> {
        self.follow(ring)?;
        Ok(&self.priorities)
    }

    /// The priorities as of the last use.
    pub fn export(&self) -> &Priorities {
        &self.priorities
    }

    /// Takes over saved priorities.
    pub fn import(&mut self, priorities: Priorities) -> Result<()> {
        let Priorities { values, largest, seen } = &priorities;
        if values.len().checked_rem(seen.len()).unwrap_or(values.len()) != 0 {
            return Error::value(format!(
                "{} priorities cannot be shared by {} environments",
                values.len(),
                seen.len()
            ));
        }
        check_priorities(values)?;
        if !(largest.is_finite() && *largest >= 0.0) {
            return Error::value(format!("largest must be finite and not negative, got {largest}"));
        }
        self.priorities = priorities;
        self.bound = None;
        self.tree = None;
        self.changed.clear();
        Ok(())
    }

    /// Sets the priorities of the rows that a batch named by `indices`, but not of those overwritten since; the last one
    /// counts where a row is named twice.
    pub fn update(&mut self, indices: &[i64], priorities: &[f64]) -> Result<()> {
        if indices.len() != priorities.len() {
            return Error::value(format!(
                "got {} priorities for {} indices, expected as many",
                priorities.len(),
                indices.len()
            ));
        }
        let (slots, seen) = (self.priorities.values.len(), &self.priorities.seen);
        let rows = slots.checked_div(seen.len()).unwrap_or(0);
        // Slot of a row, and whether it is still there.
        let known = |index: i64| {
            let index = usize::try_from(index).ok()?;
            let (slot, lap) = (index.checked_rem(slots)?, index / slots);
            let (env, position) = split(slot, rows);
            let t = lap as u64 * rows as u64 + position as u64;
            (t < seen[env]).then_some((slot, t + rows as u64 >= seen[env]))
        };
        let mut current = room(indices.len(), STARTS)?;
        for (at, (&index, &priority)) in indices.iter().zip(priorities).enumerate() {
            match known(index) {
                Some((slot, true)) => current.push((slot, priority)),
                Some((_, false)) => {}
                None => {
                    return Error::value(format!("indices[{at}] is {index}, a row that the sampler does not know"));
                }
            }
        }
        check_priorities(priorities)?;
        for &(slot, priority) in &current {
            self.priorities.values[slot] = priority;
            self.priorities.largest = self.priorities.largest.max(priority);
        }
        // Which of them are starts now, only the ring knows.
        self.changed.extend(current.iter().map(|(slot, _)| slot));
        if self.changed.len() > slots {
            self.changed.clear();
            self.tree = None;
        }
        Ok(())
    }

    /// Draws the slots of `count` starts, different ones where `replacement` is false, with their importance weights:
    /// `(N P)^-beta` over the largest of the batch, in which the number N of starts has no part.
    pub fn draw(
        &mut self,
        starts: &Starts<'_>,
        count: usize,
        replacement: bool,
        beta: f64,
        rng: &mut impl Rng,
    ) -> Result<(Vec<usize>, Vec<f32>)> {
        check_exponent("beta", beta)?;
        starts.check(count, !replacement)?;
        self.follow(starts.ring())?;
        let mut tree = match self.tree.take() {
            Some(mut tree) => {
                tree.move_to(starts, |slot| self.weight(slot));
                tree.set(starts.ring(), self.changed.iter().copied(), |slot| self.weight(slot));
                tree
            }
            None => StartTree::new(starts, |slot| self.weight(slot))?,
        };
        self.changed.clear();
        let weight = |slot| self.weight(slot);
        let drawn = if replacement {
            tree.draw(starts, count, rng, weight)?
        } else {
            tree.draw_distinct(starts, count, rng, weight)?
        };
        let changed = drawn.refused.iter().chain(if replacement { &[][..] } else { &drawn.starts });
        tree.set(starts.ring(), changed.copied(), |slot| self.weight(slot));
        // From the tree, whose leaves were just read.
        let logs = try_collect(drawn.starts.iter().map(|&slot| tree.weight(slot).log2()), STARTS)?;
        self.tree = Some(tree);
        if drawn.starts.len() < count {
            return Error::value(too_light(starts, count, !replacement, drawn.starts.len())?);
        }
        let least = logs.iter().copied().fold(f64::INFINITY, f64::min);
        let weights = try_collect(logs.into_iter().map(|log| (beta * (least - log)).exp2() as f32), STARTS)?;
        Ok((drawn.starts, weights))
    }

    fn weight(&self, slot: usize) -> Weight {
        let log = if self.alpha == 0.0 { 0.0 } else { self.alpha * self.priorities.values[slot].ln() };
        if log == f64::NEG_INFINITY { Weight::ZERO } else { Weight::exp(log) }
    }

    /// Binds to the ring at first use; rows that are new get the largest priority so far.
    fn follow(&mut self, ring: &Ring) -> Result<()> {
        let Priorities { values, largest, seen } = &mut self.priorities;
        if values.is_empty() {
            let known = try_collect(ring.totals().iter().copied(), RANGES)?;
            *values = table(*largest, ring.slots(), "the priorities of a sampler")?;
            *seen = known;
            self.bound = Some(ring.id());
            return Ok(());
        }
        let slots = values.len();
        follow(ring, &mut self.bound, slots, seen, |slot| values[slot] = *largest)
    }
}

/// What is wrong with a draw of `count` where only `weighted` starts have a priority.
fn too_light(starts: &Starts<'_>, count: usize, distinct: bool, weighted: usize) -> Result<String> {
    let available = starts.count()?;
    if available < if distinct { count } else { 1 } {
        return Ok(starts.too_few(count, distinct, available));
    }
    let (what, distinct) = (starts.what(), if distinct { "distinct " } else { "" });
    Ok(format!("asked for {count} {distinct}{what}: {available} exist, and {weighted} of them have a priority above 0"))
}

fn check_exponent(name: &str, value: f64) -> Result<()> {
    if (0.0..=1e3).contains(&value) {
        return Ok(());
    }
    Error::value(format!("{name} must be from 0 to 1e3, got {value}"))
}

fn check_priorities(priorities: &[f64]) -> Result<()> {
    match priorities.iter().enumerate().find(|(_, value)| !(value.is_finite() && **value >= 0.0)) {
        Some((at, value)) => Error::value(format!("priorities[{at}] is {value}, expected a finite one of at least 0")),
        None => Ok(()),
    }
}
