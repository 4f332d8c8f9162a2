//! Dynamic frequency-based sampling: starts used less often are drawn more often.

use std::ops::Range;

use rand::{Rng, RngExt};

use super::{
    check_available,
    tree::{SumTree, Weight},
};
use crate::{
    error::{Error, Result},
    ring::Ring,
};

/// Candidates drawn before the tree is told which leaves are gone.
const BLOCK: usize = 16;

/// What a batch is drawn for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Training the world model: weight `exp(-n / temperature)`.
    WorldModel,
    /// Starting imagination: weight `exp((n - alpha m - beta max(0, n - m)) / temperature)` with `m = b * ratio`.
    Imagination,
}

/// The counters of every slot, as they are saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// How often each slot started a world-model batch.
    pub n: Vec<u32>,
    /// How often each slot started an imagination batch.
    pub b: Vec<u32>,
    /// Rows per environment that the counters know of.
    pub seen: u64,
    /// Number of environments.
    pub num_envs: usize,
}

/// The tree of one role, and the rows that have a weight in it.
struct Prepared {
    tree: SumTree,
    rows: Range<u64>,
}

/// A sampler with its counters; bound to the geometry of the first ring it is used with.
pub struct DynamicFrequency {
    temperature: f64,
    ratio: f64,
    alpha: f64,
    beta: f64,
    counters: Counters,
    world_model: Option<Prepared>,
    imagination: Option<Prepared>,
}

impl DynamicFrequency {
    /// A sampler with all counters at zero.
    pub fn new(temperature: f64, ratio: f64, alpha: f64, beta: f64) -> Result<Self> {
        if !(temperature.is_finite() && temperature > 0.0) {
            return Error::value(format!("temperature must be finite and above 0, got {temperature}"));
        }
        for (name, value) in [("ratio", ratio), ("alpha", alpha), ("beta", beta)] {
            if !(0.0..=1e6).contains(&value) {
                return Error::value(format!("{name} must be from 0 to 1e6, got {value}"));
            }
        }
        let counters = Counters::default();
        Ok(Self { temperature, ratio, alpha, beta, counters, world_model: None, imagination: None })
    }

    /// The counters, brought up to date with `ring`.
    pub fn counters(&mut self, ring: &Ring) -> Result<&Counters> {
        self.follow(ring)?;
        Ok(&self.counters)
    }

    /// The counters as of the last use.
    pub fn export(&self) -> &Counters {
        &self.counters
    }

    /// Takes over saved counters.
    pub fn import(&mut self, counters: Counters) -> Result<()> {
        let slots = counters.n.len();
        if counters.b.len() != slots {
            return Error::value(format!("n has {slots} counts and b has {}, expected as many", counters.b.len()));
        }
        if slots.checked_rem(counters.num_envs).unwrap_or(slots) != 0 {
            return Error::value(format!("{slots} counts cannot be shared by {} environments", counters.num_envs));
        }
        self.counters = counters;
        self.world_model = None;
        self.imagination = None;
        Ok(())
    }

    /// Draws the slots of `count` distinct starts of sequences of `length` rows, and counts them.
    pub fn draw(
        &mut self,
        ring: &Ring,
        role: Role,
        count: usize,
        length: usize,
        rng: &mut impl Rng,
    ) -> Result<Vec<usize>> {
        let starts = ring.starts(length)?;
        check_available(count, (starts.end - starts.start) as usize * ring.num_envs(), length)?;
        self.follow(ring)?;
        let mut prepared = self.prepare(ring, role, starts);
        let drawn = draw_distinct(&mut prepared.tree, count, rng);
        *self.prepared(role) = Some(prepared);
        let drawn = drawn.ok_or_else(|| Error::Runtime("the sum tree holds fewer starts than the buffer".into()))?;
        let counts = match role {
            Role::WorldModel => &mut self.counters.n,
            Role::Imagination => &mut self.counters.b,
        };
        for &slot in &drawn {
            counts[slot] = counts[slot].saturating_add(1);
        }
        // The counts of imagination have no part in the world model's weights.
        let concerned: &[Role] = match role {
            Role::WorldModel => &[Role::WorldModel, Role::Imagination],
            Role::Imagination => &[Role::Imagination],
        };
        for &role in concerned {
            if let Some(mut prepared) = self.prepared(role).take() {
                let live = drawn.iter().filter(|&&slot| prepared.rows.contains(&ring.row_of(slot)));
                prepared.tree.set(live.map(|&slot| (slot, self.weight(role, slot))));
                *self.prepared(role) = Some(prepared);
            }
        }
        Ok(drawn)
    }

