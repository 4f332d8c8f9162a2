//! Zeroed memory of one process, or of several, and the mail beside it.

use std::{alloc::Layout, fs::File};

use crate::{
    error::{Error, Result},
    memory::{Block, room},
};

/// Room in the file for what is mapped, and then for the mail of each slot. The file is sparse: only what is written
/// takes memory.
const ROOM: u64 = 1 << 36;
/// Mail above this many bytes gives its memory back once it is read.
const MAIL_KEPT: usize = 1 << 16;
/// Slots for whose mail there is room in a file of any size that a system allows.
pub(super) const MOST_SLOTS: usize = 1 << 26;

fn layout(bytes: usize) -> Result<Layout> {
    Block::layout(bytes.max(1)).ok_or_else(|| refuse(bytes, "too much"))
}

/// Memory of this process alone.
pub(super) fn private(bytes: usize) -> Result<Block> {
    Block::zeroed(layout(bytes)?).ok_or_else(|| refuse(bytes, "no memory"))
}

fn refuse(bytes: usize, reason: impl std::fmt::Display) -> Error {
    Error::Runtime(format!("cannot share {bytes} bytes between processes: {reason}"))
}

/// The first `bytes` of a file that several processes have.
#[cfg(any(target_os = "linux", target_os = "macos"))]
pub(super) fn map(bytes: usize, file: &File) -> Result<Block> {
    let layout = layout(bytes)?;
    if layout.size() as u64 > ROOM {
        return Err(refuse(bytes, format_args!("there is room for {ROOM}")));
    }
    Block::mapped(layout, file).map_err(|error| refuse(bytes, error))
}

/// A file for `map` and for mail. It has no name, so nothing is left of it once the last process that has it is gone.
pub(super) fn shared() -> Result<File> {
    let file = beside_streams(unnamed()?)?;
    file.set_len(ROOM).map_err(|error| refuse(0, error))?;
    Ok(file)
}

/// The file under a number that no standard stream has. Where one of those is closed, a new file gets its number, and
/// would be written to by whatever prints, and be taken from workers that are started with a stream there.
#[cfg(unix)]
fn beside_streams(file: File) -> Result<File> {
    use std::os::fd::AsRawFd;
    const STREAMS: i32 = 3;
    if file.as_raw_fd() >= STREAMS {
        return Ok(file);
    }
    rustix::io::fcntl_dupfd_cloexec(&file, STREAMS).map(File::from).map_err(|error| refuse(0, error))
}

#[cfg(not(unix))]
#[allow(clippy::unnecessary_wraps)] // As above.
fn beside_streams(file: File) -> Result<File> {
    Ok(file)
}

#[cfg(target_os = "linux")]
fn unnamed() -> Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    rustix::fs::memfd_create("drama-vector", flags).map(File::from).map_err(|error| refuse(0, error))
}

/// Shared memory of this system can only be mapped, so it is a file of the disk.
#[cfg(target_os = "macos")]
fn unnamed() -> Result<File> {
    for number in 0_u32.. {
        let path = std::env::temp_dir().join(format!("drama-{}-{number}", std::process::id()));
        match File::options().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => return std::fs::remove_file(path).map(|()| file).map_err(|error| refuse(0, error)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(refuse(0, error)),
        }
    }
    Err(refuse(0, "no name is left"))
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn unnamed() -> Result<File> {
    Err(refuse(0, "worker processes need Linux or macOS"))
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub(super) fn map(bytes: usize, _: &File) -> Result<Block> {
    Err(refuse(bytes, "worker processes need Linux or macOS"))
}

/// Writes the mail of a slot. It need not lie in the mapping, so it may be of any size, and a full memory is an error
/// rather than a signal.
#[cfg(unix)]
pub(super) fn write_mail(file: &File, slot: usize, bytes: &[u8]) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let refused = |reason: String| Error::Runtime(format!("cannot hand {} bytes over: {reason}", bytes.len()));
    if bytes.len() as u64 > ROOM {
        return Err(refused(format!("there is room for {ROOM}")));
    }
    file.write_all_at(bytes, (slot as u64 + 1) * ROOM).map_err(|error| refused(error.to_string()))
}

/// The first `len` bytes of the mail of a slot, which may be read once.
#[cfg(unix)]
pub(super) fn read_mail(file: &File, slot: usize, len: usize) -> Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let at = (slot as u64 + 1) * ROOM;
    let mut bytes = room(len, "what another process hands over")?;
    bytes.resize(len, 0);
    let failed = |error| Error::Runtime(format!("cannot take {len} bytes over: {error}"));
    file.read_exact_at(&mut bytes, at).map_err(failed)?;
    #[cfg(target_os = "linux")]
    if len > MAIL_KEPT {
        use rustix::fs::{FallocateFlags, fallocate};
        // Where it is refused, the memory waits for the next mail.
        let _ = fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len as u64);
    }
    Ok(bytes)
}

#[cfg(not(unix))]
pub(super) fn write_mail(_: &File, _: usize, _: &[u8]) -> Result<()> {
    Err(refuse(0, "worker processes need Linux or macOS"))
}

#[cfg(not(unix))]
pub(super) fn read_mail(_: &File, _: usize, _: usize) -> Result<Vec<u8>> {
    Err(refuse(0, "worker processes need Linux or macOS"))
}
