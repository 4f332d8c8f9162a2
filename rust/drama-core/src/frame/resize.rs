//! Resize by area, row by row.

use std::ops::Range;

use crate::{
    error::{Error, Result},
    frame::{PARTS, part, parts},
};

/// Source pixels of one target pixel: the first, and the share of each.
struct Taps {
    first: usize,
    shares: Vec<f32>,
}

impl Taps {
    /// Target pixel `i` covers the source from `i * scale` to `(i + 1) * scale`.
    fn all(source: usize, target: usize) -> Vec<Self> {
        (0..target)
            .map(|index| {
                // In units of 1 / target of a source pixel, where everything is whole.
                let (start, end) = (index * source, (index + 1) * source);
                let (first, last) = (start / target, end.div_ceil(target));
                let share = |pixel: usize| end.min((pixel + 1) * target) - start.max(pixel * target);
                Self { first, shares: (first..last).map(|pixel| share(pixel) as f32 / source as f32).collect() }
            })
            .collect()
    }
}

/// The target columns that a part of a source row is in, and all source columns that these show.
struct Reach {
    target: Range<usize>,
    source: Range<usize>,
}

impl Reach {
    fn new(columns: &[Taps], pixels: &Range<usize>) -> Self {
        let end = |taps: &Taps| taps.first + taps.shares.len();
        let target = columns.partition_point(|taps| end(taps) <= pixels.start)
            ..columns.partition_point(|taps| taps.first < pixels.end);
        let source = match &columns[target.clone()] {
            [] => 0..0, // Fewer columns than parts.
            [first, .., last] => first.first..end(last),
            [only] => only.first..end(only),
        };
        Self { target, source }
    }
}

/// Area average from one image size to another that is no larger.
pub struct AreaResize {
    source: (usize, usize),
    target: (usize, usize),
    rows: Vec<Taps>,
    columns: Vec<Taps>,
    reach: [Reach; PARTS],
    line: Vec<f32>,
}

impl AreaResize {
    /// Weights for images of `source` (height, width), shown as `target`.
    pub fn new(source: (usize, usize), target: (usize, usize)) -> Result<Self> {
        let fits = |from: usize, to: usize| (1..=from).contains(&to);
        if !fits(source.0, target.0) || !fits(source.1, target.1) {
            return Error::value(format!(
                "size must be at least (1, 1) and at most the screen's {source:?}, got {target:?}"
            ));
        }
        let (rows, columns) = (Taps::all(source.0, target.0), Taps::all(source.1, target.1));
        let reach = std::array::from_fn(|index| Reach::new(&columns, &part(source.1, index)));
        Ok(Self { source, target, rows, columns, reach, line: Vec::new() })
    }

