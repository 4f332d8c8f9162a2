//! One chunk file: some rows of every environment, all fields, and what was seen after those that end an episode.

use std::{fs::File, io::Read, path::Path};

use super::{at, corrupt, open, plan::Plan};
use crate::{error::Result, memory::room, ring::Ring};

const MAGIC: &[u8; 8] = b"DRAMACHK";
const VERSION: u32 = 3;
/// Magic, version, crc32 of all that follows it, chunk index, rows.
pub(super) const HEADER: usize = 8 + 4 + 4 + 8 + 8;
/// Size of the length of a compressed row.
pub(super) const LENGTH: usize = size_of::<u32>();
/// Field and slot of a final value.
pub(super) const FINAL: usize = 2 * size_of::<u64>();
const DAMAGED: &str = "is corrupted: the rows do not fit in";
/// Where the part under the crc32 begins.
const CHECKED: usize = 16;

/// One file of a save.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkEntry {
    pub(super) generation: u64,
    pub(super) crc32: u32,
    pub(super) bytes: u64,
}

/// The name of a chunk of the buffer `identity`: nobody else's file is called so.
pub(super) fn name(identity: u64, index: usize, generation: u64) -> String {
    format!("chunk-{identity:016x}-{index:06}-{generation:08}.bin")
}

/// Chunk index and generation in a name of the buffer `identity`.
pub(super) fn parse_name(identity: u64, name: &str) -> Option<(usize, u64)> {
    let (index, generation) =
        name.strip_prefix(&format!("chunk-{identity:016x}-"))?.strip_suffix(".bin")?.split_once('-')?;
    Some((index.parse().ok()?, generation.parse().ok()?))
}

/// The bytes of chunk `index` and their checksum: the rows one field after the other, compressed ones after their
/// lengths, then the final values after field and slot.
pub(super) fn encode(ring: &Ring, index: usize) -> Result<(Vec<u8>, u32)> {
    let (plan, fields) = (ring.plan(), ring.schema().fields());
    let finals = || plan.slots(index).flat_map(|slots| ring.finals().within(slots));
    let mut size = HEADER + finals().map(|(_, _, value)| FINAL + value.len()).sum::<usize>();
    for (at, field) in fields.iter().enumerate() {
        size += match ring.packed(at) {
            None => plan.row_count(index) * field.row_bytes(),
            Some(packed) => plan.slots(index).flatten().map(|slot| LENGTH + packed.get(slot).len()).sum(),
        };
    }
    let mut bytes = room(size, "a chunk of a save")?;
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend((index as u64).to_le_bytes());
    bytes.extend((plan.row_count(index) as u64).to_le_bytes());
    for (at, field) in fields.iter().enumerate() {
        let size = field.row_bytes();
        for slots in plan.slots(index) {
            let Some(packed) = ring.packed(at) else {
                bytes.extend_from_slice(&ring.plain(at)[slots.start * size..slots.end * size]);
                continue;
            };
            for row in slots.map(|slot| packed.get(slot)) {
                bytes.extend((row.len() as u32).to_le_bytes());
                bytes.extend_from_slice(row);
            }
        }
    }
    for (field, slot, value) in finals() {
        bytes.extend((field as u64).to_le_bytes());
        bytes.extend((slot as u64).to_le_bytes());
        bytes.extend_from_slice(value);
    }
    let crc32 = crc32fast::hash(&bytes[CHECKED..]);
    bytes[CHECKED - 4..CHECKED].copy_from_slice(&crc32.to_le_bytes());
    Ok((bytes, crc32))
}

/// Opens the file of chunk `index`, which has the size that `entry` tells and rows of `plan` can have.
pub(super) fn find(plan: Plan<'_>, index: usize, entry: &ChunkEntry, path: &Path) -> Result<File> {
    let (file, found) = open(path)?;
    if found != entry.bytes || !plan.file_bytes(index).contains(&u128::from(found)) {
        return corrupt(path, format!("has {found} bytes, expected {}", entry.bytes));
    }
    Ok(file)
}

/// A chunk file while it is read: what is left of it, and the checksum so far.
struct Reader<'p> {
    path: &'p Path,
    file: File,
    left: usize,
    crc: crc32fast::Hasher,
}

