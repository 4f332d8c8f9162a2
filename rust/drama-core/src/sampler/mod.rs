//! Choice of the rows at which sequences start.

mod dfs;
mod follow;
mod prioritized;
mod recent;
mod sparse;
mod tree;
mod uniform;

pub use dfs::{Counters, DynamicFrequency, Role};
pub use prioritized::{Priorities, Prioritized};
pub use recent::draw_recent;
pub(crate) use sparse::{Found, all_found};
pub use uniform::draw_uniform;

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

/// The generator that a buffer draws from.
pub fn seeded(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}
