//! What the samplers that keep something for every slot have in common.

use std::ops::Range;

use rand::{Rng, RngExt};

use super::{
    sparse::all_found,
    tree::{SumTree, Weight},
};
use crate::{
    error::{Error, Result},
    memory::{room, table, try_collect},
    ring::Ring,
    starts::{RANGES, STARTS, Starts},
};

/// Candidates drawn before the tree is told which leaves are gone.
const BLOCK: usize = 32;

/// Calls `renew` for each slot written since `seen`, the rows that each environment had been given by then. `bound` is
/// the ring that the sampler was used with.
pub(super) fn follow(
    ring: &Ring,
    bound: &mut Option<u64>,
    slots: usize,
    seen: &mut [u64],
    mut renew: impl FnMut(usize),
) -> Result<()> {
    if bound.is_some_and(|id| id != ring.id()) {
        return Error::value(
            "the sampler was used with another buffer, or with this one before it was cleared: take a new one and, to \
             go on from there, load its state_dict",
        );
    }
    if slots != ring.slots() || seen.len() != ring.num_envs() {
        return Err(Error::Value(format!(
            "the sampler belongs to a buffer of {} environments and {slots} slots, got one of {} and {}",
            seen.len(),
            ring.num_envs(),
            ring.slots()
        )));
    }
    if let Some(env) = (0..seen.len()).find(|&env| ring.totals()[env] < seen[env]) {
        return Err(Error::Value(format!(
            "the sampler has seen {} rows of environment {env}, the buffer was given only {}: it is another buffer",
            seen[env],
            ring.totals()[env]
        )));
    }
    for (env, seen) in seen.iter_mut().enumerate() {
        let held = ring.held(env);
        for t in (*seen).max(held.start)..held.end {
            renew(ring.slot(env, t));
        }
        *seen = held.end;
    }
    *bound = Some(ring.id());
    Ok(())
}

/// A sum tree over the slots of a ring, in which just the rows of `ranges` have their weight.
pub(super) struct StartTree {
    tree: SumTree,
    ranges: Vec<Range<u64>>,
}

/// What came of a draw.
#[derive(Default)]
pub(super) struct Drawn {
    /// The starts, fewer than asked for where no weight was left.
    pub(super) starts: Vec<usize>,
    /// Rows that are no starts. Their weights are zero now, as may be those of the starts.
    pub(super) refused: Vec<usize>,
}

impl StartTree {
    pub(super) fn new(starts: &Starts<'_>, weight: impl Fn(usize) -> Weight) -> Result<Self> {
        let ring = starts.ring();
        let ranges = try_collect(starts.ranges().iter().cloned(), RANGES)?;
        let mut tree = SumTree::new(ring.slots())?;
        tree.fill(|slot| if in_ranges(&ranges, ring, slot) { weight(slot) } else { Weight::ZERO });
        Ok(Self { tree, ranges })
    }

    /// Goes over to the ranges of `starts`. Each row added enters and leaves once.
    pub(super) fn move_to(&mut self, starts: &Starts<'_>, weight: impl Fn(usize) -> Weight) {
        let (ring, new) = (starts.ring(), starts.ranges());
        let slots = |env, range: Range<u64>| range.map(move |t| ring.slot(env, t));
        // Rows leave before rows enter: an entering row may take the slot of a leaving one.
        let leaving = self.ranges.iter().zip(new).enumerate().flat_map(|(env, (old, new))| {
            slots(env, old.start..old.end.min(new.start)).chain(slots(env, new.end..old.end))
        });
        self.tree.set(leaving.map(|slot| (slot, Weight::ZERO)));
        let entering = self.ranges.iter().zip(new).enumerate();
        let entering = entering.flat_map(|(env, (old, new))| slots(env, old.end.max(new.start)..new.end));
        self.tree.set(entering.map(|slot| (slot, weight(slot))));
        self.ranges.clone_from_slice(new);
    }

    /// The weight that a row in the ranges has.
    pub(super) fn weight(&self, slot: usize) -> Weight {
        self.tree.get(slot)
    }

    /// Sets the weights of those of `slots` that are in the ranges.
    pub(super) fn set(&mut self, ring: &Ring, slots: impl Iterator<Item = usize>, weight: impl Fn(usize) -> Weight) {
        let ranges = &self.ranges;
        let live = slots.filter(|&slot| in_ranges(ranges, ring, slot));
        self.tree.set(live.map(|slot| (slot, weight(slot))));
    }

    /// Draws `count` starts, each with its share of the weight. The caller restores what `Drawn` names.
    pub(super) fn draw(
        &mut self,
        starts: &Starts<'_>,
        count: usize,
        rng: &mut impl Rng,
        weight: impl Fn(usize) -> Weight,
    ) -> Result<Drawn> {
        let mut drawn = Drawn { starts: room(count, STARTS)?, refused: Vec::new() };
        while drawn.starts.len() < count && self.draw_block(starts, count, &mut drawn, rng, |_| true).is_some() {
            if drawn.refused.len() > too_many(count) {
                return draw_listed(starts, count, false, drawn.refused, rng, weight);
            }
        }
        Ok(drawn)
    }

