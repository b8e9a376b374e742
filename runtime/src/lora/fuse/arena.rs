//! Memory for fused weights: one anonymous map for all of them, used again for the next adapter.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use memmap2::MmapMut;

/// Where each tensor begins: good for every vector type and for a cache line.
const ALIGNMENT: usize = 64;

/// Buffers of fused weights that were let go, kept for the next fuse: fresh memory costs time of its own.
///
/// A buffer is free once no [`Bytes`] of its fuse are left. Buffers that do not suit the next fuse are given back to the
/// system.
#[derive(Debug, Default)]
pub struct Pool {
    state: Mutex<State>,
    limit: Option<usize>,
}

#[derive(Debug, Default)]
struct State {
    /// Shared or free: a buffer is free if nobody else has it.
    buffers: Vec<Arc<MmapMut>>,
    /// Bytes of buffers that are being written.
    lent: usize,
}

impl State {
    fn held(&self) -> usize {
        self.buffers.iter().map(|buffer| buffer.len()).sum::<usize>() + self.lent
    }

    fn clear(&mut self) {
        self.buffers.retain(|buffer| Arc::strong_count(buffer) > 1);
    }
}

impl Pool {
    /// A pool that refuses to have buffers of more than `bytes` in all.
    pub fn with_limit(bytes: usize) -> Self {
        Self { state: Mutex::default(), limit: Some(bytes) }
    }

    /// Bytes that the pool holds, in use or free.
    pub fn held(&self) -> usize {
        self.lock().held()
    }

    /// Bytes that the pool holds and nobody uses.
    pub fn free(&self) -> usize {
        let state = self.lock();
        state.buffers.iter().filter(|buffer| Arc::strong_count(buffer) == 1).map(|buffer| buffer.len()).sum()
    }

    /// Gives the free buffers back to the system.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// A buffer of at least `bytes` that nobody else uses; what it holds is arbitrary. It comes back when it is dropped.
    ///
    /// # Errors
    /// [`io::ErrorKind::OutOfMemory`] beyond the limit, or the system's refusal.
    pub(super) fn take(&self, bytes: usize) -> io::Result<Buffer<'_>> {
        let mut state = self.lock();
        let suits = |b: &Arc<MmapMut>| Arc::strong_count(b) == 1 && b.len() >= bytes && b.len() / 2 <= bytes;
        let map = match state.buffers.iter().position(suits) {
            Some(at) => state.buffers.swap_remove(at),
            None => {
                state.clear();
                let held = state.held();
                if let Some(limit) = self.limit.filter(|&limit| held.saturating_add(bytes) > limit) {
                    let message = format!("{held} bytes are in use, and the limit is {limit}");
                    return Err(io::Error::new(io::ErrorKind::OutOfMemory, message));
                }
                let map = MmapMut::map_anon(bytes.max(1))?;
                // Far fewer page faults; a system without huge pages says no, and that is all.
                #[cfg(target_os = "linux")]
                let _ = map.advise(memmap2::Advice::HugePage);
                Arc::new(map)
            }
        };
        state.lent += map.len();
        Ok(Buffer { map: Some(map), pool: self })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer of the pool's, with one owner until it is shared.
pub(super) struct Buffer<'a> {
    map: Option<Arc<MmapMut>>,
    pool: &'a Pool,
}

impl Buffer<'_> {
    /// Its bytes.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.map.as_mut().and_then(Arc::get_mut).map_or(&mut [], |map| &mut map[..])
    }

    /// Its bytes, shared; the pool has it again when the last of them is gone.
    pub(super) fn share(mut self) -> Bytes {
        struct Owner(Arc<MmapMut>);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        self.give_back().map_or_else(Bytes::new, |map| Bytes::from_owner(Owner(map)))
    }

    fn give_back(&mut self) -> Option<Arc<MmapMut>> {
        let map = self.map.take()?;
        let mut state = self.pool.lock();
        state.lent -= map.len();
        state.buffers.push(Arc::clone(&map));
        Some(map)
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Offsets of tensors of these lengths one after another, and the length in all; `None` if it overflows.
pub(super) fn layout(lengths: impl IntoIterator<Item = usize>) -> Option<(Vec<usize>, usize)> {
    let mut end = 0usize;
    let mut offsets = Vec::new();
    for length in lengths {
        let start = end.checked_next_multiple_of(ALIGNMENT)?;
        offsets.push(start);
        end = start.checked_add(length)?;
    }
    Some((offsets, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_uses_a_buffer_again_once_its_bytes_are_gone() {
        let pool = Pool::default();
        let fuse = |pool: &Pool, bytes: usize| {
            let mut buffer = pool.take(bytes).unwrap();
            buffer.bytes_mut()[0] = 7;
            buffer.share()
        };
        let first = fuse(&pool, 5000);
        let address = first.as_ptr();
        let second = fuse(&pool, 5000);
        assert_ne!(second.as_ptr(), address, "the first one is in use");
        assert_eq!(pool.held(), 10_000);
        drop(first);
        assert_eq!(fuse(&pool, 4000).as_ptr(), address);
        assert_eq!(pool.held(), 10_000);
        drop(second);
        pool.clear();
        assert_eq!(pool.held(), 0);
    }

    #[test]
    fn pool_gives_back_what_does_not_suit_and_keeps_its_limit() {
        let pool = Pool::with_limit(10_000);
        let buffer = pool.take(1000).unwrap();
        assert_eq!(pool.held(), 1000, "lent");
        let bytes = buffer.share();
        assert_eq!(pool.take(9_500).map(|_| ()).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        drop(bytes);
        assert!(pool.take(9_500).is_ok());
        assert_eq!((pool.held(), pool.free()), (9_500, 9_500), "the small one went, the large one came back");
    }

    #[test]
    fn layout_aligns_and_checks_arithmetic() {
        assert_eq!(layout([1, 64, 0, 5]), Some((vec![0, 64, 128, 128], 133)));
        assert_eq!(layout([usize::MAX, 1]), None);
    }
}
