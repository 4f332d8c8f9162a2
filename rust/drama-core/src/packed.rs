//! The rows of one field, each compressed by itself, so that any one can be read.

use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

use crate::{
    error::{Error, Result},
    memory::room,
};

/// What a length in a save can tell by far.
const LARGEST_ROW: usize = 1 << 30;
/// Bytes that one compressed byte can stand for, at most.
const EXPANSION: usize = 255;

/// One block of bytes per slot, given back when its row is overwritten.
pub(crate) struct Packed {
    row_bytes: usize,
    /// Compressed to fewer bytes than a row has, or the row itself where that fails; empty before there is one.
    /// No longer than up to the last slot in use.
    rows: Vec<Box<[u8]>>,
    scratch: Vec<u8>,
    stored: usize,
}

impl Packed {
    /// Room for the rows of the field `name`.
    pub(crate) fn new(name: &str, slots: usize, row_bytes: usize) -> Result<Self> {
        if row_bytes > LARGEST_ROW {
            return Error::value(format!(
                "field {name:?} has rows of {row_bytes} bytes, those of up to {LARGEST_ROW} can be compressed"
            ));
        }
        let rows = room(slots, &format!("the compressed rows of field {name:?}"))?;
        let scratch = room(get_maximum_output_size(row_bytes), &format!("a compressed row of field {name:?}"))?;
        Ok(Self { row_bytes, rows, scratch, stored: 0 })
    }

    /// Gives all rows back.
    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.stored = 0;
    }

    /// Bytes over all rows.
    pub(crate) fn stored(&self) -> usize {
        self.stored
    }

    /// Compresses a row into its slot.
    pub(crate) fn set(&mut self, slot: usize, row: &[u8]) {
        self.scratch.resize(get_maximum_output_size(self.row_bytes), 0);
        let packed = match compress_into(row, &mut self.scratch) {
            Ok(len) if len < row.len() => &self.scratch[..len],
            _ => row,
        };
        let packed = packed.into();
        self.put(slot, packed);
    }

    fn put(&mut self, slot: usize, packed: Box<[u8]>) {
        if self.rows.len() <= slot {
            self.rows.resize_with(slot + 1, Box::default);
        }
        self.stored += packed.len();
        self.stored -= std::mem::replace(&mut self.rows[slot], packed).len();
    }

    /// Takes a row over as `get` gave it; `false` if it is none, or one that `holds` refuses.
    pub(crate) fn restore(&mut self, slot: usize, packed: Box<[u8]>, holds: impl Fn(&[u8]) -> bool) -> bool {
        // No byte stands for more than `EXPANSION`: what cannot be a row takes no memory for one.
        let whole = packed.len() == self.row_bytes && holds(&packed)
            || packed.len() < self.row_bytes && self.row_bytes <= (packed.len() + 16) * EXPANSION && {
                self.scratch.resize(get_maximum_output_size(self.row_bytes), 0);
                let row = &mut self.scratch[..self.row_bytes];
                decompress_into(&packed, row).is_ok_and(|len| len == self.row_bytes) && holds(row)
            };
        if whole {
            self.put(slot, packed);
        }
        whole
    }

    /// A row as it is kept.
    pub(crate) fn get(&self, slot: usize) -> &[u8] {
        &self.rows[slot]
    }

    /// Fills `target` with the row in a slot that holds one.
    pub(crate) fn read(&self, slot: usize, target: &mut [u8]) {
        let packed = self.get(slot);
        if packed.len() == target.len() {
            target.copy_from_slice(packed);
        } else {
            let whole = decompress_into(packed, target).is_ok_and(|len| len == target.len());
            assert!(whole, "every row was compressed by `set` or tried by `restore`");
        }
    }
}

#[cfg(test)]
mod tests {
    use lz4_flex::block::compress;

    use super::*;

    #[test]
    fn only_whole_rows_are_restored() {
        for size in [20, 1000, 1 << 20] {
            let mut packed = Packed::new("x", 4, size).unwrap();
            for short in [0, 1, size / 2, size - 1] {
                assert!(!packed.restore(0, compress(&vec![7; short]).into(), |_| true), "{short} of {size}");
                assert!(!packed.restore(0, vec![0; short].into(), |_| true), "{short} of {size}");
            }
            assert!(!packed.restore(0, compress(&vec![7; size + 1]).into(), |_| true));
            assert!(!packed.restore(0, vec![7; size + 1].into(), |_| true));
            assert_eq!(packed.stored(), 0);
            for (slot, row) in [(0, vec![7; size]), (1, (0..size).map(|at| (at * at) as u8).collect())] {
                let whole: Vec<u8> = if slot == 0 { compress(&row) } else { row.clone() };
                assert!(packed.restore(slot, whole.into(), |_| true));
                let mut read = vec![1; size];
                packed.read(slot, &mut read);
                assert_eq!(read, row);
            }
        }
    }
}
