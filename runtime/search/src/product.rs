//! A library or program that is found at run time: one description of each, one search, one kind of error.
//!
//! Order: the option, environment variables, next to the executable, `vendor/` of the checkout for an executable in its `target/`, a Python
//! environment's package, the user's own list of folders, the loader's own places. The first two are never passed over: if they name
//! something that is not there, that is an error. What others could have put where it lies is passed over ([`crate::trusted`]), but for what
//! the user's list holds.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::wording::{Supply, Words};

/// The user's own list of folders with libraries.
pub const LIBRARY_PATH: &str = if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };

/// A library or program that v2l uses and does not bring.
#[derive(Debug, PartialEq, Eq)]
pub struct Product {
    /// Its name.
    pub title: &'static str,
    /// How to come by it.
    pub supply: Supply,
    /// The option that names it, or the folder of it.
    pub option: Words,
    /// How its file is called.
    pub file: FileName,
    /// Where it may be.
    pub places: Places,
    /// True if the loader is asked for it where it is in no place.
    pub by_loader: bool,
}

/// How a product's file is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileName {
    /// A library by its stem, with a version or without: `libx.so`, `libx.so.1.31.1`, `libx.1.31.1.dylib`, `x.dll`.
    Library(&'static str),
    /// A library of one version.
    Exactly(&'static str),
    /// A program, whose name may go on behind a hyphen: `ffmpeg`, `ffmpeg-linux-x86_64-v7.0.2`.
    Program(&'static str),
}

impl FileName {
    /// The name without a version.
    pub fn plain(self) -> String {
        match self {
            Self::Library(stem) => format!("{}{stem}{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX),
            Self::Exactly(name) => name.to_owned(),
            Self::Program(name) => format!("{name}{}", env::consts::EXE_SUFFIX),
        }
    }

    fn matches(self, name: &str) -> bool {
        let rest = match self {
            Self::Library(stem) => name.strip_prefix(env::consts::DLL_PREFIX).and_then(|rest| rest.strip_prefix(stem)),
            Self::Exactly(exact) => return name == exact,
            Self::Program(program) => return name == self.plain() || name.starts_with(&format!("{program}-")),
        };
        // Not `libx_other.so`.
        let end = env::consts::DLL_SUFFIX;
        rest.is_some_and(|rest| rest.starts_with(end) || (rest.starts_with('.') && rest.ends_with(end)))
    }

    /// The file to use in a folder: the plain name first, then the last version by name.
    fn inside(self, folder: &Path) -> Option<PathBuf> {
        let plain = self.plain();
        let mut names: Vec<PathBuf> = crate::entries(folder, "");
        names.retain(|path| path.file_name().is_some_and(|name| self.matches(&name.to_string_lossy())));
        names.sort_by_key(|path| path.file_name() == Some(OsStr::new(&plain)));
        names.into_iter().rev().find(|path| path.is_file())
    }

    /// The file to use in a folder of the user's list, where `ffmpeg-normalize` is another program.
    fn listed(self, folder: &Path) -> Option<PathBuf> {
        match self {
            Self::Program(_) => Some(folder.join(self.plain())).filter(|path| path.is_file()),
            _ => self.inside(folder),
        }
    }
}

/// Where libraries of one kind may be.
#[derive(Debug, PartialEq, Eq)]
pub struct Places {
    /// Environment variables that name a file or folder; messages name the first one.
    pub variables: &'static [&'static str],
    /// The folder below a checkout.
    pub vendored: &'static str,
    /// The folder below `site-packages`, for what a Python package brings.
    pub package: Option<&'static str>,
    /// The variable with the user's own list of folders.
    pub list: &'static str,
}

/// A folder to look into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
    /// How it was found.
    pub from: String,
    /// True if it is of the user's own list.
    pub listed: bool,
}

impl Places {
    /// What the first variable names that is set.
    pub fn variable(&self) -> Option<(PathBuf, &'static str)> {
        let set = |name: &&'static str| Some((env::var_os(name).filter(|path| !path.is_empty())?.into(), *name));
        self.variables.iter().find_map(set)
    }

    /// Every folder, the likeliest first.
    pub fn folders(&self) -> Vec<Folder> {
        let own = crate::executable().map(|folder| (folder, "next to the executable"));
        let vendored = crate::vendored(self.vendored).map(|folder| (folder, "vendor"));
        let packages = self.package.into_iter().flat_map(|package| {
            let folders = crate::site_packages().into_iter().map(move |folder| match package {
                "" => folder,
                below => folder.join(below),
            });
            folders.filter(|folder| folder.is_dir()).map(|folder| (folder, "a Python package"))
        });
        let found = own.into_iter().chain(vendored).chain(packages);
        let found = found.map(|(path, from)| Folder { path, from: from.to_owned(), listed: false });
        let listed = crate::listed(env::var_os(self.list).as_deref()).into_iter();
        found.chain(listed.map(|path| Folder { path, from: format!("${}", self.list), listed: true })).collect()
    }
}

/// A file, and how it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it is; a bare file name is left to the system's loader.
    pub path: PathBuf,
    /// The option or variable that names it, `vendor`, …
    pub from: String,
}

