//! The JSON manifest inside an engine file: what the component is, its graphs, its slots and the hash of every tensor.

use std::collections::HashMap;
use std::fmt;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::footprint::Footprints;
use crate::engine::session::Port;
use crate::tensor::Dtype;

/// Version of the engine format that this build reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// Value of the file's one metadata key, `format`.
pub const FORMAT: &str = "v2l-engine";
/// Name of the tensor that holds the manifest.
pub const MANIFEST_TENSOR: &str = "v2l/manifest";
/// Prefix of every name that is not a weight; reserved in checkpoints.
pub const RESERVED_PREFIX: &str = "v2l/";
/// Behind a graph's name: its variant that takes LoRA factors as inputs.
pub const BRANCH_SUFFIX: &str = ".branch";
/// Behind a slot's name: the rank of its factors, the only extent of an input that may be 0.
pub const RANK_SUFFIX: &str = ".lora_rank";
/// Behind the name of a matrix in 8 bits: its values `[out, blocks, block]`.
pub const INT8_SUFFIX: &str = ".int8";
/// Behind the name of a matrix in 8 bits: the scales of its blocks, `[out · blocks]`.
pub const SCALES_SUFFIX: &str = ".int8_scales";
/// Name of the tensor that holds the text of the precision plan that the graphs were compiled by, if there is one.
pub const PRECISION_PLAN: &str = "v2l/precision-plan";
/// Prefix of the tensors that align the weights.
pub const PAD_PREFIX: &str = "v2l/pad/";
/// External-data location that the stored graphs name for every weight. The file of that name is always empty:
/// weights arrive as overrides, and an optimiser that wants to read one fails instead of reading something stale.
pub const WEIGHTS_PLACEHOLDER: &str = "v2l-weights";
/// Weights start at multiples of this many bytes.
pub const WEIGHT_ALIGNMENT: usize = 64;
/// Data start at a multiple of this many bytes.
pub const DATA_ALIGNMENT: usize = 4096;

/// Name of the tensor that holds the [`seal`], 32 bytes.
pub const SEAL_TENSOR: &str = "v2l/seal";

/// The hash of what no [`TensorRecord`] covers: a file's header, with its length before it, and its manifest. Padding is zeros.
pub fn seal(header: &[u8], manifest: &[u8]) -> Hash {
    blake3::Hasher::new().update(header).update(manifest).finalize().into()
}

/// What an engine file holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// Component: `transformer`, `vae_encoder`, `vae_decoder`, `text_encoder`, `hypernetwork`.
    pub component: String,
    /// Version of v2l that compiled it.
    pub tool_version: String,
    /// What it was made from: role or file name → hash or description.
    pub made_from: IndexMap<String, String>,
    /// Type that the floating-point weights are stored in; single weights may differ, [`Manifest::tensors`] says so.
    pub storage: Dtype,
    /// Graphs over the weights.
    pub graphs: Vec<Graph>,
    /// What adapters may change, in the order of the model's traversal.
    pub slots: Vec<Slot>,
    /// Layers that adapters may name and that are no slots.
    pub absent: Vec<Absent>,
    /// The component's configuration, as its runtime part wants it.
    pub attributes: serde_json::Value,
    /// Every tensor of the file except padding and the manifest itself.
    pub tensors: IndexMap<String, TensorRecord>,
}

/// One graph of a component.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    /// `step`, `precompute`, `first`, …
    pub name: String,
    /// Backend that it is compiled for: `ort`, `tensorrt-rtx`, `tensorrt`.
    pub backend: String,
    /// Arithmetic of the typed variant: `fp16`, `bf16`, or `mixed` for both, each beside float32; `fp32` without one.
    pub precision: String,
    /// Inputs, in graph order.
    pub inputs: Vec<Port>,
    /// Outputs, in graph order.
    pub outputs: Vec<Port>,
    /// Initializers that the graph takes from the engine's weights.
    pub weights: Vec<String>,
    /// The stored graphs.
    pub files: GraphFiles,
    /// Ranges that it was compiled for; a run must fit one of them, and anything fits if there is none.
    pub profiles: Vec<Profile>,
    /// For a graph with low-rank branches: the largest sum of ranks that a slot's inputs `<slot>.lora_down` `[rank, in]`
    /// and `<slot>.lora_up` `[out, rank]` may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_rank: Option<usize>,
    /// What of the graph need not be computed in every run, in graphs of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precomputed: Option<PrecomputedGraphs>,
    /// What a run takes besides weights.
    pub footprint: Footprints,
    /// What the graph's plans are verified by when their weights were set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
}

