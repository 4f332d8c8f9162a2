//! Memory of results that were dropped, to be used again: new memory costs more than filling it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use crate::{
    error::{Error, Result},
    memory::Block,
};

/// Most that is kept unused, beside `BATCHES` times the largest batch.
const IDLE_LIMIT: usize = 1 << 30;
/// Two that are drawn in turn, each while the one before is still there.
const BATCHES: usize = 4;
/// Batches drawn after which memory that none of them could use is given back to the system.
const PATIENCE: u64 = 64;
/// Size in whole steps of which memory is taken, so that results of about one size can have the same.
const STEP: usize = 64 << 10;

/// Where results take their memory from, and dropped ones leave it.
#[derive(Default)]
pub struct Pool(Mutex<Idle>);

/// Unused memory, that which is unused for longest first, each with the number of batches drawn by then.
#[derive(Default)]
struct Idle {
    blocks: VecDeque<(u64, Block)>,
    bytes: usize,
    drawn: u64,
    largest: usize,
}

/// The memory of one result, for as long as this is there.
pub struct Lease {
    block: Option<Block>,
    pool: Weak<Pool>,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells that a batch whose parts take `bytes` together is drawn.
    pub fn begin(&self, bytes: usize) {
        let mut idle = self.lock();
        idle.drawn += 1;
        idle.largest = idle.largest.max(bytes);
        let _given_back_unlocked = (idle.excess(), drop(idle));
    }

    /// Memory of at least `bytes`, with anything in it, for what `what` names.
    pub fn take(self: &Arc<Self>, bytes: usize, what: &str) -> Result<Lease> {
        let kept = self.lock().fitting(bytes);
        let new = || bytes.max(1).checked_next_multiple_of(STEP).and_then(Block::layout).and_then(Block::zeroed);
        match kept.or_else(new) {
            Some(block) => Ok(Lease { block: Some(block), pool: Arc::downgrade(self) }),
            None => Err(Error::Memory(format!("no memory for {what}: {bytes} bytes"))),
        }
    }

    /// Bytes that are kept unused.
    pub fn idle(&self) -> usize {
        self.lock().bytes
    }
}

impl Idle {
    /// The smallest that is large enough but not much too large, of several the one that was used last.
    fn fitting(&mut self, bytes: usize) -> Option<Block> {
        let fits = |len: usize| len >= bytes && len - bytes <= bytes / 8 + STEP;
        let places = self.blocks.iter().enumerate().rev().filter(|(_, (_, block))| fits(block.len()));
        let (place, _) = places.min_by_key(|(_, (_, block))| block.len())?;
        let (_, block) = self.blocks.remove(place)?;
        self.bytes -= block.len();
        Some(block)
    }

    fn keep(&mut self, block: Block) {
        self.bytes += block.len();
        self.blocks.push_back((self.drawn, block));
    }

    /// What is too much or too old.
    fn excess(&mut self) -> Vec<Block> {
        let limit = IDLE_LIMIT.min(self.largest.saturating_mul(BATCHES));
        let mut excess = Vec::new();
        while let Some((since, block)) = self.blocks.front()
            && (self.bytes > limit || self.drawn - since > PATIENCE)
        {
            self.bytes -= block.len();
            excess.extend(self.blocks.pop_front().map(|(_, block)| block));
        }
        excess
    }
}

impl Lease {
    /// Where the memory begins, on a cache line.
    pub fn pointer(&self) -> *mut u8 {
        self.block.as_ref().map_or(std::ptr::null_mut(), Block::pointer)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let (Some(block), Some(pool)) = (self.block.take(), self.pool.upgrade()) {
            let mut idle = pool.lock();
            idle.keep(block);
            let _given_back_unlocked = (idle.excess(), drop(idle));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(pool: &Arc<Pool>, bytes: usize) -> Lease {
        pool.begin(bytes);
        pool.take(bytes, "a test").unwrap()
    }

    #[test]
    fn memory_is_used_again_once_it_is_dropped_and_never_before() {
        let pool = Arc::new(Pool::default());
        let one = take(&pool, 3 << 20);
        let two = take(&pool, 3 << 20);
        assert_ne!(one.pointer(), two.pointer());
        let place = one.pointer();
        drop(one);
        // Neither much smaller nor larger ones can have it.
        assert_ne!(take(&pool, 1 << 20).pointer(), place);
        assert_ne!(take(&pool, 4 << 20).pointer(), place);
        assert_eq!(take(&pool, (3 << 20) - 100).pointer(), place);
        drop((two, pool));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let pool = Arc::new(Pool::default());
        let held: Vec<_> = (0..20).map(|_| take(&pool, 1 << 20)).collect();
        assert_eq!(pool.idle(), 0);
        drop(held);
        assert_eq!(pool.idle(), BATCHES << 20);
        // Others are drawn, and these are not wanted any more.
        for _ in 0..=PATIENCE {
            assert_eq!(pool.idle() & ((1 << 20) - 1), 0);
            drop(take(&pool, 64 << 20));
        }
        assert_eq!(pool.idle(), 64 << 20);
        let last = take(&pool, 64 << 20);
        drop(pool);
        // SAFETY: the lease keeps its memory beyond the pool.
        unsafe { last.pointer().write(1) };
    }

    #[test]
    fn too_much_is_an_error() {
        let pool = Arc::new(Pool::default());
        for bytes in [usize::MAX, isize::MAX as usize, 1 << 60] {
            let error = pool.take(bytes, "field \"x\"").err().unwrap();
            assert_eq!(error.to_string(), format!("no memory for field \"x\": {bytes} bytes"));
        }
    }
}
