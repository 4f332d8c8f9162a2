//! Uniform choice over every start of every environment.

use std::collections::HashSet;

use rand::{Rng, RngExt, seq::index};

use super::check_available;
use crate::{
    error::{Error, Result},
    ring::Ring,
};

/// Draws the slots of `count` starts of sequences of `length` rows.
pub fn draw_uniform(
    ring: &Ring,
    count: usize,
    length: usize,
    replacement: bool,
    rng: &mut impl Rng,
) -> Result<Vec<usize>> {
    let starts = ring.starts(length)?;
    let per_env = (starts.end - starts.start) as usize;
    let available = per_env * ring.num_envs();
    if available == 0 {
        return Error::value(format!(
            "asked for {count} starts of length {length}, but none exist: each environment holds {} rows",
            ring.filled()
        ));
    }
    check_available(if replacement { count.min(1) } else { count }, available, length)?;
    let chosen: Vec<usize> = if replacement {
        (0..count).map(|_| rng.random_range(0..available)).collect()
    } else if count > available / 4 {
        index::sample(rng, available, count).into_vec()
    } else {
        // Few collisions: drawing again costs less than the O(available) of a shuffle.
        let mut seen = HashSet::with_capacity(count);
        std::iter::repeat_with(|| rng.random_range(0..available))
            .filter(|&draw| seen.insert(draw))
            .take(count)
            .collect()
    };
    Ok(chosen.into_iter().map(|draw| ring.slot(draw / per_env, starts.start + (draw % per_env) as u64)).collect())
}
