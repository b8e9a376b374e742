//! What a graph is checked on: given tensors, or made ones.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use rand_distr::{Distribution, StandardNormal};
use v2l_graphs::passes::settle_extents;
use v2l_graphs::{Dim, Graph, Model, ValueInfo};
use v2l_runtime::engine::manifest::{Profile, ShapeRange};
use v2l_runtime::io::raw::tensor_from_bytes;
use v2l_runtime::io::weights::{WeightFile, read_tensors};
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

use crate::ExportError;
use crate::types::to_runtime;

use super::uses::{Use, use_of};

/// Rank of the factors that low-rank branches are run with, if they take as many.
pub(crate) const FACTOR_RANK: usize = 4;

/// Inputs of one run, and what messages call them.
#[derive(Clone, Debug)]
pub struct InputSet {
    /// The file that they come from, or how they were made.
    pub label: String,
    /// By input name.
    pub tensors: NamedTensors,
}

/// The safetensors files that `path` stands for: itself, or those in a folder by name.
///
/// # Errors
/// [`ExportError`] if the folder cannot be read or holds none.
pub fn input_files(path: &Path) -> Result<Vec<PathBuf>, ExportError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = path.read_dir().and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(ExportError::io(path))?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "safetensors"));
    files.sort();
    if files.is_empty() {
        return Err(ExportError::config(
            path,
            "holds no .safetensors file; expected named tensors for the model's inputs",
        ));
    }
    Ok(files)
}

/// Input files that no graph of a component uses, and why its first graph does not take them.
pub(crate) type Unused = Vec<(PathBuf, String)>;

/// A file of `given` that should be used by a graph of some component and is not, and why. A file in a folder may belong
/// to another model as long as one in the folder is used.
///
/// # Errors
/// If a given folder cannot be read.
pub(crate) fn never_used(
    given: &[PathBuf],
    by_component: &[&Unused],
) -> Result<Option<(PathBuf, String)>, ExportError> {
    let [first, rest @ ..] = by_component else { return Ok(None) };
    let nowhere = |file: &PathBuf| rest.iter().all(|list| list.iter().any(|(other, _)| other == file));
    let useless = || first.iter().filter(|(file, _)| nowhere(file));
    for path in given {
        let files = input_files(path)?;
        if files.iter().all(|file| useless().any(|(other, _)| other == file)) {
            return Ok(useless().find(|(file, _)| files.contains(file)).cloned());
        }
    }
    Ok(None)
}

/// The input files and the tensors that each names.
pub(crate) fn named_files(paths: &[PathBuf]) -> Result<Vec<(PathBuf, Vec<String>)>, ExportError> {
    let mut found = Vec::new();
    for path in paths {
        for file in input_files(path)? {
            let names = WeightFile::open(&file)?.names();
            found.push((file, names));
        }
    }
    Ok(found)
}

/// True if these are the names of all inputs of a graph.
pub(crate) fn used_by(names: &[String], graph: &Graph) -> bool {
    names.len() == graph.inputs.len() && graph.inputs.iter().all(|input| names.contains(&input.name))
}

/// `extents`, and what one of a profile's shapes says of those that the graph's inputs name.
pub(crate) fn profile_extents(
    graph: &Graph,
    profile: &Profile,
    choose: fn(&ShapeRange) -> &Vec<usize>,
    mut extents: IndexMap<String, usize>,
) -> IndexMap<String, usize> {
    for input in &graph.inputs {
        let shape = input.ty.as_ref().and_then(|ty| ty.shape.as_ref());
        let (Some(range), Some(shape)) = (profile.get(&input.name), shape) else { continue };
        for (axis, dim) in shape.iter().enumerate() {
            let name = match dim {
                Dim::Fixed(_) => continue,
                Dim::Symbol(name) if !name.is_empty() => name.clone(),
                _ => format!("{}.{axis}", input.name),
            };
            extents.insert(name, choose(range)[axis]);
        }
    }
    extents
}