impl Reader<'_> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        if bytes.len() > self.left {
            return corrupt(self.path, DAMAGED);
        }
        at(self.path, self.file.read_exact(bytes))?;
        self.crc.update(bytes);
        self.left -= bytes.len();
        Ok(())
    }

    fn number(&mut self) -> Result<usize> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(usize::try_from(u64::from_le_bytes(bytes)).unwrap_or(usize::MAX))
    }

    /// Bytes that are checked to be there before memory is taken for them.
    fn bytes(&mut self, len: usize) -> Result<Vec<u8>> {
        if len > self.left {
            return corrupt(self.path, DAMAGED);
        }
        let mut bytes = room(len, "a row of a save")?;
        bytes.resize(len, 0);
        self.fill(&mut bytes)?;
        Ok(bytes)
    }
}

/// Reads the rows of chunk `index` into `ring`, which has as many.
pub(super) fn read(ring: &mut Ring, index: usize, entry: &ChunkEntry, path: &Path) -> Result<()> {
    let mut file = find(ring.plan(), index, entry, path)?;
    let mut header = [0; HEADER];
    at(path, file.read_exact(&mut header))?;
    if &header[..8] != MAGIC {
        return corrupt(path, "is not a chunk of a replay buffer");
    }
    let (version, crc32) = (word(&header, 8) as u32, word(&header, 12) as u32);
    if version != VERSION {
        return corrupt(path, format!("has version {version}, this build reads version {VERSION}"));
    }
    if word(&header, 16) != index as u64 || word(&header, 24) != ring.plan().row_count(index) as u64 {
        return corrupt(path, "belongs to another place in the buffer");
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[CHECKED..]);
    let mut reader = Reader { path, file, left: entry.bytes as usize - HEADER, crc };
    let slots: Vec<_> = ring.plan().slots(index).collect();
    for field in 0..ring.schema().fields().len() {
        let kind = ring.schema().fields()[field].clone();
        let size = kind.row_bytes();
        for slots in slots.iter().cloned() {
            let Some(packed) = ring.packed_mut(field) else {
                let rows = &mut ring.plain_mut(field)[slots.start * size..slots.end * size];
                reader.fill(rows)?;
                if !kind.holds(rows) {
                    return corrupt(path, DAMAGED);
                }
                continue;
            };
            for slot in slots {
                let mut length = [0; LENGTH];
                reader.fill(&mut length)?;
                let row = reader.bytes(u32::from_le_bytes(length) as usize)?;
                if !packed.restore(slot, row.into(), |row| kind.holds(row)) {
                    return corrupt(path, DAMAGED);
                }
            }
        }
    }
    while reader.left > 0 {
        let (field, slot) = (reader.number()?, reader.number()?);
        let known = field < ring.schema().terminated()
            && slots.iter().any(|slots| slots.contains(&slot))
            && ring.holds(slot)
            && ring.finals().get(field, slot).is_none();
        if !known {
            return corrupt(path, DAMAGED);
        }
        let kind = ring.schema().fields()[field].clone();
        let value = reader.bytes(kind.row_bytes())?;
        if !kind.holds(&value) {
            return corrupt(path, DAMAGED);
        }
        ring.finals_mut().insert(field, slot, &value);
    }
    let actual = reader.crc.finalize();
    if actual != crc32 || actual != entry.crc32 {
        return corrupt(path, "is corrupted: the checksum does not match");
    }
    Ok(())
}

/// Whether the file has the size and the checksum of `entry`: it may have been removed, and its name used again.
pub(super) fn matches(path: &Path, entry: &ChunkEntry) -> bool {
    let mut header = [0; HEADER];
    let size = open(path).ok().and_then(|(mut file, size)| file.read_exact(&mut header).ok().map(|()| size));
    size == Some(entry.bytes) && word(&header, 12) as u32 == entry.crc32
}

/// The little-endian number at `offset`; its low half is a 32-bit number there.
fn word(header: &[u8; HEADER], offset: usize) -> u64 {
    (0..8).rev().fold(0, |value, byte| value << 8 | u64::from(header[offset + byte]))
}
