//! What several runs of a graph share: computed once, kept as long as it serves.

use std::collections::HashMap;

use super::device_weights::InUse;
use crate::engine::inputs::{Bound, bind, row_major};
use crate::engine::session::{Dim, Port, SessionError};
use crate::io::raw::{tensor_bytes, tensor_from_bytes};
use crate::tensor::{NamedTensors, Tensor, TensorView};

/// Bytes of rows that a session keeps, but for what a single call needs; those not used for longest go first.
const TABLE_BYTES: usize = 512 << 20;

/// One stored graph on a backend, ready to run.
pub trait RunnableGraph: Send {
    /// The backend's name.
    const BACKEND: &'static str;

    /// What it takes, weights left out, in graph order.
    fn inputs(&self) -> &[Port];

    /// What it gives, in graph order.
    fn outputs(&self) -> &[Port];

    /// Runs the graph once, on exactly its inputs but for those that are kept, and on the weights in use where it is given any.
    ///
    /// # Errors
    /// [`SessionError`]; the next run is as if this one had not been.
    fn run(&mut self, inputs: &[(&str, TensorView<'_>)], in_use: InUse<'_>) -> Result<NamedTensors, SessionError>;
}

/// The precomputed graphs before a graph, with what they computed. That depends on inputs only; where weights change under a session, it
/// says so by [`Precomputed::forget`].
#[derive(Debug)]
pub(super) struct Precomputed<P> {
    precompute: Option<PrecomputeGraph<P>>,
    timestep_rows: Option<Table<P>>,
}

impl<P: RunnableGraph> Precomputed<P> {
    /// `timestep_rows` is a graph and those of its inputs that have one row per timestep.
    pub(super) fn new(precompute: Option<P>, timestep_rows: Option<(P, Vec<String>)>) -> Self {
        Self {
            precompute: precompute.map(|part| PrecomputeGraph { part, kept: None }),
            timestep_rows: timestep_rows.map(|(part, row_inputs)| Table::new(part, row_inputs)),
        }
    }

    /// Forgets what was computed.
    pub(super) fn forget(&mut self) {
        if let Some(precompute) = &mut self.precompute {
            precompute.kept = None;
        }
        if let Some(timestep_rows) = &mut self.timestep_rows {
            timestep_rows.rows.clear();
            timestep_rows.bytes = 0;
        }
    }

    /// Adds the results of the precompute graph to `given`, and returns those of the timesteps.
    pub(super) fn run<'a>(
        &'a mut self,
        given: &mut Vec<(&'a str, TensorView<'a>)>,
        in_use: InUse<'_>,
    ) -> Result<NamedTensors, SessionError> {
        if let Some(precompute) = &mut self.precompute {
            let results = precompute.run(given, in_use)?;
            given.extend(results.iter().map(|(name, tensor)| (&name[..], row_major(tensor))));
        }
        self.timestep_rows
            .as_mut()
            .map_or_else(|| Ok(NamedTensors::new()), |timestep_rows| timestep_rows.run(given, in_use))
    }

    /// True if `input` has a row for each timestep: every run must give it.
    pub(super) fn is_row(&self, input: &str) -> bool {
        self.timestep_rows.as_ref().is_some_and(|timestep_rows| timestep_rows.row_inputs.iter().any(|row| row == input))
    }

    /// Computes the rows of all timesteps in `given` that are not there yet, unless something else is missing.
    pub(super) fn prepare(&mut self, given: &[(&str, TensorView<'_>)], in_use: InUse<'_>) -> Result<(), SessionError> {
        let Some(timestep_rows) = &mut self.timestep_rows else { return Ok(()) };
        let ports = timestep_rows.part.inputs();
        let batched = |port: &Port| match &port.shape[..] {
            [dim] if timestep_rows.row_inputs.contains(&port.name) => matches!(dim, Dim::Symbol(_)),
            _ => true,
        };
        if in_use.left(ports, given).iter().all(|port| batched(port) && find(given, &port.name).is_some()) {
            timestep_rows.fill(given, in_use, true)?;
        }
        Ok(())
    }
}

fn find<'a>(given: &[(&str, TensorView<'a>)], name: &str) -> Option<TensorView<'a>> {
    given.iter().find(|(known, _)| *known == name).map(|(_, tensor)| *tensor)
}

