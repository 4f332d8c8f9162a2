//! The rows of one field, each compressed by itself, so that any one can be read.

use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

/// One block of bytes per slot, given back when its row is overwritten.
pub(crate) struct Packed {
    row_bytes: usize,
    /// Compressed to fewer bytes than a row has, or the row itself where that fails; empty before there is one.
    rows: Vec<Box<[u8]>>,
    scratch: Vec<u8>,
    stored: usize,
}

impl Packed {
    pub(crate) fn new(slots: usize, row_bytes: usize) -> Self {
        let scratch = vec![0; get_maximum_output_size(row_bytes)];
        Self { row_bytes, rows: vec![Box::default(); slots], scratch, stored: 0 }
    }

    /// Bytes over all rows.
    pub(crate) fn stored(&self) -> usize {
        self.stored
    }

    /// Compresses a row into its slot.
    pub(crate) fn set(&mut self, slot: usize, row: &[u8]) {
        let packed = match compress_into(row, &mut self.scratch) {
            Ok(len) if len < row.len() => &self.scratch[..len],
            _ => row,
        };
        self.stored += packed.len();
        self.stored -= std::mem::replace(&mut self.rows[slot], packed.into()).len();
    }

    /// Takes a row over as `get` gave it; `false` if it is none.
    pub(crate) fn restore(&mut self, slot: usize, packed: Box<[u8]>) -> bool {
        let mut row = vec![0; self.row_bytes];
        let whole = packed.len() == self.row_bytes
            || packed.len() < self.row_bytes
                && decompress_into(&packed, &mut row).is_ok_and(|len| len == self.row_bytes);
        if whole {
            self.stored += packed.len();
            self.stored -= std::mem::replace(&mut self.rows[slot], packed).len();
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
