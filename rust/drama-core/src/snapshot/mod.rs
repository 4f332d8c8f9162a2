//! Saving a buffer to a directory and loading it.
//!
//! A save is `manifest.json`, the chunk files it names and one for what follows truncated episodes. Only chunks that changed since the last save are written.
//! No file that the manifest in place refers to is ever written over, and the manifest is replaced last, so a save
//! that is cut off leaves the one before.

mod chunk;
mod finals;
mod manifest;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rand_chacha::ChaCha8Rng;

use self::{
    chunk::{chunk_count, positions, rows_per_chunk},
    manifest::{ChunkEntry, Manifest},
};
use crate::{
    error::{Error, Result},
    parallel::share_out,
    ring::Ring,
};

/// Threads that write chunks, which wait for the disk most of the time.
const WRITERS: usize = 4;
/// Times that a load begins again because of saves made meanwhile; enough for saves without a pause.
const LOADS: usize = 100;

/// Where the last save or load left each chunk.
pub struct Saved {
    directory: PathBuf,
    totals: Vec<u64>,
    chunks: Vec<ChunkEntry>,
    finals: Option<ChunkEntry>,
}

/// Attaches the path to an error of the operating system.
fn at<T>(path: &Path, result: std::io::Result<T>) -> Result<T> {
    result.map_err(|source| Error::Io { path: path.to_owned(), source })
}

fn corrupt<T>(path: &Path, reason: impl Into<String>) -> Result<T> {
    Err(Error::Corrupt { path: path.to_owned(), reason: reason.into() })
}

/// Opens a file to read, and refuses pipes and devices, which would never end. Also gives its size.
fn open(path: &Path) -> Result<(fs::File, u64)> {
    if !at(path, fs::metadata(path))?.is_file() {
        return corrupt(path, "is not a regular file");
    }
    let file = at(path, fs::File::open(path))?;
    let size = at(path, file.metadata())?.len();
    Ok((file, size))
}

/// Writes `parts` to `directory/name` so that the file is there whole or not at all.
fn write_file<'a>(directory: &Path, name: &str, parts: impl Iterator<Item = &'a [u8]>) -> Result<()> {
    use std::io::Write;
    let temporary = directory.join(format!("{name}.tmp"));
    let mut file = at(&temporary, fs::File::create(&temporary))?;
    for part in parts {
        at(&temporary, file.write_all(part))?;
    }
    at(&temporary, file.sync_all())?;
    let path = directory.join(name);
    at(&path, fs::rename(&temporary, &path))
}

/// Makes the names in `directory` last; only Unix can and needs to.
fn sync_directory(directory: &Path) -> Result<()> {
    if cfg!(unix) {
        at(directory, fs::File::open(directory).and_then(|file| file.sync_all()))?;
    }
    Ok(())
}

/// Saves `ring` and the state of `rng` to `directory`. `saved` is what the last save or load of this ring gave.
pub fn save(ring: &Ring, rng: &ChaCha8Rng, saved: Option<&Saved>, directory: &Path) -> Result<Saved> {
    at(directory, fs::create_dir_all(directory))?;
    let directory = at(directory, directory.canonicalize())?;
    let generation = next_generation(&directory)?;
    let chunk = |index| {
        let reusable =
            saved.filter(|saved| !changed(ring, &saved.totals, index)).and_then(|saved| saved.reusable(index));
        match reusable.and_then(|(path, entry)| keep(&path, entry, &directory, index, generation)) {
            Some(entry) => Ok(entry),
            None => chunk::write(ring, index, generation, &directory),
        }
    };
    let chunks = in_turn(chunk_count(ring), chunk)?;
    let kept = saved.filter(|saved| saved.directory == directory).and_then(|saved| saved.finals);
    let finals = finals::write(ring, kept, generation, &directory)?;
    sync_directory(&directory)?;
    let text = Manifest::of(ring, rng, &chunks, finals).to_text();
    write_file(&directory, manifest::NAME, std::iter::once(text.as_bytes()))?;
    sync_directory(&directory)?;
    remove_others(&directory, &chunks, finals);
    Ok(Saved { directory, totals: ring.totals().to_vec(), chunks, finals })
}

/// Calls `make` for each index below `count`, by several threads: while one waits for the disk, others compute.
fn in_turn<T: Send>(count: usize, make: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let (failed, mut indices) = (AtomicBool::new(false), 0..count);
    let made = Mutex::new(Vec::with_capacity(count));
    let next = || indices.next().filter(|_| !failed.load(Ordering::Relaxed));
    share_out(WRITERS.min(count), next, |index| {
        let result = make(index);
        failed.fetch_or(result.is_err(), Ordering::Relaxed);
        made.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
    });
    let mut made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    made.sort_unstable_by_key(|(index, _)| *index);
    made.into_iter().map(|(_, result)| result).collect()
}

