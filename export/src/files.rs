//! Reading and writing what a model is made of.

use std::path::Path;

use serde::de::DeserializeOwned;
use v2l_graphs::Model;
use v2l_runtime::io::atomic::AtomicFolder;
use v2l_runtime::io::detect;
use v2l_runtime::io::json::{self, JsonError};
use v2l_runtime::io::map::{map_known, read_file};
use v2l_runtime::pipeline::config::FILE_NAME;

use crate::ExportError;

/// Starts a folder that will be `output`, which must not exist, be empty, or hold an earlier bundle or engine
/// directory.
pub(crate) fn new_folder(output: &Path) -> Result<AtomicFolder, ExportError> {
    let occupied = output.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    let other = output.exists() && !output.is_dir();
    if other || (occupied && !output.join(FILE_NAME).is_file()) {
        return Err(ExportError::Occupied {
            path: output.to_owned(),
            reason: format!("it exists and is not a bundle or engine directory (there is no {FILE_NAME})"),
        });
    }
    AtomicFolder::create(output).map_err(ExportError::io(output))
}

/// Opens a file of the model at `model`: the graph, or its external data, which may begin with any bytes but not stand
/// for others.
pub(crate) fn open_file(model: &Path, file: &Path) -> std::io::Result<bytes::Bytes> {
    map_known(file, |start| if file == model { detect::of(start) } else { detect::stand_in(start) })
}

/// Reads a JSON file of at most 64 MiB, as Python writes them: numbers may be `NaN` and infinite.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ExportError> {
    let text = read_file(path, 64 << 20).map_err(ExportError::io(path))?;
    json::read(&text).map_err(|e| match e {
        JsonError::NotFinite { .. } => ExportError::config(path, e.to_string()),
        JsonError::Syntax(e) => ExportError::config(
            path,
            format!("it is not the JSON that was expected: {e}; was it downloaded completely?"),
        ),
    })
}

/// Structural checks, as one error.
pub(crate) fn check_graph(label: &str, model: &Model) -> Result<(), ExportError> {
    v2l_graphs::check::check(model).map_err(|findings| {
        let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
        ExportError::Graph { graph: label.to_owned(), reason: lines.join("; ") }
    })
}
