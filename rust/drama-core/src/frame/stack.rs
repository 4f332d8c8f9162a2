//! The last observations, oldest first.

use crate::error::{Error, Result};

/// A ring of the newest `depth` frames.
pub struct Stack {
    frame: usize,
    ring: Vec<u8>,
    /// Where the oldest frame begins.
    oldest: usize,
}

impl Stack {
    /// Black frames of `frame` bytes.
    pub fn new(depth: usize, frame: usize) -> Result<Self> {
        match depth.checked_mul(frame) {
            Some(bytes) if depth > 0 && u32::try_from(bytes).is_ok() => {
                Ok(Self { frame, ring: vec![0; bytes], oldest: 0 })
            }
            _ => Error::value(format!("a stack of {depth} frames of {frame} bytes: it must hold 1 frame to 4 GB")),
        }
    }

    /// Sets all frames to `frame`.
    pub fn fill(&mut self, frame: &[u8]) {
        self.ring.chunks_exact_mut(self.frame).for_each(|slot| slot.copy_from_slice(frame));
    }

    /// Replaces the oldest frame by the newest one.
    pub fn push(&mut self, frame: &[u8]) {
        self.ring[self.oldest..][..self.frame].copy_from_slice(frame);
        self.oldest = (self.oldest + self.frame) % self.ring.len();
    }

    /// Writes the frames to `out`.
    pub fn write(&self, out: &mut [u8]) {
        let (newer, older) = self.ring.split_at(self.oldest);
        let (first, second) = out.split_at_mut(older.len());
        first.copy_from_slice(older);
        second.copy_from_slice(newer);
    }

    /// Puts back what `write` gave.
    pub fn read(&mut self, frames: &[u8]) -> Result<()> {
        if frames.len() != self.ring.len() {
            return Error::value(format!("a stack has {} bytes, expected {}", frames.len(), self.ring.len()));
        }
        self.ring.copy_from_slice(frames);
        self.oldest = 0;
        Ok(())
    }

    /// Bytes of all frames.
    pub fn nbytes(&self) -> usize {
        self.ring.len()
    }
}