impl Saved {
    /// The file that holds chunk `index`, if it is still what was written there.
    fn reusable(&self, index: usize) -> Option<(PathBuf, ChunkEntry)> {
        let entry = *self.chunks.get(index)?;
        let path = self.directory.join(chunk::name(index, entry.generation));
        chunk::matches(&path, &entry).then_some((path, entry))
    }
}

/// Uses a file of an earlier save again, by a hard link where it lies elsewhere; `None` where that cannot be done.
fn keep(path: &Path, entry: ChunkEntry, directory: &Path, index: usize, generation: u64) -> Option<ChunkEntry> {
    if path.parent() == Some(directory) {
        return Some(entry);
    }
    fs::hard_link(path, directory.join(chunk::name(index, generation))).ok()?;
    Some(ChunkEntry { generation, ..entry })
}

/// Whether a row of chunk `index` was written since the environments had been given `totals` rows.
fn changed(ring: &Ring, totals: &[u64], index: usize) -> bool {
    let rows = ring.rows_per_env();
    totals.len() != ring.num_envs()
        || ring.totals().iter().zip(totals).enumerate().any(|(env, (&now, &then))| {
            let chunk = positions(ring, index, env);
            if chunk.is_empty() || now == then {
                return false;
            }
            if now < then || now - then >= rows as u64 {
                return true;
            }
            let start = (then % rows as u64) as usize;
            let end = start + (now - then) as usize;
            (start.max(chunk.start) < end.min(chunk.end)) || chunk.start + rows < end
        })
}

/// A number above that of every chunk file in `directory`, so that none is written over.
fn next_generation(directory: &Path) -> Result<u64> {
    let mut highest = 0;
    for entry in at(directory, fs::read_dir(directory))? {
        let name = at(directory, entry)?.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(generation) = chunk::parse_name(name).map(|(_, number)| number).or(finals::parse_name(name)) {
            highest = highest.max(generation);
        }
    }
    highest.checked_add(1).ok_or_else(|| Error::Value(format!("{}: no chunk number is left", directory.display())))
}

/// Removes what no manifest refers to. What cannot be removed does no harm and is tried again at the next save.
fn remove_others(directory: &Path, chunks: &[ChunkEntry], finals: Option<ChunkEntry>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let (name, unfinished) = name.strip_suffix(".tmp").map_or((name, false), |name| (name, true));
        let (current, generation) = if let Some((index, generation)) = chunk::parse_name(name) {
            (chunks.get(index).copied(), generation)
        } else if let Some(generation) = finals::parse_name(name) {
            (finals, generation)
        } else {
            continue;
        };
        if unfinished || current.is_none_or(|entry| entry.generation != generation) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Loads what `save` wrote, and refuses whatever is not exactly that. Saves made meanwhile do no harm.
pub fn load(directory: &Path) -> Result<(Ring, ChaCha8Rng, Saved)> {
    load_stored(directory, None)
}

/// As `load`, into a ring made by `Ring::stored`.
pub fn load_stored(directory: &Path, storage: Option<&Path>) -> Result<(Ring, ChaCha8Rng, Saved)> {
    let directory = at(directory, directory.canonicalize())?;
    let path = directory.join(manifest::NAME);
    let mut manifest = Manifest::read(&path)?;
    let mut result = read(&manifest, &directory, &path, storage);
    for _ in 1..LOADS {
        if result.is_ok() {
            break;
        }
        // A save that was made in the meantime took away the files of the one before.
        let newer = Manifest::read(&path)?;
        if newer.chunks == manifest.chunks && newer.finals == manifest.finals {
            break;
        }
        manifest = newer;
        result = read(&manifest, &directory, &path, storage);
    }
    let ring = result?;
    let (rng, totals) = (manifest.rng(), ring.totals().to_vec());
    let saved = Saved { directory, totals, chunks: manifest.chunks, finals: manifest.finals };
    Ok((ring, rng, saved))
}

/// The ring that a manifest, read from `path`, and the files in `directory` that it names make up.
fn read(manifest: &Manifest, directory: &Path, path: &Path, storage: Option<&Path>) -> Result<Ring> {
    let mut ring = manifest.ring(path, storage)?;
    if manifest.rows_per_chunk != rows_per_chunk(&ring) || manifest.chunks.len() != chunk_count(&ring) {
        return corrupt(path, "the chunks do not fit the fields and the capacity");
    }
    for (index, entry) in manifest.chunks.iter().enumerate() {
        chunk::read(&mut ring, index, entry, directory)?;
    }
    if let Some(entry) = &manifest.finals {
        finals::read(&mut ring, entry, directory)?;
    }
    Ok(ring)
}
