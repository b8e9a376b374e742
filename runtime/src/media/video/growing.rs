//! Bytes of frames that come one by one, with an eye to the memory.

use super::frames::{VideoError, check_total};
use crate::memory::check_room;

/// The bytes of frames so far.
#[derive(Default)]
pub(super) struct Growing(Vec<u8>);

impl Growing {
    /// Makes room for the frame that makes them `count`, of (width, height).
    ///
    /// # Errors
    /// [`VideoError::Size`] for a frame or a number of them out of bounds, [`VideoError::Memory`].
    pub(super) fn make_room(&mut self, (width, height): (usize, usize), count: usize) -> Result<(), VideoError> {
        check_total(width, height, count)?;
        let frame = width * height * 3;
        if self.0.capacity() - self.0.len() < frame {
            // Half as much again, so that it happens seldom.
            let more = frame.max(self.0.len() / 2);
            // While it moves, both the old and the new are there.
            let needed = (self.0.len() + more) as u64;
            check_room("reading these frames", needed, 0, |_| vec!["a shorter or smaller one".to_owned()])?;
            self.0.reserve_exact(more);
        }
        Ok(())
    }

    pub(super) fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

impl From<Growing> for Vec<u8> {
    fn from(growing: Growing) -> Self {
        growing.0
    }
}