/// What `part` takes of `given`; what is missing it will name itself.
fn taken<'a, 't>(part: &'a impl RunnableGraph, given: &[(&str, TensorView<'t>)]) -> Vec<(&'a str, TensorView<'t>)> {
    part.inputs().iter().filter_map(|port| Some((&port.name[..], find(given, &port.name)?))).collect()
}

/// True if these are the tensors kept, byte for byte.
fn unchanged(kept: &[Tensor], given: &[(&str, TensorView<'_>)]) -> bool {
    let same = |(kept, (_, view)): (&Tensor, &(&str, TensorView<'_>))| {
        kept.dtype() == view.dtype() && kept.shape() == view.shape() && *tensor_bytes(kept) == *view.data()
    };
    kept.len() == given.len() && kept.iter().zip(given).all(same)
}

fn copies(given: &[(&str, TensorView<'_>)]) -> Vec<Tensor> {
    given.iter().map(|(_, view)| view.to_tensor()).collect()
}

#[derive(Debug)]
struct PrecomputeGraph<P> {
    part: P,
    /// The last inputs and what came of them.
    kept: Option<(Vec<Tensor>, NamedTensors)>,
}

impl<P: RunnableGraph> PrecomputeGraph<P> {
    fn run(&mut self, given: &[(&str, TensorView<'_>)], in_use: InUse<'_>) -> Result<&NamedTensors, SessionError> {
        let inputs: Vec<(String, TensorView<'_>)> =
            taken(&self.part, given).into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
        let inputs: Vec<(&str, TensorView<'_>)> = inputs.iter().map(|(name, tensor)| (&name[..], *tensor)).collect();
        let kept = self.kept.take().filter(|(before, _)| unchanged(before, &inputs));
        let kept = match kept {
            Some(kept) => kept,
            None => (copies(&inputs), self.part.run(&inputs, in_use)?),
        };
        Ok(&self.kept.insert(kept).1)
    }
}

/// Results by timestep.
#[derive(Debug)]
struct Table<P> {
    part: P,
    row_inputs: Vec<String>,
    /// The other inputs that the rows were computed with.
    settings: Vec<Tensor>,
    rows: HashMap<Vec<u8>, Row>,
    /// Extents of each output behind the first.
    shapes: Vec<Vec<usize>>,
    bytes: usize,
    clock: u64,
}

/// One timestep's row of every output.
#[derive(Debug)]
struct Row {
    parts: Vec<Vec<u8>>,
    used: u64,
}

impl Row {
    fn len(&self) -> usize {
        self.parts.iter().map(Vec::len).sum()
    }
}

/// What the table computes rows from.
struct Rows<'a> {
    /// All inputs that are given; those that give a row each, with a mark.
    inputs: Vec<(String, bool, Bound<'a>)>,
    /// Per row, the bytes of its elements.
    keys: Vec<Vec<u8>>,
}

impl<'a> Rows<'a> {
    fn new<P: RunnableGraph>(
        table: &Table<P>,
        given: &[(&str, TensorView<'a>)],
        in_use: InUse<'_>,
    ) -> Result<Self, SessionError> {
        let ports = in_use.left(table.part.inputs(), given);
        let bound = bind(&ports, &taken(&table.part, given))?;
        let inputs: Vec<(String, bool, Bound<'a>)> = ports
            .iter()
            .zip(bound)
            .map(|(port, tensor)| (port.name.clone(), table.row_inputs.contains(&port.name), tensor))
            .collect();
        let mut keys: Vec<Vec<u8>> = Vec::new();
        for (_, _, input) in inputs.iter().filter(|(_, row, _)| *row) {
            let view = input.view();
            keys.resize(view.shape().first().copied().unwrap_or(0), Vec::new());
            for (key, element) in keys.iter_mut().zip(view.data().chunks_exact(view.dtype().size())) {
                key.extend_from_slice(element);
            }
        }
        Ok(Self { inputs, keys })
    }

    fn settings(&self) -> Vec<(&str, TensorView<'_>)> {
        self.inputs.iter().filter(|(_, row, _)| !row).map(|(name, _, input)| (&name[..], input.view())).collect()
    }

    /// The inputs with this row only.
    fn select(&self, row: usize) -> Option<Vec<(&str, Bound<'_>)>> {
        let select = |view: TensorView<'_>| {
            let size = view.dtype().size();
            tensor_from_bytes(view.dtype(), &[1], view.data().get(row * size..(row + 1) * size)?)
        };
        self.inputs
            .iter()
            .map(|(name, is_row, input)| {
                let view = input.view();
                let input = if *is_row { Bound::Converted(select(view)?) } else { Bound::Given(view) };
                Some((&name[..], input))
            })
            .collect()
    }
}

impl<P: RunnableGraph> Table<P> {
    fn new(part: P, row_inputs: Vec<String>) -> Self {
        let shapes = Vec::new();
        Self { part, row_inputs, settings: Vec::new(), rows: HashMap::new(), shapes, bytes: 0, clock: 0 }
    }

    /// Every output, with a row for each row of the inputs.
    fn run(&mut self, given: &[(&str, TensorView<'_>)], in_use: InUse<'_>) -> Result<NamedTensors, SessionError> {
        let keys = self.fill(given, in_use, false)?;
        let mut outputs = NamedTensors::new();
        for (at, port) in self.part.outputs().iter().enumerate() {
            let bytes: Vec<u8> = keys.iter().flat_map(|key| &self.rows[key].parts[at]).copied().collect();
            let shape: Vec<usize> = std::iter::once(keys.len()).chain(self.shapes[at].iter().copied()).collect();
            let tensor = tensor_from_bytes(port.dtype, &shape, &bytes).ok_or_else(|| uneven::<P>(&port.name))?;
            outputs.insert(port.name.clone(), tensor);
        }
        Ok(outputs)
    }

    /// Sees to it that there is a row for every row of the inputs, ahead of need as many as the table holds, and returns
    /// their keys.
    fn fill(
        &mut self,
        given: &[(&str, TensorView<'_>)],
        in_use: InUse<'_>,
        ahead: bool,
    ) -> Result<Vec<Vec<u8>>, SessionError> {
        let wanted = Rows::new(self, given, in_use)?;
        if !unchanged(&self.settings, &wanted.settings()) {
            self.rows.clear();
            self.bytes = 0;
            self.settings = copies(&wanted.settings());
        }
        self.clock += 1;
        for key in &wanted.keys {
            if let Some(row) = self.rows.get_mut(key) {
                row.used = self.clock;
            }
        }
        for (at, key) in wanted.keys.iter().enumerate() {
            if self.rows.contains_key(key) {
                continue;
            }
            if ahead && self.bytes >= TABLE_BYTES {
                break;
            }
            self.compute(&wanted, at, in_use)?;
            self.evict();
        }
        Ok(wanted.keys)
    }

    /// Computes one row, by itself: a product of several rows may round otherwise than that of one, and a row's bits must not
    /// depend on those that happen to be missing with it.
    fn compute(&mut self, wanted: &Rows<'_>, at: usize, in_use: InUse<'_>) -> Result<(), SessionError> {
        let inputs = wanted.select(at).ok_or_else(|| uneven::<P>("rows"))?;
        let inputs: Vec<(&str, TensorView<'_>)> = inputs.iter().map(|(name, input)| (*name, input.view())).collect();
        let outputs = self.part.run(&inputs, in_use)?;
        let mut shapes = Vec::with_capacity(outputs.len());
        let mut parts = Vec::with_capacity(outputs.len());
        for (name, tensor) in &outputs {
            match tensor.shape() {
                [1, rest @ ..] => shapes.push(rest.to_vec()),
                _ => return Err(uneven::<P>(name)),
            }
            parts.push(tensor_bytes(tensor).into_owned());
        }
        if !self.rows.is_empty() && self.shapes != shapes {
            return Err(uneven::<P>("rows"));
        }
        self.shapes = shapes;
        let row = Row { parts, used: self.clock };
        self.bytes += row.len();
        self.rows.insert(wanted.keys[at].clone(), row);
        Ok(())
    }

    /// Forgets what was not used for longest, but nothing of this call.
    fn evict(&mut self) {
        while self.bytes > TABLE_BYTES {
            let old = self.rows.iter().filter(|(_, row)| row.used < self.clock).min_by_key(|(_, row)| row.used);
            let Some(key) = old.map(|(key, _)| key.clone()) else { return };
            self.bytes -= self.rows.remove(&key).map_or(0, |row| row.len());
        }
    }
}

fn uneven<P: RunnableGraph>(output: &str) -> SessionError {
    let message = format!("`{output}`: expected a row for each timestep; compile the model again");
    SessionError::Backend { backend: P::BACKEND, message }
}
