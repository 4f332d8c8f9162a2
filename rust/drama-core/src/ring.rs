//! Row storage: one ring per environment, one allocation per field.

use std::{
    borrow::Cow,
    ops::Range,
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    column::Column,
    error::{Error, Result},
    finals::Finals,
    memory::{self, room, table},
    packed::Packed,
    sampler::Found,
    schema::{Field, Schema},
    snapshot::{Plan, rows_per_chunk},
    starts::{RANGES, STARTS},
};

/// What is shorter is copied faster by usual means.
const STREAM_ROWS_FROM: usize = 4096;

/// The rows of one field.
pub(crate) enum Storage {
    Plain(Column),
    Packed(Packed),
}

/// Rows of `num_envs` streams, each with its own counter of rows. Row `t` of environment `e` lies in slot
/// `e * rows_per_env + t % rows_per_env`.
pub struct Ring {
    id: u64,
    pub(crate) schema: Schema,
    pub(crate) columns: Vec<Storage>,
    capacity: usize,
    pub(crate) num_envs: usize,
    pub(crate) rows_per_env: usize,
    pub(crate) totals: Vec<u64>,
    /// `totals` modulo `rows_per_env`: divisions take a good part of a draw.
    pub(crate) heads: Vec<usize>,
    pub(crate) finals: Finals,
    /// What a save and what is loaded from it have in common.
    identity: u64,
    pub(crate) rows_per_chunk: usize,
    /// By chunk of a save, a number that is another one after each change to its rows; no longer than need be.
    versions: Vec<u64>,
    pub(crate) changes: u64,
    found: Mutex<Option<Found>>,
}

/// Environment and place of a slot, where each has `rows` of them. One environment needs no division.
pub(crate) fn split(slot: usize, rows: usize) -> (usize, usize) {
    if slot < rows { (0, slot) } else { (slot / rows, slot % rows) }
}

/// Rows that each environment keeps, where the sizes are in bounds.
pub(crate) fn rows_per_env(capacity: usize, num_envs: usize) -> Result<usize> {
    if capacity == 0 {
        return Error::value("capacity must be at least 1, got 0");
    }
    if num_envs == 0 {
        return Error::value("num_envs must be at least 1, got 0");
    }
    let rows = capacity.div_ceil(num_envs);
    if rows.checked_mul(num_envs).is_none_or(|slots| u32::try_from(slots).is_err()) {
        return Error::value(format!("capacity {capacity} is beyond the limit of {} rows", u32::MAX));
    }
    Ok(rows)
}

