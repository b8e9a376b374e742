//! What the tests share: the sample's engines, an installed library, compilers.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;
use v2l_export::{CompileOptions, ExportOptions};

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A copy of the sample model, with the weights that recipes stand for: made once in every run.
pub(crate) fn sample() -> &'static Path {
    static SAMPLE: OnceLock<PathBuf> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let copy = scratch().join("sample");
        crate::recipes::copy(&root().join("tests/fixtures/sample"), &copy);
        copy
    })
}

/// The sample's engines, with low-rank branches and predictor: made once in every run.
pub(crate) fn engines() -> &'static Path {
    static ENGINES: OnceLock<PathBuf> = OnceLock::new();
    ENGINES.get_or_init(|| {
        let (bundle, engines) = (scratch().join("bundle"), scratch().join("engines"));
        let predictor =
            Some((sample().join("hypernetwork.safetensors"), sample().join("checkpoint-checkpoint-100.safetensors")));
        v2l_export::export(sample(), &bundle, &ExportOptions { predictor, ..ExportOptions::default() }, &mut |_| {})
            .unwrap();
        let options = CompileOptions { lora_rank: Some(16), ..CompileOptions::default() };
        v2l_export::compile(&bundle, &engines, &options, &mut |_| {}).unwrap();
        engines
    })
}

/// A folder of the build's, emptied when a run begins.
pub(crate) fn scratch() -> &'static Path {
    static SCRATCH: OnceLock<PathBuf> = OnceLock::new();
    SCRATCH.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("capi");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    })
}

/// Where cargo put the shared and the static library of this build.
fn built() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}

/// A prefix that `bin/dev/install-capi` installed the libraries of this build to.
pub(crate) fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let prefix = scratch().join("prefix");
        let mut install = Command::new(root().join("bin/dev/install-capi"));
        run(install.arg("--from").arg(built()).arg("--prefix").arg(&prefix));
        prefix
    })
}

/// Runs a command that has to succeed; gives what it printed on stdout.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
    stdout.into_owned()
}

/// A language to compile for.
#[derive(Clone, Copy)]
pub(crate) enum Language {
    C99,
    Cpp17,
}

impl Language {
    /// The compiler with every warning an error, and the installed headers.
    pub(crate) fn compiler(self) -> Command {
        let (variable, default, standard, package) = match self {
            Self::C99 => ("CC", "cc", "-std=c99", "build-essential"),
            Self::Cpp17 => ("CXX", "c++", "-std=c++17", "g++"),
        };
        let name = std::env::var_os(variable).unwrap_or_else(|| default.into());
        let works = Command::new(&name).arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success());
        assert!(works, "{} does not run, and nothing was checked; apt-get install -y {package}", name.display());
        let mut compiler = Command::new(name);
        compiler.args([standard, "-Wall", "-Wextra", "-Werror", "-g"]).arg("-I").arg(prefix().join("include"));
        compiler
    }

    /// A program of one source, linked with the installed shared library, or with what `V2L_LINK` says if it is set: a
    /// sanitized library, say, and what a sanitizer wants of the compiler.
    pub(crate) fn program(self, source: &Path) -> PathBuf {
        let program = scratch().join(source.file_stem().unwrap()).with_extension("bin");
        let lib = prefix().join("lib");
        let mut compiler = self.compiler();
        compiler.arg(source).arg("-o").arg(&program);
        match std::env::var("V2L_LINK") {
            Ok(link) => compiler.args(link.split_whitespace()),
            Err(_) => compiler.arg("-L").arg(&lib).arg("-lv2l").arg(format!("-Wl,-rpath,{}", lib.display())),
        };
        run(compiler.args(["-lpthread", "-lm"]));
        program
    }
}

/// A program, under what `V2L_RUNNER` names if it is set: valgrind, say.
pub(crate) fn command(program: &Path) -> Command {
    let runner = std::env::var("V2L_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace();
    let Some(runner) = words.next() else { return Command::new(program) };
    let mut command = Command::new(runner);
    command.args(words).arg(program);
    command
}

/// Runs a program that has to succeed, in a folder of its own.
#[track_caller]
pub(crate) fn run_program<S: AsRef<OsStr>>(program: &Path, arguments: &[S]) -> String {
    let folder = TempDir::new_in(scratch()).unwrap();
    run(command(program).args(arguments).current_dir(folder.path()))
}
