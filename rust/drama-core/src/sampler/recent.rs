//! The newest starts.

use super::sparse::newest_found;
use crate::{
    error::{Error, Result},
    starts::Starts,
};

/// The slots of the `count` newest starts: the last of each environment, then the ones before, and so on.
pub fn draw_recent(starts: &Starts<'_>, count: usize) -> Result<Vec<usize>> {
    starts.check(count, true)?;
    let drawn = newest_tried(starts, count).unwrap_or_else(|| newest_found(starts, count));
    if drawn.len() < count { Error::value(starts.too_few(count, true, drawn.len())) } else { Ok(drawn) }
}

/// Looks at rows, newest first, until `count` are starts or none are left; `None` where that takes too long.
fn newest_tried(starts: &Starts<'_>, count: usize) -> Option<Vec<usize>> {
    let ring = starts.ring();
    let longest = starts.ranges().iter().map(|range| range.end - range.start).max().unwrap_or(0);
    let newest_first = (0..longest).flat_map(|age| {
        let old_enough = starts.ranges().iter().enumerate().filter(move |(_, range)| range.end - range.start > age);
        old_enough.map(move |(env, range)| ring.slot(env, range.end - 1 - age))
    });
    let tries = 8 * count + 64;
    let tried = newest_first.take(tries).filter(|&slot| starts.accepts(slot));
    let drawn: Vec<_> = tried.take(count).collect();
    (drawn.len() == count || starts.bound() <= tries).then_some(drawn)
}
