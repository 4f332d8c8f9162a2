//! Uniform choice over every start of every environment.

use std::collections::HashSet;

use rand::{Rng, RngExt, seq::index};

use super::sparse::draw_found;
use crate::{
    error::Result,
    memory::{room, try_collect},
    starts::{STARTS, Starts},
};

/// Draws the slots of `count` starts.
pub fn draw_uniform(starts: &Starts<'_>, count: usize, replacement: bool, rng: &mut impl Rng) -> Result<Vec<usize>> {
    starts.check(count, !replacement)?;
    if !starts.conditional() {
        let mut slots = numbers(starts.bound(), count, replacement, rng)?;
        for slot in &mut slots {
            *slot = starts.slot(*slot);
        }
        return Ok(slots);
    }
    if let Some(drawn) = draw_accepted(starts, count, replacement, rng)? {
        return Ok(drawn);
    }
    // That trying took too long says nothing of what it drew.
    draw_found(starts, count, replacement, rng)
}

/// Draws `count` numbers below `bound`.
pub(super) fn numbers(bound: usize, count: usize, replacement: bool, rng: &mut impl Rng) -> Result<Vec<usize>> {
    if replacement {
        return try_collect((0..count).map(|_| rng.random_range(0..bound)), STARTS);
    }
    if count > bound / 4 {
        return Ok(index::sample(rng, bound, count).into_vec());
    }
    // Few collisions: drawing again costs less than the O(bound) of a shuffle.
    let (mut numbers, mut seen) = (room(count, STARTS)?, HashSet::new());
    numbers.extend(std::iter::repeat_with(|| rng.random_range(0..bound)).filter(|&draw| seen.insert(draw)).take(count));
    Ok(numbers)
}

/// Draws rows until `count` are starts; `None` where that takes too long.
fn draw_accepted(
    starts: &Starts<'_>,
    count: usize,
    replacement: bool,
    rng: &mut impl Rng,
) -> Result<Option<Vec<usize>>> {
    let (mut drawn, mut seen) = (room(count, STARTS)?, HashSet::new());
    for _ in 0..8 * count + 64 {
        let slot = starts.slot(rng.random_range(0..starts.bound()));
        if starts.accepts(slot) && (replacement || seen.insert(slot)) {
            drawn.push(slot);
            if drawn.len() == count {
                return Ok(Some(drawn));
            }
        }
    }
    Ok(None)
}
