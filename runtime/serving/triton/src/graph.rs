//! An instance that runs one graph on named tensors.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::Arc;
use std::time::Instant;

use v2l_runtime::Engine;
use v2l_runtime::backends::OpenEngine;
use v2l_runtime::engine::session::Session;
use v2l_runtime::io::raw::{tensor_bytes, tensor_from_bytes};
use v2l_runtime::lora::adapter::{AdapterStore, ReadOptions};
use v2l_runtime::tensor::{Dtype, Tensor};

use crate::adapters::{KEPT, Stack, named, same, stack};
use crate::asked::text;
use crate::failure::Failure;
use crate::ffi;
use crate::metrics::Cache;
use crate::server::{Input, Made, Request};
use crate::settings::Settings;

/// A graph that is open, and the adapters that it was given.
pub(crate) struct GraphInstance {
    graph: String,
    on: OpenEngine,
    /// The graph's session, by its name.
    sessions: HashMap<String, Box<dyn Session>>,
    store: AdapterStore,
    set: Option<Stack>,
}

impl GraphInstance {
    pub(crate) fn open(engine: &Arc<Engine>, graph: &str, settings: &Settings) -> Result<Self, Failure> {
        let mut on = OpenEngine::open(Arc::clone(engine), &settings.options.engines)?;
        let session = on.session(graph)?;
        let sessions = HashMap::from([(graph.to_owned(), session)]);
        Ok(Self { graph: graph.to_owned(), on, sessions, store: AdapterStore::keeping(KEPT), set: Some(Vec::new()) })
    }

    /// Runs the graph on what a request gives.
    pub(crate) fn run(&mut self, request: Request, settings: &Settings) -> Result<Vec<Made>, Failure> {
        let mut files = Vec::new();
        for (name, value) in request.parameters()? {
            match &*name {
                "lora" => files = named(text(&name, &value)?, settings.adapters.as_deref())?,
                _ => return Err(Failure::argument(format!("there is no parameter {name:?}; expected lora"))),
            }
        }
        let wanted = request.outputs()?;
        let session = self.sessions.get(&self.graph).ok_or_else(|| Failure::internal("the session is gone"))?;
        let of = |input: Input| {
            let rank = session.inputs().iter().find(|port| port.name == input.name).map(|port| port.shape.len());
            Ok((input.name.clone(), tensor(input, rank)?))
        };
        let tensors = request.inputs()?.into_iter().map(of).collect::<Result<Vec<(String, Tensor)>, Failure>>()?;
        self.apply(&files, settings)?;
        let session = self.sessions.get_mut(&self.graph).ok_or_else(|| Failure::internal("the session is gone"))?;
        let inputs: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (&**name, tensor)).collect();
        let began = Instant::now();
        let results = session.run_unless(&inputs, &|| request.is_cancelled())?;
        settings.metrics.took(c"run", began.elapsed().as_secs_f64());
        let results = results.iter().filter(|(name, _)| wanted.is_empty() || wanted.contains(name));
        results.map(|(name, tensor)| made(name, tensor, settings.given.get(name).copied())).collect()
    }

    /// Brings the request's adapters into the weights, whole or not at all.
    fn apply(&mut self, files: &[(std::path::PathBuf, f32)], settings: &Settings) -> Result<(), Failure> {
        let engine = Arc::clone(self.on.engine());
        let stack = stack(files, |file| Ok(self.store.read(file, &*engine, &ReadOptions::default())?))?;
        if self.set.as_ref().is_some_and(|set| same(set, &stack)) {
            return Ok(());
        }
        let began = Instant::now();
        self.set = None;
        self.on.set_adapters(&stack, self.sessions.iter_mut(), None)?;
        let any = !stack.is_empty();
        self.set = Some(stack);
        settings.metrics.took(c"swap", began.elapsed().as_secs_f64());
        settings.metrics.swapped();
        if any {
            settings.metrics.cached(Cache::Fused, self.on.report().fused.kept);
        }
        Ok(())
    }
}

/// The server's number and name of a type, whose bytes are the same here and there.
pub(crate) fn type_of(dtype: Dtype) -> (u32, &'static str) {
    match dtype {
        Dtype::F32 => (ffi::TYPE_FP32, "TYPE_FP32"),
        Dtype::F16 => (ffi::TYPE_FP16, "TYPE_FP16"),
        Dtype::Bf16 => (ffi::TYPE_BF16, "TYPE_BF16"),
        Dtype::F64 => (ffi::TYPE_FP64, "TYPE_FP64"),
        Dtype::I64 => (ffi::TYPE_INT64, "TYPE_INT64"),
        Dtype::I32 => (ffi::TYPE_INT32, "TYPE_INT32"),
        Dtype::I16 => (ffi::TYPE_INT16, "TYPE_INT16"),
        Dtype::I8 => (ffi::TYPE_INT8, "TYPE_INT8"),
        Dtype::U64 => (ffi::TYPE_UINT64, "TYPE_UINT64"),
        Dtype::U32 => (ffi::TYPE_UINT32, "TYPE_UINT32"),
        Dtype::U16 => (ffi::TYPE_UINT16, "TYPE_UINT16"),
        Dtype::U8 => (ffi::TYPE_UINT8, "TYPE_UINT8"),
        Dtype::Bool => (ffi::TYPE_BOOL, "TYPE_BOOL"),
    }
}

/// An input as a tensor of the rank that the graph takes: the server has none without axes.
fn tensor(input: Input, rank: Option<usize>) -> Result<Tensor, Failure> {
    let Input { name, kind, shape, data } = input;
    let wrong = |what: &str| Failure::argument(format!("input {name}: {what}"));
    let dtype = Dtype::ALL.into_iter().find(|dtype| type_of(*dtype).0 == kind);
    let dtype = dtype.ok_or_else(|| wrong("strings are no input of a graph; expected numbers"))?;
    let extents: Result<Vec<usize>, _> = shape.iter().map(|extent| usize::try_from(*extent)).collect();
    let mut extents = extents.map_err(|_| wrong("an extent is negative"))?;
    if rank == Some(0) && extents == [1] {
        extents.clear();
    }
    tensor_from_bytes(dtype, &extents, &data)
        .ok_or_else(|| wrong(&format!("{} bytes are not those of {dtype} {extents:?}", data.len())))
}

/// An output in the type that the configuration declares.
fn made(name: &str, tensor: &Tensor, declared: Option<Dtype>) -> Result<Made, Failure> {
    let tensor = match declared.filter(|dtype| *dtype != tensor.dtype()) {
        None => Cow::Borrowed(tensor),
        Some(dtype) => {
            let rounded = tensor.to_f32().and_then(|floats| Tensor::from_floats(floats, dtype));
            Cow::Owned(rounded.ok_or_else(|| Failure::internal("an output is of another type than its graph says"))?)
        }
    };
    let mut shape: Vec<i64> = tensor.shape().iter().map(|extent| i64::try_from(*extent).unwrap_or(i64::MAX)).collect();
    if shape.is_empty() {
        shape.push(1);
    }
    Ok(Made {
        name: CString::new(name).map_err(|_| Failure::internal("an output's name holds NUL"))?,
        kind: type_of(tensor.dtype()).0,
        shape,
        data: tensor_bytes(&tensor).into_owned(),
    })
}