/// Inputs of a graph, of the smallest shapes that it was compiled for, and the outputs that it shall have with the pristine weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// Tensor that holds a safetensors file of `input.<name>` and `output.<name>`, `v2l/probes/<graph>.safetensors`.
    pub file: String,
    /// Largest relative L2 distance of an output.
    pub tolerance: f64,
}

/// The parts of a graph whose results several runs share. Their inputs are inputs of the graph or, for the later ones,
/// outputs of the earlier: first `precompute`, then `timestep_rows`, and the stored graph itself last. Callers see none of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrecomputedGraphs {
    /// Inputs of the stored graph itself, in graph order.
    pub inputs: Vec<Port>,
    /// `<graph>.precompute`: runs again when one of its inputs changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precompute: Option<Box<Graph>>,
    /// `<graph>.timestep_rows`: runs once for each timestep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestep_rows: Option<TimestepRows>,
}

/// A graph that computes each row of its outputs from the same row of some of its inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimestepRows {
    /// The graph.
    pub graph: Box<Graph>,
    /// Its inputs `[rows]`; each output is `[rows, …]`.
    pub rows: Vec<String>,
}

/// Tensors that hold a graph's ONNX bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphFiles {
    /// The variant whose floating-point initializers are all f32, `v2l/graphs/<graph>/f32.onnx`.
    pub f32: String,
    /// The variant whose initializers have their stored type, behind Cast nodes, `v2l/graphs/<graph>/stored.onnx`.
    /// Absent if the weights are stored in f32: the variants are then the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<String>,
    /// The strongly typed variant, each node in the type of the precision plan, `v2l/graphs/<graph>/typed.onnx`; its
    /// initializers have their stored type. Absent without a plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub typed: Option<TypedGraph>,
    /// The variant for OpenVINO, `v2l/graphs/<graph>/openvino.onnx`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub openvino: Option<OpenVinoGraph>,
    /// What TensorRT made of the typed variant, for the backends `tensorrt-rtx` and `tensorrt`: a plan for each kind of GPU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plans: Vec<TrtPlan>,
}

impl GraphFiles {
    /// The tensors of every form.
    pub(super) fn blobs(&self) -> impl Iterator<Item = &String> {
        self.onnx().chain(self.plans.iter().map(|plan| &plan.file))
    }

    /// Those of them that hold ONNX bytes.
    pub(super) fn onnx(&self) -> impl Iterator<Item = &String> {
        let typed = self.typed.iter().map(|typed| &typed.file);
        let openvino = self.openvino.iter().map(|openvino| &openvino.file);
        std::iter::once(&self.f32).chain(&self.stored).chain(typed).chain(openvino)
    }

    /// The weights that forms list by themselves.
    pub(super) fn weights(&self) -> impl Iterator<Item = &String> {
        let typed = self.typed.iter().flat_map(|typed| &typed.weights);
        let openvino = self.openvino.iter().flat_map(|openvino| openvino.weights.iter().chain(&openvino.constants));
        typed.chain(openvino).chain(self.plans.iter().flat_map(|plan| &plan.weights))
    }
}

/// A serialized TensorRT plan. The graph's backend says of which flavour, its profiles for which shapes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrtPlan {
    /// Tensor that holds it, `v2l/plans/<graph>/<backend>-<capability>.plan`.
    pub file: String,
    /// Version of TensorRT that built it, and that runs it.
    pub version: String,
    /// GPUs that it was built for, such as `8.9`; `None`: the one of the machine that built it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<String>,
    /// Weights that can be set, in their storage type.
    pub weights: Vec<String>,
    /// True if the plan holds no values for them: all must be set before it runs.
    pub placeholders: bool,
}

