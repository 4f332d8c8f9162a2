//! Row storage: one ring per environment, one allocation per field.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    ops::{Deref, DerefMut, Range},
    ptr::NonNull,
};

use crate::{
    error::{Error, Result},
    schema::Schema,
};

/// Bytes that the allocator hands out zeroed, so that pages cost memory only once they are written.
struct ZeroedBytes {
    pointer: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the allocation is owned and reached only through `&self` and `&mut self`.
unsafe impl Send for ZeroedBytes {}
// SAFETY: as above.
unsafe impl Sync for ZeroedBytes {}

impl ZeroedBytes {
    /// `None` where the size is zero or beyond what the allocator gives.
    fn new(len: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len, 64).ok().filter(|layout| layout.size() > 0)?;
        // SAFETY: the layout has a size above zero.
        let pointer = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { pointer, layout })
    }
}

impl Drop for ZeroedBytes {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.pointer.as_ptr(), self.layout) };
    }
}

impl Deref for ZeroedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the allocation holds `size` initialised bytes.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for ZeroedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.layout.size()) }
    }
}

/// Rows of `num_envs` streams. Row `t` of environment `e` lies in slot `e * rows_per_env + t % rows_per_env`.
pub struct Ring {
    schema: Schema,
    columns: Vec<ZeroedBytes>,
    capacity: usize,
    num_envs: usize,
    rows_per_env: usize,
    total: u64,
}

impl Ring {
    /// An empty ring that keeps at least `capacity` rows over all environments.
    pub fn new(schema: Schema, capacity: usize, num_envs: usize) -> Result<Self> {
        if capacity == 0 {
            return Error::value("capacity must be at least 1, got 0");
        }
        if num_envs == 0 {
            return Error::value("num_envs must be at least 1, got 0");
        }
        let rows_per_env = capacity.div_ceil(num_envs);
        let slots = rows_per_env.checked_mul(num_envs).filter(|&slots| u32::try_from(slots).is_ok());
        let Some(slots) = slots else {
            return Error::value(format!("capacity {capacity} is beyond the limit of {} rows", u32::MAX));
        };
        let mut columns = Vec::with_capacity(schema.fields().len());
        for field in schema.fields() {
            match slots.checked_mul(field.row_bytes()).and_then(ZeroedBytes::new) {
                Some(column) => columns.push(column),
                None => {
                    return Error::value(format!(
                        "no memory for field {:?}: {slots} rows of {} bytes",
                        field.name(),
                        field.row_bytes()
                    ));
                }
            }
        }
        Ok(Self { schema, columns, capacity, num_envs, rows_per_env, total: 0 })
    }

    /// The fields of a row.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Capacity as asked for, over all environments.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Number of streams.
    pub fn num_envs(&self) -> usize {
        self.num_envs
    }

    /// Rows that each environment keeps.
    pub fn rows_per_env(&self) -> usize {
        self.rows_per_env
    }

    /// Rows that each environment has ever been given.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Slots over all environments.
    pub fn slots(&self) -> usize {
        self.num_envs * self.rows_per_env
    }

    /// Rows that each environment holds now.
    pub fn filled(&self) -> usize {
        self.total.min(self.rows_per_env as u64) as usize
    }

    /// Rows held now, over all environments.
    pub fn len(&self) -> usize {
        self.filled() * self.num_envs
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Bytes of address space over all fields; pages never written take no memory.
    pub fn nbytes(&self) -> usize {
        self.columns.iter().map(|column| column.len()).sum()
    }

    /// Row counters of the oldest row held and of the row to come, the same in every environment.
    pub fn held(&self) -> Range<u64> {
        self.total - self.filled() as u64..self.total
    }

    /// Row counters at which a sequence of `length` rows can start.
    pub fn starts(&self, length: usize) -> Result<Range<u64>> {
        if length == 0 || length > self.rows_per_env {
            return Error::value(format!(
                "length must be from 1 to {} (the rows kept per environment), got {length}",
                self.rows_per_env
            ));
        }
        let held = self.held();
        Ok(held.start..(held.end + 1).saturating_sub(length as u64).max(held.start))
    }

    /// Slot of row `t` of environment `env`.
    pub fn slot(&self, env: usize, t: u64) -> usize {
        env * self.rows_per_env + (t % self.rows_per_env as u64) as usize
    }

    /// Row counter of what `slot` holds now.
    pub(crate) fn row_of(&self, slot: usize) -> u64 {
        let rows = self.rows_per_env as u64;
        let base = self.held().start;
        base + ((slot % self.rows_per_env) as u64 + rows - base % rows) % rows
    }

    /// Adds `rows` rows to every environment. `columns` has one entry per field in schema order, laid out
    /// `[rows, num_envs, ...]`; the last one, `is_first`, may be missing and is derived in any case.
    pub fn add(&mut self, rows: usize, columns: &[Option<&[u8]>]) -> Result<()> {
        self.check_columns(rows, columns)?;
        let (terminated, truncated, is_first) =
            (self.schema.terminated(), self.schema.truncated(), self.schema.is_first());
        for row in 0..rows {
            for env in 0..self.num_envs {
                let slot = self.slot(env, self.total);
                let previous = self.total.checked_sub(1).map(|t| self.slot(env, t));
                let after_end =
                    previous.is_none_or(|at| self.columns[terminated][at] != 0 || self.columns[truncated][at] != 0);
                for (index, given) in columns.iter().enumerate() {
                    let size = self.schema.fields()[index].row_bytes();
                    if let Some(bytes) = given {
                        let from = (row * self.num_envs + env) * size;
                        self.columns[index][slot * size..][..size].copy_from_slice(&bytes[from..from + size]);
                    } else {
                        self.columns[index][slot] = 0;
                    }
                }
                self.columns[is_first][slot] |= u8::from(after_end);
            }
            self.total += 1;
        }
        Ok(())
    }

    fn check_columns(&self, rows: usize, columns: &[Option<&[u8]>]) -> Result<()> {
        if columns.len() != self.columns.len() {
            return Error::value(format!("expected {} fields, got {}", self.columns.len(), columns.len()));
        }
        for (index, (field, given)) in self.schema.fields().iter().zip(columns).enumerate() {
            let expected = rows.checked_mul(self.num_envs).and_then(|count| count.checked_mul(field.row_bytes()));
            match given {
                Some(bytes) if Some(bytes.len()) != expected => {
                    return Error::value(format!(
                        "field {:?} has {} bytes, expected {expected:?}",
                        field.name(),
                        bytes.len()
                    ));
                }
                None if index != self.schema.is_first() => {
                    return Err(Error::Key(format!("field {:?} is missing", field.name())));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The bytes of rows `positions` (places in the ring, not row counters) of one field and environment.
    pub(crate) fn rows(&self, field: usize, env: usize, positions: Range<usize>) -> &[u8] {
        let size = self.schema.fields()[field].row_bytes();
        let base = env * self.rows_per_env;
        &self.columns[field][(base + positions.start) * size..(base + positions.end) * size]
    }

    /// As `rows`, to write to.
    pub(crate) fn rows_mut(&mut self, field: usize, env: usize, positions: Range<usize>) -> &mut [u8] {
        let size = self.schema.fields()[field].row_bytes();
        let base = env * self.rows_per_env;
        &mut self.columns[field][(base + positions.start) * size..(base + positions.end) * size]
    }

    /// Declares how many rows were restored by `rows_mut`.
    pub(crate) fn set_total(&mut self, total: u64) {
        self.total = total;
    }
}
