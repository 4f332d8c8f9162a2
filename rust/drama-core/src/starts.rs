//! Which rows can start what is drawn.

use std::ops::Range;

use crate::{
    error::{Error, Result},
    memory::try_collect,
    ring::Ring,
    sampler::all_found,
    transition,
};

/// What an error names.
pub(crate) const STARTS: &str = "the starts of a batch";
pub(crate) const RANGES: &str = "the rows of every environment";

/// What is drawn from a start. `N` is a list of fields.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind<N> {
    Sequence { length: usize },
    Episode { length: usize },
    Transition { steps: usize, next: N },
}

/// The rows of a ring that can be starts: a range in every environment, and where that is not enough a condition.
pub struct Starts<'r> {
    ring: &'r Ring,
    kind: Kind<&'r [usize]>,
    frames: usize,
    ranges: Vec<Range<u64>>,
    /// Sizes of the ranges, summed up.
    sums: Vec<usize>,
    /// Size of each range where they are alike, which saves a search per draw.
    even: Option<u32>,
}

impl<'r> Starts<'r> {
    /// Starts of `length` consecutive rows.
    pub fn sequences(ring: &'r Ring, length: usize) -> Result<Self> {
        check_length(ring, length)?;
        Self::new(ring, Kind::Sequence { length }, length)
    }

    /// Starts of sequences that end after `length` rows, with their episode or with the newest row: every row held.
    pub fn within_episodes(ring: &'r Ring, length: usize) -> Result<Self> {
        check_length(ring, length)?;
        Self::new(ring, Kind::Episode { length }, 1)
    }

    /// Starts of transitions over `steps` rows, fewer at the end of an episode, for which the fields `next` of what
    /// follows are known wherever they count.
    pub fn transitions(ring: &'r Ring, steps: usize, next: &'r [usize]) -> Result<Self> {
        if steps == 0 || steps > ring.rows_per_env() {
            return Error::value(format!(
                "n_step must be from 1 to {} (the rows kept per environment), got {steps}",
                ring.rows_per_env()
            ));
        }
        Self::new(ring, Kind::Transition { steps, next }, 1)
    }

    fn new(ring: &'r Ring, kind: Kind<&'r [usize]>, length: usize) -> Result<Self> {
        let range = |env| {
            let held = ring.held(env);
            held.start..(held.end + 1).saturating_sub(length as u64).max(held.start)
        };
        let ranges = try_collect((0..ring.num_envs()).map(range), RANGES)?;
        let mut sum = 0;
        let running = |range: &Range<u64>| {
            sum += (range.end - range.start) as usize;
            sum
        };
        let sums = try_collect(ranges.iter().map(running), RANGES)?;
        let size = sums[0];
        let even = sums.iter().zip(1..).all(|(&sum, envs)| sum == envs * size);
        Ok(Self { ring, kind, frames: 1, ranges, sums, even: even.then_some(size as u32) })
    }

    /// Leaves out the starts of whose last `frames` frames one was overwritten.
    #[must_use]
    pub fn stacked(self, frames: usize) -> Self {
        Self { frames: frames.max(1), ..self }
    }

