//! What a command reads and writes, looked at before it begins.

use std::path::{Path, PathBuf};

use anyhow::Context;
use v2l_runtime::io::atomic::{is_special, is_stdout, probe_file};

use crate::{Failure, Output};

/// The files and folders that a command line names.
#[derive(Default)]
pub struct Files {
    read: Vec<(&'static str, PathBuf)>,
    written: Vec<(&'static str, PathBuf)>,
    placed: Vec<(&'static str, PathBuf)>,
    made: Vec<(&'static str, PathBuf)>,
}

impl Files {
    /// Adds what `flag` names to what is read.
    pub fn read(mut self, flag: &'static str, paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Self {
        self.read.extend(paths.into_iter().map(|path| (flag, path.as_ref().to_owned())));
        self
    }

    /// Adds what `flag` names to what is written.
    pub fn written(mut self, flag: &'static str, paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Self {
        self.written.extend(paths.into_iter().map(|path| (flag, path.as_ref().to_owned())));
        self
    }

    /// [`Self::written`] for what may be more than a file: whether it can be written is for the tool to find out.
    pub fn placed(mut self, flag: &'static str, paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Self {
        self.placed.extend(paths.into_iter().map(|path| (flag, path.as_ref().to_owned())));
        self
    }

    /// [`Self::placed`] for what makes folders: that its folder is missing is dealt with where it is made.
    pub fn made(mut self, flag: &'static str, paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Self {
        self.made.extend(paths.into_iter().map(|path| (flag, path.as_ref().to_owned())));
        self
    }

    /// Refuses an output whose folder is missing, that has the name of another one, that would replace an input, or that cannot
    /// be written.
    ///
    /// # Errors
    /// A usage [`Failure`], or the system's words.
    pub fn check(&self, output: &mut Output) -> anyhow::Result<()> {
        for (_, path) in self.placed.iter().chain(&self.written) {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
                return Err(Failure::usage(format!(
                    "{}: the folder {} does not exist; create it first",
                    path.display(),
                    parent.display()
                )));
            }
        }
        // A pipe or a device loses nothing to a second output, and no input to one.
        let outputs = self.made.iter().chain(&self.placed).chain(&self.written);
        let outputs: Vec<_> = outputs.filter(|(_, path)| !is_special(path)).collect();
        for (index, (flag, path)) in outputs.iter().enumerate() {
            let place = place(path);
            if let Some((other, _)) = outputs[..index].iter().find(|(_, other)| self::place(other) == place) {
                let path = path.display();
                return Err(Failure::usage(format!(
                    "{flag} and {other} both name {path}; give each a path of its own"
                )));
            }
            let replaced = |(_, input): &&(&str, PathBuf)| self::place(input).starts_with(&place);
            if let Some((what, input)) = self.read.iter().find(replaced) {
                return Err(Failure::usage(format!(
                    "{flag} {} would replace {what} {}, which is read; write to another path",
                    path.display(),
                    input.display()
                )));
            }
        }
        for (_, path) in &self.written {
            probe_file(path).with_context(|| path.display().to_string())?;
        }
        let mut outputs = self.made.iter().chain(&self.placed).chain(&self.written);
        match outputs.find(|(_, path)| is_stdout(path)) {
            Some((flag, path)) if output.is_json() => {
                let path = path.display();
                Err(Failure::usage(format!("{flag} {path} and --json both write to stdout; leave one of them out")))
            }
            Some(_) => {
                output.give_stdout_away();
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// Where a path leads, links resolved, whether or not there is something.
fn place(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match (parent.canonicalize(), path.file_name()) {
            (Ok(parent), Some(name)) => parent.join(name),
            _ => path.to_owned(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_may_not_meet_inputs_or_each_other_by_whatever_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(path("bundle/vae")).unwrap();
        std::fs::write(path("model"), "").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(path("model"), path("link")).unwrap();
        let quiet = || Output::new(crate::OutputOptions::default());
        let refused = |input: &str, output: &str| {
            let (input, output) = (path(input), path(output));
            let check = Files::default().read("MODEL", [&input]).written("-o", [&output]).check(&mut quiet());
            check.err().map(|e| e.to_string())
        };
        for (input, output) in
            [("model", "model"), ("model", "bundle/../model"), ("bundle", "bundle"), ("bundle/vae", "bundle")]
        {
            assert!(refused(input, output).unwrap().contains("would replace MODEL"), "{input} {output}");
        }
        #[cfg(unix)]
        assert!(refused("link", "model").unwrap().contains("would replace MODEL"));
        for (input, output) in [("model", "other"), ("bundle", "bundle/engine"), ("bundle", "bundle2")] {
            assert_eq!(refused(input, output), None, "{input} {output}");
        }
        assert!(refused("model", "missing/other").unwrap().contains("does not exist"));
        let (a, b) = (path("a"), path("bundle/../a"));
        let twice = Files::default().written("-o", [&a]).written("--save-lora", [&b]).check(&mut quiet());
        assert!(twice.unwrap_err().to_string().contains("--save-lora and -o both name"));
    }
}
