//! Opening an engine: map, then check everything that can be checked without reading the weights.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rayon::prelude::*;
use serde::Deserialize;

use super::manifest::{
    FORMAT, FORMAT_VERSION, Graph, Hash, MANIFEST_TENSOR, Manifest, PAD_PREFIX, RESERVED_PREFIX, SEAL_TENSOR, Slot,
    WEIGHTS_PLACEHOLDER, seal,
};
use super::parameters::parameters;
use crate::engine::session::Port;
use crate::error::{Classified, ErrorClass};
use crate::io::weights::{WeightError, WeightFile, WeightView};
use crate::tensor::Dtype;

/// Manifests are JSON of a few megabytes at most; a larger one is hostile.
const MAX_MANIFEST: usize = 256 << 20;

/// Ranks of low-rank branches are at most this.
const MAX_RANK: usize = 1 << 16;

/// Why an engine was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The file cannot be read or is not an intact safetensors file.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The file is some other safetensors file.
    #[error("{path} is not an engine: {reason}; make one with `v2l-compile`")]
    NotAnEngine {
        /// The file.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The engine was written in another version of the format.
    #[error(
        "{path}: expected engine format {expected}, found {found}; export the model again (v2l-export MODEL -o BUNDLE), then compile it (v2l-compile)"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// What this build reads.
        expected: u32,
        /// What the file says, as JSON; `null` if it does not.
        found: serde_json::Value,
    },
    /// The manifest contradicts itself or the file.
    #[error("{path}: {what}: expected {expected}, found {found}; compile the model again")]
    Structure {
        /// The file.
        path: PathBuf,
        /// The part in question.
        what: String,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A tensor's bytes are not those that were written.
    #[error(
        "{path}: tensor `{tensor}`: expected BLAKE3 {expected}, found {found}; the file is damaged: copy or compile it again"
    )]
    HashMismatch {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Hash in the manifest.
        expected: Hash,
        /// Hash of the bytes.
        found: Hash,
    },
    /// Header and manifest are not those that were written.
    #[error(
        "{path}: header and manifest: expected BLAKE3 {expected}, found {found}; the file is damaged: copy or compile it again"
    )]
    SealMismatch {
        /// The file.
        path: PathBuf,
        /// Hash in the file.
        expected: Hash,
        /// Hash of the bytes.
        found: Hash,
    },
    /// The engine has no such graph.
    #[error("{path} has no graph `{name}`; it has {available}")]
    NoGraph {
        /// The file.
        path: PathBuf,
        /// The graph asked for.
        name: String,
        /// The graphs that there are.
        available: String,
    },
}

impl Classified for EngineError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Weights(error) => error.class(),
            Self::Version { .. } => ErrorClass::Version,
            _ => ErrorClass::BadModel,
        }
    }
}

/// An open engine: a mapped file whose structure and version have been checked.
#[derive(Clone, Debug)]
pub struct Engine {
    file: WeightFile,
    manifest: Manifest,
    /// Slots, then parameters.
    changeable: Vec<Slot>,
    fingerprint: Hash,
    /// Tensors that stand in the place of the file's.
    instead: HashMap<String, Bytes>,
}

