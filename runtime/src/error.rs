//! What kind of failure an error is, and the error of the facade.
//!
//! Each error says its own class. Here is only what they share.

use std::fmt;
use std::io;

use v2l_cuda::CudaError;

/// A class of failure: what a program can act on, behind the tools' exit codes and the C library's status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// A request, or an input given with it, is wrong.
    Usage,
    /// A checkpoint, bundle or engine is malformed or does not fit its configuration.
    BadModel,
    /// A model asks for something that is not supported.
    Unsupported,
    /// An adapter is malformed, or does not cover or fit the model.
    BadAdapter,
    /// A library or file has the wrong version, or is missing from this machine.
    Version,
    /// A number is not finite where it should be.
    Numeric,
    /// Memory does not suffice.
    Memory,
    /// A file could not be read or written, or an external program failed.
    Io,
    /// The caller asked to stop.
    Cancelled,
}

/// An error that knows its class. One that passes on another error is of that error's class.
pub trait Classified: std::error::Error {
    /// The class.
    fn class(&self) -> ErrorClass;

    /// The field or input of a request that it is about, if it is about one.
    fn field(&self) -> Option<&str> {
        None
    }
}

/// Why something failed: any error of this crate, with its class.
pub struct Error {
    class: ErrorClass,
    field: Option<String>,
    inner: Box<dyn std::error::Error + Send + Sync>,
}

impl Error {
    /// What kind of failure it is.
    pub fn class(&self) -> ErrorClass {
        self.class
    }

    /// The field or input of a request that it is about, if it is about one.
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    /// The error itself, if it is an `E`.
    pub fn downcast_ref<E: std::error::Error + 'static>(&self) -> Option<&E> {
        self.inner.downcast_ref()
    }
}

// `Error` is not `Classified` itself: this conversion could not exist besides `From<T> for T`.
impl<E: Classified + Send + Sync + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        Self { class: error.class(), field: error.field().map(str::to_owned), inner: error.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source()
    }
}

/// The content of a file cannot be what it should be; an [`io::Error`] holds it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub(crate) String);

impl From<Unusable> for io::Error {
    fn from(error: Unusable) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

impl Classified for io::Error {
    fn class(&self) -> ErrorClass {
        match self.kind() {
            _ if self.get_ref().is_some_and(|inner| inner.is::<Unusable>()) => ErrorClass::BadModel,
            io::ErrorKind::OutOfMemory => ErrorClass::Memory,
            _ => ErrorClass::Io,
        }
    }
}

impl Classified for CudaError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::OutOfMemory { .. } => ErrorClass::Memory,
            _ => ErrorClass::Version,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_keeps_words_class_causes_and_type() {
        let lost = || io::Error::other(Unusable("a pointer".into()));
        let error = Error::from(lost());
        assert_eq!((error.class(), error.to_string()), (ErrorClass::BadModel, "a pointer".to_owned()));
        assert!(error.downcast_ref::<io::Error>().is_some() && error.downcast_ref::<Unusable>().is_none());
        let full = Error::from(io::Error::from(io::ErrorKind::OutOfMemory));
        assert_eq!(full.class(), ErrorClass::Memory);
    }
}
