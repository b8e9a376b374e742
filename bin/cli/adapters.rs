use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use v2l_runtime::components::{TRANSFORMER, TRANSFORMER_2};
use v2l_runtime::directory::EngineDirectory;
use v2l_runtime::engine::Engine;
use v2l_runtime::lora::adapter::Experts;
use v2l_runtime::options::OpenOptions;

use crate::Failure;

/// What adapters are for: a single engine, or the transformer of an engine directory. Maps the file, and runs nothing.
pub fn open_transformer(path: &Path) -> anyhow::Result<Arc<Engine>> {
    if path.is_dir() {
        return Ok(EngineDirectory::open(path, OpenOptions::default())?.engine(TRANSFORMER)?);
    }
    Ok(Arc::new(Engine::open(path)?))
}

/// What adapters are for: the transformer as [`open_transformer`] finds it, and the second of an engine directory with two.
pub fn open_transformers(path: &Path) -> anyhow::Result<(Arc<Engine>, Option<Arc<Engine>>)> {
    if !path.is_dir() {
        return Ok((open_transformer(path)?, None));
    }
    let mut directory = EngineDirectory::open(path, OpenOptions::default())?;
    let first = directory.engine(TRANSFORMER)?;
    let second = directory.has(TRANSFORMER_2).then(|| directory.engine(TRANSFORMER_2)).transpose()?;
    Ok((first, second))
}

/// An adapter as it is given on a command line: `PATH[@high|@low|@both][=STRENGTH]`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterArg<'a> {
    /// The file or folder.
    pub path: &'a Path,
    /// The transformers that it is for, of a model with two.
    pub experts: Option<Experts>,
    /// How strongly it acts.
    pub strength: f32,
}

impl<'a> AdapterArg<'a> {
    /// Takes an argument apart; what exists as it stands is a path.
    ///
    /// # Errors
    /// A usage error for a strength that is not a finite number, or another word behind the `@`.
    pub fn new(argument: &'a OsStr) -> anyhow::Result<Self> {
        let (path, strength) = split_strength(argument)?;
        match split_last(path.as_os_str(), b'@') {
            Some((file, word)) if !path.exists() => {
                let experts = word.to_string_lossy().parse::<Experts>();
                // A path that is wrong is better called missing.
                if experts.is_err() && !Path::new(file).exists() {
                    return Ok(Self { path, experts: None, strength });
                }
                let experts =
                    experts.map_err(|why| Failure::usage(format!("{}: after `@`: {why}", argument.display())))?;
                Ok(Self { path: Path::new(file), experts: Some(experts), strength })
            }
            _ => Ok(Self { path, experts: None, strength }),
        }
    }
}

/// Splits `PATH[=STRENGTH]`; a path that exists as it stands has strength 1.
pub fn split_strength(argument: &OsStr) -> anyhow::Result<(&Path, f32)> {
    let whole = Path::new(argument);
    match split_last(argument, b'=') {
        Some((path, strength)) if !whole.exists() => {
            let number = strength.to_str().and_then(|text| text.parse::<f32>().ok());
            let number = number.filter(|strength| strength.is_finite()).ok_or_else(|| {
                let (whole, strength) = (whole.display(), strength.display());
                Failure::usage(format!("{whole}: strength `{strength}` is not a finite number"))
            });
            Ok((Path::new(path), number?))
        }
        _ => Ok((whole, 1.0)),
    }
}

/// What is before the last `sign`, and what after.
#[cfg(unix)]
fn split_last(argument: &OsStr, sign: u8) -> Option<(&OsStr, &OsStr)> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = argument.as_bytes();
    let at = bytes.iter().rposition(|&byte| byte == sign)?;
    Some((OsStr::from_bytes(&bytes[..at]), OsStr::from_bytes(&bytes[at + 1..])))
}

#[cfg(not(unix))]
fn split_last(argument: &OsStr, sign: u8) -> Option<(&OsStr, &OsStr)> {
    argument.to_str()?.rsplit_once(char::from(sign)).map(|(path, strength)| (path.as_ref(), strength.as_ref()))
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn strength_is_split_off_paths_of_any_bytes() {
        let split = |bytes: &'static [u8]| {
            let (path, strength) = split_strength(OsStr::from_bytes(bytes)).unwrap();
            (path.as_os_str().as_bytes(), strength)
        };
        assert_eq!(split(b"/none/\xff=0.5"), (&b"/none/\xff"[..], 0.5));
        assert_eq!(split(b"/none/a=b=-2"), (&b"/none/a=b"[..], -2.0));
        assert_eq!(split(b"/none/\xff"), (&b"/none/\xff"[..], 1.0));
        for bad in [&b"/none/a=\xff"[..], b"/none/a=", b"/none/a=nan", b"/none/a=inf"] {
            let message = split_strength(OsStr::from_bytes(bad)).unwrap_err().to_string();
            assert!(message.contains("not a finite number"), "{message}");
        }
    }

    #[test]
    fn transformers_follow_the_path_and_precede_the_strength() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("effect@low");
        let given = |text: &str| {
            let text = folder.path().join(text);
            let arg = AdapterArg::new(text.as_os_str()).map_err(|e| e.to_string())?;
            Ok::<_, String>((arg.path.file_name().unwrap().to_owned(), arg.experts, arg.strength))
        };
        assert_eq!(given("effect@low=0.5").unwrap(), ("effect".into(), Some(Experts::Low), 0.5));
        assert_eq!(given("effect@both").unwrap(), ("effect".into(), Some(Experts::Both), 1.0));
        assert_eq!(given("effect@2x=2").unwrap(), ("effect@2x".into(), None, 2.0));
        std::fs::write(&file, "").unwrap();
        assert_eq!(given("effect@low").unwrap(), ("effect@low".into(), None, 1.0));
        assert_eq!(given("effect@low@high=3").unwrap(), ("effect@low".into(), Some(Experts::High), 3.0));
        std::fs::write(folder.path().join("effect"), "").unwrap();
        let message = given("effect@middle").unwrap_err();
        assert!(message.contains("expected high, low or both, found `middle`"), "{message}");
    }

    #[test]
    fn path_that_exists_as_it_stands_has_no_strength() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(OsStr::from_bytes(b"\xfe=2"));
        std::fs::write(&path, "").unwrap();
        assert_eq!(split_strength(path.as_os_str()).unwrap(), (&*path, 1.0));
    }
}