    /// The ring that the starts are in.
    pub fn ring(&self) -> &'r Ring {
        self.ring
    }

    /// What is drawn, to be kept.
    pub(crate) fn kind(&self) -> Kind<Vec<usize>> {
        match self.kind {
            Kind::Sequence { length } => Kind::Sequence { length },
            Kind::Episode { length } => Kind::Episode { length },
            Kind::Transition { steps, next } => Kind::Transition { steps, next: next.to_vec() },
        }
    }

    /// Frames of a stack, 1 for none.
    pub(crate) fn frames(&self) -> usize {
        self.frames
    }

    /// How many of the newest rows of the ranges can become starts, or no longer be, by what is added.
    pub(crate) fn unsettled(&self) -> u64 {
        if let Kind::Transition { steps, .. } = self.kind { steps as u64 } else { 0 }
    }

    /// Row counters by environment.
    pub(crate) fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// Size of all ranges together: the number of starts where there is no condition.
    pub(crate) fn bound(&self) -> usize {
        self.sums.last().copied().unwrap_or(0)
    }

    /// How many starts there are, found row by row where it has to be.
    pub(crate) fn count(&self) -> Result<usize> {
        if self.conditional() { Ok(all_found(self)?.len()) } else { Ok(self.bound()) }
    }

    /// Slot of the start with this number below `bound`.
    pub(crate) fn slot(&self, number: usize) -> usize {
        let env = match self.even {
            Some(size) => (number as u32 / size) as usize,
            None => self.sums.partition_point(|&sum| sum <= number),
        };
        let before = if env == 0 { 0 } else { self.sums[env - 1] };
        self.ring.slot(env, self.ranges[env].start + (number - before) as u64)
    }

    /// Whether `accepts` can refuse a row of the ranges.
    pub(crate) fn conditional(&self) -> bool {
        self.frames > 1 || matches!(self.kind, Kind::Transition { .. })
    }

    /// Whether a row of the ranges is a start.
    pub(crate) fn accepts(&self, slot: usize) -> bool {
        if !self.conditional() {
            return true;
        }
        if self.frames > 1 {
            let (env, t) = self.ring.row_of(slot);
            if self.ring.run_before(env, t, self.frames - 1).is_none() {
                return false;
            }
        }
        match self.kind {
            Kind::Transition { steps, next } => transition::known(self.ring, slot, steps, next),
            Kind::Sequence { .. } | Kind::Episode { .. } => true,
        }
    }

    /// Refuses those of `slots` that are no starts.
    pub fn check_slots(&self, slots: &[usize]) -> Result<()> {
        match slots.iter().find(|&&slot| !self.ring.holds(slot) || !self.accepts(slot)) {
            Some(slot) => Err(Error::Index(format!("index {slot}: no {} start there", self.what()))),
            None => Ok(()),
        }
    }

    /// Starts to read what `accepts` will need.
    pub(crate) fn prefetch(&self, slot: usize) {
        if self.conditional() {
            self.ring.prefetch_flags(slot);
        }
    }

    /// Refuses a draw of `count` starts, different ones or not, where the ranges hold too few.
    pub(crate) fn check(&self, count: usize, distinct: bool) -> Result<()> {
        if count == 0 {
            return Error::value("batch_size must be at least 1, got 0");
        }
        if self.bound() < if distinct { count } else { 1 } {
            return Error::value(self.too_few(count, distinct, self.count()?));
        }
        Ok(())
    }

    /// What is drawn, in words.
    pub(crate) fn what(&self) -> String {
        match self.kind {
            Kind::Sequence { length } | Kind::Episode { length } => format!("starts of length {length}"),
            Kind::Transition { steps, .. } => format!("transitions of {steps} steps"),
        }
    }

    /// What is wrong with a draw of `count` where there are only `available`.
    pub(crate) fn too_few(&self, count: usize, distinct: bool, available: usize) -> String {
        let what = self.what();
        if distinct {
            return format!("asked for {count} distinct {what}, but only {available} exist");
        }
        let filled = || (0..self.ring.num_envs()).map(|env| self.ring.filled(env));
        let (least, most) = (filled().min().unwrap_or(0), filled().max().unwrap_or(0));
        let rows = if least == most { least.to_string() } else { format!("{least} to {most}") };
        let lacking = match self.kind {
            Kind::Transition { .. } if most > 0 => ", and what follows them is not known yet, or not any more",
            _ if self.conditional() && most > 0 => ", and of each the frames to be stacked are overwritten",
            _ => "",
        };
        format!("asked for {count} {what}, but none exist: each environment holds {rows} rows{lacking}")
    }
}

fn check_length(ring: &Ring, length: usize) -> Result<()> {
    if length == 0 || length > ring.rows_per_env() {
        return Error::value(format!(
            "length must be from 1 to {} (the rows kept per environment), got {length}",
            ring.rows_per_env()
        ));
    }
    Ok(())
}
