//! Owned bytes, and what makes large ones fast: pages, prefetching and copies beside the caches.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    ptr::NonNull,
};

use crate::error::{Error, Result};

/// Size from which large pages are asked for, as NumPy does.
#[cfg(target_os = "linux")]
const HUGE_FROM: usize = 4 << 20;
/// Advice is given for whole pages; of the common sizes, the largest.
#[cfg(target_os = "linux")]
const PAGE: usize = 64 << 10;
/// Size of a copy from which its target does not stay in the caches anyway.
pub(crate) const STREAM_FROM: usize = 16 << 20;

/// Size from which memory is mapped: what the heap gives zeroed on a cache line, it has written to.
#[cfg(any(target_os = "linux", target_os = "macos"))]
const MAP_FROM: usize = 1 << 20;

/// Zeroed bytes on a cache line, whose pages cost memory once they are written: on the heap where they are few, mapped
/// where they are many or in a file. Who may read and write which is up to the owner.
pub(crate) struct Block {
    pointer: NonNull<u8>,
    layout: Layout,
    mapped: bool,
}

// SAFETY: the bytes are owned, and reached only through a raw pointer.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// The layout of some bytes; `None` for none or for more than there can be.
    pub(crate) fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes, 64).ok().filter(|layout| layout.size() > 0)
    }

    /// Memory of this process, in large pages where it is large; `None` where there is none. The layout is one that
    /// `layout` gave.
    pub(crate) fn zeroed(layout: Layout) -> Option<Self> {
        #[cfg(any(target_os = "linux", target_os = "macos"))]
        if layout.size() >= MAP_FROM {
            use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
            let access = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping at a place that the system chooses.
            let pointer =
                unsafe { mmap_anonymous(std::ptr::null_mut(), layout.size(), access, MapFlags::PRIVATE) }.ok()?;
            let block = Self { pointer: NonNull::new(pointer.cast())?, layout, mapped: true };
            prefer_huge_pages(block.pointer(), layout.size());
            return Some(block);
        }
        // SAFETY: the layout has a size above zero.
        let pointer = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { pointer, layout, mapped: false })
    }

    /// The first bytes of `file`, shared with everyone who maps them.
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    pub(crate) fn mapped(layout: Layout, file: impl std::os::fd::AsFd) -> std::io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place that the system chooses.
        let pointer = unsafe { mmap(std::ptr::null_mut(), layout.size(), access, MapFlags::SHARED, file, 0) }?;
        let pointer = NonNull::new(pointer.cast()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self { pointer, layout, mapped: true })
    }

    /// Where the bytes begin.
    pub(crate) fn pointer(&self) -> *mut u8 {
        self.pointer.as_ptr()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.mapped {
            // SAFETY: mapped in `zeroed` or `mapped` with this size. It cannot fail for a mapping that exists.
            #[cfg(any(target_os = "linux", target_os = "macos"))]
            let _ = unsafe { rustix::mm::munmap(self.pointer.as_ptr().cast(), self.layout.size()) };
        } else {
            // SAFETY: allocated in `zeroed` with this layout.
            unsafe { dealloc(self.pointer.as_ptr(), self.layout) };
        }
    }
}

/// Asks for large pages behind memory just allocated: rows drawn here and there cost few page walks then.
fn prefer_huge_pages<T>(start: *const T, bytes: usize) {
    #[cfg(target_os = "linux")]
    if bytes >= HUGE_FROM {
        use rustix::mm::{Advice, madvise};
        let lost = start.addr().next_multiple_of(PAGE) - start.addr();
        // SAFETY: whole pages inside an allocation of the caller's; the advice changes no content. It can be refused,
        // which does no harm.
        let _ = unsafe {
            madvise(start.cast_mut().byte_add(lost).cast(), (bytes - lost) / PAGE * PAGE, Advice::LinuxHugepage)
        };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, bytes);
}

/// Room for `len` values, which `what` names: an error where there is none. For sizes that a caller or a file decides.
pub(crate) fn room<T>(len: usize, what: &str) -> Result<Vec<T>> {
    let mut room = Vec::new();
    match room.try_reserve_exact(len) {
        Ok(()) => Ok(room),
        Err(_) => Err(Error::Memory(format!("no memory for {what}: {len} of {} bytes each", size_of::<T>()))),
    }
}

/// As `collect`, into `room`.
pub fn try_collect<T>(values: impl ExactSizeIterator<Item = T>, what: &str) -> Result<Vec<T>> {
    let mut collected = room(values.len(), what)?;
    collected.extend(values);
    Ok(collected)
}

/// `len` times `value`, for tables that are read here and there.
pub(crate) fn table<T: Clone>(value: T, len: usize, what: &str) -> Result<Vec<T>> {
    let mut table = room(len, what)?;
    prefer_huge_pages(table.as_ptr(), len * size_of::<T>());
    table.resize(len, value);
    Ok(table)
}

/// Starts to read `table[at]`, which will be needed soon. Nothing happens where it does not exist.
#[inline]
pub(crate) fn prefetch<T>(table: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(value) = table.get(at) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint about memory that is there; every x86-64 processor knows it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (table, at);
}

/// Copies to `target`, which has as many bytes, past the caches where that can be done: the target is not read first.
pub(crate) fn stream(target: &mut [u8], source: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
        // SAFETY: any bytes are a valid `__m128i`.
        let (head, body, tail) = unsafe { target.align_to_mut::<__m128i>() };
        let (first, rest) = source.split_at(head.len());
        let (middle, last) = rest.split_at(size_of_val(body));
        head.copy_from_slice(first);
        tail.copy_from_slice(last);
        for (target, source) in body.iter_mut().zip(middle.as_chunks::<{ size_of::<__m128i>() }>().0) {
            // SAFETY: the target is aligned, the source need not be; every x86-64 processor has both.
            unsafe { _mm_stream_si128(target, _mm_loadu_si128(source.as_ptr().cast())) };
        }
        // SAFETY: no memory is concerned. Other threads may read the target once this function is over.
        unsafe { _mm_sfence() };
    }
    #[cfg(not(target_arch = "x86_64"))]
    target.copy_from_slice(source);
}

#[cfg(test)]
mod tests {
    #[test]
    fn streamed_copies_are_copies() {
        let source: Vec<u8> = (0..200).collect();
        for (at, len) in [(0, 0), (3, 5), (1, 100), (7, 193), (16, 64), (0, 200)] {
            let mut target = vec![255; 200];
            super::stream(&mut target[at..at + len], &source[at..at + len]);
            for (i, byte) in target.into_iter().enumerate() {
                assert_eq!(usize::from(byte), if (at..at + len).contains(&i) { i } else { 255 });
            }
        }
    }
}
