//! Uniform choice over every start of every environment.

use std::collections::HashSet;

use rand::{Rng, RngExt, seq::index};

use super::sparse::draw_found;
use crate::{error::Result, starts::Starts};

/// Draws the slots of `count` starts.
pub fn draw_uniform(starts: &Starts<'_>, count: usize, replacement: bool, rng: &mut impl Rng) -> Result<Vec<usize>> {
    starts.check(count, !replacement)?;
    if !starts.conditional() {
        let numbers = numbers(starts.bound(), count, replacement, rng);
        return Ok(numbers.into_iter().map(|number| starts.slot(number)).collect());
    }
    if let Some(drawn) = draw_accepted(starts, count, replacement, rng) {
        return Ok(drawn);
    }
    // That trying took too long says nothing of what it drew.
    draw_found(starts, count, replacement, rng)
}

/// Draws `count` numbers below `bound`.
pub(super) fn numbers(bound: usize, count: usize, replacement: bool, rng: &mut impl Rng) -> Vec<usize> {
    if replacement {
        (0..count).map(|_| rng.random_range(0..bound)).collect()
    } else if count > bound / 4 {
        index::sample(rng, bound, count).into_vec()
    } else {
        // Few collisions: drawing again costs less than the O(bound) of a shuffle.
        let mut seen = HashSet::with_capacity(count);
        std::iter::repeat_with(|| rng.random_range(0..bound)).filter(|&draw| seen.insert(draw)).take(count).collect()
    }
}

/// Draws rows until `count` are starts; `None` where that takes too long.
fn draw_accepted(starts: &Starts<'_>, count: usize, replacement: bool, rng: &mut impl Rng) -> Option<Vec<usize>> {
    let mut seen = HashSet::new();
    let mut drawn = Vec::with_capacity(count);
    for _ in 0..8 * count + 64 {
        let slot = starts.slot(rng.random_range(0..starts.bound()));
        if starts.accepts(slot) && (replacement || seen.insert(slot)) {
            drawn.push(slot);
            if drawn.len() == count {
                return Some(drawn);
            }
        }
    }
    None
}