/// Reads named tensors for the inputs of `graph`.
///
/// # Errors
/// [`ExportError::Inputs`] if names, types or extents do not fit, saying what the graph takes.
pub fn read_inputs(path: &Path, graph: &Graph) -> Result<InputSet, ExportError> {
    let mut tensors = read_tensors(path)?;
    let fail = |reason: String| ExportError::Inputs { path: path.to_owned(), reason, expected: signature(graph) };
    if let Some(name) = tensors.keys().find(|name| !graph.inputs.iter().any(|i| i.name == **name)) {
        return Err(fail(format!("the graph has no input `{name}`")));
    }
    let mut extents: HashMap<&str, usize> = HashMap::new();
    for input in &graph.inputs {
        let tensor = tensors.get_mut(&input.name).ok_or_else(|| fail(format!("input `{}` is missing", input.name)))?;
        let Some(ty) = &input.ty else { continue };
        let dtype = to_runtime(ty.dtype);
        let mut fits = if dtype.is_float() { tensor.dtype().is_float() } else { dtype == tensor.dtype() };
        if let Some(Ok(converted)) = tensor.view().filter(|_| !fits).map(|view| view.exactly(dtype)) {
            *tensor = converted;
            fits = true;
        }
        let tensor = &*tensor;
        let found = || format!("input `{}`: found {} {:?}", input.name, tensor.dtype(), tensor.shape());
        let Some(shape) = ty.shape.as_ref().filter(|_| fits) else {
            return Err(fail(found()));
        };
        let same = shape.len() == tensor.shape().len()
            && shape.iter().zip(tensor.shape()).all(|(dim, &n)| match dim {
                Dim::Fixed(expected) => *expected == n,
                Dim::Symbol(name) => *extents.entry(name).or_insert(n) == n,
                Dim::Unknown => true,
            });
        if !same {
            return Err(fail(found()));
        }
    }
    let label = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(InputSet { label, tensors })
}

/// The inputs of a graph in words.
fn signature(graph: &Graph) -> String {
    let shape = |info: &ValueInfo| {
        let ty = info.ty.as_ref();
        let dims = ty.and_then(|ty| ty.shape.as_ref()).map(|s| s.iter().map(Dim::to_string).collect::<Vec<_>>());
        let dtype = ty.map_or_else(String::new, |ty| ty.dtype.to_string());
        format!("`{}` {dtype} [{}]", info.name, dims.unwrap_or_default().join(", "))
    };
    graph.inputs.iter().map(shape).collect::<Vec<_>>().join(", ")
}

/// Extents for made inputs: the last two of four or more axes, and the others beyond the first, which is 2. Tried in
/// order until the model runs.
const SIZES: [(usize, usize); 5] = [(8, 4), (16, 8), (16, 9), (32, 1), (64, 16)];

/// Made inputs of growing strangeness, the same for the same seed and model. Named extents in `given` are kept, others
/// are chosen so that they fit each other as far as the graph tells.
///
/// In inputs that `paired` names, neighbours are equal, as in the tables of rotary embeddings.
///
/// Floating-point values are standard normal (timesteps uniform below 1000), token ids uniform below the size of the
/// table that they are looked up in, masks ones, and extents, counts and axes that the graph computes with small.
pub fn generate<'a>(
    model: &'a Model,
    given: &'a IndexMap<String, usize>,
    paired: &'a HashSet<String>,
    seed: u64,
) -> impl Iterator<Item = Result<InputSet, String>> + 'a {
    SIZES.into_iter().map(move |(spatial, other)| {
        let extents = settle_extents(model, given, &|_, axis, rank| match axis {
            0 => 2,
            _ if rank >= 4 && axis + 2 >= rank => spatial,
            _ => other,
        });
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let tensors = model
            .graph
            .inputs
            .iter()
            .map(|input| Ok((input.name.clone(), made(model, input, &extents, paired, &mut rng)?)));
        let tensors: NamedTensors = tensors.collect::<Result<_, String>>()?;
        let sizes: Vec<String> = extents.iter().map(|(name, n)| format!("{name} {n}")).collect();
        let mut label = if sizes.is_empty() { "random".to_owned() } else { format!("random, {}", sizes.join(", ")) };
        if !paired.is_empty() {
            label += ", rotary tables of equal pairs";
        }
        Ok(InputSet { label, tensors })
    })
}

/// No made input is larger than this many elements.
const MOST_ELEMENTS: usize = 1 << 26;

