//! Choice of the rows at which sequences start.

mod dfs;
mod tree;
mod uniform;

pub use dfs::{Counters, DynamicFrequency, Role};
pub use uniform::draw_uniform;

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::error::{Error, Result};

/// The generator that a buffer draws from.
pub fn seeded(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Refuses a draw of `count` starts where only `available` exist.
fn check_available(count: usize, available: usize, length: usize) -> Result<()> {
    if count == 0 {
        return Error::value("batch_size must be at least 1, got 0");
    }
    if count > available {
        return Error::value(format!(
            "asked for {count} distinct starts of length {length}, but only {available} exist"
        ));
    }
    Ok(())
}
