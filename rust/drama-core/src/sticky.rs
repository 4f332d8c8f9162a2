//! Sticky actions, drawn as the Arcade Learning Environment draws them.
//!
//! The emulator can draw them itself, but what it clones as its state lacks the action that it would repeat.

use crate::error::{Error, Result};

const WORDS: usize = 624;
const MIDDLE: usize = 397;

/// Repeats the action before, at random, from a 32-bit Mersenne Twister.
pub struct Sticky {
    probability: f64,
    words: [u32; WORDS],
    next: usize,
    action: i64,
}

impl Sticky {
    /// Repeats with `probability`, which is rounded to single precision as in the emulator.
    pub fn new(probability: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&probability) {
            return Error::value(format!("repeat_action_probability must be from 0 to 1, got {probability}"));
        }
        let mut sticky = Self { probability: f64::from(probability as f32), words: [0; WORDS], next: WORDS, action: 0 };
        sticky.seed(0);
        Ok(sticky)
    }

    /// Starts the random numbers again.
    pub fn seed(&mut self, seed: u32) {
        let mut word = seed;
        for (index, slot) in self.words.iter_mut().enumerate() {
            if index > 0 {
                word = (word ^ word >> 30).wrapping_mul(1_812_433_253).wrapping_add(index as u32);
            }
            *slot = word;
        }
        self.next = WORDS;
    }

    /// Forgets the action: at the start of an episode none repeats.
    pub fn forget(&mut self) {
        self.action = 0;
    }

    /// The action of the next frame, where `action` is wanted.
    pub fn choose(&mut self, action: i64) -> i64 {
        if self.draw() >= self.probability {
            self.action = action;
        }
        self.draw(); // The emulator draws for a second player too.
        self.action
    }

    /// From 0 to 1, without 1.
    fn draw(&mut self) -> f64 {
        if self.next == WORDS {
            self.twist();
        }
        let mut word = self.words[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= word << 7 & 0x9D2C_5680;
        word ^= word << 15 & 0xEFC6_0000;
        word ^= word >> 18;
        f64::from(word) / 4_294_967_296.0
    }

    fn twist(&mut self) {
        for index in 0..WORDS {
            let mixed = self.words[index] & 1 << 31 | self.words[(index + 1) % WORDS] & !(1 << 31);
            let odd = if mixed & 1 == 1 { 0x9908_B0DF } else { 0 };
            self.words[index] = self.words[(index + MIDDLE) % WORDS] ^ mixed >> 1 ^ odd;
        }
        self.next = 0;
    }

    /// Random numbers and action, for `set_state`.
    pub fn state(&self) -> (&[u32], usize, i64) {
        (&self.words, self.next, self.action)
    }

    /// Puts back what `state` gave.
    pub fn set_state(&mut self, words: &[u32], next: usize, action: i64) -> Result<()> {
        match words.try_into() {
            Ok(words) if next <= WORDS => (self.words, self.next, self.action) = (words, next, action),
            _ => return Error::value(format!("sticky actions: got {} words at {next}, expected 624", words.len())),
        }
        Ok(())
    }
}
