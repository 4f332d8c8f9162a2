//! One chunk file: some rows of every environment, all fields.

use std::{io::Read, ops::Range, path::Path};

use super::{at, corrupt, manifest::ChunkEntry, open, write_file};
use crate::{error::Result, ring::Ring};

const MAGIC: &[u8; 8] = b"DRAMACHK";
const VERSION: u32 = 1;
/// Magic, version, crc32 of all that follows it, chunk index, rows.
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

fn file_bytes(ring: &Ring, rows: usize) -> u64 {
    (HEADER + rows * ring.schema().row_bytes()) as u64
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
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[CHECKED..]);
    for (field, env, positions) in &parts {
        crc.update(ring.rows(*field, *env, positions.clone()));
    }
    let crc32 = crc.finalize();
    header[12..16].copy_from_slice(&crc32.to_le_bytes());
    let body = parts.into_iter().map(|(field, env, positions)| ring.rows(field, env, positions));
    write_file(directory, &name(index, generation), std::iter::once(&header[..]).chain(body))?;
    Ok(ChunkEntry { generation, crc32, bytes: file_bytes(ring, rows) })
}

pub(super) fn read(ring: &mut Ring, index: usize, entry: &ChunkEntry, directory: &Path) -> Result<()> {
    let path = directory.join(name(index, entry.generation));
    let rows = row_count(ring, index);
    let expected = file_bytes(ring, rows);
    let (mut file, found) = open(&path)?;
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
    if word(&header, 16) != index as u64 || word(&header, 24) != rows as u64 {
        return corrupt(&path, "belongs to another place in the buffer");
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[CHECKED..]);
    for (field, env, positions) in parts(ring, index) {
        let rows = ring.rows_mut(field, env, positions);
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
    let size = open(path).ok().and_then(|(mut file, size)| file.read_exact(&mut header).ok().map(|()| size));
    size == Some(entry.bytes) && word(&header, 12) as u32 == entry.crc32
}

/// The little-endian number at `offset`; its low half is a 32-bit number there.
fn word(header: &[u8; HEADER], offset: usize) -> u64 {
    (0..8).rev().fold(0, |value, byte| value << 8 | u64::from(header[offset + byte]))
}