    /// Resizes an image whose pixels take `STRIDE` bytes, the first `CHANNELS` of which are written to `out`. What
    /// no `changed` part of the image's rows reaches stays as it is.
    ///
    /// # Panics
    /// If a length is not that of the sizes given to `new`.
    pub fn apply<const STRIDE: usize, const CHANNELS: usize>(&mut self, image: &[u8], changed: &[u8], out: &mut [u8]) {
        assert_eq!(image.len(), self.source.0 * self.source.1 * STRIDE);
        assert_eq!(changed.len(), self.source.0);
        assert_eq!(out.len(), self.target.0 * self.target.1 * CHANNELS);
        self.line.resize(self.source.1 * STRIDE, 0.0);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has what the function is compiled for.
            return unsafe { self.rows_avx2::<STRIDE, CHANNELS>(image, changed, out) };
        }
        self.rows::<STRIDE, CHANNELS>(image, changed, out);
    }

    /// `rows`, compiled for wider registers. The arithmetic is the same, so the results are too.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn rows_avx2<const STRIDE: usize, const CHANNELS: usize>(&mut self, image: &[u8], changed: &[u8], out: &mut [u8]) {
        self.rows::<STRIDE, CHANNELS>(image, changed, out);
    }

    #[inline(always)] // Or it would not be compiled for the registers of its caller.
    #[allow(clippy::inline_always)]
    fn rows<const STRIDE: usize, const CHANNELS: usize>(&mut self, image: &[u8], changed: &[u8], out: &mut [u8]) {
        let pitch = self.source.1 * STRIDE;
        for (taps, target) in self.rows.iter().zip(out.chunks_exact_mut(self.target.1 * CHANNELS)) {
            let mask = changed[taps.first..][..taps.shares.len()].iter().fold(0, |mask, row| mask | row);
            for Reach { target: columns, source } in parts(mask).map(|index| &self.reach[index]) {
                let bytes = source.start * STRIDE..source.end * STRIDE;
                blend(&taps.shares, &image[taps.first * pitch + bytes.start..], pitch, &mut self.line[bytes]);
                let (line, pixels) = (self.line.as_chunks::<STRIDE>().0, target.as_chunks_mut::<CHANNELS>().0);
                for (taps, pixel) in self.columns[columns.clone()].iter().zip(&mut pixels[columns.clone()]) {
                    let mut sums = [0.5; STRIDE];
                    for (&share, value) in taps.shares.iter().zip(&line[taps.first..]) {
                        for (sum, &value) in sums.iter_mut().zip(value) {
                            *sum += share * value;
                        }
                    }
                    for (byte, sum) in pixel.iter_mut().zip(sums) {
                        *byte = sum as u8;
                    }
                }
            }
        }
    }
}

/// Adds up the beginnings of rows that are `pitch` bytes apart, each times its share. In blocks, so that the sums stay in registers.
#[inline(always)] // As `rows`.
#[allow(clippy::inline_always)]
fn blend(shares: &[f32], rows: &[u8], pitch: usize, line: &mut [f32]) {
    const BLOCK: usize = 16;
    let (blocks, rest) = line.as_chunks_mut::<BLOCK>();
    let tail = blocks.len() * BLOCK;
    for (index, block) in blocks.iter_mut().enumerate() {
        let mut sums = [0.0; BLOCK];
        for (&share, row) in shares.iter().zip(rows.chunks(pitch)) {
            for (sum, &value) in sums.iter_mut().zip(&row[index * BLOCK..][..BLOCK]) {
                *sum += share * f32::from(value);
            }
        }
        *block = sums;
    }
    for (index, sum) in rest.iter_mut().enumerate() {
        *sum = shares.iter().zip(rows.chunks(pitch)).map(|(share, row)| share * f32::from(row[tail + index])).sum();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// `apply` takes the widest registers there are; `rows` as it stands here, those of every processor.
        #[test]
        fn wide_registers_change_nothing(
            (source, target) in (1..30_usize, 1..50_usize)
                .prop_flat_map(|source| (Just(source), (1..=source.0, 1..=source.1))),
            bytes in proptest::collection::vec(any::<u8>(), 30 * 50 * 4),
            changed in proptest::collection::vec(any::<u8>(), 30),
        ) {
            let (image, changed) = (&bytes[..source.0 * source.1 * 4], &changed[..source.0]);
            let [mut wide, mut plain] = [(); 2].map(|()| AreaResize::new(source, target).unwrap());
            let [mut got, mut expected] = [(); 2].map(|()| vec![7; target.0 * target.1 * 3]);
            wide.apply::<4, 3>(image, changed, &mut got);
            plain.line.resize(source.1 * 4, 0.0);
            plain.rows::<4, 3>(image, changed, &mut expected);
            prop_assert_eq!(got, expected);
            let (image, [mut got, mut expected]) =
                (&bytes[..source.0 * source.1], [(); 2].map(|()| vec![7; target.0 * target.1]));
            wide.apply::<1, 1>(image, changed, &mut got);
            plain.line.resize(source.1, 0.0);
            plain.rows::<1, 1>(image, changed, &mut expected);
            prop_assert_eq!(got, expected);
        }
    }
}