/// A strongly typed variant: the whole graph, precomputed graphs and all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypedGraph {
    /// Tensor that holds the ONNX bytes.
    pub file: String,
    /// Initializers that it takes from the engine's weights, in their storage type.
    pub weights: Vec<String>,
}

/// The variant over stored weights, or that in f32 where there is none, as OpenVINO takes it: matrices are inputs, after the graph's own, and vectors lie in
/// the graph. Matrices in 8 bits are constants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenVinoGraph {
    /// Tensor that holds the ONNX bytes.
    pub file: String,
    /// The engine's weights that it takes as inputs, in their storage type, in its order.
    pub weights: Vec<String>,
    /// The engine's weights that are constants of it, but do not lie in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constants: Vec<String>,
}

/// Ranges by input; an input that it does not name is free.
pub type Profile = IndexMap<String, ShapeRange>;

/// Extents that an input may take, outermost first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShapeRange {
    /// Smallest extents.
    pub min: Vec<usize>,
    /// Extents that the compiler tuned for.
    pub opt: Vec<usize>,
    /// Largest extents.
    pub max: Vec<usize>,
}

/// A linear layer that adapters may change: a 2-D initializer, or a range of its output features.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Module path in the reference implementation: `transformer_blocks.0.attn1.to_q`.
    pub name: String,
    /// Initializer that holds the weight.
    pub tensor: String,
    /// Output features of the layer.
    pub out_features: usize,
    /// Input features of the layer.
    pub in_features: usize,
    /// False: stored `[out, in]`, as in the checkpoint. True: stored `[in, out]`.
    pub transposed: bool,
    /// Output features of the initializer that are this layer's, if not all (fused Q, K, V).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<RowRange>,
    /// For a weight stored in 8 bits, as `[out, blocks, block]` with a scale per block: inputs in a block. Adapters then
    /// come in low-rank branches only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized: Option<usize>,
    /// Other names of the same layer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Nodes that look up rows of the weight besides, as a tied embedding does: an update changes them, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lookups: Vec<String>,
    /// How the compiler came by the name.
    pub found: Found,
}

/// A layer that adapters may name and that is no slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absent {
    /// The layer; its tensor is the checkpoint's, or the graph's if there is one.
    pub layer: Slot,
    /// Why it is no slot.
    pub why: Why,
    /// The same in words, for messages: what follows "layer `x`".
    pub reason: String,
}

/// Why a layer is no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The exporter left it out: what it computes changes no output, nor does an update of it.
    Pruned,
    /// Something reads its matrix that an update would change wrongly.
    Shared,
    /// Nothing tells which matrix of the graph it is.
    Ambiguous,
}

/// How the compiler came by a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// By what.
    pub how: How,
    /// The checkpoint's tensor, where it was found by content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// Where several tensors of the checkpoint have this content: what told them apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_by: Option<How>,
}

impl Found {
    /// Found by `how`, without a checkpoint.
    pub const fn by(how: How) -> Self {
        Self { how, checkpoint: None, settled_by: None }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.how)?;
        self.settled_by.map_or(Ok(()), |by| write!(f, ", told apart by {by}"))
    }
}

/// What a slot can be found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// The model's own list of slots.
    Metadata,
    /// A checkpoint's tensor has the content of the initializer.
    Content,
    /// A checkpoint's tensor has the content of the initializer's transpose.
    TransposedContent,
    /// Rows of the one are the other: a fused layer, or a part of one.
    Slice,
    /// The name of the bias that is added.
    Bias,
    /// The module path that the exporter recorded at the node.
    Scope,
    /// The name of the initializer.
    Initializer,
    /// The layers before and after it, or that it is the last one left.
    Position,
    /// The name of a checkpoint's tensor of which no matrix of the graph is known to be the layer's.
    Checkpoint,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Metadata => "metadata",
            Self::Content => "content",
            Self::TransposedContent => "transposed content",
            Self::Slice => "slice",
            Self::Bias => "bias",
            Self::Scope => "scope",
            Self::Initializer => "initializer",
            Self::Position => "position",
            Self::Checkpoint => "checkpoint",
        })
    }
}

