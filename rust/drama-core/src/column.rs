//! The bytes of one field: on the heap, or mapped from a file.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    ops::{Deref, DerefMut},
    path::Path,
    ptr::NonNull,
};

use crate::{
    error::{Error, Result},
    memory::prefer_huge_pages,
};

/// Zeroed bytes whose pages cost memory only once they are written.
pub(crate) struct Column {
    pointer: NonNull<u8>,
    layout: Layout,
    mapped: bool,
}

// SAFETY: the bytes are owned and reached only through `&self` and `&mut self`.
unsafe impl Send for Column {}
// SAFETY: as above.
unsafe impl Sync for Column {}

impl Column {
    /// Room for `rows` rows of `row_bytes` bytes of the field `name`, in a file in the directory `storage` if given.
    pub(crate) fn new(name: &str, rows: usize, row_bytes: usize, storage: Option<&Path>) -> Result<Self> {
        let layout = rows.checked_mul(row_bytes).and_then(|len| Layout::from_size_align(len, 64).ok());
        let layout = layout.filter(|layout| layout.size() > 0);
        let column = match (layout, storage) {
            (Some(layout), Some(directory)) => return Self::mapped(name, layout, directory),
            // SAFETY: the layout has a size above zero.
            (Some(layout), None) => NonNull::new(unsafe { alloc_zeroed(layout) }).map(|pointer| {
                prefer_huge_pages(pointer.as_ptr(), layout.size());
                Self { pointer, layout, mapped: false }
            }),
            (None, _) => None,
        };
        match column {
            Some(column) => Ok(column),
            None => Error::value(format!("no memory for field {name:?}: {rows} rows of {row_bytes} bytes")),
        }
    }

    /// The file has no name from the start, so that nothing is left of it however the process ends. Its blocks are
    /// reserved here: writing to a mapped page that finds no room would kill the process.
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    fn mapped(name: &str, layout: Layout, directory: &Path) -> Result<Self> {
        use rustix::{
            fs::{FallocateFlags, fallocate},
            mm::{MapFlags, ProtFlags, mmap},
        };
        let bytes = layout.size();
        let file = unnamed_file(directory).map_err(|source| Error::Io { path: directory.to_owned(), source })?;
        let pointer = fallocate(&file, FallocateFlags::empty(), 0, bytes as u64).and_then(|()| {
            // SAFETY: a new mapping at a place that the system chooses, of a file that nobody else can open.
            unsafe { mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0) }
        });
        let room = |source| Error::Room { path: directory.to_owned(), field: name.to_owned(), bytes, source };
        let pointer = pointer.map_err(|errno| room(errno.into()))?;
        let pointer = NonNull::new(pointer.cast()).ok_or_else(|| room(std::io::ErrorKind::OutOfMemory.into()))?;
        Ok(Self { pointer, layout, mapped: true })
    }

    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    fn mapped(_: &str, _: Layout, _: &Path) -> Result<Self> {
        Error::value("storage in files needs Linux or macOS")
    }
}

/// A new file in `directory`, which is created, under no name.
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn unnamed_file(directory: &Path) -> std::io::Result<std::fs::File> {
    use std::{fs, io::ErrorKind, os::unix::fs::OpenOptionsExt};
    fs::create_dir_all(directory)?;
    let mut number = 0_u32;
    loop {
        let path = directory.join(format!(".drama-replay-{}-{number}", std::process::id()));
        match fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => return fs::remove_file(&path).map(|()| file),
            Err(error) if error.kind() == ErrorKind::AlreadyExists && number < u32::MAX => number += 1,
            Err(error) => return Err(error),
        }
    }
}

impl Drop for Column {
    fn drop(&mut self) {
        if self.mapped {
            // SAFETY: mapped in `mapped` with this size. It cannot fail for a mapping that exists.
            #[cfg(any(target_os = "linux", target_os = "macos"))]
            let _ = unsafe { rustix::mm::munmap(self.pointer.as_ptr().cast(), self.layout.size()) };
        } else {
            // SAFETY: allocated in `new` with this layout.
            unsafe { dealloc(self.pointer.as_ptr(), self.layout) };
        }
    }
}

impl Deref for Column {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: there are `size` initialised bytes.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for Column {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.layout.size()) }
    }
}
