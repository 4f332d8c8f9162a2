//! One chunk file: some rows of every environment, all fields.

use std::{fs, io::Read, ops::Range, path::Path};

use super::{at, corrupt, manifest::ChunkEntry, write_file};
use crate::{error::Result, ring::Ring};

const MAGIC: &[u8; 8] = b"DRAMACHK";
const VERSION: u32 = 1;
/// Magic, version, crc32 of all that follows it, chunk index, rows per environment.
const HEADER: usize = 8 + 4 + 4 + 8 + 8;
/// Where the part under the crc32 begins.
const CHECKED: usize = 16;
/// Size that a chunk is meant to have.
const TARGET_BYTES: usize = 4 << 20;

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
    ring.filled().div_ceil(rows_per_chunk(ring))
}

/// Places in the ring that chunk `index` covers.
pub(super) fn positions(ring: &Ring, index: usize) -> Range<usize> {
    let start = index * rows_per_chunk(ring);
    start..(start + rows_per_chunk(ring)).min(ring.filled())
}

fn file_bytes(ring: &Ring, rows: usize) -> u64 {
    (HEADER + rows * ring.num_envs() * ring.schema().row_bytes()) as u64
}

fn parts(ring: &Ring, positions: &Range<usize>) -> impl Iterator<Item = (usize, usize)> + use<> {
    let (fields, num_envs) = (ring.schema().fields().len(), ring.num_envs());
    let count = if positions.is_empty() { 0 } else { fields };
    (0..count).flat_map(move |field| (0..num_envs).map(move |env| (field, env)))
}

pub(super) fn write(ring: &Ring, index: usize, generation: u64, directory: &Path) -> Result<ChunkEntry> {
    let positions = positions(ring, index);
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&(index as u64).to_le_bytes());
    header[24..].copy_from_slice(&(positions.len() as u64).to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[CHECKED..]);
    for (field, env) in parts(ring, &positions) {
        crc.update(ring.rows(field, env, positions.clone()));
    }
    let crc32 = crc.finalize();
    header[12..16].copy_from_slice(&crc32.to_le_bytes());
    let body = parts(ring, &positions).map(|(field, env)| ring.rows(field, env, positions.clone()));
    write_file(directory, &name(index, generation), std::iter::once(&header[..]).chain(body))?;
    Ok(ChunkEntry { generation, crc32, bytes: file_bytes(ring, positions.len()) })
}

pub(super) fn read(ring: &mut Ring, index: usize, entry: &ChunkEntry, directory: &Path) -> Result<()> {
    let path = directory.join(name(index, entry.generation));
    let positions = positions(ring, index);
    let expected = file_bytes(ring, positions.len());
    let mut file = at(&path, fs::File::open(&path))?;
    let found = at(&path, file.metadata())?.len();
    if found != expected || entry.bytes != expected {
        return corrupt(&path, format!("has {found} bytes, expected {expected}"));
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
    if word(&header, 16) != index as u64 || word(&header, 24) != positions.len() as u64 {
        return corrupt(&path, "belongs to another place in the buffer");
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[CHECKED..]);
    for (field, env) in parts(ring, &positions) {
        let rows = ring.rows_mut(field, env, positions.clone());
        at(&path, file.read_exact(rows))?;
        crc.update(rows);
    }
    let actual = crc.finalize();
    if actual != crc32 || actual != entry.crc32 {
        return corrupt(&path, "is corrupted: the checksum does not match");
    }
    Ok(())
}

/// Whether the file has the size and the checksum of `entry`: another buffer may have saved to the directory since.
pub(super) fn matches(path: &Path, entry: &ChunkEntry) -> bool {
    let mut header = [0; HEADER];
    let found = fs::File::open(path).and_then(|mut file| {
        file.read_exact(&mut header)?;
        file.metadata()
    });
    found.is_ok_and(|metadata| metadata.len() == entry.bytes) && word(&header, 12) as u32 == entry.crc32
}

/// The little-endian number at `offset`; its low half is a 32-bit number there.
fn word(header: &[u8; HEADER], offset: usize) -> u64 {
    (0..8).rev().fold(0, |value, byte| value << 8 | u64::from(header[offset + byte]))
}
