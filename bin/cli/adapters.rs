use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use v2l_runtime::components::TRANSFORMER;
use v2l_runtime::directory::EngineDirectory;
use v2l_runtime::engine::Engine;
use v2l_runtime::options::OpenOptions;

use crate::Failure;

/// What adapters are for: a single engine, or the transformer of an engine directory. Maps the file, and runs nothing.
pub fn open_transformer(path: &Path) -> anyhow::Result<Arc<Engine>> {
    if path.is_dir() {
        return Ok(EngineDirectory::open(path, OpenOptions::default())?.engine(TRANSFORMER)?);
    }
    Ok(Arc::new(Engine::open(path)?))
}

/// Splits `PATH[=STRENGTH]`; a path that exists as it stands has strength 1.
pub fn split_strength(argument: &OsStr) -> anyhow::Result<(&Path, f32)> {
    let whole = Path::new(argument);
    match split_last(argument) {
        Some((path, strength)) if !whole.exists() => {
            let number = strength.to_str().and_then(|text| text.parse::<f32>().ok());
            let number = number.filter(|strength| strength.is_finite()).ok_or_else(|| {
                let (whole, strength) = (whole.display(), strength.display());
                Failure::usage(format!("{whole}: strength `{strength}` is no finite number"))
            });
            Ok((Path::new(path), number?))
        }
        _ => Ok((whole, 1.0)),
    }
}

/// What is before the last `=`, and what after.
#[cfg(unix)]
fn split_last(argument: &OsStr) -> Option<(&OsStr, &OsStr)> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = argument.as_bytes();
    let at = bytes.iter().rposition(|&byte| byte == b'=')?;
    Some((OsStr::from_bytes(&bytes[..at]), OsStr::from_bytes(&bytes[at + 1..])))
}

#[cfg(not(unix))]
fn split_last(argument: &OsStr) -> Option<(&OsStr, &OsStr)> {
    argument.to_str()?.rsplit_once('=').map(|(path, strength)| (path.as_ref(), strength.as_ref()))
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
            assert!(message.contains("no finite number"), "{message}");
        }
    }

    #[test]
    fn path_that_exists_as_it_stands_has_no_strength() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(OsStr::from_bytes(b"\xfe=2"));
        std::fs::write(&path, "").unwrap();
        assert_eq!(split_strength(path.as_os_str()).unwrap(), (&*path, 1.0));
    }
}
