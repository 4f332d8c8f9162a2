//! Transitions over one or more steps, put together from consecutive rows.

use crate::{
    error::{Error, Result},
    gather::{copy_stack, frames, in_parallel},
    ring::Ring,
    schema::{DType, Field},
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
    Unknown,
}

/// The rows of a transition, and what comes then.
fn span(ring: &Ring, env: usize, t: u64, steps: usize) -> (usize, End) {
    let used = ring.run(env, t, steps);
    let last = t + used as u64 - 1;
    let slot = ring.slot(env, last);
    let end = if ring.terminated(slot) {
        End::Terminated
    } else if ring.ended(slot) {
        End::Truncated
    } else if last + 1 < ring.totals()[env] && !ring.is_first(env, last + 1) {
        End::Followed
    } else {
        End::Unknown
    };
    (used, end)
}

/// Whether the transition from `t` on has its rows, and a value to go on from for each field of `next`.
pub(crate) fn known(ring: &Ring, env: usize, t: u64, steps: usize, next: &[usize]) -> bool {
    let (used, end) = span(ring, env, t, steps);
    let slot = ring.slot(env, t + used as u64 - 1);
    match end {
        End::Followed | End::Terminated => true,
        End::Truncated => next.iter().all(|&field| ring.finals().get(field, slot).is_some()),
        End::Unknown => false,
    }
}

/// Position of the field `reward` and the type of its discounted sums.
pub fn reward(fields: &[Field]) -> Result<(usize, DType)> {
    let Some(index) = fields.iter().position(|field| field.name() == "reward") else {
        return Error::value("transitions need a field \"reward\"");
    };
    match fields[index].dtype().name() {
        "float16" => Error::value("field \"reward\" has dtype float16, whose sums are not supported"),
        "float64" => Ok((index, fields[index].dtype())),
        _ => Ok((index, DType::from_name("float32")?)),
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
    for &slot in starts {
        let is_start = ring.holds(slot) && {
            let (env, t) = ring.row_of(slot);
            known(ring, env, t, steps.steps, steps.next)
        };
        if !is_start {
            return Err(Error::Index(format!("index {slot} starts no transition of {} steps", steps.steps)));
        }
    }
    in_parallel(starts, &sizes, outputs, |starts, mut outputs| {
        for (at, &slot) in starts.iter().enumerate() {
            let mut targets = outputs.iter_mut().zip(&sizes).map(|(output, size)| &mut output[at * size..][..*size]);
            copy(ring, slot, steps, reward, &mut targets);
        }
    })
}

fn copy<'a>(
    ring: &Ring,
    slot: usize,
    steps: &Steps<'_>,
    reward: usize,
    targets: &mut impl Iterator<Item = &'a mut [u8]>,
) {
    let schema = ring.schema();
    let (env, t) = ring.row_of(slot);
    let (used, end) = span(ring, env, t, steps.steps);
    let last = t + used as u64 - 1;
    for (index, target) in (0..schema.fields().len()).zip(&mut *targets) {
        if index == reward {
            sum(ring, index, env, t..=last, steps.discount, target);
        } else if index == schema.terminated() || index == schema.truncated() {
            copy_stack(ring, index, env, last, target);
        } else {
            copy_stack(ring, index, env, t, target);
        }
    }
    for (&index, target) in steps.next.iter().zip(&mut *targets) {
        if end == End::Followed {
            copy_stack(ring, index, env, last + 1, target);
        } else if let Some(bytes) = ring.finals().get(index, ring.slot(env, last)) {
            let (before, own) = target.split_at_mut(target.len() - bytes.len());
            own.copy_from_slice(bytes);
            if !before.is_empty() {
                copy_stack(ring, index, env, last, before);
            }
        } else {
            target.fill(0);
        }
    }
    let factor = if end == End::Terminated { 0.0 } else { power(steps.discount, used) };
    if let (Some(discount), Some(count)) = (targets.next(), targets.next()) {
        discount.copy_from_slice(&(factor as f32).to_ne_bytes());
        count.copy_from_slice(&(used as i64).to_ne_bytes());
    }
}

fn power(base: f64, exponent: usize) -> f64 {
    i32::try_from(exponent).map_or_else(|_| base.powf(exponent as f64), |exponent| base.powi(exponent))
}

/// The discounted sum of each element over `rows`.
fn sum(ring: &Ring, field: usize, env: usize, rows: std::ops::RangeInclusive<u64>, discount: f64, target: &mut [u8]) {
    let dtype = ring.schema().fields()[field].dtype();
    let width = if dtype.name() == "float64" { 8 } else { 4 };
    for (at, target) in target.chunks_exact_mut(width).enumerate() {
        let (mut total, mut factor) = (0.0, 1.0);
        for t in rows.clone() {
            let position = ring.position(env, t);
            let row = ring.rows(field, env, position..position + 1);
            total += factor * number(dtype, &row[at * dtype.itemsize()..][..dtype.itemsize()]);
            factor *= discount;
        }
        if width == 8 {
            target.copy_from_slice(&total.to_ne_bytes());
        } else {
            target.copy_from_slice(&(total as f32).to_ne_bytes());
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
    match dtype.name() {
        "bool" | "uint8" => f64::from(bytes[0]),
        "int8" => f64::from(bytes[0] as i8),
        "uint16" => read!(u16),
        "int16" => read!(i16),
        "uint32" => read!(u32),
        "int32" => read!(i32),
        "uint64" => read!(u64),
        "int64" => read!(i64),
        "float32" => read!(f32),
        "float64" => read!(f64),
        _ => f64::NAN,
    }
}
