//! From emulator screens to observations: colours, maximum of two screens, resize by area.

use crate::error::{Error, Result};

/// Marks a colour that the table does not hold yet; the three bytes below hold the colour.
const UNKNOWN: u32 = 1 << 24;

/// What an observation shows of a colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    /// One channel.
    Gray,
    /// Three channels.
    Rgb,
}

impl Colours {
    /// Channels of an observation.
    pub fn channels(self) -> usize {
        match self {
            Self::Gray => 1,
            Self::Rgb => 3,
        }
    }

    /// Bytes of a pixel inside: colours are padded so that a pixel is one machine word.
    fn stride(self) -> usize {
        match self {
            Self::Gray => 1,
            Self::Rgb => 4,
        }
    }
}

/// Which of the two screens that make an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The last frame of a step; holds the maximum after pooling.
    Last = 0,
    /// The frame before it.
    Previous = 1,
}

/// Two screens in colour, with the colour table that is learnt on the way.
pub struct Screens {
    colours: Colours,
    height: usize,
    width: usize,
    table: [u32; 256],
    images: [Vec<u8>; 2],
    resize: AreaResize,
}

impl Screens {
    /// Black screens of `height` by `width` pixels, to be shown as `size` (height, width).
    pub fn new(height: usize, width: usize, size: (usize, usize), colours: Colours) -> Result<Self> {
        let bytes = height.checked_mul(width).and_then(|pixels| pixels.checked_mul(colours.stride()));
        let Some(bytes) = bytes.filter(|&bytes| u32::try_from(bytes).is_ok()) else {
            return Error::value(format!("a screen of {height} x {width} is too large"));
        };
        let resize = AreaResize::new((height, width), size)?;
        let images = [vec![0; bytes], vec![0; bytes]];
        Ok(Self { colours, height, width, table: [UNKNOWN; 256], images, resize })
    }

    /// Bytes of one screen as `screen` and `set_screens` use it.
    pub fn screen_bytes(&self) -> usize {
        self.images[0].len()
    }

    /// The colours of one screen.
    pub fn screen(&self, slot: Slot) -> &[u8] {
        &self.images[slot as usize]
    }

    /// Puts back what `screen` gave.
    pub fn set_screens(&mut self, last: &[u8], previous: &[u8]) -> Result<()> {
        for bytes in [last, previous] {
            if bytes.len() != self.screen_bytes() {
                return Error::value(format!("a screen has {} bytes, expected {}", bytes.len(), self.screen_bytes()));
            }
        }
        self.images[0].copy_from_slice(last);
        self.images[1].copy_from_slice(previous);
        Ok(())
    }

    /// Makes the previous screen black.
    pub fn clear_previous(&mut self) {
        self.images[1].fill(0);
    }

    /// Takes a screen of colour indices. `false` where it has a colour not learnt yet; the screen must then be
    /// taken again after `learn`.
    pub fn take(&mut self, slot: Slot, indices: &[u8]) -> Result<bool> {
        self.check("screen", indices.len(), 1)?;
        let screen = &mut self.images[slot as usize];
        let mut seen = 0;
        match self.colours {
            Colours::Gray => {
                for (pixel, &index) in screen.iter_mut().zip(indices) {
                    let colour = self.table[usize::from(index)];
                    seen |= colour;
                    *pixel = colour as u8;
                }
            }
            Colours::Rgb => {
                for (pixel, &index) in screen.as_chunks_mut::<4>().0.iter_mut().zip(indices) {
                    let colour = self.table[usize::from(index)];
                    seen |= colour;
                    *pixel = colour.to_le_bytes();
                }
            }
        }
        Ok(seen & UNKNOWN == 0)
    }

