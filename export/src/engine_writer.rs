//! Writing an engine: one pass over the weights, equal input gives equal bytes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use indexmap::IndexMap;
use v2l_runtime::engine::manifest::{
    DATA_ALIGNMENT, FORMAT, Hash, MANIFEST_TENSOR, Manifest, PAD_PREFIX, RESERVED_PREFIX, SEAL_TENSOR, TensorRecord,
    WEIGHT_ALIGNMENT, seal,
};
use v2l_runtime::io::atomic::AtomicFile;
use v2l_runtime::io::raw::byte_len;
use v2l_runtime::io::weights::{HeaderEntry, safetensors_header};
use v2l_runtime::tensor::Dtype;

/// Where a weight's bytes come from: a mapped checkpoint, a conversion of one, a computation.
pub trait WeightSource {
    /// Writes all elements, row-major and little-endian, in as many pieces as convenient.
    ///
    /// # Errors
    /// Whatever `out` reports, or the source's own failure; the engine is then not written.
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()>;
}

impl WeightSource for Bytes {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(self)
    }
}

/// One weight of an engine under construction.
pub struct EngineWeight<'a> {
    /// Parameter name, as in the checkpoint; never under `v2l/`.
    pub name: String,
    /// Type that it is stored in.
    pub dtype: Dtype,
    /// Extents.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub source: Box<dyn WeightSource + 'a>,
}

/// A graph or plan to store, under `v2l/`.
#[derive(Clone, Debug)]
pub struct EngineBlob {
    /// `v2l/graphs/<graph>/f32.onnx`, …
    pub name: String,
    /// Its bytes.
    pub data: Bytes,
}

/// Why an engine was not written. No file is left behind, whole or partial.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineWriteError {
    /// The disk refused (full, say), or a source failed.
    #[error("cannot write {path}: {source}")]
    Io {
        /// The engine.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A source failed.
    #[error("cannot write {path}: weight `{name}`: {source}")]
    Source {
        /// The engine.
        path: PathBuf,
        /// The weight.
        name: String,
        /// The reason.
        source: io::Error,
    },
    /// A source's values cannot be stored in the form that was asked for.
    #[error("weight `{name}`: {reason}")]
    Values {
        /// The weight.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A source gave too few or too many bytes.
    #[error("weight `{name}`: its shape takes {expected} bytes, its source gave {found}")]
    Length {
        /// The weight.
        name: String,
        /// Bytes of its type and shape.
        expected: u64,
        /// Bytes written; one more than expected stands for any surplus.
        found: u64,
    },
    /// A name is in the wrong place: a weight under `v2l/`, or a blob elsewhere.
    #[error(
        "`{name}`: names under `v2l/` are for graphs and plans only, weights live outside it; \
         rename it in the checkpoint"
    )]
    Reserved {
        /// The name.
        name: String,
    },
    /// The header cannot be made.
    #[error("cannot write {path}: {reason}")]
    Header {
        /// The engine.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// An engine that is written and can be looked at, but is not in its place yet. Dropped, it leaves nothing.
pub struct StagedEngine {
    file: AtomicFile,
    path: PathBuf,
    /// With the hashes of all tensors.
    pub manifest: Manifest,
}

impl StagedEngine {
    /// Where it lies meanwhile.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Puts it in its place.
    ///
    /// # Errors
    /// [`EngineWriteError::Io`]; what was there stays.
    pub fn commit(self) -> Result<Manifest, EngineWriteError> {
        let Self { file, path, manifest } = self;
        file.commit().map_err(|source| EngineWriteError::Io { path, source })?;
        Ok(manifest)
    }
}

/// Writes an engine that will be `path`: weights in the given order, blobs, then `manifest`, whose `tensors` this
/// function fills in.
///
/// One streaming pass: private memory is about a megabyte plus what the sources need. `progress` gets the total of data
/// bytes written so far. Equal weights, blobs and manifest give equal bytes.
///
/// # Errors
/// [`EngineWriteError`]; nothing is then left.
pub fn stage_engine(
    path: &Path,
    mut manifest: Manifest,
    weights: &[EngineWeight<'_>],
    blobs: &[EngineBlob],
    progress: &mut dyn FnMut(u64),
) -> Result<StagedEngine, EngineWriteError> {
    manifest.tensors = records(weights, blobs)?;
    let manifest_len = manifest_json(path, &manifest)?.len();
    let layout = FileLayout::new(path, &manifest, manifest_len)?;
    let io_error = |source| EngineWriteError::Io { path: path.to_owned(), source };

    let mut out = AtomicFile::create(path).map_err(io_error)?;
    out.write_all(&layout.header).map_err(io_error)?;
    let mut written = 0u64;
    let mut names = weights.iter().map(|w| (&w.name, &*w.source as &dyn WeightSource)).collect::<Vec<_>>();
    names.extend(blobs.iter().map(|b| (&b.name, &b.data as &dyn WeightSource)));
    for ((name, source), (&pad, &len)) in names.into_iter().zip(layout.pads.iter().zip(&layout.lengths)) {
        write_zeros(&mut out, pad).map_err(io_error)?;
        let mut target = Counted {
            out: &mut out,
            hasher: blake3::Hasher::new(),
            expected: len,
            found: 0,
            failure: None,
            base: written + pad,
            progress: &mut *progress,
        };
        let result = source.write_to(&mut target);
        let (found, failure, hash) = (target.found, target.failure.take(), target.hasher.finalize());
        if let Some(error) = failure {
            return Err(io_error(error));
        }
        if found > len || (result.is_ok() && found < len) {
            return Err(EngineWriteError::Length { name: name.clone(), expected: len, found });
        }
        result.map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => EngineWriteError::Values { name: name.clone(), reason: source.to_string() },
            _ => EngineWriteError::Source { path: path.to_owned(), name: name.clone(), source },
        })?;
        written += pad + len;
        if let Some(record) = manifest.tensors.get_mut(name) {
            record.blake3 = hash.into();
        }
    }
    write_zeros(&mut out, layout.manifest_pad).map_err(io_error)?;
    let json = manifest_json(path, &manifest)?;
    debug_assert_eq!(json.len(), manifest_len, "hashes have a fixed width");
    out.write_all(&json).map_err(io_error)?;
    let seal = seal(&layout.header, &json);
    out.write_all(seal.as_bytes()).map_err(io_error)?;
    out.flush().map_err(io_error)?;
    progress(written + layout.manifest_pad + (json.len() + seal.as_bytes().len()) as u64);
    Ok(StagedEngine { file: out, path: path.to_owned(), manifest })
}

