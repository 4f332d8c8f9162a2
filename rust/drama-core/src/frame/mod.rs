//! From emulator screens to observations: colours, maximum of two screens, resize by area, stack.
//!
//! Most of a game's screen stays as it was. Each stage redoes only what a changed part of a row reaches.

mod resize;
mod stack;

pub use resize::AreaResize;
pub use stack::Stack;

use std::ops::Range;

use crate::error::{Error, Result};

/// Parts that each row is cut into. A mask has a bit for each.
const PARTS: usize = 8;
/// Rows that are compared at once.
const BAND: usize = 10;

/// The pixels of a part of a row of `width`. The last ones may be empty.
fn part(width: usize, index: usize) -> Range<usize> {
    let size = width.div_ceil(PARTS);
    (index * size).min(width)..((index + 1) * size).min(width)
}

/// The parts in a mask.
fn parts(mask: u8) -> impl Iterator<Item = usize> {
    (0..PARTS).filter(move |index| mask >> index & 1 != 0)
}

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
pub enum Moment {
    /// The last frame of a step.
    Last = 0,
    /// The frame before it.
    Previous = 1,
}

/// What an observation is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The last screen alone.
    Last,
    /// The maximum of both screens, channel by channel.
    Both,
    /// The maximum of what was shown before and the previous screen: the step ended on its last frame.
    ShownAndPrevious,
}

/// One screen: its colour indices, and its colours.
struct Screen {
    indices: Vec<u8>,
    colours: Vec<u8>,
    /// Whether `colours` belong to `indices`.
    valid: bool,
}

/// Two screens in colour, with the colour table that is learnt on the way, and the observation made of them.
pub struct Screens {
    colours: Colours,
    height: usize,
    width: usize,
    table: [u32; 256],
    taken: [Screen; 2],
    pooled: Vec<u8>,
    source: Option<Source>,
    /// For each row of the screens, the parts that are not in `pooled` yet.
    changed: Vec<u8>,
    resize: AreaResize,
    frame: Vec<u8>,
}

impl Screens {
    /// Screens of `height` by `width` pixels, to be shown as `size` (height, width).
    pub fn new(height: usize, width: usize, size: (usize, usize), colours: Colours) -> Result<Self> {
        let bytes = height.checked_mul(width).and_then(|pixels| pixels.checked_mul(colours.stride()));
        let Some(bytes) = bytes.filter(|&bytes| u32::try_from(bytes).is_ok()) else {
            return Error::value(format!("a screen of {height} x {width} is too large"));
        };
        let resize = AreaResize::new((height, width), size)?;
        let screen = || Screen { indices: vec![0; height * width], colours: vec![0; bytes], valid: false };
        Ok(Self {
            colours,
            height,
            width,
            table: [UNKNOWN; 256],
            taken: [screen(), screen()],
            pooled: vec![0; bytes],
            source: None,
            changed: vec![u8::MAX; height],
            resize,
            frame: vec![0; size.0 * size.1 * colours.channels()],
        })
    }

    /// The observation, `[height, width, channels]`.
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }

    /// What the next observation may still show of this one.
    pub fn state(&self) -> &[u8] {
        &self.pooled
    }

    /// Puts back what `state` gave.
    pub fn set_state(&mut self, pooled: &[u8]) -> Result<()> {
        let expected = self.pooled.len();
        if pooled.len() != expected {
            return Error::value(format!("a screen has {} bytes, expected {expected}", pooled.len()));
        }
        self.pooled.copy_from_slice(pooled);
        self.source = None;
        self.changed.fill(u8::MAX);
        self.show();
        Ok(())
    }

    /// Takes a screen of colour indices. `false` where it has a colour not learnt yet; the screen must then be
    /// taken again after `learn`.
    pub fn take(&mut self, moment: Moment, indices: &[u8]) -> Result<bool> {
        self.check("screen", indices.len(), 1)?;
        let (screen, width, stride) = (&mut self.taken[moment as usize], self.width, self.colours.stride());
        let mut seen = 0;
        for top in (0..self.height).step_by(BAND) {
            let bottom = self.height.min(top + BAND);
            let band = top * width..bottom * width;
            if screen.valid && screen.indices[band.clone()] == indices[band] {
                continue;
            }
            for y in top..bottom {
                let row = y * width..(y + 1) * width;
                let (old, new) = (&mut screen.indices[row.clone()], &indices[row.clone()]);
                let differ = |index: &usize| old[part(width, *index)] != new[part(width, *index)];
                let mask = if screen.valid {
                    (0..PARTS).filter(differ).fold(0, |mask, index| mask | 1 << index)
                } else {
                    u8::MAX
                };
                if mask == 0 {
                    continue;
                }
                self.changed[y] |= mask;
                old.copy_from_slice(new);
                // Rows often repeat the one above, which is valid here in any case.
                if y > 0 && new == &indices[row.start - width..row.start] {
                    screen.colours.copy_within((row.start - width) * stride..row.start * stride, row.start * stride);
                    continue;
                }
                let colours = &mut screen.colours[row.start * stride..row.end * stride];
                for pixels in parts(mask).map(|index| part(width, index)) {
                    let bytes = pixels.start * stride..pixels.end * stride;
                    seen |= colour(self.colours, &self.table, &new[pixels], &mut colours[bytes]);
                }
            }
        }
        screen.valid = seen & UNKNOWN == 0;
        Ok(screen.valid)
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

    /// Makes the observation of the screens taken.
    pub fn compose(&mut self, source: Source) {
        if self.source != Some(source) || source == Source::ShownAndPrevious {
            self.changed.fill(u8::MAX);
        }
        self.source = Some(source);
        let (width, stride) = (self.width, self.colours.stride());
        let [last, previous] = [Moment::Last, Moment::Previous].map(|moment| &self.taken[moment as usize].colours);
        for (y, &mask) in self.changed.iter().enumerate().filter(|(_, mask)| **mask != 0) {
            for pixels in parts(mask).map(|index| part(width, index)) {
                let bytes = (y * width + pixels.start) * stride..(y * width + pixels.end) * stride;
                let pooled = &mut self.pooled[bytes.clone()];
                if source != Source::ShownAndPrevious {
                    pooled.copy_from_slice(&last[bytes.clone()]);
                }
                if source != Source::Last {
                    for (pixel, &other) in pooled.iter_mut().zip(&previous[bytes]) {
                        *pixel = (*pixel).max(other);
                    }
                }
            }
        }
        self.show();
    }

    /// Resizes what has changed of what is pooled.
    fn show(&mut self) {
        match self.colours {
            Colours::Gray => self.resize.apply::<1, 1>(&self.pooled, &self.changed, &mut self.frame),
            Colours::Rgb => self.resize.apply::<4, 3>(&self.pooled, &self.changed, &mut self.frame),
        }
        self.changed.fill(0);
    }
}

/// Looks up the colours of a row of indices; gives all table entries seen, one on top of the other.
fn colour(colours: Colours, table: &[u32; 256], indices: &[u8], row: &mut [u8]) -> u32 {
    let mut seen = 0;
    match colours {
        Colours::Gray => {
            for (pixel, &index) in row.iter_mut().zip(indices) {
                let colour = table[usize::from(index)];
                seen |= colour;
                *pixel = colour as u8;
            }
        }
        Colours::Rgb => {
            for (pixel, &index) in row.as_chunks_mut::<4>().0.iter_mut().zip(indices) {
                let colour = table[usize::from(index)];
                seen |= colour;
                *pixel = colour.to_le_bytes();
            }
        }
    }
    seen
}