    /// Learns the colours of a screen from the emulator's own rendering of it, `[height, width, channels]`.
    pub fn learn(&mut self, indices: &[u8], rendered: &[u8]) -> Result<()> {
        let channels = self.colours.channels();
        self.check("screen", indices.len(), 1)?;
        self.check("rendered screen", rendered.len(), channels)?;
        for (&index, colour) in indices.iter().zip(rendered.chunks_exact(channels)) {
            self.table[usize::from(index)] = colour.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte));
        }
        Ok(())
    }

    fn check(&self, what: &str, bytes: usize, channels: usize) -> Result<()> {
        let expected = self.height * self.width * channels;
        if bytes != expected {
            return Error::value(format!("the {what} has {bytes} bytes, expected {expected}"));
        }
        Ok(())
    }

    /// Sets the last screen to the maximum of both, channel by channel.
    pub fn pool(&mut self) {
        let [last, previous] = &mut self.images;
        for (pixel, &other) in last.iter_mut().zip(previous.iter()) {
            *pixel = (*pixel).max(other);
        }
    }

    /// Writes the last screen, resized, to `out` `[height, width, channels]`.
    pub fn show(&mut self, out: &mut [u8]) -> Result<()> {
        match self.colours {
            Colours::Gray => self.resize.apply::<1, 1>(&self.images[0], out),
            Colours::Rgb => self.resize.apply::<4, 3>(&self.images[0], out),
        }
    }
}

/// Source pixels of one target pixel: the first, and the share of each.
struct Taps {
    first: usize,
    shares: Vec<f32>,
}

/// Area average from one image size to another that is no larger.
pub struct AreaResize {
    source: (usize, usize),
    target: (usize, usize),
    rows: Vec<Taps>,
    columns: Vec<Taps>,
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
        let (rows, columns) = (taps(source.0, target.0), taps(source.1, target.1));
        Ok(Self { source, target, rows, columns, line: Vec::new() })
    }

    /// Resizes an image whose pixels take `STRIDE` bytes, the first `CHANNELS` of which are written to `out`.
    pub fn apply<const STRIDE: usize, const CHANNELS: usize>(&mut self, image: &[u8], out: &mut [u8]) -> Result<()> {
        let pitch = self.source.1 * STRIDE;
        let expected = (self.source.0 * pitch, self.target.0 * self.target.1 * CHANNELS);
        if (image.len(), out.len()) != expected {
            return Error::value(format!(
                "an image of {} bytes and an output of {}, expected {} and {}",
                image.len(),
                out.len(),
                expected.0,
                expected.1
            ));
        }
        self.line.resize(pitch, 0.0);
        for (taps, target) in self.rows.iter().zip(out.chunks_exact_mut(self.target.1 * CHANNELS)) {
            blend(&taps.shares, &image[taps.first * pitch..], pitch, &mut self.line);
            let pixels = self.line.as_chunks::<STRIDE>().0;
            for (taps, pixel) in self.columns.iter().zip(target.as_chunks_mut::<CHANNELS>().0) {
                let mut sums = [0.5; STRIDE];
                for (&share, value) in taps.shares.iter().zip(&pixels[taps.first..]) {
                    for (sum, &value) in sums.iter_mut().zip(value) {
                        *sum += share * value;
                    }
                }
                for (byte, sum) in pixel.iter_mut().zip(sums) {
                    *byte = sum as u8;
                }
            }
        }
        Ok(())
    }
}

/// Adds up rows of `pitch` bytes, each times its share. In blocks, so that the sums stay in registers.
fn blend(shares: &[f32], rows: &[u8], pitch: usize, line: &mut [f32]) {
    const BLOCK: usize = 16;
    let (blocks, rest) = line.as_chunks_mut::<BLOCK>();
    let tail = blocks.len() * BLOCK;
    for (index, block) in blocks.iter_mut().enumerate() {
        let mut sums = [0.0; BLOCK];
        for (&share, row) in shares.iter().zip(rows.chunks_exact(pitch)) {
            for (sum, &value) in sums.iter_mut().zip(&row[index * BLOCK..][..BLOCK]) {
                *sum += share * f32::from(value);
            }
        }
        *block = sums;
    }
    for (index, sum) in rest.iter_mut().enumerate() {
        *sum =
            shares.iter().zip(rows.chunks_exact(pitch)).map(|(share, row)| share * f32::from(row[tail + index])).sum();
    }
}

/// Target pixel `i` covers the source from `i * scale` to `(i + 1) * scale`.
fn taps(source: usize, target: usize) -> Vec<Taps> {
    (0..target)
        .map(|index| {
            // In units of 1 / target of a source pixel, where everything is whole.
            let (start, end) = (index * source, (index + 1) * source);
            let (first, last) = (start / target, end.div_ceil(target));
            let share = |pixel: usize| end.min((pixel + 1) * target) - start.max(pixel * target);
            Taps { first, shares: (first..last).map(|pixel| share(pixel) as f32 / source as f32).collect() }
        })
        .collect()
}
