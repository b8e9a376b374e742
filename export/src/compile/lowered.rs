//! The fourth stage: the target's graphs over one set of weights.

use std::collections::BTreeMap;

use v2l_graphs::{DataType, Model};
use v2l_runtime::components::is_transformer;
use v2l_runtime::engine::manifest::{BRANCH_SUFFIX, Graph, PRECISION_PLAN};
use v2l_runtime::tensor::Dtype;

use super::explain::GraphReport;
use super::options::CompileOptions;
use super::profiles;
use super::report::TrtPlanReport;
use super::targets::target::{CompiledGraph, GraphCompiler, GraphTask};
use super::typed::Typed;
use super::weights::{StoredWeight, matrix_type, plan_weights};
use crate::engine_writer::EngineBlob;
use crate::precision::branch_types;
use crate::remedy::Remedy;
use crate::{ExportError, Progress};

/// A component as an engine stores it.
pub(crate) struct Lowered {
    pub(crate) typed: Typed,
    pub(crate) graphs: Vec<Graph>,
    pub(crate) blobs: Vec<EngineBlob>,
    pub(crate) weights: BTreeMap<String, StoredWeight>,
    /// The type of most matrices.
    pub(crate) storage: Dtype,
    pub(crate) plans: Vec<TrtPlanReport>,
    pub(crate) passes: Vec<GraphReport>,
}

/// A graph that is to be stored.
struct Variant {
    /// The graph of the source.
    of: String,
    /// What the engine calls it.
    name: String,
    /// With branches: the largest sum of ranks.
    lora_rank: Option<usize>,
    model: Model,
}

