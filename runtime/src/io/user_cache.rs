//! Where a user's programs keep what they can make again.

use std::env;
use std::path::PathBuf;

/// `$XDG_CACHE_HOME/v2l/<name>`, or below `~/.cache`; `None` if neither is an absolute path. It need not be there.
pub fn user_cache(name: &str) -> Option<PathBuf> {
    let named = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")))?;
    cache.is_absolute().then(|| cache.join("v2l").join(name))
}
