//! Saving a buffer to a directory and loading it.
//!
//! A save is `manifest.json` and the chunk files that it names. Only chunks that changed since the last save are
//! written, while the buffer goes on being used. No file that the manifest in place refers to is ever written over, and
//! the manifest is replaced last, so a save that is cut off leaves the one before. Names of chunk files tell whose they
//! are: a save touches no file but its own.

mod chunk;
mod manifest;
mod plan;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rand_chacha::ChaCha8Rng;

pub(crate) use self::plan::{Plan, rows_per_chunk};
use self::{chunk::ChunkEntry, manifest::Manifest};
use crate::{
    error::{Error, Result},
    parallel::share_out,
    ring::Ring,
};

/// Threads that write chunks, which wait for the disk most of the time.
const WRITERS: usize = 4;
/// Times that what changed while it was written is written again, before what is left keeps the buffer waiting.
const ROUNDS: usize = 4;
/// Times that a load begins again because of saves made meanwhile; enough for saves without a pause.
const LOADS: usize = 100;

/// A buffer that goes on being used while it is saved.
pub trait Live: Sync {
    /// Lets `look` see rows and generator, both of one instant.
    fn look<T>(&self, look: impl FnOnce(&Ring, &ChaCha8Rng) -> T) -> T;
}

impl Live for (&Ring, &ChaCha8Rng) {
    fn look<T>(&self, look: impl FnOnce(&Ring, &ChaCha8Rng) -> T) -> T {
        look(self.0, self.1)
    }
}

/// Where the last save or load left each chunk.
pub struct Saved {
    directory: PathBuf,
    chunks: Vec<Written>,
}

/// A chunk in a file, and which of its versions that is.
#[derive(Clone, Copy)]
struct Written {
    version: u64,
    entry: ChunkEntry,
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

/// Writes to `directory/name.tmp`, whose content may still be lost.
fn write_unfinished(directory: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let temporary = directory.join(format!("{name}.tmp"));
    // What is there is removed rather than written to: it may be a link to somewhere else.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return at(&temporary, Err(error)),
        _ => {}
    }
    let file = fs::OpenOptions::new().write(true).create_new(true).open(&temporary);
    at(&temporary, file.and_then(|mut file| file.write_all(bytes)))
}

/// Makes what `write_unfinished` wrote last, under its own name.
fn finish(directory: &Path, name: &str) -> Result<()> {
    let (temporary, path) = (directory.join(format!("{name}.tmp")), directory.join(name));
    // On Windows, only files that could be written to are synced.
    let file = at(&temporary, fs::OpenOptions::new().write(true).open(&temporary))?;
    at(&temporary, file.sync_all())?;
    drop(file);
    at(&path, fs::rename(&temporary, &path))
}

/// Makes the names in `directory` last; only Unix can and needs to.
fn sync_directory(directory: &Path) -> Result<()> {
    if cfg!(unix) {
        at(directory, fs::File::open(directory).and_then(|file| file.sync_all()))?;
    }
    Ok(())
}

