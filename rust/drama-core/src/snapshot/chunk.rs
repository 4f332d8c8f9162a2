//! One chunk file: some rows of every environment, all fields.

use std::{borrow::Cow, io::Read, ops::Range, path::Path};

use super::{at, corrupt, manifest::ChunkEntry, open, write_file};
use crate::{error::Result, ring::Ring};

const MAGIC: &[u8; 8] = b"DRAMACHK";
const VERSION: u32 = 2;
/// Magic, version, crc32 of all that follows it, chunk index, rows.
const HEADER: usize = 8 + 4 + 4 + 8 + 8;
const DAMAGED: &str = "is corrupted: the rows do not fit in";
/// Where the part under the crc32 begins.
const CHECKED: usize = 16;
/// Size of the length of a compressed row.
const LENGTH: usize = size_of::<u32>();
/// Size that a chunk is meant to have before compression.
const TARGET_BYTES: usize = 2 << 20;

pub(super) fn name(index: usize, generation: u64) -> String {
    format!("chunk-{index:06}-{generation:08}.bin")
}

pub(super) fn parse_name(name: &str) -> Option<(usize, u64)> {
    let (index, generation) = name.strip_prefix("chunk-")?.strip_suffix(".bin")?.split_once('-')?;
    Some((index.parse().ok()?, generation.parse().ok()?))
}

/// Rows of each environment in one chunk.
pub(super) fn rows_per_chunk(ring: &Ring) -> usize {
    let row = ring.schema().row_bytes().saturating_mul(ring.num_envs());
    (TARGET_BYTES / row).clamp(1, ring.rows_per_env())
}

/// Chunks that hold rows.
pub(super) fn chunk_count(ring: &Ring) -> usize {
    let most = (0..ring.num_envs()).map(|env| ring.filled(env)).max().unwrap_or(0);
    most.div_ceil(rows_per_chunk(ring))
}

/// Places in the ring that chunk `index` covers of `env`.
pub(super) fn positions(ring: &Ring, index: usize, env: usize) -> Range<usize> {
    let start = index * rows_per_chunk(ring);
    start..(start + rows_per_chunk(ring)).min(ring.filled(env)).max(start)
}

/// Rows of all environments in chunk `index`.
fn row_count(ring: &Ring, index: usize) -> usize {
    (0..ring.num_envs()).map(|env| positions(ring, index, env).len()).sum()
}

/// The least and the most bytes that a chunk of `rows` rows can have: a compressed row comes with its length and has
/// at least a byte.
fn file_bytes(ring: &Ring, rows: usize) -> Range<u64> {
    let (mut least, mut most) = (HEADER, HEADER);
    for field in ring.schema().fields() {
        let size = field.row_bytes();
        let (short, long) = if field.is_compressed() { (LENGTH + 1, LENGTH + size) } else { (size, size) };
        least += rows * short;
        most += rows * long;
    }
    least as u64..most as u64 + 1
}

/// Field, environment and places of each part of chunk `index`.
fn parts(ring: &Ring, index: usize) -> Vec<(usize, usize, Range<usize>)> {
    let of_field = |field| (0..ring.num_envs()).map(move |env| (field, env, positions(ring, index, env)));
    let parts = (0..ring.schema().fields().len()).flat_map(of_field);
    parts.filter(|(_, _, positions)| !positions.is_empty()).collect()
}

pub(super) fn write(ring: &Ring, index: usize, generation: u64, directory: &Path) -> Result<ChunkEntry> {
    let (rows, parts) = (row_count(ring, index), parts(ring, index));
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&(index as u64).to_le_bytes());
    header[24..].copy_from_slice(&(rows as u64).to_le_bytes());
    let body: Vec<_> = parts.into_iter().map(|(field, env, positions)| part(ring, field, env, positions)).collect();
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[CHECKED..]);
    for part in &body {
        crc.update(part);
    }
    let crc32 = crc.finalize();
    header[12..16].copy_from_slice(&crc32.to_le_bytes());
    let bytes = (HEADER + body.iter().map(|part| part.len()).sum::<usize>()) as u64;
    write_file(
        directory,
        &name(index, generation),
        std::iter::once(&header[..]).chain(body.iter().map(|part| &**part)),
    )?;
    Ok(ChunkEntry { generation, crc32, bytes })
}

