//! Draws where so few rows are starts that trying rows would take for ever.

use std::collections::VecDeque;

use rand::Rng;

use super::uniform::numbers;
use crate::{
    error::{Error, Result},
    memory::try_collect,
    ring::Ring,
    starts::{Kind, STARTS, Starts},
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

/// The starts of one kind as they are now.
struct Listed<'f> {
    found: &'f Found,
    /// Starts to be named one by one.
    single: Vec<usize>,
    /// By environment, from which place of its list on starts are listed, and how many are up to there, summed up.
    sums: Vec<(usize, usize)>,
    total: usize,
}

impl<'f> Listed<'f> {
    fn new(starts: &Starts<'_>, kept: &'f mut Option<Found>) -> Self {
        let ring = starts.ring();
        let same = kept.take().filter(|found| found.kind == starts.kind() && found.frames == starts.frames());
        let found = kept.insert(same.unwrap_or_else(|| Found {
            kind: starts.kind(),
            frames: starts.frames(),
            rows: vec![VecDeque::new(); ring.num_envs()],
            seen: vec![0; ring.num_envs()],
        }));
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
        Self { found, single, sums, total }
    }

    fn len(&self) -> usize {
        self.single.len() + self.total
    }

    fn slot(&self, ring: &Ring, number: usize) -> usize {
        let Some(number) = number.checked_sub(self.single.len()) else { return self.single[number] };
        let env = self.sums.partition_point(|&(sum, _)| sum <= number);
        let before = if env == 0 { 0 } else { self.sums[env - 1].0 };
        ring.slot(env, self.found.rows[env][self.sums[env].1 + number - before])
    }
}

/// Draws the slots of `count` starts.
pub(super) fn draw_found(
    starts: &Starts<'_>,
    count: usize,
    replacement: bool,
    rng: &mut impl Rng,
) -> Result<Vec<usize>> {
    let mut kept = starts.ring().found();
    let listed = Listed::new(starts, &mut kept);
    if listed.len() < if replacement { 1 } else { count } {
        return Error::value(starts.too_few(count, !replacement, listed.len()));
    }
    let mut slots = numbers(listed.len(), count, replacement, rng)?;
    for slot in &mut slots {
        *slot = listed.slot(starts.ring(), *slot);
    }
    Ok(slots)
}

/// The slots of all starts.
pub(crate) fn all_found(starts: &Starts<'_>) -> Result<Vec<usize>> {
    let mut kept = starts.ring().found();
    let listed = Listed::new(starts, &mut kept);
    try_collect((0..listed.len()).map(|number| listed.slot(starts.ring(), number)), STARTS)
}

/// The slots of the `count` newest starts, fewer where there are no more.
pub(super) fn newest_found(starts: &Starts<'_>, count: usize) -> Vec<usize> {
    let ring = starts.ring();
    let mut kept = ring.found();
    let found = Listed::new(starts, &mut kept).found;
    let mut newest = Vec::new();
    for (env, range) in starts.ranges().iter().enumerate() {
        let rows = (found.seen[env]..range.end).rev().chain(found.rows[env].iter().rev().copied());
        let are_starts = rows.filter(|&t| starts.accepts(ring.slot(env, t)));
        newest.extend(are_starts.take(count).map(|t| (range.end - t, env, ring.slot(env, t))));
    }
    newest.sort_unstable();
    newest.into_iter().take(count).map(|(_, _, slot)| slot).collect()
}
