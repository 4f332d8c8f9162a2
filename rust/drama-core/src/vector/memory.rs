//! Zeroed memory of one process, or of several.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    ptr::NonNull,
};

use crate::error::{Error, Result};

/// What a mapping is handed to another process as.
#[cfg(unix)]
pub type Handle = std::os::fd::OwnedFd;
/// What a mapping is handed to another process as; there is none here.
#[cfg(not(unix))]
pub type Handle = std::convert::Infallible;

/// Bytes that are written through pointers; who may write which is up to the owner.
pub(super) struct Memory {
    pointer: NonNull<u8>,
    layout: Layout,
    mapped: bool,
}

// SAFETY: the memory is owned, and reached only through raw pointers and atomics.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn layout(bytes: usize) -> Result<Layout> {
        Layout::from_size_align(bytes.max(1), 64).map_err(|_| refuse(bytes, "too much"))
    }

    /// Memory of this process alone.
    pub(super) fn private(bytes: usize) -> Result<Self> {
        let layout = Self::layout(bytes)?;
        // SAFETY: the layout has a size above zero.
        let pointer = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(|| refuse(bytes, "no memory"))?;
        Ok(Self { pointer, layout, mapped: false })
    }

    pub(super) fn pointer(&self) -> *mut u8 {
        self.pointer.as_ptr()
    }
}

fn refuse(bytes: usize, reason: impl std::fmt::Display) -> Error {
    Error::Runtime(format!("cannot share {bytes} bytes between processes: {reason}"))
}

#[cfg(any(target_os = "linux", target_os = "macos"))]
impl Memory {
    /// Memory that a process with the handle can map too. It has no name, so nothing is left of it once the last
    /// process that has it is gone.
    pub(super) fn shared(bytes: usize) -> Result<(Self, Handle)> {
        let handle = unnamed().map_err(|error| refuse(bytes, error))?;
        rustix::fs::ftruncate(&handle, Self::layout(bytes)?.size() as u64).map_err(|error| refuse(bytes, error))?;
        Ok((Self::map(bytes, &handle)?, handle))
    }

    /// Maps what another process made with `shared` and as many bytes.
    pub(super) fn map(bytes: usize, handle: &Handle) -> Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let layout = Self::layout(bytes)?;
        let stat = rustix::fs::fstat(handle).map_err(|error| refuse(bytes, error))?;
        // macOS rounds up to whole pages.
        if (stat.st_size as u64) < layout.size() as u64 {
            return Err(refuse(bytes, format!("the other process made {} bytes", stat.st_size)));
        }
        // SAFETY: a new mapping at a place that the system chooses.
        let pointer = unsafe {
            mmap(std::ptr::null_mut(), layout.size(), ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, handle, 0)
        };
        let pointer = pointer.map_err(|error| refuse(bytes, error))?;
        let pointer = NonNull::new(pointer.cast()).ok_or_else(|| refuse(bytes, "mapped at address zero"))?;
        Ok(Self { pointer, layout, mapped: true })
    }
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
impl Memory {
    pub(super) fn shared(bytes: usize) -> Result<(Self, Handle)> {
        Err(refuse(bytes, "worker processes need Linux or macOS"))
    }

    #[allow(clippy::trivially_copy_pass_by_ref)] // Where there are handles, they are not trivial.
    pub(super) fn map(bytes: usize, _: &Handle) -> Result<Self> {
        Err(refuse(bytes, "worker processes need Linux or macOS"))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.mapped {
            // SAFETY: mapped in `map` with this size. It cannot fail for a mapping that exists.
            #[cfg(any(target_os = "linux", target_os = "macos"))]
            let _ = unsafe { rustix::mm::munmap(self.pointer.as_ptr().cast(), self.layout.size()) };
        } else {
            // SAFETY: allocated in `private` with this layout.
            unsafe { dealloc(self.pointer.as_ptr(), self.layout) };
        }
    }
}