impl Found {
    /// True for what is left to the system's loader, whose own places need not hold it.
    pub fn is_bare(&self) -> bool {
        self.path.parent() == Some(Path::new(""))
    }
}

/// Why a product cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// This v2l is built without what uses it.
    #[error("this v2l was built without {title}, as its packages are; build it from source with {build}")]
    NotBuiltIn {
        /// Its name.
        title: &'static str,
        /// The command.
        build: &'static str,
    },
    /// An option or variable names something that is not there.
    #[error("{}: {from} names {}, {}; correct it, or leave it out and {}", of.title, path.display(), lack(of, path), of.supply)]
    NotThere {
        /// What was looked for.
        of: &'static Product,
        /// The option or variable.
        from: String,
        /// What it names.
        path: PathBuf,
    },
    /// It is nowhere.
    #[error("{} was not found; looked at {}; {}; or name yours with `{}` or {}", of.title, looked.join(", "), of.supply, of.option, of.places.variables[0])]
    Missing {
        /// What was looked for.
        of: &'static Product,
        /// Every place that was tried.
        looked: Vec<String>,
    },
    /// The system cannot load it, or it is something else.
    #[error("{} (from {}) cannot be loaded as {}: {reason}; {}; or name another with `{}`", found.path.display(), found.from, of.title, of.supply, of.option)]
    Unloadable {
        /// What it was to be.
        of: &'static Product,
        /// The library.
        found: Box<Found>,
        /// The loader's words.
        reason: String,
    },
    /// It is of a version that does not work.
    #[error("{} (from {}) is {} {version}; expected {expected}: {}; or name another with `{}`", found.path.display(), found.from, of.title, of.supply, of.option)]
    Version {
        /// What it is.
        of: &'static Product,
        /// The library.
        found: Box<Found>,
        /// What it says of itself.
        version: String,
        /// The versions that work.
        expected: String,
    },
    /// The process has another one already.
    #[error("{} was asked for, but this process has loaded {} from {}; one process uses one library", requested.display(), of.title, loaded.display())]
    AlreadyLoaded {
        /// Which library.
        of: &'static Product,
        /// What was asked for.
        requested: PathBuf,
        /// What is in use.
        loaded: PathBuf,
    },
}

fn lack(of: &Product, path: &Path) -> String {
    if path.exists() { format!("where there is no {}", of.file.plain()) } else { "which does not exist".to_owned() }
}

impl Product {
    /// Looks for it. `explicit` is a file, or a folder that holds one.
    ///
    /// # Errors
    /// [`LibraryError::NotThere`], for `explicit` and for what a variable names.
    pub fn search(&'static self, explicit: Option<&Path>) -> Result<Search, LibraryError> {
        let explicit = explicit.map(|path| (path.to_owned(), self.option.to_string()));
        let named = explicit.or_else(|| self.places.variable().map(|(path, name)| (path, name.to_owned())));
        let named = named.map(|(path, from)| self.named(path, from)).transpose()?;
        let is_named = named.is_some();
        Ok(Search {
            of: self,
            folders: if is_named { Vec::new() } else { self.places.folders() }.into_iter(),
            by_loader: self.by_loader && !is_named,
            named,
            looked: self.places.variables.iter().map(|variable| format!("${variable} (not set)")).collect(),
        })
    }

    /// The first file there is.
    ///
    /// # Errors
    /// As [`Self::search`], and [`LibraryError::Missing`].
    pub fn find(&'static self, explicit: Option<&Path>) -> Result<Found, LibraryError> {
        let mut search = self.search(explicit)?;
        search.next().ok_or_else(|| search.missing())
    }

    /// Checks that what is asked for, if anything is, is what the process has loaded.
    ///
    /// # Errors
    /// As [`Self::find`], and [`LibraryError::AlreadyLoaded`].
    pub fn check_loaded(&'static self, explicit: Option<&Path>, loaded: &Path) -> Result<(), LibraryError> {
        let Some(explicit) = explicit else { return Ok(()) };
        let requested = self.find(Some(explicit))?.path;
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if real(&requested) == real(loaded) {
            return Ok(());
        }
        Err(LibraryError::AlreadyLoaded { of: self, requested, loaded: loaded.to_owned() })
    }

    fn named(&'static self, path: PathBuf, from: String) -> Result<Found, LibraryError> {
        // As a name alone the loader would look for it in its own places.
        let path = std::path::absolute(&path).unwrap_or(path);
        let found = if path.is_dir() { self.file.inside(&path) } else { path.is_file().then(|| path.clone()) };
        match found {
            Some(path) => Ok(Found { path, from }),
            None => Err(LibraryError::NotThere { of: self, from, path }),
        }
    }
}

