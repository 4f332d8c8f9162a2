//! Copies sequences out of the ring.

use crate::{
    error::{Error, Result},
    memory::{STREAM_FROM, room},
    parallel::{BYTES_PER_SHARE, share_out, workers},
    ring::Ring,
    starts::STARTS,
};

/// What a sequence consists of.
pub struct Sequences<'a> {
    /// Rows of a sequence.
    pub length: usize,
    /// Whether a sequence ends with its episode or with the newest row. The rest is zero then, and one more output
    /// says which rows are real.
    pub within_episode: bool,
    /// By field, how many frames up to each row are stacked; 0 for a plain field. May be empty.
    pub stacks: &'a [usize],
}

/// Copies the sequences of `length` rows that start in `starts` to `outputs`: one slice per field in schema order,
/// laid out `[starts, length, ...]`.
pub fn gather(ring: &Ring, starts: &[usize], length: usize, outputs: Vec<&mut [u8]>) -> Result<()> {
    gather_sequences(ring, starts, &Sequences { length, within_episode: false, stacks: &[] }, outputs)
}

/// As `gather`, of such sequences: `[starts, length, frames, ...]` for a stacked field, and `[starts, length]` for
/// the mask in the end.
pub fn gather_sequences(
    ring: &Ring,
    starts: &[usize],
    sequences: &Sequences<'_>,
    outputs: Vec<&mut [u8]>,
) -> Result<()> {
    let places = places(ring, starts, sequences)?;
    let fields = ring.schema().fields().iter().enumerate();
    let mut sizes: Vec<_> = fields
        .map(|(index, field)| {
            field.row_bytes().saturating_mul(frames(sequences.stacks, index).saturating_mul(sequences.length))
        })
        .collect();
    if sequences.within_episode {
        sizes.push(sequences.length);
    }
    let stream = outputs.iter().map(|output| output.len()).sum::<usize>() >= STREAM_FROM;
    in_parallel(&places, &sizes, outputs, |places, outputs| copy(ring, places, sequences, outputs, stream))
}

/// Frames per row of a field.
pub(crate) fn frames(stacks: &[usize], field: usize) -> usize {
    stacks.get(field).copied().unwrap_or(0).max(1)
}

/// Lets `copy` fill `outputs`, which have `sizes` bytes per start, by several threads where they are large.
pub(crate) fn in_parallel<T: Sync>(
    starts: &[T],
    sizes: &[usize],
    outputs: Vec<&mut [u8]>,
    copy: impl Fn(&[T], Vec<&mut [u8]>) + Sync,
) -> Result<()> {
    let expected = |size: &usize| starts.len().checked_mul(*size);
    let fits = |(size, output): (&usize, &&mut [u8])| expected(size) == Some(output.len());
    if sizes.len() != outputs.len() || !sizes.iter().zip(&outputs).all(fits) {
        let got: Vec<_> = outputs.iter().map(|output| output.len()).collect();
        let expected: Vec<_> = sizes.iter().map(expected).collect();
        return Error::value(format!("outputs have {got:?} bytes, expected {expected:?}"));
    }
    let workers = workers(outputs.iter().map(|output| output.len()).sum()).min(starts.len());
    if workers <= 1 {
        copy(starts, outputs);
        return Ok(());
    }
    // Every start has the same size.
    let share = (BYTES_PER_SHARE / sizes.iter().sum::<usize>().max(1)).max(1);
    let (mut rest, mut outputs) = (starts, outputs);
    let next = || {
        let part;
        (part, rest) = rest.split_at(share.min(rest.len()));
        let own = outputs.iter_mut().zip(sizes).map(|(output, size)| {
            let (own, later) = std::mem::take(output).split_at_mut(part.len() * size);
            *output = later;
            own
        });
        (!part.is_empty()).then(|| (part, own.collect()))
    };
    share_out(workers, next, |(part, own)| copy(part, own));
    Ok(())
}

/// A sequence in the ring.
struct Place {
    env: usize,
    t: u64,
    /// Where row `t` lies.
    position: usize,
    /// Rows that are not padding.
    real: usize,
}

