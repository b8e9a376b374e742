//! What handles point to: a word that says of which kind, and the value.

use std::ptr::NonNull;

use crate::failure::{Failure, guard};
use crate::pointers::{Out, value};
use crate::process;
use crate::status::V2L_ERROR_INVALID_ARGUMENT;

/// The kinds of handles.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Cancel = 1,
    Tensors,
    Engine,
    Adapter,
    Session,
    Predictor,
    Pipeline,
    Job,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Cancel,
        Self::Tensors,
        Self::Engine,
        Self::Adapter,
        Self::Session,
        Self::Predictor,
        Self::Pipeline,
        Self::Job,
    ];

    /// The first word of a handle of this kind: nothing that memory holds by chance.
    const fn word(self) -> u64 {
        0x5632_4c68_616e_6400 + self as u64
    }

    /// The name in the header.
    const fn name(self) -> &'static str {
        match self {
            Self::Cancel => "v2l_cancel",
            Self::Tensors => "v2l_tensors",
            Self::Engine => "v2l_engine",
            Self::Adapter => "v2l_adapter",
            Self::Session => "v2l_session",
            Self::Predictor => "v2l_predictor",
            Self::Pipeline => "v2l_pipeline",
            Self::Job => "v2l_job",
        }
    }
}

/// The first word of a handle that was freed, for as long as its memory is not used again.
const FREED: u64 = 0x5632_4c67_6f6e_6500;

/// What callers get a pointer to.
pub(crate) trait Handle {
    /// Its kind.
    const KIND: Kind;
}

/// A handle's memory. Callers see a pointer to `T`, which is never followed as such.
#[repr(C)]
struct Tagged<T> {
    word: u64,
    value: T,
}

/// A handle that must be there, of the kind that is expected.
///
/// # Safety
/// The header's promise; a handle of another kind is found.
pub(crate) unsafe fn required<'a, T: Handle>(handle: *const T, name: &str) -> Result<&'a T, Failure> {
    let tagged = handle.cast::<Tagged<T>>();
    // SAFETY: every handle begins with its word, and the caller's promise.
    let found = *unsafe { value(tagged.cast::<u64>(), name) }?;
    if found != T::KIND.word() {
        return Err(other(found, T::KIND, name));
    }
    // SAFETY: the word says so, and the caller's promise.
    Ok(unsafe { &(*tagged).value })
}

/// A handle that may be left out.
///
/// # Safety
/// As [`required`].
pub(crate) unsafe fn optional<'a, T: Handle>(handle: *const T, name: &str) -> Result<Option<&'a T>, Failure> {
    // SAFETY: the caller's promise.
    if handle.is_null() { Ok(None) } else { unsafe { required(handle, name) }.map(Some) }
}

fn other(found: u64, expected: Kind, name: &str) -> Failure {
    let kind = Kind::ALL.into_iter().find(|kind| kind.word() == found);
    let found = match kind {
        Some(kind) => format!("a {}", kind.name()),
        None if found == FREED => "a handle that was freed".to_owned(),
        None => "no handle of this library".to_owned(),
    };
    Failure::new(V2L_ERROR_INVALID_ARGUMENT, format!("`{name}` is {found}; expected a {}", expected.name()))
}

impl<T: Handle> Out<*mut T> {
    /// Where a handle goes; NULL until it is given.
    ///
    /// # Safety
    /// As [`Out::new`].
    pub(crate) unsafe fn handle(pointer: *mut *mut T, name: &str) -> Result<Self, Failure> {
        process::claim();
        // SAFETY: the caller's promise.
        let out = unsafe { Self::new(pointer, name) }?;
        out.put(std::ptr::null_mut());
        Ok(out)
    }

    /// Gives a handle away; `v2l_…_free` ends it.
    pub(crate) fn give(self, value: T) {
        let tagged = Box::into_raw(Box::new(Tagged { word: T::KIND.word(), value }));
        self.set(tagged.cast::<T>());
    }
}

/// Frees a handle. It is kept inside a callback, in a fork's child, and if it is of another kind.
///
/// # Safety
/// `handle` is NULL or was given out by [`Out::give`], and is not used again.
pub(crate) unsafe fn free<T: Handle>(handle: *mut T) {
    guard(|| {
        let Some(tagged) = NonNull::new(handle.cast::<Tagged<T>>()) else { return Ok(()) };
        // SAFETY: the caller's promise.
        unsafe { required(handle.cast_const(), "handle") }?;
        // SAFETY: the memory is this handle's, made by a `Box`. The word outlives it, for those who use it again.
        unsafe {
            (&raw mut (*tagged.as_ptr()).word).write_volatile(FREED);
            drop(Box::from_raw(tagged.as_ptr()));
        }
        Ok(())
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log;
    use crate::status::{V2L_ERROR_NULL, V2L_OK};

    /// A handle whose end is seen.
    struct Seen {
        _held: std::rc::Rc<()>,
    }

    impl Handle for Seen {
        const KIND: Kind = Kind::Engine;
    }

    struct Another;

    impl Handle for Another {
        const KIND: Kind = Kind::Adapter;
    }

    fn made<T: Handle>(value: T) -> *mut T {
        let mut handle = std::ptr::null_mut();
        // SAFETY: a place for a pointer.
        unsafe { Out::handle(&mut handle, "handle") }.unwrap().give(value);
        handle
    }

    #[test]
    fn handle_of_another_kind_is_refused_and_kept() {
        let seen = std::rc::Rc::new(());
        let handle = made(Seen { _held: seen.clone() });
        // SAFETY: a handle of this library, which is what is looked at first.
        unsafe {
            let refused = required(handle.cast::<Another>().cast_const(), "adapters[0].adapter").err().unwrap();
            assert_eq!(refused.status, V2L_ERROR_INVALID_ARGUMENT);
            assert_eq!(refused.message, "`adapters[0].adapter` is a v2l_engine; expected a v2l_adapter");
            free(handle.cast::<Another>());
            assert_eq!(std::rc::Rc::strong_count(&seen), 2);
            assert!(required(handle.cast_const(), "engine").is_ok());
            free(handle);
        }
        assert_eq!(std::rc::Rc::strong_count(&seen), 1);
    }

    #[test]
    fn handle_that_is_null_or_no_handle_is_refused() {
        static FREED: u64 = super::FREED;
        static ZERO: u64 = 0;
        // SAFETY: NULL, and a word that is no handle's.
        unsafe {
            assert_eq!(required::<Seen>(std::ptr::null(), "engine").err().unwrap().status, V2L_ERROR_NULL);
            let refused = required((&raw const FREED).cast::<Seen>(), "engine").err().unwrap();
            assert_eq!(refused.message, "`engine` is a handle that was freed; expected a v2l_engine");
            let refused = required((&raw const ZERO).cast::<Seen>(), "engine").err().unwrap();
            assert_eq!(refused.message, "`engine` is no handle of this library; expected a v2l_engine");
        }
    }

    #[test]
    fn free_inside_a_callback_keeps_the_handle() {
        let seen = std::rc::Rc::new(());
        let handle = made(Seen { _held: seen.clone() });
        // SAFETY: the first call keeps the handle, the second ends it.
        log::call(|| unsafe { free(handle) });
        assert_eq!(std::rc::Rc::strong_count(&seen), 2);
        // SAFETY: as above.
        unsafe { free(handle) };
        assert_eq!(std::rc::Rc::strong_count(&seen), 1);
        assert_eq!(guard(|| Ok(())), V2L_OK);
    }
}
