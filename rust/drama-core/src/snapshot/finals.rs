//! The file of what was seen after the end of episodes.

use std::{io::Read, path::Path};

use super::{at, corrupt, manifest::ChunkEntry, open, write_file};
use crate::{error::Result, ring::Ring};

const MAGIC: &[u8; 8] = b"DRAMAFIN";

fn name(generation: u64) -> String {
    format!("finals-{generation:08}.bin")
}

pub(super) fn parse_name(name: &str) -> Option<u64> {
    name.strip_prefix("finals-")?.strip_suffix(".bin")?.parse().ok()
}

/// Writes the values of `ring`, unless there are none or `kept`, the file of the last save, has just these.
pub(super) fn write(
    ring: &Ring,
    kept: Option<ChunkEntry>,
    generation: u64,
    directory: &Path,
) -> Result<Option<ChunkEntry>> {
    if ring.finals().is_empty() {
        return Ok(None);
    }
    let mut bytes = MAGIC.to_vec();
    for (field, slot, value) in ring.finals().iter() {
        bytes.extend((field as u64).to_le_bytes());
        bytes.extend((slot as u64).to_le_bytes());
        bytes.extend(value);
    }
    if let Some(entry) = kept
        && content(&entry, directory).is_ok_and(|written| written == bytes)
    {
        return Ok(kept);
    }
    write_file(directory, &name(generation), std::iter::once(&bytes[..]))?;
    Ok(Some(ChunkEntry { generation, crc32: crc32fast::hash(&bytes), bytes: bytes.len() as u64 }))
}

/// The bytes of the file, of the right size.
fn content(entry: &ChunkEntry, directory: &Path) -> Result<Vec<u8>> {
    let path = directory.join(name(entry.generation));
    let (mut file, size) = open(&path)?;
    if size != entry.bytes {
        return corrupt(&path, format!("has {size} bytes, expected {}", entry.bytes));
    }
    let mut bytes = Vec::new();
    at(&path, file.read_to_end(&mut bytes))?;
    Ok(bytes)
}

pub(super) fn read(ring: &mut Ring, entry: &ChunkEntry, directory: &Path) -> Result<()> {
    let path = directory.join(name(entry.generation));
    let bytes = content(entry, directory)?;
    if crc32fast::hash(&bytes) != entry.crc32 {
        return corrupt(&path, "is corrupted: the checksum does not match");
    }
    match parse(ring, &bytes) {
        Some(()) => Ok(()),
        None => corrupt(&path, "does not fit the rows of the buffer"),
    }
}

fn parse(ring: &mut Ring, bytes: &[u8]) -> Option<()> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    while !rest.is_empty() {
        let (field, slot);
        (field, rest) = rest.split_first_chunk::<8>()?;
        (slot, rest) = rest.split_first_chunk::<8>()?;
        let (field, slot) = (u64::from_le_bytes(*field), u64::from_le_bytes(*slot));
        let (field, slot) = (usize::try_from(field).ok()?, usize::try_from(slot).ok()?);
        let size = ring.schema().fields().get(field)?.row_bytes();
        let value;
        (value, rest) = rest.split_at_checked(size)?;
        if !ring.holds(slot) || ring.goes_on(slot) {
            return None;
        }
        ring.finals_mut().insert(field, slot, value);
    }
    Some(())
}