impl Lowered {
    /// Compiles every graph, and its variant with branches, for `target`.
    pub(crate) fn of(
        mut typed: Typed,
        options: &CompileOptions,
        target: &dyn GraphCompiler,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, ExportError> {
        let variants = variants(&mut typed, options);
        let planned = typed.planned.as_ref();
        let matrices = planned.map_or_else(BTreeMap::new, |planned| planned.storage.clone());
        let weights = plan_weights(variants.iter().map(|v| (&v.of, &v.model)), options.storage, &matrices)?;
        let step = step_inputs(&typed, options)?;
        let (mut graphs, mut blobs, mut plans, mut passes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for variant in &variants {
            let types = types(&typed, variant, target);
            let task = GraphTask {
                component: &typed.slotted.prepared.component,
                name: &variant.name,
                whole: &variant.model,
                types: types.as_deref(),
                step: &step,
                passes: &options.passes,
                profiles: profiles::of_graph(&options.profiles, &variant.model),
                lora_rank: variant.lora_rank,
                slots: &typed.slotted.slots,
                weights: &weights,
                check: options.check.as_ref(),
            };
            let compiled = target.compile(&task, progress)?;
            if variant.lora_rank.is_none() || !variants.iter().any(|v| v.of == variant.of && v.lora_rank.is_none()) {
                passes.push(explained(&typed, variant, &compiled, &weights));
            }
            let CompiledGraph { graph, blobs: stored, plans: built, .. } = compiled;
            graphs.push(Graph { profiles: task.profiles, lora_rank: variant.lora_rank, ..graph });
            blobs.extend(stored);
            plans.extend(built);
        }
        if let Some(planned) = planned {
            let data = bytes::Bytes::from(planned.report.plan.to_text());
            blobs.push(EngineBlob { name: PRECISION_PLAN.into(), data });
        }
        let storage = matrix_type(&weights);
        Ok(Self { typed, graphs, blobs, weights, storage, plans, passes })
    }
}

/// The graphs to store: first those of the source, unless only their variants are wanted, then the variants.
fn variants(typed: &mut Typed, options: &CompileOptions) -> Vec<Variant> {
    let branches = std::mem::take(&mut typed.slotted.branches);
    let replaced = |graph: &str| options.branches_only && branches.iter().any(|(of, _)| of == graph);
    let plain = typed.slotted.prepared.models.iter().filter(|(graph, _)| !replaced(graph));
    let plain = plain.map(|(graph, model)| Variant {
        of: graph.clone(),
        name: graph.clone(),
        lora_rank: None,
        model: typed.int8.quantized(model),
    });
    let branched = branches.iter().map(|(graph, model)| Variant {
        of: graph.clone(),
        name: format!("{graph}{BRANCH_SUFFIX}"),
        lora_rank: options.lora_rank,
        model: typed.int8.quantized(model),
    });
    plain.chain(branched).collect()
}

/// The types of a graph's nodes, if they are decided, or the target takes no graph without.
fn types(typed: &Typed, variant: &Variant, target: &dyn GraphCompiler) -> Option<Vec<DataType>> {
    let planned = typed.planned.as_ref().and_then(|planned| {
        let types = planned.types.get(&variant.of)?;
        let (_, base) = typed.slotted.prepared.models.iter().find(|(name, _)| *name == variant.of)?;
        Some(if variant.lora_rank.is_some() { branch_types(base, types, &variant.model) } else { types.clone() })
    });
    let plain = || target.native_types(DataType::Float).map(|_| vec![DataType::Float; variant.model.graph.nodes.len()]);
    planned.or_else(plain)
}

fn explained(
    typed: &Typed,
    variant: &Variant,
    compiled: &CompiledGraph,
    weights: &BTreeMap<String, StoredWeight>,
) -> GraphReport {
    let prepared = &typed.slotted.prepared;
    let origin =
        prepared.models.iter().position(|(name, _)| *name == variant.of).map(|at| &prepared.sources[at].origin);
    let nothing = Default::default();
    let (nodes_before, fired) = origin.map_or((0, &nothing), |origin| (origin.nodes_before, &origin.fired));
    let mut report = GraphReport::new(&variant.of, nodes_before, fired, compiled.lowered);
    report.store(compiled.nodes, &compiled.graph, weights);
    GraphReport { precompute_flops: compiled.precompute_flops.clone(), ..report }
}

/// The inputs that change from step to step.
fn step_inputs(typed: &Typed, options: &CompileOptions) -> Result<Vec<String>, ExportError> {
    let (component, models) = (&typed.slotted.prepared.component, &typed.slotted.prepared.models);
    let Some(asked) = &options.step_inputs else {
        let known: &[&str] = if is_transformer(component) { &["hidden_states", "timestep"] } else { &[] };
        return Ok(known.iter().map(|&name| name.to_owned()).collect());
    };
    for (graph, model) in models {
        let inputs: Vec<&str> = model.graph.inputs.iter().map(|input| &input.name[..]).collect();
        if let Some(unknown) = asked.iter().find(|name| !inputs.contains(&&name[..])) {
            let reason = format!("it has no input `{unknown}`; it has {}", inputs.join(", "));
            let error = ExportError::Graph { graph: graph.clone(), reason };
            return Err(error.advised(&[Remedy::OtherStepInputs]));
        }
    }
    Ok(asked.clone())
}

#[cfg(test)]
mod tests {
    use v2l_calibration::Request;

    use super::*;
    use crate::compile::testing::{Recorder, Small};

    #[test]
    fn lowered_compiles_graphs_and_then_their_variants() {
        let small = Small::new();
        for (branches_only, expected) in
            [(false, &[("g", None), ("g.branch", Some(8))][..]), (true, &[("g.branch", Some(8))])]
        {
            let options = CompileOptions { lora_rank: Some(8), branches_only, ..CompileOptions::default() };
            let target = Recorder::default();
            let lowered = small.lowered(&options, &target);
            let seen = target.seen.borrow();
            let tasks: Vec<_> = seen.iter().map(|seen| (&seen.name[..], seen.lora_rank)).collect();
            assert_eq!(tasks, expected);
            assert!(seen.iter().all(|seen| seen.types.is_none()));
            // What the passes did is said once of each graph of the source.
            assert_eq!(lowered.passes.len(), 1);
            assert_eq!(lowered.weights.keys().collect::<Vec<_>>(), ["first.weight", "second.weight"]);
        }
    }

    #[test]
    fn lowered_gives_types_to_a_target_that_takes_no_graph_without() {
        let small = Small::new();
        let target = Recorder { native: Some(Request::Fp32), ..Recorder::default() };
        small.lowered(&CompileOptions::default(), &target);
        let types = target.seen.borrow()[0].types.clone();
        assert_eq!(types.as_deref(), Some(&[DataType::Float; 2][..]));
    }

    #[test]
    fn lowered_refuses_step_inputs_that_no_graph_has() {
        let small = Small::new();
        let options = CompileOptions { step_inputs: Some(vec!["time".to_owned()]), ..CompileOptions::default() };
        let target = Recorder::default();
        let error = Lowered::of(small.typed(&options, &target), &options, &target, &mut |_| {}).err().unwrap();
        assert!(error.to_string().contains("`time`") && error.to_string().contains("it has x"), "{error}");
    }
}