/// A number that no other buffer has, in this process or another.
fn new_identity() -> u64 {
    use std::{
        hash::{BuildHasher, RandomState},
        time::SystemTime,
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_nanos());
    RandomState::new().hash_one((now, std::process::id(), std::thread::current().id()))
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Ring {
    /// An empty ring that keeps at least `capacity` rows over all environments.
    pub fn new(schema: Schema, capacity: usize, num_envs: usize) -> Result<Self> {
        Self::stored(schema, capacity, num_envs, None)
    }

    /// As `new`, with the rows in files in the directory `storage` if given. The files are working memory: they have
    /// no name and are gone with the ring.
    pub fn stored(schema: Schema, capacity: usize, num_envs: usize, storage: Option<&Path>) -> Result<Self> {
        let rows_per_env = rows_per_env(capacity, num_envs)?;
        let slots = rows_per_env * num_envs;
        let column = |field: &Field| match storage {
            Some(_) if field.is_compressed() => {
                Error::value(format!("field {:?} cannot be compressed: rows in mapped files are not", field.name()))
            }
            None if field.is_compressed() => Packed::new(field.name(), slots, field.row_bytes()).map(Storage::Packed),
            _ => Column::new(field.name(), slots, field.row_bytes(), storage).map(Storage::Plain),
        };
        let columns = schema.fields().iter().map(column).collect::<Result<Vec<_>>>()?;
        let finals = Finals::new(schema.fields().len());
        let (totals, heads) = (table(0, num_envs, RANGES)?, table(0, num_envs, RANGES)?);
        let rows_per_chunk = rows_per_chunk(&schema, num_envs, rows_per_env);
        Ok(Self {
            id: next_id(),
            identity: new_identity(),
            rows_per_chunk,
            versions: Vec::new(),
            changes: 0,
            schema,
            columns,
            capacity,
            num_envs,
            rows_per_env,
            totals,
            heads,
            finals,
            found: Mutex::default(),
        })
    }

    /// What tells this ring from all others of the process.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// What a save and what is loaded from it have in common.
    pub(crate) fn identity(&self) -> u64 {
        self.identity
    }

    /// The chunks of a save.
    pub(crate) fn plan(&self) -> Plan<'_> {
        let (rows_per_env, rows_per_chunk) = (self.rows_per_env, self.rows_per_chunk);
        Plan { schema: &self.schema, rows_per_env, rows_per_chunk, totals: &self.totals }
    }

    /// A number that is another one after each change to the rows of chunk `index`.
    pub(crate) fn version(&self, index: usize) -> u64 {
        self.versions.get(index).copied().unwrap_or(0)
    }

    /// Notes that rows of an environment change, from a place on for so many.
    pub(crate) fn note_change(&mut self, position: usize, rows: usize) {
        let (first, last) = (position / self.rows_per_chunk, (position + rows - 1) / self.rows_per_chunk);
        if self.versions.len() <= last {
            self.versions.resize(last + 1, 0);
        }
        self.versions[first..=last].fill(self.changes);
    }

    /// Becomes another ring than before to what follows it.
    pub(crate) fn renew(&mut self) {
        self.id = next_id();
        self.found = Mutex::default();
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

    /// Bytes of all rows once every one is written, before compression; pages never written take no memory.
    pub fn nbytes(&self) -> usize {
        self.slots() * self.schema.row_bytes()
    }

    /// Bytes that the rows held now take.
    pub fn stored_nbytes(&self) -> usize {
        let fields = self.columns.iter().zip(self.schema.fields());
        fields
            .map(|(column, field)| match column {
                Storage::Plain(_) => self.len() * field.row_bytes(),
                Storage::Packed(packed) => packed.stored(),
            })
            .sum()
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
        let (env, position) = split(slot, self.rows_per_env);
        let head = self.heads[env];
        let age = if position < head { head - position } else { head + self.rows_per_env - position };
        // Where nothing was ever written, the row is one that is still to come.
        let t = self.totals[env].checked_sub(age as u64);
        (env, t.unwrap_or(position as u64))
    }

    /// What a batch names the row in `slot` by, and no other row ever: its slot, and as many times the number of slots
    /// as the rows of its environment had gone around when it came.
    pub fn index(&self, slot: usize) -> i64 {
        let (_, t) = self.row_of(slot);
        (slot as u64 + t / self.rows_per_env as u64 * self.slots() as u64) as i64
    }

    /// As `index`, of a number that may be no slot.
    pub fn index_at(&self, slot: i64) -> Result<i64> {
        match usize::try_from(slot).ok().filter(|&slot| self.holds(slot)) {
            Some(slot) => Ok(self.index(slot)),
            None => Err(Error::Index(format!("slot {slot} holds no row ({} rows are stored)", self.len()))),
        }
    }

    /// The slots of the rows that a batch named.
    pub fn find(&self, indices: &[i64]) -> Result<Vec<usize>> {
        let mut slots = room(indices.len(), STARTS)?;
        for &index in indices {
            let Ok(number) = usize::try_from(index) else {
                return Err(Error::Index(format!("index {index} is negative")));
            };
            let slot = number % self.slots();
            if !self.holds(slot) || self.index(slot) < index {
                return Err(Error::Index(format!("index {index} holds no row ({} rows are stored)", self.len())));
            }
            if self.index(slot) > index {
                return Err(Error::Index(format!("index {index}: its row was overwritten")));
            }
            slots.push(slot);
        }
        Ok(slots)
    }

    /// Whether `slot` exists and holds a row.
    pub(crate) fn holds(&self, slot: usize) -> bool {
        slot < self.slots() && {
            let (env, position) = split(slot, self.rows_per_env);
            position < self.filled(env)
        }
    }

    /// Whether the row in `slot` ended its episode by termination.
    pub(crate) fn terminated(&self, slot: usize) -> bool {
        self.plain(self.schema.terminated())[slot] != 0
    }

    /// Whether the row in `slot` ended its episode in either way.
    pub(crate) fn ended(&self, slot: usize) -> bool {
        self.terminated(slot) || self.plain(self.schema.truncated())[slot] != 0
    }

    /// Whether the row in `slot` is the first of its episode.
    pub(crate) fn first_of_episode(&self, slot: usize) -> bool {
        self.plain(self.schema.is_first())[slot] != 0
    }

    /// Whether the row after that in `slot`, which holds one, goes on with its episode.
    pub(crate) fn goes_on(&self, slot: usize) -> bool {
        let (env, t) = self.row_of(slot);
        t + 1 < self.totals[env] && !self.is_first(env, t + 1)
    }

    /// Starts to read the built-in fields of a row.
    pub(crate) fn prefetch_flags(&self, slot: usize) {
        for field in self.schema.terminated()..=self.schema.is_first() {
            memory::prefetch(self.plain(field), slot);
        }
    }

    /// Whether row `t` of `env` is the first of its episode.
    fn is_first(&self, env: usize, t: u64) -> bool {
        self.first_of_episode(self.slot(env, t))
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

    /// The starts that `draw_uniform` found where there are few.
    pub(crate) fn found(&self) -> MutexGuard<'_, Option<Found>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What follows rows that end an episode.
    pub(crate) fn finals(&self) -> &Finals {
        &self.finals
    }

    /// As `finals`, to restore.
    pub(crate) fn finals_mut(&mut self) -> &mut Finals {
        &mut self.finals
    }

    /// All bytes of a field by slot, or none of one that is compressed.
    pub(crate) fn plain(&self, field: usize) -> &[u8] {
        match &self.columns[field] {
            Storage::Plain(column) => column,
            Storage::Packed(_) => &[],
        }
    }

    /// As `plain`, to restore.
    pub(crate) fn plain_mut(&mut self, field: usize) -> &mut [u8] {
        match &mut self.columns[field] {
            Storage::Plain(column) => column,
            Storage::Packed(_) => &mut [],
        }
    }

    /// The rows of a field that is compressed.
    pub(crate) fn packed(&self, field: usize) -> Option<&Packed> {
        match &self.columns[field] {
            Storage::Plain(_) => None,
            Storage::Packed(packed) => Some(packed),
        }
    }

    /// As `packed`, to restore.
    pub(crate) fn packed_mut(&mut self, field: usize) -> Option<&mut Packed> {
        match &mut self.columns[field] {
            Storage::Plain(_) => None,
            Storage::Packed(packed) => Some(packed),
        }
    }

    /// One row of a field.
    pub(crate) fn row(&self, field: usize, slot: usize) -> Cow<'_, [u8]> {
        let size = self.schema.fields()[field].row_bytes();
        match &self.columns[field] {
            Storage::Plain(column) => Cow::Borrowed(&column[slot * size..][..size]),
            Storage::Packed(packed) => {
                let mut row = vec![0; size];
                packed.read(slot, &mut row);
                Cow::Owned(row)
            }
        }
    }

    /// Fills `target` with the rows of a field in consecutive slots from `slot` on, past the caches if `stream`.
    pub(crate) fn read(&self, field: usize, slot: usize, target: &mut [u8], stream: bool) {
        let size = self.schema.fields()[field].row_bytes();
        match &self.columns[field] {
            Storage::Plain(column) => {
                let rows = &column[slot * size..][..target.len()];
                if stream && rows.len() >= STREAM_ROWS_FROM {
                    memory::stream(target, rows);
                } else {
                    target.copy_from_slice(rows);
                }
            }
            Storage::Packed(packed) => {
                for (slot, row) in (slot..).zip(target.chunks_exact_mut(size)) {
                    packed.read(slot, row);
                }
            }
        }
    }

    /// Fills `target` with one row of a field for each of `slots`.
    pub(crate) fn read_each(&self, field: usize, slots: impl Iterator<Item = usize>, target: &mut [u8]) {
        // A copy of known size is a load and a store.
        fn fixed<const N: usize>(column: &[u8], slots: impl Iterator<Item = usize>, target: &mut [u8]) {
            let rows = column.as_chunks::<N>().0;
            for (target, slot) in target.as_chunks_mut::<N>().0.iter_mut().zip(slots) {
                *target = rows[slot];
            }
        }
        let column = self.plain(field);
        match self.schema.fields()[field].row_bytes() {
            1 if !column.is_empty() => fixed::<1>(column, slots, target),
            4 if !column.is_empty() => fixed::<4>(column, slots, target),
            8 if !column.is_empty() => fixed::<8>(column, slots, target),
            16 if !column.is_empty() => fixed::<16>(column, slots, target),
            size => {
                for (slot, target) in slots.zip(target.chunks_exact_mut(size)) {
                    self.read(field, slot, target, false);
                }
            }
        }
    }

    /// Makes this the ring of a buffer of its own, which saves over nothing that the one it was read from saved.
    pub fn part(&mut self) {
        self.identity = new_identity();
    }

    /// Declares whose save is restored, and how many rows of each environment it has.
    pub(crate) fn restore(&mut self, identity: u64, totals: &[u64]) {
        self.identity = identity;
        self.totals.copy_from_slice(totals);
        self.heads = totals.iter().map(|total| (total % self.rows_per_env as u64) as usize).collect();
    }
}