    fn prepared(&mut self, role: Role) -> &mut Option<Prepared> {
        match role {
            Role::WorldModel => &mut self.world_model,
            Role::Imagination => &mut self.imagination,
        }
    }

    fn weight(&self, role: Role, slot: usize) -> Weight {
        let n = f64::from(self.counters.n[slot]);
        let exponent = match role {
            Role::WorldModel => -n,
            Role::Imagination => {
                let m = f64::from(self.counters.b[slot]) * self.ratio;
                n - self.alpha * m - self.beta * (n - m).max(0.0)
            }
        };
        Weight::exp(exponent / self.temperature)
    }

    /// Binds to the ring at first use and clears the counters of slots that were overwritten since the last.
    fn follow(&mut self, ring: &Ring) -> Result<()> {
        let (slots, num_envs) = (ring.slots(), ring.num_envs());
        if self.counters.n.is_empty() {
            self.counters = Counters { n: vec![0; slots], b: vec![0; slots], seen: ring.total(), num_envs };
            return Ok(());
        }
        if self.counters.n.len() != slots || self.counters.num_envs != num_envs {
            return Err(Error::Value(format!(
                "the sampler belongs to a buffer of {} environments and {} slots, got one of {num_envs} and {slots}",
                self.counters.num_envs,
                self.counters.n.len()
            )));
        }
        if ring.total() < self.counters.seen {
            return Err(Error::Value(format!(
                "the sampler has seen {} rows per environment, the buffer was given only {}: it is another buffer",
                self.counters.seen,
                ring.total()
            )));
        }
        for t in self.counters.seen.max(ring.held().start)..ring.total() {
            for env in 0..num_envs {
                let slot = ring.slot(env, t);
                self.counters.n[slot] = 0;
                self.counters.b[slot] = 0;
            }
        }
        self.counters.seen = ring.total();
        Ok(())
    }

    /// Brings a role's tree to exactly the starts in `rows`. Each row added enters and leaves once.
    fn prepare(&mut self, ring: &Ring, role: Role, rows: Range<u64>) -> Prepared {
        let Some(Prepared { mut tree, rows: old }) = self.prepared(role).take() else {
            let mut tree = SumTree::new(ring.slots());
            tree.fill(|slot| if rows.contains(&ring.row_of(slot)) { self.weight(role, slot) } else { Weight::ZERO });
            return Prepared { tree, rows };
        };
        let slots = |range: Range<u64>| range.flat_map(|t| (0..ring.num_envs()).map(move |env| ring.slot(env, t)));
        // Rows leave before rows enter: an entering row may take the slot of a leaving one.
        let leaving = slots(old.start..old.end.min(rows.start)).chain(slots(rows.end..old.end));
        tree.set(leaving.map(|slot| (slot, Weight::ZERO)));
        tree.set(slots(old.end.max(rows.start)..rows.end).map(|slot| (slot, self.weight(role, slot))));
        Prepared { tree, rows }
    }
}

/// Draws `count` different leaves, one after the other, each with its share of the weight still there. A candidate
/// drawn before is rejected, which leaves just that distribution; once rejections get frequent, the leaves drawn so
/// far are set to zero. The caller restores them.
fn draw_distinct(tree: &mut SumTree, count: usize, rng: &mut impl Rng) -> Option<Vec<usize>> {
    let mut drawn = Vec::with_capacity(count);
    // Fewer than half of the table is ever used, so a free place is near.
    let mut seen = vec![usize::MAX; (2 * count).next_power_of_two()];
    let mut zeroed = 0;
    while drawn.len() < count {
        let block = BLOCK.min(count - drawn.len());
        let before = drawn.len();
        let mut points = [0.0; BLOCK];
        points[..block].fill_with(|| rng.random());
        let mut leaves = [0; BLOCK];
        tree.find(&mut points[..block], &mut leaves[..block])?;
        for &leaf in &leaves[..block] {
            if insert(&mut seen, leaf) {
                drawn.push(leaf);
            }
        }
        if 2 * (drawn.len() - before) <= block && drawn.len() < count {
            tree.set(drawn[zeroed..].iter().map(|&leaf| (leaf, Weight::ZERO)));
            zeroed = drawn.len();
        }
    }
    Some(drawn)
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
