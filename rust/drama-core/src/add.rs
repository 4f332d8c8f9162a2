//! Adding rows to the ring.

use std::ops::Range;

use crate::{
    error::{Error, Result},
    finals::Finals,
    memory::{STREAM_FROM, stream, table, try_collect},
    parallel::{BYTES_PER_SHARE, share_out, workers},
    ring::{Ring, Storage},
    starts::RANGES,
};

impl Ring {
    /// Keeps what follows the newest row of each of `envs`, until that row is overwritten or the next one goes on from
    /// it. `columns` has one entry per field in schema order, laid out `[envs, ...]`.
    pub fn set_final(&mut self, envs: &[usize], columns: &[Option<&[u8]>]) -> Result<()> {
        self.check_envs(envs)?;
        self.check_bytes(envs.len(), columns)?;
        let built_in = self.schema.fields().iter().zip(columns).skip(self.schema.terminated());
        if let Some((field, _)) = built_in.clone().find(|(_, given)| given.is_some()) {
            return Error::value(format!("field {:?} has no value after the end of an episode", field.name()));
        }
        if columns.iter().all(Option::is_none) {
            return Error::value("no field was given");
        }
        for &env in envs {
            if self.totals[env] == 0 {
                return Error::value(format!("envs: environment {env} has no row"));
            }
        }
        self.changes += 1;
        for (at, &env) in envs.iter().enumerate() {
            let slot = self.slot(env, self.totals[env] - 1);
            self.note_change(slot - env * self.rows_per_env, 1);
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
        let all: Vec<usize>;
        let envs = if let Some(envs) = envs {
            self.check_envs(envs)?;
            envs
        } else {
            all = try_collect(0..self.num_envs, RANGES)?;
            &all
        };
        self.check_columns(rows, envs.len(), columns)?;
        let ended = |env: usize| self.totals[env].checked_sub(1).is_none_or(|t| self.ended(self.slot(env, t)));
        let ended = try_collect(envs.iter().map(|&env| ended(env)), RANGES)?;
        self.check_firsts(rows, envs, &ended, columns)?;
        self.note_changes(rows, envs);
        self.drop_finals(rows, envs, &ended, columns);
        self.write(rows, envs, columns);
        self.mark_firsts(rows, envs, &ended, columns);
        for &env in envs {
            self.totals[env] += rows as u64;
            self.heads[env] = (self.heads[env] + rows) % self.rows_per_env;
        }
        Ok(())
    }

    /// Forgets all rows. The memory stays, for those to come; for samplers it is another ring from now on.
    pub fn clear(&mut self) {
        self.renew();
        self.changes += 1;
        self.totals.fill(0);
        self.heads.fill(0);
        self.finals = Finals::new(self.schema.fields().len());
        for column in &mut self.columns {
            if let Storage::Packed(packed) = column {
                packed.clear();
            }
        }
    }

    /// Drops what follows the rows that the next `rows` of each of `envs` will overwrite or go on from.
    fn drop_finals(&mut self, rows: usize, envs: &[usize], ended: &[bool], columns: &[Option<&[u8]>]) {
        if self.finals.is_empty() || rows == 0 {
            return;
        }
        let firsts = columns[self.schema.is_first()];
        for (at, &env) in envs.iter().enumerate() {
            if !ended[at] && firsts.is_none_or(|firsts| firsts[at] == 0) {
                let slot = self.slot(env, self.totals[env] - 1);
                self.finals.remove(slot);
                self.note_change(slot - env * self.rows_per_env, 1);
            }
            for t in (self.totals[env]..).take(rows.min(self.rows_per_env)) {
                self.finals.remove(self.slot(env, t));
            }
        }
    }

    /// Notes which chunks of a save the next `rows` of each of `envs` will change.
    fn note_changes(&mut self, rows: usize, envs: &[usize]) {
        self.changes += 1;
        let (rows, mut before) = (rows.min(self.rows_per_env), None);
        for &env in envs {
            let head = self.heads[env];
            if rows > 0 && before != Some(head) {
                let to_the_end = rows.min(self.rows_per_env - head);
                self.note_change(head, to_the_end);
                if rows > to_the_end {
                    self.note_change(0, rows - to_the_end);
                }
            }
            before = Some(head);
        }
    }

    /// Copies rows into the slots to come of `envs`, those of a large block by several threads.
    fn write(&mut self, rows: usize, envs: &[usize], columns: &[Option<&[u8]>]) {
        let capacity = self.rows_per_env;
        // Of a block longer than the ring, only its end is kept.
        let skipped = rows.saturating_sub(capacity);
        let bytes = columns.iter().flatten().map(|bytes| bytes.len()).sum();
        let (threads, mut pieces) = (workers(bytes), Vec::new());
        for ((column, field), &given) in self.columns.iter_mut().zip(self.schema.fields()).zip(columns) {
            let size = field.row_bytes();
            let mut parts = Vec::new();
            for (at, &env) in envs.iter().enumerate() {
                let head = (self.heads[env] + skipped) % capacity;
                let to_the_end = (rows - skipped).min(capacity - head);
                let runs = [(head, skipped..skipped + to_the_end), (0, skipped + to_the_end..rows)];
                for (position, rows) in runs.into_iter().filter(|(_, rows)| !rows.is_empty()) {
                    let slot = env * capacity + position;
                    let source = Source { given, size, stride: envs.len(), at };
                    match column {
                        Storage::Packed(packed) => {
                            for (slot, row) in (slot..).zip(rows) {
                                packed.set(slot, source.row(row));
                            }
                        }
                        Storage::Plain(column) if threads == 1 => {
                            source.copy(&rows, &mut column[slot * size..][..rows.len() * size], false);
                        }
                        Storage::Plain(_) => parts.push((slot, rows, source)),
                    }
                }
            }
            if let (Storage::Plain(column), false) = (column, parts.is_empty()) {
                cut(column, parts, &mut pieces);
            }
        }
        let beside = bytes >= STREAM_FROM;
        share_out(threads, || pieces.pop(), |(rows, target, source)| source.copy(&rows, target, beside));
    }

    /// Whether row number `row` of environment number `at` of `envs` comes after the end of an episode; `ended` says so
    /// for the first row of each.
    fn after_end(&self, envs: usize, at: usize, row: usize, ended: &[bool], columns: &[Option<&[u8]>]) -> bool {
        let flags = [columns[self.schema.terminated()], columns[self.schema.truncated()]];
        if row == 0 { ended[at] } else { flags.iter().flatten().any(|flags| flags[(row - 1) * envs + at] != 0) }
    }

    /// Refuses a row that follows the end of an episode and is said to be no start.
    fn check_firsts(&self, rows: usize, envs: &[usize], ended: &[bool], columns: &[Option<&[u8]>]) -> Result<()> {
        let Some(firsts) = columns[self.schema.is_first()] else { return Ok(()) };
        for (at, &env) in envs.iter().enumerate() {
            // A stream may begin in the middle of an episode.
            for row in usize::from(self.totals[env] == 0)..rows {
                if firsts[row * envs.len() + at] == 0 && self.after_end(envs.len(), at, row, ended, columns) {
                    return Error::value(format!(
                        "field \"is_first\": got false for a row of environment {env} that follows the end of an episode"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Marks each row after the end of an episode; `ended` says whether the row before the first one is such an end.
    fn mark_firsts(&mut self, rows: usize, envs: &[usize], ended: &[bool], columns: &[Option<&[u8]>]) {
        let index = self.schema.is_first();
        for (at, &env) in envs.iter().enumerate() {
            for row in rows.saturating_sub(self.rows_per_env)..rows {
                if self.after_end(envs.len(), at, row, ended, columns) {
                    let slot = env * self.rows_per_env + (self.heads[env] + row) % self.rows_per_env;
                    self.plain_mut(index)[slot] = 1;
                }
            }
        }
    }

    fn check_envs(&self, envs: &[usize]) -> Result<()> {
        let mut seen = table(false, self.num_envs, RANGES)?;
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
        self.check_bytes(rows.saturating_mul(envs), columns)?;
        let required = &self.schema.fields()[..self.schema.is_first()];
        match required.iter().zip(columns).find(|(_, given)| given.is_none()) {
            Some((field, _)) => Err(Error::Key(format!("field {:?} is missing", field.name()))),
            None => Ok(()),
        }
    }

    fn check_bytes(&self, rows: usize, columns: &[Option<&[u8]>]) -> Result<()> {
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
            if let Some(bytes) = given.filter(|bytes| !field.holds(bytes)) {
                let byte = bytes.iter().find(|&&byte| byte > 1).copied().unwrap_or(0);
                return Error::value(format!(
                    "field {:?}: got a boolean of byte {byte}, expected 0 or 1",
                    field.name()
                ));
            }
        }
        Ok(())
    }
}

/// The rows of one environment in a column that was given for several.
#[derive(Clone, Copy)]
struct Source<'a> {
    given: Option<&'a [u8]>,
    size: usize,
    /// Environments, and which of them.
    stride: usize,
    at: usize,
}

impl Source<'_> {
    /// One row; nothing where no column was given.
    fn row(&self, row: usize) -> &[u8] {
        self.given.map_or(&[], |bytes| &bytes[(row * self.stride + self.at) * self.size..][..self.size])
    }

    /// Fills `target` with `rows`, or with zeros, past the caches if `beside`.
    fn copy(&self, rows: &Range<usize>, target: &mut [u8], beside: bool) {
        let Some(bytes) = self.given else { return target.fill(0) };
        if self.stride > 1 {
            for (row, target) in rows.clone().zip(target.chunks_exact_mut(self.size)) {
                target.copy_from_slice(self.row(row));
            }
        } else if beside {
            stream(target, &bytes[rows.start * self.size..rows.end * self.size]);
        } else {
            target.copy_from_slice(&bytes[rows.start * self.size..rows.end * self.size]);
        }
    }
}

/// Cuts `parts`, which are rows from a slot of `column` on, into pieces for threads to copy.
fn cut<'a, 's>(
    column: &'a mut [u8],
    mut parts: Vec<(usize, Range<usize>, Source<'s>)>,
    pieces: &mut Vec<(Range<usize>, &'a mut [u8], Source<'s>)>,
) {
    parts.sort_unstable_by_key(|(slot, ..)| *slot);
    let (mut rest, mut taken) = (column, 0);
    for (slot, rows, source) in parts {
        let size = source.size;
        let (_, from) = rest.split_at_mut(slot * size - taken);
        let (own, later) = from.split_at_mut(rows.len() * size);
        (rest, taken) = (later, (slot + rows.len()) * size);
        let share = (BYTES_PER_SHARE / size).max(1);
        for (piece, target) in own.chunks_mut(share * size).enumerate() {
            let start = rows.start + piece * share;
            pieces.push((start..start + target.len() / size, target, source));
        }
    }
}
