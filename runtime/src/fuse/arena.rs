//! Memory for fused weights: one anonymous map for all of them, used again for the next adapter.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use memmap2::MmapMut;

/// Where each tensor begins: good for every vector type and for a cache line.
const ALIGNMENT: usize = 64;

/// Buffers of fused weights that were let go, kept for the next fuse: warm memory takes a tenth of the time of fresh.
///
/// A buffer is free once no [`Bytes`] of its fuse are left. Buffers that do not suit the next fuse are given back to the
/// system.
#[derive(Debug, Default)]
pub struct Pool {
    buffers: Mutex<Vec<Arc<MmapMut>>>,
    limit: Option<usize>,
}

impl Pool {
    /// A pool that refuses to have buffers of more than `bytes` in all.
    pub fn with_limit(bytes: usize) -> Self {
        Self { buffers: Mutex::default(), limit: Some(bytes) }
    }

    /// Bytes that the pool holds, in use or free.
    pub fn held(&self) -> usize {
        self.lock().iter().map(|buffer| buffer.len()).sum()
    }

    /// Gives the free buffers back to the system.
    pub fn clear(&self) {
        self.lock().retain(|buffer| Arc::strong_count(buffer) > 1);
    }

    /// A buffer of at least `bytes` that nobody else uses; what it holds is arbitrary.
    ///
    /// # Errors
    /// [`io::ErrorKind::OutOfMemory`] beyond the limit, or the system's refusal.
    pub(super) fn take(&self, bytes: usize) -> io::Result<Buffer> {
        let mut buffers = self.lock();
        let suits = |b: &Arc<MmapMut>| Arc::strong_count(b) == 1 && b.len() >= bytes && b.len() / 2 <= bytes;
        if let Some(at) = buffers.iter().position(suits) {
            return Ok(Buffer(buffers.swap_remove(at)));
        }
        buffers.retain(|buffer| Arc::strong_count(buffer) > 1);
        let held: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        if self.limit.is_some_and(|limit| held.saturating_add(bytes) > limit) {
            let message = format!("{held} bytes are in use, and the limit is {}", self.limit.unwrap_or(usize::MAX));
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, message));
        }
        let map = MmapMut::map_anon(bytes.max(1))?;
        // Far fewer page faults; a system without huge pages says no, and that is all.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Buffer(Arc::new(map)))
    }

    /// Keeps `buffer` in mind for later.
    pub(super) fn remember(&self, buffer: &Buffer) {
        self.lock().push(Arc::clone(&buffer.0));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<MmapMut>>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer of the pool's, with one owner until it is shared.
pub(super) struct Buffer(Arc<MmapMut>);

impl Buffer {
    /// Its bytes; empty if it is shared already.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        Arc::get_mut(&mut self.0).map_or(&mut [], |map| &mut map[..])
    }

    /// Its bytes, shared.
    pub(super) fn into_bytes(self) -> Bytes {
        struct Owner(Arc<MmapMut>);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        Bytes::from_owner(Owner(self.0))
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
            pool.remember(&buffer);
            buffer.into_bytes()
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
        pool.remember(&buffer);
        let bytes = buffer.into_bytes();
        assert_eq!(pool.take(9_500).map(|_| ()).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        drop(bytes);
        assert!(pool.take(9_500).is_ok());
        assert_eq!(pool.held(), 0, "the small one went");
    }

    #[test]
    fn layout_aligns_and_checks_arithmetic() {
        assert_eq!(layout([1, 64, 0, 5]), Some((vec![0, 64, 128, 128], 133)));
        assert_eq!(layout([usize::MAX, 1]), None);
    }
}
