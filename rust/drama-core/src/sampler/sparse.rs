//! Uniform draws where so few rows are starts that trying rows would take for ever.

use std::collections::VecDeque;

use rand::Rng;

use super::uniform::numbers;
use crate::{
    error::{Error, Result},
    starts::{Kind, Starts},
};

/// The starts of one kind, found row by row. Every row is looked at once, and a few again at both ends of an
/// environment's rows: old ones whose stacked frames are overwritten, and new ones of which more will be known.
pub(crate) struct Found {
    kind: Kind<Vec<usize>>,
    frames: usize,
    /// Row counters by environment, ascending, of rows before `seen`.
    rows: Vec<VecDeque<u64>>,
    seen: Vec<u64>,
}

/// Draws the slots of `count` starts.
pub(super) fn draw_found(
    starts: &Starts<'_>,
    count: usize,
    replacement: bool,
    rng: &mut impl Rng,
) -> Result<Vec<usize>> {
    let ring = starts.ring();
    let mut kept = ring.found();
    let same = kept.take().filter(|found| found.kind == starts.kind() && found.frames == starts.frames());
    let found = kept.insert(same.unwrap_or_else(|| Found {
        kind: starts.kind(),
        frames: starts.frames(),
        rows: vec![VecDeque::new(); ring.num_envs()],
        seen: vec![0; ring.num_envs()],
    }));
    // Starts to be named one by one, then those of each environment's list from some place on, summed up.
    let (mut single, mut sums, mut total) = (Vec::new(), Vec::new(), 0);
    for (env, (rows, seen)) in found.rows.iter_mut().zip(&mut found.seen).enumerate() {
        let (oldest, end) = (ring.held(env).start, starts.ranges()[env].end);
        let is_start = |t: &u64| starts.accepts(ring.slot(env, *t));
        let settled = end.saturating_sub(starts.unsettled());
        rows.extend(((*seen).max(oldest)..settled).filter(is_start));
        *seen = settled.max(*seen);
        while rows.front().is_some_and(|&t| t < oldest) {
            rows.pop_front();
        }
        let at_the_edge = rows.partition_point(|&t| t < oldest + found.frames as u64);
        let edge = rows.iter().copied().take(at_the_edge);
        single.extend(edge.chain(*seen..end).filter(is_start).map(|t| ring.slot(env, t)));
        total += rows.len() - at_the_edge;
        sums.push((total, at_the_edge));
    }
    let available = single.len() + total;
    if available < if replacement { 1 } else { count } {
        return Error::value(starts.too_few(count, !replacement, available));
    }
    let slot = |number: usize| {
        let Some(number) = number.checked_sub(single.len()) else { return single[number] };
        let env = sums.partition_point(|&(sum, _)| sum <= number);
        let before = if env == 0 { 0 } else { sums[env - 1].0 };
        ring.slot(env, found.rows[env][sums[env].1 + number - before])
    };
    Ok(numbers(available, count, replacement, rng).into_iter().map(slot).collect())
}