/// Type and extents of everything to be hashed, with placeholder hashes.
fn records(
    weights: &[EngineWeight<'_>],
    blobs: &[EngineBlob],
) -> Result<IndexMap<String, TensorRecord>, EngineWriteError> {
    let mut records = IndexMap::new();
    let all = weights
        .iter()
        .map(|w| (&w.name, w.dtype, w.shape.clone(), false))
        .chain(blobs.iter().map(|b| (&b.name, Dtype::U8, vec![b.data.len()], true)));
    for (name, dtype, shape, reserved) in all {
        let taken = [MANIFEST_TENSOR, SEAL_TENSOR].contains(&&name[..]) || name.starts_with(PAD_PREFIX);
        let record = TensorRecord { dtype, shape, blake3: Hash::ZERO };
        if name.starts_with(RESERVED_PREFIX) != reserved || taken || records.insert(name.clone(), record).is_some() {
            return Err(EngineWriteError::Reserved { name: name.clone() });
        }
    }
    Ok(records)
}

/// Where everything goes.
struct FileLayout {
    header: Vec<u8>,
    /// Zero bytes before each record of the manifest.
    pads: Vec<u64>,
    lengths: Vec<u64>,
    manifest_pad: u64,
}

impl FileLayout {
    fn new(path: &Path, manifest: &Manifest, manifest_len: usize) -> Result<Self, EngineWriteError> {
        let fail = |reason: String| EngineWriteError::Header { path: path.to_owned(), reason };
        let mut items: Vec<(String, Dtype, Vec<usize>)> = Vec::new();
        let (mut pads, mut lengths) = (Vec::new(), Vec::new());
        let (mut offset, mut pad_count) = (0u64, 0u32);
        let manifest_record = (MANIFEST_TENSOR.to_owned(), Dtype::U8, vec![manifest_len]);
        let all = manifest.tensors.iter().map(|(name, r)| (name.clone(), r.dtype, r.shape.clone()));
        for item in all.chain([manifest_record]) {
            let len = byte_len(item.1, &item.2)
                .and_then(|len| u64::try_from(len).ok())
                .ok_or_else(|| fail(format!("tensor `{}` of shape {:?} is too large", item.0, item.2)))?;
            let pad = offset.next_multiple_of(WEIGHT_ALIGNMENT as u64) - offset;
            if pad > 0 {
                items.push((format!("{PAD_PREFIX}{pad_count}"), Dtype::U8, vec![pad as usize]));
                pad_count += 1;
            }
            pads.push(pad);
            lengths.push(len);
            items.push(item);
            offset = (offset + pad).checked_add(len).ok_or_else(|| fail("the weights are too large".to_owned()))?;
        }
        items.push((SEAL_TENSOR.to_owned(), Dtype::U8, vec![Hash::ZERO.as_bytes().len()]));
        let entries: Vec<HeaderEntry<'_>> =
            items.iter().map(|(name, dtype, shape)| HeaderEntry { name, dtype: *dtype, shape }).collect();
        let metadata = IndexMap::from([("format".to_owned(), FORMAT.to_owned())]);
        let header = safetensors_header(&metadata, &entries, DATA_ALIGNMENT).map_err(fail)?;
        lengths.pop();
        let manifest_pad = pads.pop().unwrap_or(0);
        Ok(Self { header, pads, lengths, manifest_pad })
    }
}

fn manifest_json(path: &Path, manifest: &Manifest) -> Result<Vec<u8>, EngineWriteError> {
    serde_json::to_vec(manifest)
        .map_err(|e| EngineWriteError::Header { path: path.to_owned(), reason: format!("manifest: {e}") })
}

fn write_zeros(out: &mut impl Write, count: u64) -> io::Result<()> {
    io::copy(&mut io::Read::take(io::repeat(0), count), out).map(|_| ())
}

/// Hashes, counts and limits what one source writes.
struct Counted<'a> {
    out: &'a mut AtomicFile,
    hasher: blake3::Hasher,
    expected: u64,
    found: u64,
    /// A failure of the file itself, told apart from the source's own.
    failure: Option<io::Error>,
    base: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Hash while the piece is still in cache.
        let piece = &bytes[..bytes.len().min(1 << 20)];
        if self.found + piece.len() as u64 > self.expected {
            self.found = self.expected + 1;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more bytes than the shape takes"));
        }
        if let Err(error) = self.out.write_all(piece) {
            let kind = error.kind();
            self.failure = Some(error);
            return Err(kind.into());
        }
        self.hasher.update(piece);
        self.found += piece.len() as u64;
        (self.progress)(self.base + self.found);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use v2l_runtime::engine::Engine;
    use v2l_runtime::engine::footprint::Footprints;
    use v2l_runtime::engine::manifest::{FORMAT_VERSION, Graph, GraphFiles, PrecomputedGraphs, Slot, TimestepRows};
    use v2l_runtime::engine::session::{Dim, Port};
    use v2l_runtime::io::weights::WeightFile;

    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            format_version: FORMAT_VERSION,
            component: "transformer".into(),
            tool_version: "0".into(),
            made_from: IndexMap::from([("model".into(), "tiny".into())]),
            storage: Dtype::F32,
            graphs: vec![Graph {
                name: "step".into(),
                backend: "ort".into(),
                precision: "fp32".into(),
                inputs: vec![],
                outputs: vec![],
                weights: vec!["a.weight".into()],
                files: GraphFiles {
                    f32: "v2l/graphs/step/f32.onnx".into(),
                    stored: None,
                    typed: None,
                    openvino: None,
                    plans: vec![],
                },
                profiles: vec![],
                lora_rank: None,
                precomputed: None,
                footprint: Footprints::default(),
                probe: None,
            }],
            slots: vec![Slot::linear("a", 2, 3)],
            absent: Vec::new(),
            attributes: serde_json::json!({"layers": 1}),
            tensors: IndexMap::new(),
        }
    }

    fn weight(name: &str, dtype: Dtype, shape: &[usize], bytes: usize) -> EngineWeight<'static> {
        let data = Bytes::from((0..bytes).map(|i| i as u8).collect::<Vec<_>>());
        EngineWeight { name: name.into(), dtype, shape: shape.to_vec(), source: Box::new(data) }
    }

    fn weights() -> Vec<EngineWeight<'static>> {
        vec![
            weight("a.weight", Dtype::F32, &[2, 3], 24),
            weight("empty", Dtype::F32, &[0], 0),
            weight("b", Dtype::Bf16, &[5], 10),
            weight("big", Dtype::U8, &[3 << 20], 3 << 20),
        ]
    }

    /// An ONNX model that says who made it, and nothing else.
    const GRAPH: &[u8] = b"\x12\x05graph";

    fn blobs() -> Vec<EngineBlob> {
        vec![EngineBlob { name: "v2l/graphs/step/f32.onnx".into(), data: Bytes::from_static(GRAPH) }]
    }

    fn write(path: &Path, manifest: Manifest) -> Result<Manifest, EngineWriteError> {
        stage_engine(path, manifest, &weights(), &blobs(), &mut |_| {})?.commit()
    }

    #[test]
    fn stage_engine_is_deterministic_and_readable_by_safetensors_and_engine() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.engine"), dir.path().join("b.engine"));
        write(&a, manifest()).unwrap();
        write(&b, manifest()).unwrap();
        let bytes = std::fs::read(&a).unwrap();
        assert_eq!(bytes, std::fs::read(&b).unwrap());

        let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(parsed.tensor("b").unwrap().data(), (0..10).collect::<Vec<u8>>());
        let (length, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!((8 + length) % DATA_ALIGNMENT, 0);
        for name in ["a.weight", "b", "big", "v2l/graphs/step/f32.onnx", MANIFEST_TENSOR] {
            assert_eq!(header.info(name).unwrap().data_offsets.0 % WEIGHT_ALIGNMENT, 0, "{name}");
        }

        let engine = Engine::open(&a).unwrap();
        engine.verify_hashes().unwrap();
        assert_eq!(engine.weight("a.weight").unwrap().shape, [2, 3]);
        assert_eq!(&engine.blob("v2l/graphs/step/f32.onnx").unwrap()[..], GRAPH);
        assert!(engine.graph("precompute").unwrap_err().to_string().contains("it has step"));
    }

    #[test]
    fn stage_engine_reports_progress_up_to_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.engine");
        let mut seen = vec![];
        stage_engine(&path, manifest(), &weights(), &blobs(), &mut |n| seen.push(n)).unwrap().commit().unwrap();
        assert!(seen.is_sorted());
        let bytes = std::fs::read(&path).unwrap();
        let (length, _) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(*seen.last().unwrap() as usize, bytes.len() - 8 - length);
    }

    #[test]
    fn stage_engine_with_a_source_of_the_wrong_length_leaves_no_file() {
        for bytes in [23, 25] {
            let dir = tempfile::tempdir().unwrap();
            let weights = [weight("a.weight", Dtype::F32, &[2, 3], bytes)];
            let path = dir.path().join("a.engine");
            let error = stage_engine(&path, manifest(), &weights, &blobs(), &mut |_| {}).err().unwrap();
            assert!(matches!(error, EngineWriteError::Length { expected: 24, found, .. } if found == bytes as u64));
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn stage_engine_with_values_that_have_no_stored_form_names_the_weight() {
        struct Refusing;
        impl WeightSource for Refusing {
            fn write_to(&self, _: &mut dyn Write) -> io::Result<()> {
                Err(io::Error::new(io::ErrorKind::InvalidData, "a value is not finite"))
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let weights = [EngineWeight { source: Box::new(Refusing), ..weight("a.weight", Dtype::F32, &[2, 3], 24) }];
        let error = stage_engine(&dir.path().join("a"), manifest(), &weights, &[], &mut |_| {}).err().unwrap();
        assert_eq!(error.to_string(), "weight `a.weight`: a value is not finite");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn stage_engine_refuses_a_weight_under_the_reserved_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let weights = [weight("v2l/x", Dtype::U8, &[1], 1)];
        let error = stage_engine(&dir.path().join("a"), manifest(), &weights, &[], &mut |_| {}).err().unwrap();
        assert!(matches!(error, EngineWriteError::Reserved { .. }));
    }

    #[test]
    fn engine_verify_hashes_names_a_damaged_tensor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.engine");
        write(&path, manifest()).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let (length, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        bytes[8 + length + header.info("b").unwrap().data_offsets.0] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let error = Engine::open(&path).unwrap().verify_hashes().unwrap_err().to_string();
        assert!(error.contains("tensor `b`: expected BLAKE3"), "{error}");
    }

    #[test]
    fn engine_verify_hashes_finds_every_flipped_bit_of_header_padding_manifest_and_seal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.engine");
        let weights = [weight("a.weight", Dtype::F32, &[2, 3], 24), weight("b", Dtype::Bf16, &[5], 10)];
        stage_engine(&path, manifest(), &weights, &blobs(), &mut |_| {}).unwrap().commit().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let verified = |bytes: Vec<u8>| {
            let file = WeightFile::from_bytes(&path, &bytes.into())?;
            Engine::from_file(file)?.verify_hashes()
        };
        verified(bytes.clone()).unwrap();
        for bit in 0..8 * bytes.len() {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(verified(damaged).is_err(), "bit {} of byte {}", bit % 8, bit / 8);
        }
    }

    #[test]
    fn engine_open_rejects_another_version_and_inconsistent_slots() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.engine");
        write(&path, Manifest { format_version: 2, ..manifest() }).unwrap();
        assert!(Engine::open(&path).unwrap_err().to_string().contains("expected engine format 1, found 2"));

        let mut wrong = manifest();
        wrong.slots[0].in_features = 4;
        write(&path, wrong).unwrap();
        let error = Engine::open(&path).unwrap_err().to_string();
        assert!(error.contains("slot `a`"), "{error}");
    }

    #[test]
    fn engine_open_rejects_stages_that_do_not_fit_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.engine");
        let port = |name: &str, shape: &[&str]| Port {
            name: name.into(),
            dtype: Dtype::F32,
            shape: shape.iter().map(|&extent| Dim::Symbol(extent.into())).collect(),
        };
        let open = |inputs: Vec<Port>, rows: &[&str], output: Port| {
            let mut manifest = manifest();
            let step = &mut manifest.graphs[0];
            step.inputs = vec![port("x", &["n", "m"]), port("t", &["n"])];
            let graph = Box::new(Graph {
                name: "step.timestep_rows".into(),
                inputs: vec![port("t", &["n"])],
                outputs: vec![output],
                ..step.clone()
            });
            let timestep_rows = Some(TimestepRows { graph, rows: rows.iter().map(|&row| row.to_owned()).collect() });
            step.precomputed = Some(PrecomputedGraphs { inputs, precompute: None, timestep_rows });
            write(&path, manifest).unwrap();
            Engine::open(&path).map(drop).map_err(|e| e.to_string())
        };
        let (x, row) = (port("x", &["n", "m"]), port("row", &["n", "m"]));
        open(vec![x.clone(), row.clone()], &["t"], row.clone()).unwrap();
        let error = open(vec![x.clone(), port("other", &["n"])], &["t"], row.clone()).unwrap_err();
        assert!(error.contains("an input `other` (f32) that something gives"), "{error}");
        for (rows, output) in [(&[][..], row.clone()), (&["x"], row.clone()), (&["t"], port("row", &[]))] {
            let error = open(vec![x.clone(), row.clone()], rows, output).unwrap_err();
            assert!(error.contains("graph `step.timestep_rows`"), "{error}");
        }
    }

    #[test]
    fn engine_open_rejects_every_truncation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.engine");
        let small = [weight("a.weight", Dtype::F32, &[2, 3], 24)];
        stage_engine(&path, manifest(), &small, &blobs(), &mut |_| {}).unwrap().commit().unwrap();
        let bytes = Bytes::from(std::fs::read(&path).unwrap());
        for length in (0..bytes.len()).step_by(7) {
            let file = v2l_runtime::io::weights::WeightFile::from_bytes("a.engine", &bytes.slice(..length));
            assert!(file.is_err());
        }
    }
}