/// The files that may be it, one after the other, and the places that were looked at in vain.
#[derive(Debug)]
pub struct Search {
    of: &'static Product,
    named: Option<Found>,
    folders: std::vec::IntoIter<Folder>,
    by_loader: bool,
    looked: Vec<String>,
}

impl Search {
    /// The error of one that found nothing that will do.
    pub fn missing(self) -> LibraryError {
        LibraryError::Missing { of: self.of, looked: self.looked }
    }

    fn inside(&mut self, folder: Folder) -> Option<Found> {
        let Folder { path, from, listed } = folder;
        let file = self.of.file;
        let Some(found) = (if listed { file.listed(&path) } else { file.inside(&path) }) else {
            let place = if listed { from } else { path.display().to_string() };
            self.looked.extend((!self.looked.contains(&place)).then_some(place));
            return None;
        };
        match if listed { Ok(()) } else { crate::usable(&found) } {
            Ok(()) => Some(Found { path: found, from }),
            Err(why) => {
                self.looked.push(format!("{} (not used: {why})", found.display()));
                None
            }
        }
    }
}

impl Iterator for Search {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        if let Some(named) = self.named.take() {
            return Some(named);
        }
        while let Some(folder) = self.folders.next() {
            if let Some(found) = self.inside(folder) {
                return Some(found);
            }
        }
        // Its cache and built-in folders cannot be listed.
        std::mem::take(&mut self.by_loader).then(|| {
            self.looked.push("the loader's own places".to_owned());
            Found { path: self.of.file.plain().into(), from: "the loader".to_owned() }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static ENGINE: Product = Product {
        title: "Engine",
        supply: Supply::anywhere("install it"),
        option: Words::new(["engine.library", "--engine-lib", "engine_library"]),
        file: FileName::Library("engine"),
        places: Places {
            variables: &["V2L_NO_SUCH_LIB"],
            vendored: "vendor/engine",
            package: None,
            list: "V2L_NO_SUCH_PATH",
        },
        by_loader: true,
    };

    #[test]
    #[cfg(target_os = "linux")]
    fn find_takes_a_named_file_or_the_one_in_a_named_folder() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["libengine.so.2640", "libengine.so.2641", "libengine.txt", "libengine_other.so", "libeng.so.2"] {
            std::fs::write(folder.path().join(name), b"").unwrap();
        }
        let file = folder.path().join("libengine.so.2641");
        for named in [file.as_path(), folder.path()] {
            let found = ENGINE.find(Some(named)).unwrap();
            assert_eq!(found, Found { path: file.clone(), from: "engine.library".to_owned() });
        }
        let plain = folder.path().join("libengine.so");
        std::fs::write(&plain, b"").unwrap();
        assert_eq!(ENGINE.find(Some(folder.path())).unwrap().path, plain);
    }

    #[test]
    fn find_of_a_path_without_the_library_names_option_path_and_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let message = |path: &Path| ENGINE.find(Some(path)).unwrap_err().to_string();
        let (there, nowhere) = (folder.path().display(), folder.path().join("none"));
        let end = "; correct it, or leave it out and install it";
        let plain = ENGINE.file.plain();
        assert_eq!(
            message(folder.path()),
            format!("Engine: engine.library names {there}, where there is no {plain}{end}")
        );
        let expected = format!("Engine: engine.library names {}, which does not exist{end}", nowhere.display());
        assert_eq!(message(&nowhere), expected);
    }

    #[test]
    fn search_without_a_name_ends_with_the_loader_and_says_where_it_looked() {
        let mut search = ENGINE.search(None).unwrap();
        let last = search.by_ref().last().unwrap();
        assert!(last.is_bare() && last.from == "the loader", "{last:?}");
        let message = search.missing().to_string();
        assert!(message.starts_with("Engine was not found; looked at $V2L_NO_SUCH_LIB (not set), "), "{message}");
        let end = "the loader's own places; install it; or name yours with `engine.library` or V2L_NO_SUCH_LIB";
        assert!(message.ends_with(end), "{message}");
    }

    #[test]
    fn program_of_another_version_is_found_in_a_folder_of_its_own_and_not_in_a_list() {
        let folder = tempfile::tempdir().unwrap();
        let file = FileName::Program("ffmpeg");
        let versioned = folder.path().join("ffmpeg-linux-x86_64-v7.0.2");
        std::fs::write(&versioned, b"").unwrap();
        std::fs::write(folder.path().join("readme"), b"").unwrap();
        assert_eq!(file.inside(folder.path()), Some(versioned));
        assert_eq!(file.listed(folder.path()), None);
    }

    #[test]
    fn library_that_is_loaded_is_the_only_one() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        std::fs::write(&one, b"").unwrap();
        std::fs::write(&other, b"").unwrap();
        assert_eq!(ENGINE.check_loaded(None, &one), Ok(()));
        assert_eq!(ENGINE.check_loaded(Some(&one), &one), Ok(()));
        let error = ENGINE.check_loaded(Some(&other), &one).unwrap_err();
        assert!(matches!(error, LibraryError::AlreadyLoaded { .. }), "{error}");
    }
}
