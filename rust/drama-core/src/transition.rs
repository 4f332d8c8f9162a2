//! Transitions over one or more steps, put together from consecutive rows.

use crate::{
    error::{Error, Result},
    gather::{copy_stack, frames, in_parallel},
    memory::room,
    ring::Ring,
    schema::{DType, Field},
    starts::STARTS,
};

/// What a transition consists of.
pub struct Steps<'a> {
    /// Rows of a transition; fewer at the end of an episode.
    pub steps: usize,
    /// Factor of a reward one row later.
    pub discount: f64,
    /// By field, how many frames up to a row are stacked; 0 for a plain field. May be empty.
    pub stacks: &'a [usize],
    /// The fields wanted of what follows the last row.
    pub next: &'a [usize],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The episode goes on with the next row.
    Followed,
    Terminated,
    Truncated,
    /// The rows to come are not there yet, or the episode broke off unmarked.
    Open,
}

/// The rows of a transition.
struct Span {
    env: usize,
    t: u64,
    used: usize,
    /// Slots of the first and the last row, and of the one after that where the episode goes on.
    first: usize,
    last: usize,
    next: Option<usize>,
    end: End,
}

impl Span {
    fn new(ring: &Ring, first: usize, steps: usize) -> Self {
        let (env, t) = ring.row_of(first);
        let used = ring.run(env, t, steps);
        let after = t + used as u64;
        let last = if used == 1 { first } else { ring.slot(env, after - 1) };
        let next = (after < ring.totals()[env]).then(|| ring.slot(env, after));
        let next = next.filter(|&slot| !ring.first_of_episode(slot));
        let end = if ring.terminated(last) {
            End::Terminated
        } else if ring.ended(last) {
            End::Truncated
        } else if next.is_some() {
            End::Followed
        } else {
            End::Open
        };
        let next = next.filter(|_| end == End::Followed);
        Self { env, t, used, first, last, next, end }
    }

    /// Whether there is a value to go on from for each field of `next`, wherever it counts.
    fn known(&self, ring: &Ring, next: &[usize]) -> bool {
        let given = || next.iter().all(|&field| ring.finals().get(field, self.last).is_some());
        match self.end {
            End::Followed | End::Terminated => true,
            End::Truncated => given(),
            End::Open => !next.is_empty() && given(),
        }
    }
}

/// Whether the transition from `slot` on has its rows, and a value to go on from for each field of `next`.
pub(crate) fn known(ring: &Ring, slot: usize, steps: usize, next: &[usize]) -> bool {
    Span::new(ring, slot, steps).known(ring, next)
}

/// Position of the field `reward` and the type of its discounted sums.
pub fn reward(fields: &[Field]) -> Result<(usize, DType)> {
    let Some(index) = fields.iter().position(|field| field.name() == "reward") else {
        return Error::value("transitions need a field \"reward\"");
    };
    match fields[index].dtype() {
        DType::Float16 => Error::value("field \"reward\" has dtype float16, whose sums are not supported"),
        DType::Float64 => Ok((index, DType::Float64)),
        _ => Ok((index, DType::Float32)),
    }
}

/// Copies the transitions that start in `starts` to `outputs`: per field in schema order `[starts, ...]` of the first
/// row, with the discounted sum in place of `reward` and the end of the last row in place of `terminated` and
/// `truncated`; per field of `next` the same of what follows, zero after a termination that nothing is known of; the
/// factor of its value as f32; the rows used as i64.
pub fn gather_transitions(ring: &Ring, starts: &[usize], steps: &Steps<'_>, outputs: Vec<&mut [u8]>) -> Result<()> {
    let fields = ring.schema().fields();
    let (reward, reward_dtype) = reward(fields)?;
    let size = |index: usize| fields[index].row_bytes() * frames(steps.stacks, index);
    let mut sizes: Vec<_> = (0..fields.len()).map(size).collect();
    let elements = fields[reward].row_bytes() / fields[reward].dtype().itemsize();
    sizes[reward] = elements * reward_dtype.itemsize();
    sizes.extend(steps.next.iter().map(|&index| size(index)).chain([size_of::<f32>(), size_of::<i64>()]));
    let mut spans = room(starts.len(), STARTS)?;
    for &slot in starts {
        let span = ring.holds(slot).then(|| Span::new(ring, slot, steps.steps));
        let refused = || Error::Index(format!("index {slot} starts no transition of {} steps", steps.steps));
        spans.push(span.filter(|span| span.known(ring, steps.next)).ok_or_else(refused)?);
    }
    in_parallel(&spans, &sizes, outputs, |spans, outputs| copy(ring, spans, steps, reward, outputs))
}

