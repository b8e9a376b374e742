use std::path::Path;

use super::opened::{Opened, build_api, check, load, symbol, unloadable, version_of};
use super::{Found, LibraryError};
use crate::ffi::{Api, CreateBuilder, CreateParser, Entry};
use crate::{Flavour, Version};

/// TensorRT and its ONNX parser, loaded and of the right version. They stay until the process ends.
pub struct Library {
    opened: Opened,
    pub(crate) api: &'static Api,
    pub(crate) entry: Entry,
}

impl Library {
    /// Finds and loads a flavour; `explicit` is a library, or a folder that holds one.
    ///
    /// # Errors
    /// [`LibraryError`].
    pub fn open(flavour: Flavour, explicit: Option<&Path>) -> Result<Self, LibraryError> {
        Self::with(Opened::open(flavour, explicit)?)
    }

    /// Loads the library that another process found.
    ///
    /// # Errors
    /// [`LibraryError`].
    pub(crate) fn open_found(flavour: Flavour, found: Found) -> Result<Self, LibraryError> {
        Self::with(Opened::open_found(flavour, found)?)
    }

    fn with(opened: Opened) -> Result<Self, LibraryError> {
        let (flavour, found) = (opened.flavour, &opened.found);
        let path = found.path.with_file_name(flavour.parser());
        let unloadable = |error| unloadable(flavour, &path, found, &error);
        let parser = load(&path).map_err(unloadable)?;
        let version = version_of(parser, c"getNvOnnxParserVersion").map_err(unloadable)?;
        check(flavour, build_api(flavour).parser_version, &path, &found.from, version)?;
        let entry = Entry {
            create_builder: opened.symbol::<CreateBuilder>(c"createInferBuilder_INTERNAL")?,
            create_parser: symbol::<CreateParser>(parser, c"createNvOnnxParser_INTERNAL").map_err(unloadable)?,
        };
        Ok(Self { api: build_api(flavour), opened, entry })
    }

    /// Which TensorRT it is.
    pub const fn flavour(&self) -> Flavour {
        self.opened.flavour
    }

    /// What the library says of itself.
    pub const fn version(&self) -> Version {
        self.opened.version
    }

    /// Where it lies, and how it was found.
    pub const fn found(&self) -> &Found {
        &self.opened.found
    }
}
