use std::convert::Infallible;
use std::path::Path;

use super::{Found, LibraryError, not_built_in};
use crate::builder::{BuildError, Built, Child, Request, Step};
use crate::{Flavour, Version};

/// TensorRT, which a build without the feature `build` cannot open.
pub struct Library(Infallible);

impl Library {
    /// Finds and loads a flavour.
    ///
    /// # Errors
    /// [`LibraryError::NotBuiltIn`], always.
    pub fn open(flavour: Flavour, _explicit: Option<&Path>) -> Result<Self, LibraryError> {
        Err(not_built_in(flavour))
    }

    /// Which TensorRT it is.
    pub const fn flavour(&self) -> Flavour {
        match self.0 {}
    }

    /// What the library says of itself.
    pub const fn version(&self) -> Version {
        match self.0 {}
    }

    /// Where it lies, and how it was found.
    pub const fn found(&self) -> &Found {
        match self.0 {}
    }

    /// Builds a plan.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn build(
        &self,
        _request: &Request<'_>,
        _progress: &mut (dyn FnMut(Step<'_>) -> bool + Send),
    ) -> Result<Built, BuildError> {
        match self.0 {}
    }

    /// Builds a plan in a process of its own.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn build_in(
        &self,
        _child: Child<'_>,
        _request: &Request<'_>,
        _progress: &mut dyn FnMut(Step<'_>) -> bool,
    ) -> Result<Built, BuildError> {
        match self.0 {}
    }
}