/// Rows of one field and environment as they are written: one after the other, compressed ones after their lengths.
fn part(ring: &Ring, field: usize, env: usize, positions: Range<usize>) -> Cow<'_, [u8]> {
    let slots = slots(ring, env, positions);
    let Some(packed) = ring.packed(field) else {
        let size = ring.schema().fields()[field].row_bytes();
        return Cow::Borrowed(&ring.plain(field)[slots.start * size..slots.end * size]);
    };
    let mut bytes = Vec::new();
    for row in slots.map(|slot| packed.get(slot)) {
        bytes.extend((row.len() as u32).to_le_bytes());
        bytes.extend(row);
    }
    Cow::Owned(bytes)
}

fn slots(ring: &Ring, env: usize, positions: Range<usize>) -> Range<usize> {
    let base = env * ring.rows_per_env();
    base + positions.start..base + positions.end
}

pub(super) fn read(ring: &mut Ring, index: usize, entry: &ChunkEntry, directory: &Path) -> Result<()> {
    let path = directory.join(name(index, entry.generation));
    let rows = row_count(ring, index);
    let expected = file_bytes(ring, rows);
    let (mut file, found) = open(&path)?;
    if found != entry.bytes || !expected.contains(&found) {
        return corrupt(&path, format!("has {found} bytes, expected {}", entry.bytes));
    }
    let mut header = [0; HEADER];
    at(&path, file.read_exact(&mut header))?;
    if &header[..8] != MAGIC {
        return corrupt(&path, "is not a chunk of a replay buffer");
    }
    let (version, crc32) = (word(&header, 8) as u32, word(&header, 12) as u32);
    if version != VERSION {
        return corrupt(&path, format!("has version {version}, this build reads version {VERSION}"));
    }
    if word(&header, 16) != index as u64 || word(&header, 24) != rows as u64 {
        return corrupt(&path, "belongs to another place in the buffer");
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[CHECKED..]);
    let mut left = found as usize - HEADER;
    for (field, env, positions) in parts(ring, index) {
        let slots = slots(ring, env, positions);
        let size = ring.schema().fields()[field].row_bytes();
        let Some(packed) = ring.packed_mut(field) else {
            let rows = &mut ring.plain_mut(field)[slots.start * size..slots.end * size];
            if rows.len() > left {
                return corrupt(&path, DAMAGED);
            }
            at(&path, file.read_exact(rows))?;
            crc.update(rows);
            left -= rows.len();
            continue;
        };
        for slot in slots {
            let mut length = [0; LENGTH];
            if left < LENGTH {
                return corrupt(&path, DAMAGED);
            }
            at(&path, file.read_exact(&mut length))?;
            crc.update(&length);
            left -= LENGTH;
            let length = u32::from_le_bytes(length) as usize;
            if length > size.min(left) {
                return corrupt(&path, DAMAGED);
            }
            let mut row = vec![0; length];
            at(&path, file.read_exact(&mut row))?;
            crc.update(&row);
            left -= length;
            if !packed.restore(slot, row.into()) {
                return corrupt(&path, DAMAGED);
            }
        }
    }
    let actual = crc.finalize();
    if actual != crc32 || actual != entry.crc32 {
        return corrupt(&path, "is corrupted: the checksum does not match");
    }
    if left > 0 { corrupt(&path, DAMAGED) } else { Ok(()) }
}

/// Whether the file has the size and the checksum of `entry`: another buffer may have saved to the directory since.
pub(super) fn matches(path: &Path, entry: &ChunkEntry) -> bool {
    let mut header = [0; HEADER];
    let size = open(path).ok().and_then(|(mut file, size)| file.read_exact(&mut header).ok().map(|()| size));
    size == Some(entry.bytes) && word(&header, 12) as u32 == entry.crc32
}

/// The little-endian number at `offset`; its low half is a 32-bit number there.
fn word(header: &[u8; HEADER], offset: usize) -> u64 {
    (0..8).rev().fold(0, |value, byte| value << 8 | u64::from(header[offset + byte]))
}