/// Finds the sequences, or says which start has none.
fn places(ring: &Ring, starts: &[usize], sequences: &Sequences<'_>) -> Result<Vec<Place>> {
    let length = sequences.length;
    if length == 0 || length > ring.rows_per_env() {
        return Error::value(format!(
            "length must be from 1 to {} (the rows kept per environment), got {length}",
            ring.rows_per_env()
        ));
    }
    let before = sequences.stacks.iter().copied().max().unwrap_or(0).saturating_sub(1);
    let place = |&slot: &usize| {
        if !ring.holds(slot) {
            return Err(Error::Index(format!("index {slot} holds no row ({} rows are stored)", ring.len())));
        }
        let (env, t) = ring.row_of(slot);
        let left = ring.totals()[env] - t;
        if !sequences.within_episode && left < length as u64 {
            let index = ring.index(slot);
            return Err(Error::Index(format!("index {index} is followed by {left} rows, fewer than length {length}")));
        }
        if before > 0 && ring.run_before(env, t, before).is_none() {
            let index = ring.index(slot);
            return Err(Error::Index(format!("index {index}: one of the {} frames to stack is gone", before + 1)));
        }
        let real = if sequences.within_episode { ring.run(env, t, length) } else { length };
        Ok(Place { env, t, position: slot - env * ring.rows_per_env(), real })
    };
    let mut places = room(starts.len(), STARTS)?;
    for slot in starts {
        places.push(place(slot)?);
    }
    Ok(places)
}

fn copy(ring: &Ring, places: &[Place], sequences: &Sequences<'_>, mut outputs: Vec<&mut [u8]>, stream: bool) {
    let length = sequences.length;
    if sequences.within_episode
        && let Some(mask) = outputs.pop()
    {
        for (&Place { real, .. }, mask) in places.iter().zip(mask.chunks_exact_mut(length)) {
            mask[..real].fill(1);
            mask[real..].fill(0);
        }
    }
    for (index, output) in outputs.into_iter().enumerate() {
        let frames = frames(sequences.stacks, index);
        let size = ring.schema().fields()[index].row_bytes() * frames;
        if frames == 1 && length == 1 {
            let slots = places.iter().map(|place| place.env * ring.rows_per_env() + place.position);
            ring.read_each(index, slots, output);
            continue;
        }
        for (&Place { env, t, position, real }, target) in places.iter().zip(output.chunks_exact_mut(length * size)) {
            let (target, padding) = target.split_at_mut(real * size);
            if real < length {
                padding.fill(0);
            }
            if frames == 1 {
                copy_rows(ring, index, env, position, target, stream);
            } else {
                for (row, target) in (t..).zip(target.chunks_exact_mut(size)) {
                    copy_stack(ring, index, env, row, target);
                }
            }
        }
    }
}

/// Fills `target` with rows of a field from `position` on, past the caches if `stream`.
fn copy_rows(ring: &Ring, field: usize, env: usize, position: usize, target: &mut [u8], stream: bool) {
    let size = ring.schema().fields()[field].row_bytes();
    let rows = ring.rows_per_env();
    let before_wrap = target.len().min((rows - position) * size);
    let (head, tail) = target.split_at_mut(before_wrap);
    ring.read(field, env * rows + position, head, stream);
    if !tail.is_empty() {
        ring.read(field, env * rows, tail, stream);
    }
}

/// Fills `target` with the rows of a field up to `t`, the first of the episode as often as others are lacking.
pub(crate) fn copy_stack(ring: &Ring, field: usize, env: usize, t: u64, target: &mut [u8]) {
    let size = ring.schema().fields()[field].row_bytes();
    let frames = target.len() / size;
    let before = ring.run_before(env, t, frames - 1).unwrap_or(0);
    let (lacking, own) = target.split_at_mut((frames - 1 - before) * size);
    copy_rows(ring, field, env, ring.position(env, t - before as u64), own, false);
    for frame in lacking.chunks_exact_mut(size) {
        frame.copy_from_slice(&own[..size]);
    }
}