impl Engine {
    /// Maps and checks an engine. Costs the header, the manifest and the stored graphs, not the weights.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), v2l_runtime::engine::EngineError> {
    /// let engine = v2l_runtime::Engine::open("engines/transformer.engine")?;
    /// for slot in &engine.manifest().slots {
    ///     println!("{} {} -> {}", slot.name, slot.in_features, slot.out_features);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`EngineError`] if the file is no engine, of another version, or contradicts itself.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, EngineError> {
        Self::from_file(WeightFile::open(path)?)
    }

    /// As [`Engine::open`], for a file that is already mapped.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn from_file(file: WeightFile) -> Result<Self, EngineError> {
        let not_an_engine =
            |reason: &str| EngineError::NotAnEngine { path: file.path().to_owned(), reason: reason.to_owned() };
        if file.metadata("format") != Some(FORMAT) {
            return Err(not_an_engine("its header does not say `\"format\":\"v2l-engine\"`"));
        }
        if !file.contains(MANIFEST_TENSOR) {
            return Err(not_an_engine("it holds no tensor `v2l/manifest`"));
        }
        let manifest = parse_manifest(&file)?;
        Check { file: &file, manifest: &manifest }.run()?;
        let fingerprint = Hash::of(&file.get(MANIFEST_TENSOR)?.data);
        let changeable = manifest.slots.iter().cloned().chain(parameters(&manifest)).collect();
        Ok(Self { file, manifest, changeable, fingerprint, instead: HashMap::new() })
    }

    /// Where the engine was opened.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// What the engine holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// All that adapters may change: the slots, in the manifest's order, then the [`Self::parameters`].
    pub fn changeable(&self) -> &[Slot] {
        &self.changeable
    }

    /// What adapters may change besides linear layers: the other floating-point weights of the graphs, each called like its tensor.
    pub fn parameters(&self) -> &[Slot] {
        &self.changeable[self.manifest.slots.len()..]
    }

    /// The hash of the manifest, which holds the hash of every tensor: engines that differ in anything differ in it.
    pub fn fingerprint(&self) -> &Hash {
        &self.fingerprint
    }

    /// A pristine weight, in place.
    ///
    /// # Errors
    /// [`WeightError::Missing`] if there is none of that name.
    pub fn weight(&self, name: &str) -> Result<WeightView<'_>, EngineError> {
        Ok(self.file.get(name)?)
    }

    /// The bytes of a tensor under `v2l/`, such as a stored graph.
    ///
    /// # Errors
    /// [`WeightError::Missing`] if there is none of that name.
    pub fn blob(&self, name: &str) -> Result<Bytes, EngineError> {
        match self.instead.get(name) {
            Some(bytes) => Ok(bytes.clone()),
            None => Ok(self.file.get(name)?.data),
        }
    }

    /// The engine with further outputs of a graph, whose stored forms are others for that.
    pub(super) fn with_outputs(
        &self,
        graph: &str,
        outputs: impl Iterator<Item = Port>,
        blobs: Vec<(String, Bytes)>,
    ) -> Self {
        let mut this = self.clone();
        if let Some(graph) = this.manifest.graphs.iter_mut().find(|found| found.name == graph) {
            graph.outputs.extend(outputs);
        }
        this.instead.extend(blobs);
        this
    }

    /// The graph called `name`.
    ///
    /// # Errors
    /// [`EngineError::NoGraph`], with the graphs that there are.
    pub fn graph(&self, name: &str) -> Result<&Graph, EngineError> {
        self.manifest.graph(name).ok_or_else(|| EngineError::NoGraph {
            path: self.path().to_owned(),
            name: name.to_owned(),
            available: self.manifest.graphs.iter().map(|g| &g.name[..]).collect::<Vec<_>>().join(", "),
        })
    }

    /// Reads the whole file and compares every hash: of header and manifest, unless the engine was written by a version of v2l that
    /// did not keep it, and of every tensor. Padding must be zeros.
    ///
    /// # Errors
    /// [`EngineError::SealMismatch`]; [`EngineError::HashMismatch`] for the first damaged tensor, in manifest order;
    /// [`EngineError::Structure`].
    pub fn verify_hashes(&self) -> Result<(), EngineError> {
        self.verify_seal()?;
        let records: Vec<_> = self.manifest.tensors.iter().collect();
        let results: Vec<_> = records
            .par_iter()
            .map(|&(name, record)| {
                let found = Hash::of(&self.file.get(name)?.data);
                if found == record.blake3 {
                    return Ok(());
                }
                Err(EngineError::HashMismatch {
                    path: self.path().to_owned(),
                    tensor: name.clone(),
                    expected: record.blake3,
                    found,
                })
            })
            .collect();
        results.into_iter().collect()
    }

    fn verify_seal(&self) -> Result<(), EngineError> {
        let structure = |what: String, expected: &str, found: String| EngineError::Structure {
            path: self.path().to_owned(),
            what,
            expected: expected.to_owned(),
            found,
        };
        for name in self.file.names().iter().filter(|name| name.starts_with(PAD_PREFIX)) {
            if let Some(at) = self.file.raw(name)?.data.iter().position(|&byte| byte != 0) {
                return Err(structure(format!("padding `{name}`"), "zeros only", format!("another byte at {at}")));
            }
        }
        let stored = self.file.raw(SEAL_TENSOR)?.data;
        let expected = Hash::from_bytes(&stored)
            .ok_or_else(|| structure(format!("tensor `{SEAL_TENSOR}`"), "32 bytes", stored.len().to_string()))?;
        let found = seal(self.file.header_bytes(), &self.file.raw(MANIFEST_TENSOR)?.data);
        if found == expected {
            return Ok(());
        }
        Err(EngineError::SealMismatch { path: self.path().to_owned(), expected, found })
    }
}

