//! The bytes of one field, in memory or in a file.

use std::{
    alloc::Layout,
    ops::{Deref, DerefMut},
    path::Path,
};

use crate::{
    error::{Error, Result},
    memory::Block,
};

/// Zeroed bytes that their owner alone reads and writes.
pub(crate) struct Column(Block);

impl Column {
    /// Room for `rows` rows of `row_bytes` bytes of the field `name`, in a file in the directory `storage` if given.
    pub(crate) fn new(name: &str, rows: usize, row_bytes: usize, storage: Option<&Path>) -> Result<Self> {
        let layout = rows.checked_mul(row_bytes).and_then(Block::layout);
        let block = match (layout, storage) {
            (Some(layout), Some(directory)) => return Self::mapped(name, layout, directory),
            (Some(layout), None) => Block::zeroed(layout),
            (None, _) => None,
        };
        let Some(block) = block else {
            return Err(Error::Memory(format!("no memory for field {name:?}: {rows} rows of {row_bytes} bytes")));
        };
        Ok(Self(block))
    }

    /// The file has no name from the start, so that nothing is left of it however the process ends. Its blocks are
    /// reserved here: writing to a mapped page that finds no room would kill the process.
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    fn mapped(name: &str, layout: Layout, directory: &Path) -> Result<Self> {
        let bytes = layout.size();
        let file = unnamed_file(directory).map_err(|source| Error::Io { path: directory.to_owned(), source })?;
        let room = |source| Error::Room { path: directory.to_owned(), field: name.to_owned(), bytes, source };
        reserve(&file, bytes as u64).map_err(room)?;
        Ok(Self(Block::mapped(layout, &file).map_err(room)?))
    }

    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    fn mapped(_: &str, _: Layout, _: &Path) -> Result<Self> {
        Error::value("storage in files needs Linux or macOS")
    }
}

/// Takes room for so many bytes; where the file system cannot do that at once, by writing them.
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn reserve(file: &std::fs::File, bytes: u64) -> std::io::Result<()> {
    use rustix::{
        fs::{FallocateFlags, fallocate},
        io::Errno,
    };
    use std::io::Read;
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            std::io::copy(&mut std::io::repeat(0).take(bytes), &mut &*file).map(drop)
        }
        done => Ok(done?),
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

impl Deref for Column {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: there are `size` initialised bytes.
        unsafe { std::slice::from_raw_parts(self.0.pointer(), self.0.len()) }
    }
}

impl DerefMut for Column {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.0.pointer(), self.0.len()) }
    }
}