fn made(
    model: &Model,
    input: &ValueInfo,
    extents: &IndexMap<String, usize>,
    paired: &HashSet<String>,
    rng: &mut ChaCha20Rng,
) -> Result<Tensor, String> {
    let name = &input.name;
    let ty = input.ty.as_ref();
    let (Some(dtype), Some(shape)) = (ty.map(|t| to_runtime(t.dtype)), ty.and_then(|t| t.shape.as_ref())) else {
        return Err(format!("input `{name}` has no type or no rank"));
    };
    let extent = |(axis, dim): (usize, &Dim)| match dim {
        Dim::Fixed(n) => *n,
        Dim::Symbol(symbol) if !symbol.is_empty() => extents[symbol],
        _ => extents[&format!("{name}.{axis}")],
    };
    let shape: Vec<usize> = shape.iter().enumerate().map(extent).collect();
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|n| *n <= MOST_ELEMENTS);
    let count = count.ok_or_else(|| format!("input `{name}` {shape:?} would be too large"))?;
    let mut bytes = Vec::with_capacity(count * dtype.size());
    let integer = !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F64);
    let wanted = use_of(&model.graph, name, integer);
    for index in 0..count {
        if index % 2 == 1 && paired.contains(name) {
            bytes.extend_from_within(bytes.len() - dtype.size()..);
            continue;
        }
        match fixed(wanted, index, count) {
            Some(_) if integer && name.contains("mask") => push_integer(&mut bytes, dtype, 1),
            Some(value) if integer => push_integer(&mut bytes, dtype, value),
            Some(value) => push_float(&mut bytes, dtype, value as f64),
            None if integer => push_integer(&mut bytes, dtype, integer_for(dtype, name, wanted, rng)),
            None if name.contains("timestep") => push_float(&mut bytes, dtype, rng.random_range(0.0..1000.0)),
            None => push_float(&mut bytes, dtype, StandardNormal.sample(rng)),
        }
    }
    tensor_from_bytes(dtype, &shape, &bytes).ok_or_else(|| format!("input `{name}` {shape:?} cannot be made"))
}

/// Extents that made inputs ask for.
const EXTENT: i64 = 2;

/// Element `index` of `count` of an input, where what it is for leaves no choice.
fn fixed(wanted: Option<Use>, index: usize, count: usize) -> Option<i64> {
    Some(match wanted? {
        Use::Axis => i64::try_from(index).unwrap_or(i64::MAX),
        Use::Start => 0,
        Use::Step => 1,
        Use::Extent => EXTENT,
        Use::Factor => 1 + i64::from(index + 2 >= count),
        Use::Divisor | Use::Row(_) => return None,
    })
}

/// An integer at random: 8 bits of any value, others below the size of their table or 1000.
fn integer_for(dtype: Dtype, name: &str, wanted: Option<Use>, rng: &mut ChaCha20Rng) -> i64 {
    let least = i64::from(wanted == Some(Use::Divisor));
    let most = match wanted {
        Some(Use::Row(rows)) => i64::try_from(rows).unwrap_or(1000).max(1),
        _ => 1000,
    };
    match dtype {
        Dtype::Bool => 1,
        Dtype::U8 if wanted.is_none() => i64::from(rng.random::<u8>()),
        Dtype::I8 if wanted.is_none() => i64::from(rng.random::<i8>()),
        _ if name.contains("mask") => 1,
        Dtype::U8 | Dtype::I8 => rng.random_range(least..most.min(128)),
        _ => rng.random_range(least..most),
    }
}

fn push_integer(bytes: &mut Vec<u8>, dtype: Dtype, value: i64) {
    bytes.extend(&value.to_le_bytes()[..dtype.size()]);
}

fn push_float(bytes: &mut Vec<u8>, dtype: Dtype, value: f64) {
    match dtype {
        Dtype::F64 => bytes.extend(value.to_le_bytes()),
        Dtype::F16 => bytes.extend(half::f16::from_f64(value).to_le_bytes()),
        Dtype::Bf16 => bytes.extend(half::bf16::from_f64(value).to_le_bytes()),
        _ => bytes.extend((value as f32).to_le_bytes()),
    }
}