fn parse_manifest(file: &WeightFile) -> Result<Manifest, EngineError> {
    #[derive(Deserialize)]
    struct Version {
        #[serde(default)]
        format_version: serde_json::Value,
    }
    let structure = |found: String| EngineError::Structure {
        path: file.path().to_owned(),
        what: "manifest".to_owned(),
        expected: "JSON of an engine manifest".to_owned(),
        found,
    };
    let view = file.get(MANIFEST_TENSOR)?;
    if view.dtype != Dtype::U8 || view.data.len() > MAX_MANIFEST {
        return Err(structure(format!("{} {:?}", view.dtype, view.shape)));
    }
    let version: Version = serde_json::from_slice(&view.data).map_err(|e| structure(e.to_string()))?;
    if version.format_version != FORMAT_VERSION {
        return Err(EngineError::Version {
            path: file.path().to_owned(),
            expected: FORMAT_VERSION,
            found: version.format_version,
        });
    }
    serde_json::from_slice(&view.data).map_err(|e| structure(e.to_string()))
}

struct Check<'a> {
    file: &'a WeightFile,
    manifest: &'a Manifest,
}

impl Check<'_> {
    fn run(&self) -> Result<(), EngineError> {
        self.tensors()?;
        self.graphs()?;
        self.slots()
    }

    fn tensors(&self) -> Result<(), EngineError> {
        for (name, record) in &self.manifest.tensors {
            let expected = format!("{} {:?}", record.dtype, record.shape);
            if !self.file.contains(name) {
                return Err(self.structure(format!("tensor `{name}`"), expected, "nothing"));
            }
            let view = self.file.get(name)?;
            if view.dtype != record.dtype || view.shape != record.shape {
                let found = format!("{} {:?}", view.dtype, view.shape);
                return Err(self.structure(format!("tensor `{name}`"), expected, found));
            }
        }
        if !self.file.contains(SEAL_TENSOR) {
            return Err(self.structure(format!("tensor `{SEAL_TENSOR}`"), "32 bytes", "none"));
        }
        for name in self.file.names() {
            let known = [MANIFEST_TENSOR, SEAL_TENSOR].contains(&&name[..]) || name.starts_with(PAD_PREFIX);
            if !known && !self.manifest.tensors.contains_key(&name) {
                return Err(self.structure(format!("tensor `{name}`"), "a line in the manifest", "none"));
            }
        }
        Ok(())
    }

    fn graphs(&self) -> Result<(), EngineError> {
        let mut names = HashSet::new();
        for graph in self.manifest.graphs.iter().flat_map(Graph::parts) {
            let what = || format!("graph `{}`", graph.name);
            if !names.insert(&graph.name) {
                return Err(self.structure(what(), "one of that name", "two"));
            }
            for file in graph.files.blobs().chain(graph.probe.iter().map(|probe| &probe.file)) {
                let stored = self.manifest.tensors.get(file);
                if !file.starts_with(RESERVED_PREFIX) || stored.is_none_or(|record| record.dtype != Dtype::U8) {
                    return Err(self.structure(what(), format!("its bytes in `{file}`"), "none"));
                }
            }
            self.onnx(graph)?;
            for weight in graph.weights.iter().chain(graph.files.weights()) {
                if weight.starts_with(RESERVED_PREFIX) || !self.manifest.tensors.contains_key(weight) {
                    return Err(self.structure(what(), format!("a weight `{weight}`"), "none"));
                }
            }
            if graph.lora_rank.is_some_and(|rank| rank == 0 || rank > MAX_RANK) {
                return Err(self.structure(
                    what(),
                    format!("a rank of 1 to {MAX_RANK}"),
                    format!("{:?}", graph.lora_rank),
                ));
            }
            if let Some(probe) = &graph.probe
                && !(probe.tolerance > 0.0 && probe.tolerance <= 1.0)
            {
                return Err(self.structure(what(), "a tolerance above 0, of at most 1", probe.tolerance.to_string()));
            }
            self.precomputed(graph)?;
        }
        Ok(())
    }

    /// Tensors of a stored graph lie in it, or are weights of the engine: a backend would open any other file, or read any address, that they name.
    fn onnx(&self, graph: &Graph) -> Result<(), EngineError> {
        for file in graph.files.onnx() {
            let what = || format!("graph `{}`", graph.name);
            let external = v2l_wire::external_data(&self.file.get(file)?.data).map_err(|malformed| {
                self.structure(what(), format!("an ONNX model in `{file}`"), malformed.to_string())
            })?;
            let is_weight = |location: &String| location == WEIGHTS_PLACEHOLDER;
            let foreign =
                external.iter().find(|tensor| tensor.locations.is_empty() || !tensor.locations.iter().all(is_weight));
            if let Some(tensor) = foreign {
                let expected = format!("the data of tensor `{}` in the engine", tensor.tensor);
                return Err(self.structure(what(), expected, format!("`{}`", tensor.locations.join("`, `"))));
            }
        }
        Ok(())
    }

    /// Every input of a precomputed graph must come from somewhere, in the type that it is given in.
    fn precomputed(&self, graph: &Graph) -> Result<(), EngineError> {
        let Some(precomputed) = &graph.precomputed else { return Ok(()) };
        let timestep_rows = precomputed.timestep_rows.as_ref();
        let mut known: Vec<&Port> = graph.inputs.iter().collect();
        for part in precomputed.precompute.iter().chain(timestep_rows.map(|timestep_rows| &timestep_rows.graph)) {
            let what = || format!("graph `{}`", part.name);
            if part.precomputed.is_some() {
                return Err(self.structure(what(), "no precomputed graphs of a precomputed graph", "some"));
            }
            self.given(what(), &part.inputs, &known)?;
            known.extend(&part.outputs);
        }
        self.given(format!("graph `{}`", graph.name), &precomputed.inputs, &known)?;
        let Some(timestep_rows) = timestep_rows else { return Ok(()) };
        let what = || format!("graph `{}`", timestep_rows.graph.name);
        let vectors =
            timestep_rows.graph.inputs.iter().filter(|p| timestep_rows.rows.contains(&p.name) && p.shape.len() == 1);
        if timestep_rows.rows.is_empty() || vectors.count() != timestep_rows.rows.len() {
            return Err(self.structure(what(), "row inputs of one axis", format!("{:?}", timestep_rows.rows)));
        }
        match timestep_rows.graph.outputs.iter().find(|port| port.shape.is_empty()) {
            Some(port) => Err(self.structure(what(), format!("rows in `{}`", port.name), "a scalar")),
            None => Ok(()),
        }
    }

    fn given(&self, what: String, ports: &[Port], known: &[&Port]) -> Result<(), EngineError> {
        let missing = ports.iter().find(|p| !known.iter().any(|k| (&k.name, k.dtype) == (&p.name, p.dtype)));
        missing.map_or(Ok(()), |p| {
            Err(self.structure(what, format!("an input `{}` ({}) that something gives", p.name, p.dtype), "none"))
        })
    }

    fn slots(&self) -> Result<(), EngineError> {
        let mut names = HashSet::new();
        for slot in &self.manifest.slots {
            for name in std::iter::once(&slot.name).chain(&slot.aliases) {
                if !names.insert(name) {
                    return Err(self.structure(format!("slot `{name}`"), "one of that name", "two"));
                }
            }
            self.slot(slot)?;
        }
        let mut ranges: Vec<_> =
            self.manifest.slots.iter().map(|s| (&s.tensor, s.row_range().start, s.row_range().end, &s.name)).collect();
        ranges.sort_unstable();
        let orientations: BTreeSet<_> =
            self.manifest.slots.iter().map(|slot| (&slot.tensor, slot.transposed)).collect();
        for pair in orientations.iter().collect::<Vec<_>>().windows(2) {
            if pair[0].0 == pair[1].0 {
                return Err(self.structure(format!("slots of `{}`", pair[0].0), "one orientation", "two"));
            }
        }
        for pair in ranges.windows(2) {
            if pair[0].0 == pair[1].0 && pair[0].2 > pair[1].1 {
                let what = format!("slots `{}` and `{}`", pair[0].3, pair[1].3);
                return Err(self.structure(what, format!("separate rows of `{}`", pair[0].0), "an overlap"));
            }
        }
        Ok(())
    }

    fn slot(&self, slot: &Slot) -> Result<(), EngineError> {
        let what = format!("slot `{}`", slot.name);
        let Some(record) = self.manifest.tensors.get(&slot.tensor) else {
            return Err(self.structure(what, format!("a weight `{}`", slot.tensor), "none"));
        };
        let found = format!("{} {:?}", record.dtype, record.shape);
        let (rows, columns) = match (&record.shape[..], slot.transposed, slot.quantized) {
            (&[out, inner], false, None) | (&[inner, out], true, None) => (out, inner),
            // The last block of a row may be padded.
            (&[out, blocks, inner], _, Some(block))
                if inner == block && blocks == slot.in_features.div_ceil(block.max(1)) =>
            {
                (out, slot.in_features)
            }
            (_, _, Some(block)) => return Err(self.structure(what, format!("[out, blocks, {block}]"), found)),
            _ => return Err(self.structure(what, "a 2-D weight", found)),
        };
        let fitting = if slot.quantized.is_some() { record.dtype == Dtype::U8 } else { record.dtype.is_float() };
        if !fitting || slot.tensor.starts_with(RESERVED_PREFIX) {
            return Err(self.structure(what, "a weight of a fitting type", found));
        }
        let range = slot.row_range();
        let fits = range.start < range.end
            && range.end <= rows
            && range.end - range.start == slot.out_features
            && (slot.rows.is_some() || rows == slot.out_features)
            && columns == slot.in_features;
        if !fits {
            let expected = format!(
                "out {} (rows {}..{}), in {}, transposed {}",
                slot.out_features, range.start, range.end, slot.in_features, slot.transposed
            );
            return Err(self.structure(what, expected, found));
        }
        Ok(())
    }

    fn structure(&self, what: String, expected: impl Into<String>, found: impl Into<String>) -> EngineError {
        EngineError::Structure {
            path: self.file.path().to_owned(),
            what,
            expected: expected.into(),
            found: found.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::weights::read_tensors;
    use crate::testing::engines::{fixture, part, write_tiny};

    #[test]
    fn engine_without_a_seal_is_refused_and_one_with_it_verifies() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.engine");
        let weights = part(&read_tensors(fixture("f32.safetensors")).unwrap(), "weight.");
        write_tiny(&path, &weights, Dtype::F32);
        Engine::open(&path).unwrap().verify_hashes().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let name = SEAL_TENSOR.as_bytes();
        let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
        let padding = format!("{PAD_PREFIX}{}", &SEAL_TENSOR[PAD_PREFIX.len()..]);
        let unsealed = [&bytes[..at], padding.as_bytes(), &bytes[at + name.len()..]].concat();
        std::fs::write(&path, unsealed).unwrap();
        let error = Engine::open(&path).unwrap_err().to_string();
        assert!(error.contains("tensor `v2l/seal`: expected 32 bytes, found none; compile the model again"), "{error}");
    }

    /// Graphs name their weights by the placeholder. Any other name is a file, or an address, that a backend would read.
    #[test]
    fn engine_whose_graph_names_a_file_or_an_address_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hostile.engine");
        let case = read_tensors(fixture("f32.safetensors")).unwrap();
        write_tiny(&path, &part(&case, "weight."), Dtype::F32);
        let original = std::fs::read(&path).unwrap();
        let placeholder = WEIGHTS_PLACEHOLDER.as_bytes();
        let at = original.windows(placeholder.len()).position(|window| window == placeholder).unwrap();
        for location in ["/etc/group ", "../weights ", "other-file "] {
            let mut hostile = original.clone();
            hostile[at..at + placeholder.len()].copy_from_slice(location.as_bytes());
            std::fs::write(&path, hostile).unwrap();
            let error = Engine::open(&path).unwrap_err().to_string();
            assert!(error.contains("graph `step`") && error.contains(&format!("found `{location}`")), "{error}");
        }
    }
}