fn copy(ring: &Ring, spans: &[Span], steps: &Steps<'_>, reward: usize, outputs: Vec<&mut [u8]>) {
    let schema = ring.schema();
    let mut outputs = outputs.into_iter();
    for (index, output) in (0..schema.fields().len()).zip(&mut outputs) {
        if index == reward {
            sum(ring, index, spans, steps.discount, output);
        } else if index == schema.terminated() || index == schema.truncated() {
            ring.read_each(index, spans.iter().map(|span| span.last), output);
        } else if frames(steps.stacks, index) == 1 {
            ring.read_each(index, spans.iter().map(|span| span.first), output);
        } else {
            let size = schema.fields()[index].row_bytes() * frames(steps.stacks, index);
            for (span, target) in spans.iter().zip(output.chunks_exact_mut(size)) {
                copy_stack(ring, index, span.env, span.t, target);
            }
        }
    }
    for (&index, output) in steps.next.iter().zip(&mut outputs) {
        copy_next(ring, index, spans, frames(steps.stacks, index), output);
    }
    if let (Some(discount), Some(count)) = (outputs.next(), outputs.next()) {
        let discount = discount.as_chunks_mut().0.iter_mut();
        for ((span, discount), count) in spans.iter().zip(discount).zip(count.as_chunks_mut().0) {
            let factor = if span.end == End::Terminated { 0.0 } else { power(steps.discount, span.used) };
            *discount = (factor as f32).to_ne_bytes();
            *count = (span.used as i64).to_ne_bytes();
        }
    }
}

/// What follows the last rows: the next ones, then where an episode ends in between what is known of that.
fn copy_next(ring: &Ring, index: usize, spans: &[Span], frames: usize, output: &mut [u8]) {
    let size = ring.schema().fields()[index].row_bytes();
    if frames == 1 {
        // A row is read for each, that of the last one where there is no next.
        ring.read_each(index, spans.iter().map(|span| span.next.unwrap_or(span.last)), output);
    }
    for (span, target) in spans.iter().zip(output.chunks_exact_mut(size * frames)) {
        let last = span.t + span.used as u64 - 1;
        if span.next.is_some() {
            if frames > 1 {
                copy_stack(ring, index, span.env, last + 1, target);
            }
        } else if let Some(bytes) = ring.finals().get(index, span.last) {
            let (before, own) = target.split_at_mut(target.len() - size);
            own.copy_from_slice(bytes);
            if !before.is_empty() {
                copy_stack(ring, index, span.env, last, before);
            }
        } else {
            target.fill(0);
        }
    }
}

fn power(base: f64, exponent: usize) -> f64 {
    i32::try_from(exponent).map_or_else(|_| base.powf(exponent as f64), |exponent| base.powi(exponent))
}

/// The discounted sum of each element over the rows of each of `spans`.
fn sum(ring: &Ring, field: usize, spans: &[Span], discount: f64, output: &mut [u8]) {
    let (dtype, size) = (ring.schema().fields()[field].dtype(), ring.schema().fields()[field].row_bytes());
    if dtype == DType::Float32 && spans.iter().all(|span| span.used == 1) {
        return ring.read_each(field, spans.iter().map(|span| span.first), output);
    }
    let width = if dtype == DType::Float64 { 8 } else { 4 };
    let mut totals = vec![0.0; size / dtype.itemsize()];
    for (span, targets) in spans.iter().zip(output.chunks_exact_mut(totals.len() * width)) {
        totals.fill(0.0);
        let mut factor = 1.0;
        for t in span.t..span.t + span.used as u64 {
            let row = ring.row(field, ring.slot(span.env, t));
            for (total, element) in totals.iter_mut().zip(row.chunks_exact(dtype.itemsize())) {
                *total += factor * number(dtype, element);
            }
            factor *= discount;
        }
        for (total, target) in totals.iter().zip(targets.chunks_exact_mut(width)) {
            if width == 8 {
                target.copy_from_slice(&total.to_ne_bytes());
            } else {
                target.copy_from_slice(&(*total as f32).to_ne_bytes());
            }
        }
    }
}

/// One element as a number; every type but float16, which `reward` refuses.
#[allow(clippy::cast_lossless)] // One macro for every width.
fn number(dtype: DType, bytes: &[u8]) -> f64 {
    macro_rules! read {
        ($type:ty) => {
            bytes.try_into().map_or(f64::NAN, |bytes| <$type>::from_ne_bytes(bytes) as f64)
        };
    }
    match dtype {
        DType::Bool | DType::Uint8 => read!(u8),
        DType::Int8 => read!(i8),
        DType::Uint16 => read!(u16),
        DType::Int16 => read!(i16),
        DType::Uint32 => read!(u32),
        DType::Int32 => read!(i32),
        DType::Uint64 => read!(u64),
        DType::Int64 => read!(i64),
        DType::Float32 => read!(f32),
        DType::Float64 => read!(f64),
        DType::Float16 => f64::NAN,
    }
}
