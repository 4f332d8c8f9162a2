//! Zeroed memory of one process, or of several.

use std::alloc::Layout;

use crate::{
    error::{Error, Result},
    memory::Block,
};

/// What a mapping is handed to another process as.
#[cfg(unix)]
pub type Handle = std::os::fd::OwnedFd;
/// What a mapping is handed to another process as; there is none here.
#[cfg(not(unix))]
pub type Handle = std::convert::Infallible;

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

/// Memory that a process with the handle can map too. It has no name, so nothing is left of it once the last process
/// that has it is gone.
#[cfg(any(target_os = "linux", target_os = "macos"))]
pub(super) fn shared(bytes: usize) -> Result<(Block, Handle)> {
    let handle = unnamed().map_err(|error| refuse(bytes, error))?;
    rustix::fs::ftruncate(&handle, layout(bytes)?.size() as u64).map_err(|error| refuse(bytes, error))?;
    Ok((map(bytes, &handle)?, handle))
}

/// Maps what another process made with `shared` and as many bytes.
#[cfg(any(target_os = "linux", target_os = "macos"))]
pub(super) fn map(bytes: usize, handle: &Handle) -> Result<Block> {
    let layout = layout(bytes)?;
    let stat = rustix::fs::fstat(handle).map_err(|error| refuse(bytes, error))?;
    // macOS rounds up to whole pages.
    if (stat.st_size as u64) < layout.size() as u64 {
        return Err(refuse(bytes, format!("the other process made {} bytes", stat.st_size)));
    }
    Block::mapped(layout, handle).map_err(|error| refuse(bytes, error))
}

#[cfg(target_os = "linux")]
fn unnamed() -> rustix::io::Result<Handle> {
    rustix::fs::memfd_create("drama-vector", rustix::fs::MemfdFlags::CLOEXEC)
}

#[cfg(target_os = "macos")]
fn unnamed() -> rustix::io::Result<Handle> {
    use rustix::{fs::Mode, io::Errno, shm};
    for number in 0_u32.. {
        let name = format!("/drama-{}-{number}", std::process::id());
        let flags = shm::OFlags::CREATE | shm::OFlags::EXCL | shm::OFlags::RDWR;
        match shm::open(&name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(handle) => return shm::unlink(&name).map(|()| handle),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::EXIST)
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub(super) fn shared(bytes: usize) -> Result<(Block, Handle)> {
    Err(refuse(bytes, "worker processes need Linux or macOS"))
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
#[allow(clippy::trivially_copy_pass_by_ref)] // Where there are handles, they are not trivial.
pub(super) fn map(bytes: usize, _: &Handle) -> Result<Block> {
    Err(refuse(bytes, "worker processes need Linux or macOS"))
}
