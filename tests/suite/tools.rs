//! Runs of the real binaries.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use tempfile::TempDir;

pub(crate) use crate::recipes::copy;
use crate::support::fixtures;

/// What a tool printed, and its exit code.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The program with its subcommands.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_v2l");

/// The subcommands that have names of their own.
pub(crate) const TOOLS: [&str; 4] = ["export", "compile", "run", "inspect"];

/// The path of `v2l-<name>`, a link to the program as packages have it.
pub(crate) fn binary(name: &str) -> &'static str {
    static LINKS: OnceLock<[String; 4]> = OnceLock::new();
    let links = LINKS.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("names");
        std::fs::create_dir_all(&folder).unwrap();
        TOOLS.map(|name| {
            let link = folder.join(format!("v2l-{name}"));
            // Another process of tests may make it at the same time.
            #[cfg(unix)]
            let _ = std::os::unix::fs::symlink(PROGRAM, &link);
            #[cfg(not(unix))]
            std::fs::copy(PROGRAM, &link).unwrap();
            assert!(link.exists(), "{} leads nowhere", link.display());
            link.into_os_string().into_string().unwrap()
        })
    });
    let at = TOOLS.iter().position(|tool| *tool == name);
    &links[at.unwrap_or_else(|| panic!("no tool {name}"))]
}

/// `v2l-<name>` with these arguments; help is 100 columns wide. Runs in the emulator that `bin/test --emulate` names.
pub(crate) fn command<S: AsRef<OsStr>>(name: &str, args: &[S]) -> Command {
    let emulator = std::env::var("V2L_TEST_EMULATOR").unwrap_or_default();
    let mut words = emulator.split_whitespace().chain([binary(name)]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).args(args).env("COLUMNS", "100").stdin(Stdio::null());
    command
}

pub(crate) fn output(mut command: Command) -> Run {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs a tool that has to succeed.
#[track_caller]
pub(crate) fn run_ok<S: AsRef<OsStr>>(name: &str, args: &[S]) -> Run {
    let run = output(command(name, args));
    assert_eq!(run.code, 0, "v2l-{name}: {}", run.stderr);
    run
}

/// Arguments of mixed types as one list.
macro_rules! args {
    ($($arg:expr),* $(,)?) => {
        &[$(std::ffi::OsString::from($arg)),*][..]
    };
}
pub(crate) use args;

/// The shipped sample model, exported with its predictor and compiled.
pub(crate) struct Sample(TempDir);

impl Sample {
    pub(crate) fn bundle(&self) -> PathBuf {
        self.0.path().join("bundle")
    }

    pub(crate) fn engines(&self) -> PathBuf {
        self.0.path().join("engines")
    }

    pub(crate) fn engine(&self, component: &str) -> PathBuf {
        self.engines().join(format!("{component}.engine"))
    }
}

/// A copy of the sample model, with the weights that recipes stand for: made once in every run.
pub(crate) fn sample_model() -> &'static Path {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("suite-sample");
        let _ = std::fs::remove_dir_all(&folder);
        copy(&fixtures().join("sample"), &folder);
        folder
    })
}

/// The sample's engines: made once for all tests that hold them at the same time, gone with the last.
pub(crate) fn sample() -> Arc<Sample> {
    static SHARED: Mutex<Weak<Sample>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(sample) = shared.upgrade() {
        return sample;
    }
    let sample = Arc::new(Sample(tempfile::tempdir().unwrap()));
    let model = sample_model();
    let (hypernetwork, light_lora) =
        (model.join("hypernetwork.safetensors"), model.join("checkpoint-checkpoint-100.safetensors"));
    run_ok("export", args![model, "-o", sample.bundle(), "--hypernetwork", hypernetwork, "--light-lora", light_lora]);
    run_ok("compile", args![sample.bundle(), "-o", sample.engines()]);
    *shared = Arc::downgrade(&sample);
    sample
}

/// A folder for one test.
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A copy of a file or folder, free to be damaged; of a recipe, the file that it stands for.
    pub(crate) fn copy(&self, from: &Path, name: &str) -> PathBuf {
        let to = self.path(name);
        copy(from, &to);
        to
    }

    /// Everything in it, hidden files too, with sizes.
    pub(crate) fn listing(&self) -> BTreeMap<PathBuf, u64> {
        let mut found = BTreeMap::new();
        list(self.root(), &mut found);
        found
    }

    /// `text` without what differs from run to run and from machine to machine.
    pub(crate) fn stable(&self, text: &str) -> String {
        text.replace(&*self.root().to_string_lossy(), "[TMP]")
            .replace(&*fixtures().to_string_lossy(), "[FIXTURES]")
            .trim_end()
            .to_owned()
    }
}

fn list(folder: &Path, found: &mut BTreeMap<PathBuf, u64>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.path().symlink_metadata().unwrap();
        found.insert(entry.path(), if metadata.is_file() { metadata.len() } else { 0 });
        if metadata.is_dir() {
            list(&entry.path(), found);
        }
    }
}

/// A tensor of a safetensors file, to be tampered with.
#[derive(Clone)]
pub(crate) struct RawTensor {
    pub(crate) dtype: safetensors::Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

impl RawTensor {
    pub(crate) fn f32s(shape: &[usize], value: f32) -> Self {
        let count: usize = shape.iter().product();
        Self { dtype: safetensors::Dtype::F32, shape: shape.to_vec(), data: value.to_le_bytes().repeat(count) }
    }

    /// The same type and as many bytes as the new shape takes.
    pub(crate) fn resized(&self, shape: &[usize]) -> Self {
        let size = self.data.len() / self.shape.iter().product::<usize>();
        let data = vec![0; size * shape.iter().product::<usize>()];
        Self { dtype: self.dtype, shape: shape.to_vec(), data }
    }
}

/// Reads, changes and rewrites a safetensors file; its metadata stay.
pub(crate) fn tamper(path: &Path, change: impl FnOnce(&mut BTreeMap<String, RawTensor>)) {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let mut tensors: BTreeMap<String, RawTensor> = safetensors::SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(name, v)| {
            (name.to_owned(), RawTensor { dtype: v.dtype(), shape: v.shape().to_vec(), data: v.data().to_vec() })
        })
        .collect();
    change(&mut tensors);
    write(path, &tensors, header.metadata().clone());
}

pub(crate) fn write(
    path: &Path,
    tensors: &BTreeMap<String, RawTensor>,
    metadata: Option<std::collections::HashMap<String, String>>,
) {
    let views = tensors
        .iter()
        .map(|(name, t)| (name, safetensors::tensor::TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
    std::fs::write(path, safetensors::serialize(views, metadata).unwrap()).unwrap();
}
