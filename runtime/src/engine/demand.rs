//! What a run of a graph takes, graph by graph.

use super::footprint::{Demand, Shapes, bound, tensor_bytes};
use super::manifest::Graph;
use super::session::Port;

impl Graph {
    /// What a run takes, by the formulas of the compiler. `shapes` are those of its inputs; `runs` of them share what precomputed
    /// graphs keep, a row for each. With `arena` the memory of one graph is not given back before the next runs.
    pub fn demand(&self, stored_weights: bool, arena: bool, shapes: &Shapes, runs: usize) -> Demand {
        let mut demand = Demand { complete: true, ..Demand::default() };
        let mut shapes = shapes.clone();
        let precomputed = self.precomputed.as_ref();
        if let Some(precompute) = precomputed.and_then(|precomputed| precomputed.precompute.as_ref()) {
            let inputs: u64 = precompute.inputs.iter().map(|port| port_bytes(port, &shapes)).sum();
            let outputs = demand.add(precompute, stored_weights, arena, [&self.inputs, &precompute.inputs], &shapes);
            demand.kept = demand.kept.saturating_add(inputs).saturating_add(outputs);
            shapes.extend(demand.shapes.drain());
        }
        if let Some(timestep_rows) = precomputed.and_then(|precomputed| precomputed.timestep_rows.as_ref()) {
            let mut rows = shapes.clone();
            for name in &timestep_rows.rows {
                rows.insert(name.clone(), vec![runs.clamp(1, 64)]);
            }
            let outputs = demand.add(
                &timestep_rows.graph,
                stored_weights,
                arena,
                [&timestep_rows.graph.inputs, &self.inputs],
                &rows,
            );
            let all = outputs / runs.clamp(1, 64) as u64 * runs as u64;
            demand.kept = demand.kept.saturating_add(all);
            // A run takes as many rows as its own inputs have.
            for (name, mut shape) in demand.shapes.drain() {
                let row = timestep_rows.rows.first().and_then(|name| shapes.get(name)?.first().copied());
                if let (Some(first), Some(row)) = (shape.first_mut(), row) {
                    *first = row;
                }
                shapes.insert(name, shape);
            }
        }
        let inputs = precomputed.map_or(&self.inputs, |precomputed| &precomputed.inputs);
        demand.outputs = demand.add(self, stored_weights, arena, [&self.inputs, inputs], &shapes);
        demand
    }
}

fn port_bytes(port: &Port, shapes: &Shapes) -> u64 {
    shapes.get(&port.name).map_or(0, |shape| tensor_bytes(port.dtype, shape))
}

impl Demand {
    /// Adds a stored graph; gives the bytes of its outputs, and leaves their shapes in `self.shapes`.
    fn add(&mut self, graph: &Graph, stored_weights: bool, arena: bool, inputs: [&[Port]; 2], shapes: &Shapes) -> u64 {
        self.shapes.clear();
        let footprints = &graph.footprint;
        let footprint = footprints.stored.as_ref().filter(|_| stored_weights).unwrap_or(&footprints.f32);
        self.complete &= footprint.unknown == 0;
        let (peak, outputs) = footprint.at(&bound(inputs.into_iter().flatten(), shapes));
        self.activations = if arena { self.activations.saturating_add(peak) } else { self.activations.max(peak) };
        let mut bytes = 0u64;
        for (port, shape) in graph.outputs.iter().zip(outputs) {
            match shape {
                Some(shape) => {
                    bytes = bytes.saturating_add(tensor_bytes(port.dtype, &shape));
                    self.shapes.insert(port.name.clone(), shape);
                }
                None => self.complete = false,
            }
        }
        bytes
    }
}