    /// Draws `count` different starts, one after the other, each with its share of the weight still there. One drawn
    /// before is rejected, which leaves just that distribution; once rejections get frequent, the weights of the
    /// starts drawn so far are set to zero. The caller restores what `Drawn` names.
    pub(super) fn draw_distinct(
        &mut self,
        starts: &Starts<'_>,
        count: usize,
        rng: &mut impl Rng,
        weight: impl Fn(usize) -> Weight,
    ) -> Result<Drawn> {
        let mut drawn = Drawn { starts: room(count, STARTS)?, refused: Vec::new() };
        // Fewer than half of the table is ever used, so a free place is near.
        let mut seen = table(usize::MAX, (2 * count).next_power_of_two(), STARTS)?;
        let mut cleared = 0;
        while drawn.starts.len() < count {
            let before = drawn.starts.len();
            let Some(block) = self.draw_block(starts, count, &mut drawn, rng, |leaf| insert(&mut seen, leaf)) else {
                break;
            };
            if drawn.refused.len() > too_many(count) {
                drawn.refused.extend(&drawn.starts);
                return draw_listed(starts, count, true, drawn.refused, rng, weight);
            }
            if 2 * (drawn.starts.len() - before) <= block && drawn.starts.len() < count {
                self.clear(&drawn.starts[cleared..]);
                cleared = drawn.starts.len();
            }
        }
        Ok(drawn)
    }

    /// Draws rows, `BLOCK` at most and no more than are lacking, and tells how many; `None` where no weight is left.
    /// Those that are starts and `wanted` are added to `drawn`; rows that are no starts are cleared.
    fn draw_block(
        &mut self,
        starts: &Starts<'_>,
        count: usize,
        drawn: &mut Drawn,
        rng: &mut impl Rng,
        mut wanted: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let (mut points, mut leaves) = ([0.0; BLOCK], [0; BLOCK]);
        let block = BLOCK.min(count - drawn.starts.len());
        points[..block].fill_with(|| rng.random());
        self.tree.find(&mut points[..block], &mut leaves[..block])?;
        let refused = drawn.refused.len();
        for &leaf in &leaves[..block] {
            starts.prefetch(leaf);
        }
        for &leaf in &leaves[..block] {
            if !starts.accepts(leaf) {
                drawn.refused.push(leaf);
            } else if wanted(leaf) {
                drawn.starts.push(leaf);
            }
        }
        self.clear(&drawn.refused[refused..]);
        Some(block)
    }

    fn clear(&mut self, slots: &[usize]) {
        if !slots.is_empty() {
            self.tree.set(slots.iter().map(|&slot| (slot, Weight::ZERO)));
        }
    }
}

/// Refused rows after which the starts are taken from a list.
fn too_many(count: usize) -> usize {
    8 * count + 64
}

/// As `StartTree::draw` and `draw_distinct`, from a list of all starts, which are few. That trying rows took too long
/// says nothing of what it drew.
fn draw_listed(
    starts: &Starts<'_>,
    count: usize,
    distinct: bool,
    refused: Vec<usize>,
    rng: &mut impl Rng,
    weight: impl Fn(usize) -> Weight,
) -> Result<Drawn> {
    let slots = all_found(starts)?;
    let mut drawn = Drawn { starts: room(count, STARTS)?, refused };
    if slots.is_empty() {
        return Ok(drawn);
    }
    let mut tree = SumTree::new(slots.len())?;
    tree.fill(|leaf| weight(slots[leaf]));
    while drawn.starts.len() < count {
        let (mut point, mut leaf) = ([rng.random()], [0]);
        if tree.find(&mut point, &mut leaf).is_none() {
            break;
        }
        drawn.starts.push(slots[leaf[0]]);
        if distinct {
            tree.set(std::iter::once((leaf[0], Weight::ZERO)));
        }
    }
    Ok(drawn)
}

fn in_ranges(ranges: &[Range<u64>], ring: &Ring, slot: usize) -> bool {
    let (env, t) = ring.row_of(slot);
    ranges[env].contains(&t)
}

/// Adds `leaf` to an open-addressed table; `false` where it was there.
fn insert(table: &mut [usize], leaf: usize) -> bool {
    let mask = table.len() - 1;
    // A multiplicative hash; neighbouring leaves must not share a run of places.
    let mut place = leaf.wrapping_mul(0x9E37_79B9) >> 7 & mask;
    while table[place] != usize::MAX {
        if table[place] == leaf {
            return false;
        }
        place = (place + 1) & mask;
    }
    table[place] = leaf;
    true
}
