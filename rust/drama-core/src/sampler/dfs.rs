//! Dynamic frequency-based sampling: starts used less often are drawn more often.

use rand::Rng;

use super::{
    follow::{StartTree, follow},
    tree::Weight,
};
use crate::{
    error::{Error, Result},
    memory::{prefetch, table, try_collect},
    ring::Ring,
    starts::{RANGES, Starts},
};

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
    /// Rows that the counters know of, by environment.
    pub seen: Vec<u64>,
    /// Number of environments.
    pub num_envs: usize,
}

impl Counters {
    /// A copy, where there is room for it.
    pub fn try_clone(&self) -> Result<Self> {
        let counts = |counts: &[u32]| try_collect(counts.iter().copied(), "the counters of a sampler");
        let seen = try_collect(self.seen.iter().copied(), RANGES)?;
        Ok(Self { n: counts(&self.n)?, b: counts(&self.b)?, seen, num_envs: self.num_envs })
    }
}

/// A sampler with its counters; bound to the first ring it is used with.
pub struct DynamicFrequency {
    temperature: f64,
    ratio: f64,
    alpha: f64,
    beta: f64,
    counters: Counters,
    /// The ring that it is used with.
    bound: Option<u64>,
    world_model: Option<StartTree>,
    imagination: Option<StartTree>,
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
        Ok(Self { temperature, ratio, alpha, beta, counters, bound: None, world_model: None, imagination: None })
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
        if counters.seen.len() != counters.num_envs {
            return Error::value(format!(
                "seen has {} entries, expected one for each of {} environments",
                counters.seen.len(),
                counters.num_envs
            ));
        }
        self.counters = counters;
        self.bound = None;
        self.world_model = None;
        self.imagination = None;
        Ok(())
    }

    /// Draws the slots of `count` distinct starts, and counts them.
    pub fn draw(&mut self, starts: &Starts<'_>, role: Role, count: usize, rng: &mut impl Rng) -> Result<Vec<usize>> {
        let ring = starts.ring();
        starts.check(count, true)?;
        self.follow(ring)?;
        let mut tree = match self.tree(role).take() {
            Some(mut tree) => {
                tree.move_to(starts, |slot| self.weight(role, slot));
                tree
            }
            None => StartTree::new(starts, |slot| self.weight(role, slot))?,
        };
        let drawn = tree.draw_distinct(starts, count, rng, |slot| self.weight(role, slot))?;
        tree.set(ring, drawn.refused.iter().copied(), |slot| self.weight(role, slot));
        *self.tree(role) = Some(tree);
        for &slot in &drawn.starts {
            prefetch(&self.counters.n, slot);
            prefetch(&self.counters.b, slot);
        }
        let complete = drawn.starts.len() == count;
        if complete {
            let counts = match role {
                Role::WorldModel => &mut self.counters.n,
                Role::Imagination => &mut self.counters.b,
            };
            for &slot in &drawn.starts {
                counts[slot] = counts[slot].saturating_add(1);
            }
        }
        // The counts of imagination have no part in the world model's weights.
        let concerned: &[Role] = match role {
            Role::WorldModel => &[Role::WorldModel, Role::Imagination],
            Role::Imagination => &[Role::Imagination],
        };
        for &role in concerned {
            if let Some(mut tree) = self.tree(role).take() {
                tree.set(ring, drawn.starts.iter().copied(), |slot| self.weight(role, slot));
                *self.tree(role) = Some(tree);
            }
        }
        if complete { Ok(drawn.starts) } else { Error::value(starts.too_few(count, true, drawn.starts.len())) }
    }

    fn tree(&mut self, role: Role) -> &mut Option<StartTree> {
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
        let Counters { n, b, seen, num_envs } = &mut self.counters;
        if n.is_empty() {
            let zeros = || table(0, ring.slots(), "the counters of a sampler");
            let seen = try_collect(ring.totals().iter().copied(), RANGES)?;
            self.counters = Counters { n: zeros()?, b: zeros()?, seen, num_envs: ring.num_envs() };
            self.bound = Some(ring.id());
            return Ok(());
        }
        let slots = n.len();
        debug_assert_eq!(seen.len(), *num_envs);
        follow(ring, &mut self.bound, slots, seen, |slot| {
            n[slot] = 0;
            b[slot] = 0;
        })
    }
}
