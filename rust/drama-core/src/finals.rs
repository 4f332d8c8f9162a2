//! What was seen after the end of an episode, which no row has room for.

use std::{collections::BTreeMap, ops::Range};

/// Values of fields by the slot of the row that ended the episode.
pub(crate) struct Finals(Vec<BTreeMap<usize, Box<[u8]>>>);

impl Finals {
    pub(crate) fn new(fields: usize) -> Self {
        Self(vec![BTreeMap::new(); fields])
    }

    pub(crate) fn insert(&mut self, field: usize, slot: usize, bytes: &[u8]) {
        self.0[field].insert(slot, bytes.into());
    }

    pub(crate) fn remove(&mut self, slot: usize) {
        for values in &mut self.0 {
            values.remove(&slot);
        }
    }

    pub(crate) fn get(&self, field: usize, slot: usize) -> Option<&[u8]> {
        self.0[field].get(&slot).map(|bytes| &**bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(BTreeMap::is_empty)
    }

    /// The values of some slots in order, with field and slot.
    pub(crate) fn within(&self, slots: Range<usize>) -> impl Iterator<Item = (usize, usize, &[u8])> {
        self.0.iter().enumerate().flat_map(move |(field, values)| {
            values.range(slots.clone()).map(move |(&slot, bytes)| (field, slot, &**bytes))
        })
    }
}
