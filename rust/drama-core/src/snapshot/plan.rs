//! How the rows of a buffer are shared among the chunk files of its saves.

use std::ops::Range;

use super::chunk::{FINAL, HEADER, LENGTH};
use crate::schema::Schema;

/// Size that a chunk is meant to have before compression.
const TARGET_BYTES: usize = 2 << 20;

/// Rows of each environment in one chunk.
pub(crate) fn rows_per_chunk(schema: &Schema, num_envs: usize, rows_per_env: usize) -> usize {
    (TARGET_BYTES / schema.row_bytes().saturating_mul(num_envs)).clamp(1, rows_per_env)
}

/// The chunks of a buffer that holds as many rows as `totals` say.
#[derive(Clone, Copy)]
pub(crate) struct Plan<'a> {
    pub(crate) schema: &'a Schema,
    pub(crate) rows_per_env: usize,
    pub(crate) rows_per_chunk: usize,
    pub(crate) totals: &'a [u64],
}

impl Plan<'_> {
    fn filled(&self, env: usize) -> usize {
        self.totals[env].min(self.rows_per_env as u64) as usize
    }

    /// Chunks that hold rows.
    pub(super) fn chunk_count(&self) -> usize {
        let most = (0..self.totals.len()).map(|env| self.filled(env)).max().unwrap_or(0);
        most.div_ceil(self.rows_per_chunk)
    }

    /// Places among the rows of `env` that chunk `index` covers.
    fn positions(&self, index: usize, env: usize) -> Range<usize> {
        let start = index * self.rows_per_chunk;
        start..(start + self.rows_per_chunk).min(self.filled(env)).max(start)
    }

    /// Slots that chunk `index` covers, by environment.
    pub(super) fn slots(&self, index: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        (0..self.totals.len()).map(move |env| {
            let (base, positions) = (env * self.rows_per_env, self.positions(index, env));
            base + positions.start..base + positions.end
        })
    }

    /// Rows of all environments in chunk `index`.
    pub(super) fn row_count(&self, index: usize) -> usize {
        self.slots(index).map(|slots| slots.len()).sum()
    }

    /// The least and the most bytes that chunk `index` can have: a compressed row comes with its length and has at
    /// least a byte, and each row may be followed by a value that is final.
    pub(super) fn file_bytes(&self, index: usize) -> Range<u128> {
        let rows = self.row_count(index) as u128;
        let (mut least, mut most) = (HEADER as u128, HEADER as u128);
        for field in self.schema.fields() {
            let size = field.row_bytes() as u128;
            let (short, long) =
                if field.is_compressed() { (LENGTH as u128 + 1, LENGTH as u128 + size) } else { (size, size) };
            least += rows * short;
            most += rows * (long + FINAL as u128 + size);
        }
        least..most + 1
    }
}