impl Slot {
    /// The linear layer at module path `name` of a model that lists its slots, its weight `<name>.weight` stored `[out, in]` as in a checkpoint.
    pub fn linear(name: impl Into<String>, out_features: usize, in_features: usize) -> Self {
        let name = name.into();
        let tensor = format!("{name}.weight");
        Self {
            name,
            tensor,
            out_features,
            in_features,
            transposed: false,
            rows: None,
            quantized: None,
            aliases: Vec::new(),
            lookups: Vec::new(),
            found: Found::by(How::Metadata),
        }
    }
}

/// Slots by their names and aliases.
pub fn slots_by_name(slots: &[Slot]) -> HashMap<&str, &Slot> {
    let names =
        slots.iter().flat_map(|slot| std::iter::once(&slot.name).chain(&slot.aliases).map(move |name| (name, slot)));
    names.map(|(name, slot)| (&name[..], slot)).collect()
}

/// Output features `start..end` of an initializer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowRange {
    /// First output feature.
    pub start: usize,
    /// One past the last output feature.
    pub end: usize,
}

/// Type, extents and hash of one tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Element type.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// BLAKE3 of the bytes.
    pub blake3: Hash,
}

/// A BLAKE3 hash, spelled as 64 hexadecimal digits: a manifest's length does not depend on what was hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// Stands in until the real hash is known.
    pub const ZERO: Self = Self([0; 32]);

    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The hash whose 32 bytes are given.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<blake3::Hash> for Hash {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let hash = blake3::Hash::from_hex(&text).map_err(serde::de::Error::custom)?;
        Ok(hash.into())
    }
}

/// The attribute of components whose weights are best held as they are stored, with the value [`STORED`].
pub const HELD_WEIGHTS: &str = "held_weights";
/// The value of [`HELD_WEIGHTS`].
pub const STORED: &str = "stored";

impl Manifest {
    /// True if the component's weights are best held as they are stored, whatever memory there is.
    pub fn prefers_stored(&self) -> bool {
        self.attributes.get(HELD_WEIGHTS).and_then(serde_json::Value::as_str) == Some(STORED)
    }

    /// The graph called `name`.
    pub fn graph(&self, name: &str) -> Option<&Graph> {
        self.graphs.iter().find(|graph| graph.name == name)
    }

    /// The slot called `name`, by its own name or an alias.
    pub fn slot(&self, name: &str) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.name == name || slot.aliases.iter().any(|alias| alias == name))
    }
}

impl Graph {
    /// The stored graph and its precomputed graphs.
    pub fn parts(&self) -> impl Iterator<Item = &Self> {
        let precomputed = self.precomputed.iter();
        let precomputed = precomputed
            .flat_map(|s| s.precompute.iter().chain(s.timestep_rows.iter().map(|timestep_rows| &timestep_rows.graph)));
        std::iter::once(self).chain(precomputed.map(|graph| &**graph))
    }
}

impl Slot {
    /// Output features of the initializer that this slot covers.
    pub fn row_range(&self) -> RowRange {
        self.rows.unwrap_or(RowRange { start: 0, end: self.out_features })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_round_trips_through_64_digits() {
        let hash = Hash::of(b"v2l");
        let json = serde_json::to_string(&hash).unwrap();
        assert_eq!(json.len(), 66);
        assert_eq!(serde_json::from_str::<Hash>(&json).unwrap(), hash);
        assert_eq!(serde_json::to_string(&Hash::ZERO).unwrap().len(), 66);
        assert!(serde_json::from_str::<Hash>("\"12\"").is_err());
    }
}
