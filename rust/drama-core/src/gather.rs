//! Copies sequences out of the ring.

use std::thread;

use crate::{
    error::{Error, Result},
    ring::Ring,
};

/// Below this size a second thread costs more than it saves.
const BYTES_PER_THREAD: usize = 1 << 20;

/// Copies the sequences of `length` rows that start in `starts` to `outputs`: one slice per field in schema order,
/// laid out `[starts, length, ...]`. Threads are made per call, so a process may fork at any time.
pub fn gather(ring: &Ring, starts: &[usize], length: usize, outputs: Vec<&mut [u8]>) -> Result<()> {
    check(ring, starts, length, &outputs)?;
    let bytes = starts.len() * length * ring.schema().row_bytes();
    let worth = bytes / BYTES_PER_THREAD;
    // Asking the system takes tens of microseconds: only where it can matter.
    let available = if worth > 1 { thread::available_parallelism().map_or(1, usize::from) } else { 1 };
    let workers = worth.min(starts.len()).clamp(1, available);
    if workers == 1 {
        copy(ring, starts, length, outputs);
        return Ok(());
    }
    // Every sequence has the same size, so equal shares of sequences are equal shares of bytes.
    let share = starts.len().div_ceil(workers);
    let mut rest = outputs;
    thread::scope(|scope| {
        let mut parts = starts.chunks(share).peekable();
        while let Some(part) = parts.next() {
            let mut own = Vec::with_capacity(rest.len());
            let mut later = Vec::with_capacity(rest.len());
            for (field, output) in ring.schema().fields().iter().zip(rest) {
                let (head, tail) = output.split_at_mut(part.len() * length * field.row_bytes());
                own.push(head);
                later.push(tail);
            }
            rest = later;
            if parts.peek().is_some() {
                thread::Builder::new()
                    .spawn_scoped(scope, move || copy(ring, part, length, own))
                    .map_err(|error| Error::Runtime(format!("no thread to gather with: {error}")))?;
            } else {
                copy(ring, part, length, own);
            }
        }
        Ok(())
    })
}

fn check(ring: &Ring, starts: &[usize], length: usize, outputs: &[&mut [u8]]) -> Result<()> {
    let valid = ring.starts(length)?;
    for &slot in starts {
        if slot >= ring.slots() || !ring.held().contains(&ring.row_of(slot)) {
            return Err(Error::Index(format!("index {slot} holds no row ({} rows are stored)", ring.len())));
        }
        let row = ring.row_of(slot);
        if !valid.contains(&row) {
            let left = ring.total() - row;
            return Err(Error::Index(format!("index {slot} is followed by {left} rows, fewer than length {length}")));
        }
    }
    for (field, output) in ring.schema().fields().iter().zip(outputs) {
        let expected = starts.len().checked_mul(length).and_then(|rows| rows.checked_mul(field.row_bytes()));
        if expected != Some(output.len()) {
            return Error::value(format!(
                "output of field {:?} has {} bytes, expected {expected:?}",
                field.name(),
                output.len()
            ));
        }
    }
    Ok(())
}

fn copy(ring: &Ring, starts: &[usize], length: usize, outputs: Vec<&mut [u8]>) {
    let rows = ring.rows_per_env();
    for (index, output) in outputs.into_iter().enumerate() {
        let size = ring.schema().fields()[index].row_bytes();
        for (&slot, target) in starts.iter().zip(output.chunks_exact_mut(length * size)) {
            let (env, position) = (slot / rows, slot % rows);
            let before_wrap = length.min(rows - position);
            let (head, tail) = target.split_at_mut(before_wrap * size);
            head.copy_from_slice(ring.rows(index, env, position..position + before_wrap));
            tail.copy_from_slice(ring.rows(index, env, 0..length - before_wrap));
        }
    }
}
