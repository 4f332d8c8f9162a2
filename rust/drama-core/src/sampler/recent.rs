//! The newest starts.

use crate::{
    error::{Error, Result},
    starts::Starts,
};

/// The slots of the `count` newest starts: the last of each environment, then the ones before, and so on.
pub fn draw_recent(starts: &Starts<'_>, count: usize) -> Result<Vec<usize>> {
    starts.check(count, true)?;
    let ring = starts.ring();
    let longest = starts.ranges().iter().map(|range| range.end - range.start).max().unwrap_or(0);
    let newest_first = (0..longest).flat_map(|age| {
        let old_enough = starts.ranges().iter().enumerate().filter(move |(_, range)| range.end - range.start > age);
        old_enough.map(move |(env, range)| ring.slot(env, range.end - 1 - age))
    });
    let drawn: Vec<_> = newest_first.filter(|&slot| starts.accepts(slot)).take(count).collect();
    if drawn.len() < count { Error::value(starts.too_few(count, true, drawn.len())) } else { Ok(drawn) }
}