/// Creates a directory and what is lacking above it, each name of which lasts.
fn create_directory(directory: &Path) -> Result<()> {
    let lacking: Vec<_> =
        directory.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
    at(directory, fs::create_dir_all(directory))?;
    for made in lacking {
        let above = made.parent().filter(|above| !above.as_os_str().is_empty());
        sync_directory(above.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

/// Keeps other savers out of a directory for as long as it is there.
struct Turn {
    #[cfg(unix)]
    directory: fs::File,
}

impl Turn {
    #[cfg(unix)]
    fn wait(path: &Path) -> Result<Self> {
        use rustix::{
            fs::{FlockOperation, flock},
            io::Errno,
        };
        let directory = at(path, fs::File::open(path))?;
        // Some file systems have no locks; there the savers have to see to it themselves.
        while flock(&directory, FlockOperation::LockExclusive) == Err(Errno::INTR) {}
        Ok(Self { directory })
    }

    #[cfg(not(unix))]
    #[allow(clippy::unnecessary_wraps)] // As above.
    fn wait(_: &Path) -> Result<Self> {
        Ok(Self {})
    }
}

#[cfg(unix)]
impl Drop for Turn {
    fn drop(&mut self) {
        // Not left to the file being closed: a process forked meanwhile has it open, too.
        let _ = rustix::fs::flock(&self.directory, rustix::fs::FlockOperation::Unlock);
    }
}

/// Saves a buffer and the state of its generator to `directory`. `saved` is what the last save or load of this buffer
/// gave.
pub fn save(live: &impl Live, saved: Option<&Saved>, directory: &Path) -> Result<Saved> {
    let identity = live.look(|ring, _| ring.identity());
    create_directory(directory)?;
    let directory = at(directory, directory.canonicalize())?;
    let _turn = Turn::wait(&directory)?;
    check_owner(&directory, identity)?;
    let save = Save { identity, generation: next_generation(&directory, identity)?, directory: &directory };
    let mut chunks = Vec::new();
    for round in 0..ROUNDS {
        let changed = live.look(|ring, _| changed(ring, &chunks));
        if changed.is_empty() {
            break;
        }
        let earlier = saved.filter(|_| round == 0);
        let written = in_turn(&changed, |index| match earlier.and_then(|saved| save.keep(live, saved, index)) {
            Some(kept) => Ok(kept),
            None => save.write(live, index),
        })?;
        put(&mut chunks, &changed, written);
    }
    // What is left is written of one instant; the disk is waited for afterwards.
    let (manifest, left) = live.look(|ring, rng| {
        let changed = changed(ring, &chunks);
        let written = changed.iter().map(|&index| save.write_unfinished(ring, index)).collect::<Result<_>>()?;
        put(&mut chunks, &changed, written);
        let entries = chunks.iter().flatten().map(|chunk| chunk.entry).collect();
        Ok((Manifest::of(ring, rng, entries), changed))
    })?;
    for index in left {
        finish(&directory, &chunk::name(identity, index, save.generation))?;
    }
    sync_directory(&directory)?;
    let text = manifest.to_text();
    write_unfinished(&directory, manifest::NAME, text.as_bytes())?;
    finish(&directory, manifest::NAME)?;
    sync_directory(&directory)?;
    save.remove_others(&manifest.chunks);
    let chunks = chunks.into_iter().flatten().collect();
    Ok(Saved { directory, chunks })
}

/// The chunks that hold rows and are not in `written` as they are.
fn changed(ring: &Ring, written: &[Option<Written>]) -> Vec<usize> {
    let is_written = |index: usize| {
        written.get(index).copied().flatten().is_some_and(|written| written.version == ring.version(index))
    };
    (0..ring.plan().chunk_count()).filter(|&index| !is_written(index)).collect()
}

/// Notes what was written of the chunks `indices`.
fn put(chunks: &mut Vec<Option<Written>>, indices: &[usize], written: Vec<Written>) {
    let len = indices.iter().map(|index| index + 1).max().unwrap_or(0);
    chunks.resize(len.max(chunks.len()), None);
    for (&index, written) in indices.iter().zip(written) {
        chunks[index] = Some(written);
    }
}

/// Calls `make` for each of `indices`, by several threads: while one waits for the disk, others compute.
fn in_turn<T: Send>(indices: &[usize], make: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let (failed, mut places) = (AtomicBool::new(false), 0..indices.len());
    let made = Mutex::new(Vec::with_capacity(indices.len()));
    let next = || places.next().filter(|_| !failed.load(Ordering::Relaxed));
    share_out(WRITERS.min(indices.len()), next, |place| {
        let result = make(indices[place]);
        failed.fetch_or(result.is_err(), Ordering::Relaxed);
        made.lock().unwrap_or_else(PoisonError::into_inner).push((place, result));
    });
    let mut made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    made.sort_unstable_by_key(|(place, _)| *place);
    made.into_iter().map(|(_, result)| result).collect()
}

/// A save under way.
struct Save<'a> {
    identity: u64,
    generation: u64,
    directory: &'a Path,
}

impl Save<'_> {
    /// Uses the file of an earlier save again, by a hard link where it lies elsewhere; `None` where the rows have
    /// changed since or that cannot be done.
    fn keep(&self, live: &impl Live, saved: &Saved, index: usize) -> Option<Written> {
        let written = *saved.chunks.get(index)?;
        if live.look(|ring, _| ring.version(index)) != written.version {
            return None;
        }
        let path = saved.directory.join(chunk::name(self.identity, index, written.entry.generation));
        if !chunk::matches(&path, &written.entry) {
            return None;
        }
        if saved.directory == self.directory {
            return Some(written);
        }
        fs::hard_link(path, self.directory.join(chunk::name(self.identity, index, self.generation))).ok()?;
        Some(Written { entry: ChunkEntry { generation: self.generation, ..written.entry }, ..written })
    }

    /// Writes a chunk, of which the buffer is kept waiting only for its bytes.
    fn write(&self, live: &impl Live, index: usize) -> Result<Written> {
        let (version, encoded) = live.look(|ring, _| (ring.version(index), chunk::encode(ring, index)));
        let (bytes, crc32) = encoded?;
        let name = chunk::name(self.identity, index, self.generation);
        write_unfinished(self.directory, &name, &bytes)?;
        finish(self.directory, &name)?;
        let entry = ChunkEntry { generation: self.generation, crc32, bytes: bytes.len() as u64 };
        Ok(Written { version, entry })
    }

    /// As `write`, for `finish` to follow.
    fn write_unfinished(&self, ring: &Ring, index: usize) -> Result<Written> {
        let (bytes, crc32) = chunk::encode(ring, index)?;
        write_unfinished(self.directory, &chunk::name(self.identity, index, self.generation), &bytes)?;
        let entry = ChunkEntry { generation: self.generation, crc32, bytes: bytes.len() as u64 };
        Ok(Written { version: ring.version(index), entry })
    }

    /// Removes what this buffer wrote and no save refers to any more. What cannot be removed does no harm and is tried
    /// again at the next save.
    fn remove_others(&self, chunks: &[ChunkEntry]) {
        for entry in fs::read_dir(self.directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let (name, unfinished) = name.strip_suffix(".tmp").map_or((name, false), |name| (name, true));
            let Some((index, generation)) = chunk::parse_name(self.identity, name) else { continue };
            if unfinished || chunks.get(index).is_none_or(|entry| entry.generation != generation) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Refuses a directory with a save of another buffer, or with a file in the manifest's place that is none.
fn check_owner(directory: &Path, identity: u64) -> Result<()> {
    let path = directory.join(manifest::NAME);
    let advice = "save to another directory, or remove it first";
    match Manifest::read(&path) {
        Ok(manifest) if manifest.identity == identity => Ok(()),
        Ok(_) => Error::value(format!("{}: is the save of another buffer; {advice}", path.display())),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(Error::Corrupt { reason, .. }) => Error::value(format!("{}: {reason}; {advice}", path.display())),
        Err(error) => Err(error),
    }
}

/// A number above that of every chunk of this buffer in `directory`, so that none is written over.
fn next_generation(directory: &Path, identity: u64) -> Result<u64> {
    let mut highest = 0;
    for entry in at(directory, fs::read_dir(directory))? {
        let name = at(directory, entry)?.file_name();
        if let Some((_, generation)) = name.to_str().and_then(|name| chunk::parse_name(identity, name)) {
            highest = highest.max(generation);
        }
    }
    highest.checked_add(1).ok_or_else(|| Error::Value(format!("{}: no chunk number is left", directory.display())))
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
    let mut result = manifest.load(&directory, &path, storage);
    for _ in 1..LOADS {
        if result.is_ok() {
            break;
        }
        // A save that was made in the meantime took away the files of the one before.
        let newer = Manifest::read(&path)?;
        if newer.chunks == manifest.chunks {
            break;
        }
        manifest = newer;
        result = manifest.load(&directory, &path, storage);
    }
    let ring = result?;
    let rng = manifest.rng();
    let version = |index| ring.version(index);
    let chunks = manifest.chunks.into_iter().enumerate();
    let chunks = chunks.map(|(index, entry)| Written { version: version(index), entry }).collect();
    Ok((ring, rng, Saved { directory, chunks }))
}
