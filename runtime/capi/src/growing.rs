//! Structures that begin with their size. A later minor version of the ABI may add members at their end.

use crate::failure::Failure;
use crate::pointers::{Out, value};
use crate::status::V2L_ERROR_SIZE;

/// Largest size that is believed.
const MAX_SIZE: usize = 4096;

/// A structure whose first member is its size.
///
/// # Safety
/// `repr(C)`, the first member is `size: usize`, and every pattern of bits is a value.
pub(crate) unsafe trait Growing: Copy {
    /// The name in the header.
    const NAME: &'static str;
    /// Sizes in all minor versions of the ABI, ascending; the last is the present one.
    const SIZES: &'static [usize];
    /// The defaults.
    fn initial() -> Self;
}

/// Implements [`Growing`] for a structure of version 1.0.
macro_rules! growing {
    ($ty:ident, $initial:expr $(,)?) => {
        // SAFETY: `repr(C)` with `size: usize` first; numbers, pointers and optional function pointers behind it.
        unsafe impl $crate::growing::Growing for $ty {
            const NAME: &'static str = stringify!($ty);
            const SIZES: &'static [usize] = &[size_of::<$ty>()];
            fn initial() -> Self {
                $initial
            }
        }
    };
}
pub(crate) use growing;

/// How many bytes of a structure of the caller's `size` this library uses: those of the largest version that fits into it.
fn used<T: Growing>(size: usize) -> Result<usize, Failure> {
    // A structure may end in members of a version that this library does not know.
    let whole = T::SIZES.contains(&size) || size.is_multiple_of(align_of::<T>());
    let known = T::SIZES.iter().rfind(|known| **known <= size);
    if let Some(known) = known.filter(|_| whole && size <= MAX_SIZE) {
        return Ok(*known);
    }
    let message =
        format!("the size of {} is {size}; expected {:?}: set it to sizeof({0}), or call {0}_init", T::NAME, T::SIZES);
    Err(Failure::new(V2L_ERROR_SIZE, message))
}

/// The caller's size.
///
/// # Safety
/// The header's promise: at least the size can be read.
unsafe fn size_of_callers<T: Growing>(pointer: *const T) -> Result<usize, Failure> {
    // SAFETY: the size is the first member.
    unsafe { value(pointer.cast::<usize>(), T::NAME) }.copied()
}

/// What the caller set, defaults for the rest; all defaults for NULL.
///
/// # Safety
/// The header's promise: the structure is as large as it says.
pub(crate) unsafe fn read<T: Growing>(pointer: *const T) -> Result<T, Failure> {
    let mut value = T::initial();
    if pointer.is_null() {
        return Ok(value);
    }
    // SAFETY: the caller's promise.
    let size = unsafe { size_of_callers(pointer) }?;
    let used = used::<T>(size)?;
    let bytes = pointer.cast::<u8>();
    // SAFETY: `size` bytes can be read, the caller's promise.
    if unsafe { std::slice::from_raw_parts(bytes.add(used), size - used) }.iter().any(|&byte| byte != 0) {
        let message = format!(
            "{} has members that this library, ABI {}.{}, does not know; leave them zero or use a newer library",
            T::NAME,
            crate::V2L_ABI_MAJOR,
            crate::V2L_ABI_MINOR
        );
        return Err(Failure::new(V2L_ERROR_SIZE, message));
    }
    // SAFETY: both hold `used` bytes, and every pattern of bits is a value.
    unsafe { std::ptr::copy_nonoverlapping(bytes, (&raw mut value).cast::<u8>(), used) };
    Ok(value)
}

/// Fills in the defaults, as many of them as the caller's structure of `size` has; what is behind them is zeroed.
///
/// # Safety
/// The header's promise: `size` bytes can be written.
pub(crate) unsafe fn init<T: Growing>(pointer: *mut T, size: usize) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    let head = unsafe { Out::new(pointer.cast::<usize>(), T::NAME) }?;
    let used = used::<T>(size)?;
    let (initial, bytes) = (T::initial(), pointer.cast::<u8>());
    // SAFETY: `size` bytes can be written, the caller's promise.
    unsafe {
        std::ptr::copy_nonoverlapping((&raw const initial).cast::<u8>(), bytes, used);
        bytes.add(used).write_bytes(0, size - used);
    }
    head.set(size);
    Ok(())
}

/// Writes as much of `value` as the caller's structure has, whose size is kept.
///
/// # Safety
/// The header's promise: the structure is as large as it says.
pub(crate) unsafe fn write<T: Growing>(pointer: *mut T, value: T) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    let size = unsafe { size_of_callers(pointer.cast_const()) }?;
    let used = used::<T>(size)?;
    let head = size_of::<usize>();
    // SAFETY: `used` bytes can be written, the caller's promise, and read from `value`.
    unsafe {
        std::ptr::copy_nonoverlapping(
            (&raw const value).cast::<u8>().add(head),
            pointer.cast::<u8>().add(head),
            used - head,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    #[repr(C)]
    struct v2l_two {
        size: usize,
        first: u64,
        second: u64,
    }

    // SAFETY: `repr(C)`, size first, numbers only.
    unsafe impl Growing for v2l_two {
        const NAME: &'static str = "v2l_two";
        const SIZES: &'static [usize] = &[16, 24];
        fn initial() -> Self {
            Self { size: 24, first: 1, second: 2 }
        }
    }

    /// The bytes of a caller's structure.
    fn callers(words: &[u64]) -> *const v2l_two {
        words.as_ptr().cast()
    }

    #[test]
    fn read_of_an_earlier_versions_structure_has_defaults_behind_it() {
        // SAFETY: every structure is as large as it says.
        unsafe {
            assert_eq!(read(callers(&[16, 7])).unwrap(), v2l_two { size: 16, first: 7, second: 2 });
            assert_eq!(read(callers(&[24, 7, 8])).unwrap().second, 8);
            assert_eq!(read::<v2l_two>(std::ptr::null()).unwrap(), v2l_two::initial());
        }
    }

    #[test]
    fn read_of_a_later_versions_structure_wants_zeros_behind_what_is_known() {
        // SAFETY: every structure is as large as it says.
        unsafe {
            assert_eq!(read(callers(&[32, 7, 8, 0])).unwrap().second, 8);
            assert_eq!(read(callers(&[32, 7, 8, 1])).unwrap_err().status, V2L_ERROR_SIZE);
        }
    }

    #[test]
    fn read_refuses_sizes_that_were_never_published() {
        for size in [0, 8, 17, 23, 1 << 20] {
            // SAFETY: the size can be read, and nothing behind it is.
            let failure = unsafe { read(callers(&[size, 0, 0])) }.unwrap_err();
            assert_eq!(failure.status, V2L_ERROR_SIZE, "{size}");
        }
    }

    #[test]
    fn init_and_write_stay_within_the_callers_structure() {
        let mut words = [0u64, 0, 99];
        let structure = words.as_mut_ptr().cast::<v2l_two>();
        // SAFETY: 16 bytes can be written.
        unsafe {
            init(structure, 16).unwrap();
            write(structure, v2l_two { size: 24, first: 5, second: 6 }).unwrap();
        }
        assert_eq!(words, [16, 5, 99]);
    }
}
