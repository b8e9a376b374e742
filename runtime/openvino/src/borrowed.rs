//! Tensors over memory that somebody else owns.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::{Element, OpenVinoError};

/// A tensor over memory that the caller owns, and that whoever holds the tensor keeps alive. Nothing is copied, and nothing is ever written
/// to it. Cheap to clone.
#[derive(Clone)]
pub struct Borrowed {
    element: Element,
    shape: Vec<i64>,
    bytes: Range<*const u8>,
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
}

// SAFETY: the pointers lead into what `owner` owns, which may be used on any thread; they are only read through.
#[allow(unsafe_code, reason = "OpenVINO's C API")]
unsafe impl Send for Borrowed {}
// SAFETY: as above.
#[allow(unsafe_code, reason = "OpenVINO's C API")]
unsafe impl Sync for Borrowed {}

impl Borrowed {
    /// All of `owner`'s bytes as a tensor.
    ///
    /// # Errors
    /// [`OpenVinoError::Tensor`] if shape, type and bytes disagree, or the bytes are not aligned to the type.
    pub fn new<T>(element: Element, shape: &[usize], owner: Arc<T>) -> Result<Self, OpenVinoError>
    where
        T: AsRef<[u8]> + Send + Sync + 'static,
    {
        let all = 0..(*owner).as_ref().len();
        Self::part(element, shape, owner, all)
    }

    /// A part of `owner`'s bytes as a tensor: one weight of a mapped file.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn part(
        element: Element,
        shape: &[usize],
        owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
        part: Range<usize>,
    ) -> Result<Self, OpenVinoError> {
        let wrong = |reason: String| OpenVinoError::Tensor { reason };
        let bytes = (*owner).as_ref();
        let all = bytes.len();
        let bytes = bytes.get(part.clone()).ok_or_else(|| wrong(format!("bytes {part:?} of {all} were asked for")))?;
        let shape = checked(element, shape, bytes)?;
        let bytes = bytes.as_ptr_range();
        Ok(Self { element, shape, bytes, owner })
    }

    /// The type of the elements.
    pub const fn element(&self) -> Element {
        self.element
    }

    /// The extents.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// The first byte. It and those of the shape stay as long as a clone of `self` does: the owner is shared, so that nobody can have it mutably.
    pub(crate) const fn data(&self) -> *const u8 {
        self.bytes.start
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.end.addr() - self.bytes.start.addr()
    }
}

/// A tensor over memory that is lent to one run. Nothing is copied, and nothing is ever written to it.
#[derive(Clone, Debug)]
pub struct Lent<'a> {
    pub(crate) element: Element,
    pub(crate) shape: Vec<i64>,
    pub(crate) bytes: &'a [u8],
}

impl<'a> Lent<'a> {
    /// These bytes as a tensor.
    ///
    /// # Errors
    /// As [`Borrowed::new`].
    pub fn new(element: Element, shape: &[usize], bytes: &'a [u8]) -> Result<Self, OpenVinoError> {
        Ok(Self { element, shape: checked(element, shape, bytes)?, bytes })
    }
}

/// The shape as OpenVINO takes it, if the bytes are those of such a tensor.
fn checked(element: Element, shape: &[usize], bytes: &[u8]) -> Result<Vec<i64>, OpenVinoError> {
    let wrong = |reason: String| OpenVinoError::Tensor { reason };
    let elements = shape.iter().try_fold(1_usize, |product, extent| product.checked_mul(*extent));
    let expected = elements.and_then(|elements| elements.checked_mul(element.size()));
    if expected != Some(bytes.len()) {
        let expected = expected.map_or("more than there can be".to_owned(), |expected| expected.to_string());
        return Err(wrong(format!("{shape:?} of {element} takes {expected} bytes; there are {}", bytes.len())));
    }
    if !bytes.is_empty() && !bytes.as_ptr().addr().is_multiple_of(element.size()) {
        return Err(wrong(format!("{element} lies at an address that is no multiple of {}", element.size())));
    }
    // An extent beyond i64 beside one of 0 is nothing OpenVINO could take either.
    let shape: Result<Vec<i64>, _> = shape.iter().map(|extent| i64::try_from(*extent)).collect();
    shape.map_err(|_| wrong("an extent is too large".to_owned()))
}

impl fmt::Debug for Borrowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}, held {} times", self.element, self.shape, Arc::strong_count(&self.owner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(element: Element, shape: &[usize], bytes: usize) -> String {
        Borrowed::new(element, shape, Arc::new(vec![0_u8; bytes])).unwrap_err().to_string()
    }

    #[test]
    fn borrowed_refuses_shapes_that_do_not_fit_the_bytes() {
        assert!(reason(Element::F32, &[2, 3], 23).contains("[2, 3] of f32 takes 24 bytes; there are 23"));
        assert!(reason(Element::I64, &[usize::MAX, 2], 16).contains("more than there can be"));
        assert!(reason(Element::U8, &[usize::MAX, 0], 0).contains("too large"));
        assert!(Borrowed::new(Element::F32, &[], Arc::new(vec![0_u8; 4])).is_ok());
        assert!(Borrowed::new(Element::F32, &[0, 7], Arc::new(Vec::new())).is_ok());
    }

    #[test]
    fn borrowed_part_refuses_what_lies_outside_or_between_elements() {
        let owner: Arc<dyn AsRef<[u8]> + Send + Sync> =
            Arc::new(vec![0_u64; 4].into_iter().flat_map(u64::to_ne_bytes).collect::<Vec<u8>>());
        let part = |part| Borrowed::part(Element::F32, &[1], Arc::clone(&owner), part);
        let shift = (4 - (*owner).as_ref().as_ptr().addr() % 4) % 4;
        assert!(part(shift..shift + 4).is_ok());
        assert!(part(shift + 1..shift + 5).unwrap_err().to_string().contains("no multiple of 4"));
        assert!(part(30..34).unwrap_err().to_string().contains("bytes 30..34 of 32"));
    }
}
