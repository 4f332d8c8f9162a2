//! Row storage: one ring per environment, one allocation per field.

use std::{ops::Range, path::Path};

use crate::{
    column::Column,
    error::{Error, Result},
    finals::Finals,
    schema::Schema,
};

/// Rows of `num_envs` streams, each with its own counter of rows. Row `t` of environment `e` lies in slot `e * rows_per_env + t % rows_per_env`.
pub struct Ring {
    schema: Schema,
    columns: Vec<Column>,
    capacity: usize,
    num_envs: usize,
    rows_per_env: usize,
    totals: Vec<u64>,
    /// `totals` modulo `rows_per_env`: divisions take a good part of a draw.
    heads: Vec<usize>,
    finals: Finals,
}

impl Ring {
    /// An empty ring that keeps at least `capacity` rows over all environments.
    pub fn new(schema: Schema, capacity: usize, num_envs: usize) -> Result<Self> {
        Self::stored(schema, capacity, num_envs, None)
    }

    /// As `new`, with the rows in files in the directory `storage` if given. The files are working memory: they have
    /// no name and are gone with the ring.
    pub fn stored(schema: Schema, capacity: usize, num_envs: usize, storage: Option<&Path>) -> Result<Self> {
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
        let fields = schema.fields().iter();
        let columns = fields
            .map(|field| Column::new(field.name(), slots, field.row_bytes(), storage))
            .collect::<Result<Vec<_>>>()?;
        let finals = Finals::new(schema.fields().len());
        let (totals, heads) = (vec![0; num_envs], vec![0; num_envs]);
        Ok(Self { schema, columns, capacity, num_envs, rows_per_env, totals, heads, finals })
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
    pub fn totals(&self) -> &[u64] {
        &self.totals
    }

    /// The largest of `totals`.
    pub fn total(&self) -> u64 {
        self.totals.iter().copied().max().unwrap_or(0)
    }

    /// Slots over all environments.
    pub fn slots(&self) -> usize {
        self.num_envs * self.rows_per_env
    }

    /// Rows that `env` holds now.
    pub fn filled(&self, env: usize) -> usize {
        self.totals[env].min(self.rows_per_env as u64) as usize
    }

    /// Rows held now, over all environments.
    pub fn len(&self) -> usize {
        (0..self.num_envs).map(|env| self.filled(env)).sum()
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of address space over all fields; pages never written take no memory.
    pub fn nbytes(&self) -> usize {
        self.columns.iter().map(|column| column.len()).sum()
    }

    /// Row counters of the oldest row that `env` holds and of its row to come.
    pub fn held(&self, env: usize) -> Range<u64> {
        self.totals[env] - self.filled(env) as u64..self.totals[env]
    }

    /// Slot of row `t` of environment `env`.
    pub fn slot(&self, env: usize, t: u64) -> usize {
        env * self.rows_per_env + self.position(env, t)
    }

    /// Place of row `t` among those of `env`.
    pub(crate) fn position(&self, env: usize, t: u64) -> usize {
        let (rows, head) = (self.rows_per_env, self.heads[env]);
        match self.totals[env].checked_sub(t).map(|age| age as usize) {
            Some(age) if age <= head => head - age,
            Some(age) if age <= rows => head + rows - age,
            _ => (t % rows as u64) as usize,
        }
    }

    /// Environment and row counter of what `slot` holds now.
    pub fn row_of(&self, slot: usize) -> (usize, u64) {
        let env = slot / self.rows_per_env;
        let (position, head) = (slot - env * self.rows_per_env, self.heads[env]);
        let age = if position < head { head - position } else { head + self.rows_per_env - position };
        // Where nothing was ever written, the row is one that is still to come.
        let t = self.totals[env].checked_sub(age as u64);
        (env, t.unwrap_or(position as u64))
    }

    /// Whether `slot` exists and holds a row.
    pub(crate) fn holds(&self, slot: usize) -> bool {
        slot < self.slots() && slot % self.rows_per_env < self.filled(slot / self.rows_per_env)
    }

    /// Whether the row in `slot` ended its episode by termination.
    pub(crate) fn terminated(&self, slot: usize) -> bool {
        self.columns[self.schema.terminated()][slot] != 0
    }

    /// Whether the row in `slot` ended its episode in either way.
    pub(crate) fn ended(&self, slot: usize) -> bool {
        self.terminated(slot) || self.columns[self.schema.truncated()][slot] != 0
    }

    /// Whether row `t` of `env` is the first of its episode.
    pub(crate) fn is_first(&self, env: usize, t: u64) -> bool {
        self.columns[self.schema.is_first()][self.slot(env, t)] != 0
    }

    /// Rows from `t` on that belong to its episode and are held, `limit` at most.
    pub(crate) fn run(&self, env: usize, t: u64, limit: usize) -> usize {
        let limit = limit.min((self.totals[env] - t) as usize);
        (1..limit).find(|&step| self.is_first(env, t + step as u64)).unwrap_or(limit)
    }

    /// Rows before `t` that belong to its episode, `limit` at most; `None` where one of them was overwritten.
    pub(crate) fn run_before(&self, env: usize, t: u64, limit: usize) -> Option<usize> {
        let kept = (t - self.held(env).start) as usize;
        let first = (0..=limit.min(kept)).find(|&back| self.is_first(env, t - back as u64));
        first.or((limit <= kept).then_some(limit))
    }

    /// What follows rows that end an episode.
    pub(crate) fn finals(&self) -> &Finals {
        &self.finals
    }

    /// As `finals`, to restore.
    pub(crate) fn finals_mut(&mut self) -> &mut Finals {
        &mut self.finals
    }

    /// Keeps what follows the newest row of each of `envs`, which ended an episode, until that row is overwritten.
    /// `columns` has one entry per field in schema order, laid out `[envs, ...]`.
    pub fn set_final(&mut self, envs: &[usize], columns: &[Option<&[u8]>]) -> Result<()> {
        self.check_envs(envs)?;
        self.check_sizes(envs.len(), columns)?;
        let built_in = self.schema.fields().iter().zip(columns).skip(self.schema.terminated());
        if let Some((field, _)) = built_in.clone().find(|(_, given)| given.is_some()) {
            return Error::value(format!("field {:?} has no value after the end of an episode", field.name()));
        }
        if columns.iter().all(Option::is_none) {
            return Error::value("no field was given");
        }
        for &env in envs {
            let newest = self.totals[env].checked_sub(1).map(|t| self.slot(env, t));
            if !newest.is_some_and(|slot| self.ended(slot)) {
                return Error::value(format!("envs: the last row of environment {env} does not end an episode"));
            }
        }
        for (at, &env) in envs.iter().enumerate() {
            let slot = self.slot(env, self.totals[env] - 1);
            for (index, given) in columns.iter().enumerate() {
                if let Some(bytes) = given {
                    let size = self.schema.fields()[index].row_bytes();
                    self.finals.insert(index, slot, &bytes[at * size..][..size]);
                }
            }
        }
        Ok(())
    }

    /// Adds `rows` rows to every environment, or to the different ones of `envs`. `columns` has one entry per field
    /// in schema order, laid out `[rows, envs, ...]`; the last one, `is_first`, may be missing and is derived in any
    /// case.
    pub fn add(&mut self, rows: usize, envs: Option<&[usize]>, columns: &[Option<&[u8]>]) -> Result<()> {
        if let Some(envs) = envs {
            self.check_envs(envs)?;
        }
        let count = envs.map_or(self.num_envs, <[usize]>::len);
        self.check_columns(rows, count, columns)?;
        for row in 0..rows {
            for at in 0..count {
                self.add_row(envs.map_or(at, |envs| envs[at]), row * count + at, columns);
            }
        }
        Ok(())
    }

    /// Adds row `from` of `columns` to `env`.
    fn add_row(&mut self, env: usize, from: usize, columns: &[Option<&[u8]>]) {
        let total = self.totals[env];
        let slot = self.slot(env, total);
        let previous = total.checked_sub(1).map(|t| self.slot(env, t));
        let after_end = previous.is_none_or(|at| self.ended(at));
        if total >= self.rows_per_env as u64 && self.ended(slot) {
            self.finals.remove(slot);
        }
        for (index, given) in columns.iter().enumerate() {
            let size = self.schema.fields()[index].row_bytes();
            if let Some(bytes) = given {
                self.columns[index][slot * size..][..size].copy_from_slice(&bytes[from * size..][..size]);
            } else {
                self.columns[index][slot] = 0;
            }
        }
        self.columns[self.schema.is_first()][slot] |= u8::from(after_end);
        self.totals[env] += 1;
        self.heads[env] = if self.heads[env] + 1 == self.rows_per_env { 0 } else { self.heads[env] + 1 };
    }

    fn check_envs(&self, envs: &[usize]) -> Result<()> {
        let mut seen = vec![false; self.num_envs];
        for &env in envs {
            match seen.get_mut(env) {
                None => {
                    return Error::value(format!("envs: got {env}, expected indices from 0 to {}", self.num_envs - 1));
                }
                Some(true) => return Error::value(format!("envs: environment {env} is given twice")),
                Some(seen) => *seen = true,
            }
        }
        Ok(())
    }

    fn check_columns(&self, rows: usize, envs: usize, columns: &[Option<&[u8]>]) -> Result<()> {
        self.check_sizes(rows.saturating_mul(envs), columns)?;
        let required = &self.schema.fields()[..self.schema.is_first()];
        match required.iter().zip(columns).find(|(_, given)| given.is_none()) {
            Some((field, _)) => Err(Error::Key(format!("field {:?} is missing", field.name()))),
            None => Ok(()),
        }
    }

    fn check_sizes(&self, rows: usize, columns: &[Option<&[u8]>]) -> Result<()> {
        if columns.len() != self.columns.len() {
            return Error::value(format!("expected {} fields, got {}", self.columns.len(), columns.len()));
        }
        for (field, given) in self.schema.fields().iter().zip(columns) {
            let expected = rows.checked_mul(field.row_bytes());
            if let Some(bytes) = given.filter(|bytes| Some(bytes.len()) != expected) {
                return Error::value(format!(
                    "field {:?} has {} bytes, expected {expected:?}",
                    field.name(),
                    bytes.len()
                ));
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

    /// Declares how many rows of each environment were restored by `rows_mut`.
    pub(crate) fn set_totals(&mut self, totals: &[u64]) {
        self.totals.copy_from_slice(totals);
        self.heads = totals.iter().map(|total| (total % self.rows_per_env as u64) as usize).collect();
    }
}
