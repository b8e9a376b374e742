//! The passes that are for every backend, until none fires.

use super::error::PassError;
use super::{
    Pass, Passes, fold_constants, fold_shapes, fold_weight_layout, merge_duplicates, remove_dead_nodes,
    sort_topologically, split_weights,
};
use crate::Model;

/// How often each pass fired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Nodes moved by [`sort_topologically`].
    pub moved: usize,
    /// Nodes removed by [`fold_weight_layout`].
    pub weight_layouts_folded: usize,
    /// Nodes removed by [`split_weights`].
    pub weights_split: usize,
    /// Nodes replaced by [`fold_shapes`].
    pub shapes_folded: usize,
    /// Nodes replaced by [`fold_constants`].
    pub constants_folded: usize,
    /// Nodes and constants removed by [`merge_duplicates`].
    pub duplicates_merged: usize,
    /// Nodes and initializers removed by [`remove_dead_nodes`].
    pub dead_removed: usize,
    /// Rounds until nothing fired any more, the last one included.
    pub rounds: usize,
}

/// [`optimize_with`] all passes.
///
/// # Errors
/// As [`optimize_with`].
pub fn optimize(model: &mut Model) -> Result<Report, PassError> {
    optimize_with(model, &Passes::default())
}

/// Runs the passes that are for every backend until none fires: sorts the nodes, then splits weights, folds their
/// layouts, shapes and constants, merges duplicates and removes what is left unused.
///
/// Each round costs time linear in the graph; weight bytes are read only where the graph casts a weight to float16.
/// Every firing takes something out of the graph, so the rounds end.
///
/// # Errors
/// [`PassError`] for a cycle, and for unreadable transform metadata.
pub fn optimize_with(model: &mut Model, passes: &Passes) -> Result<Report, PassError> {
    let mut report = Report { moved: sort_topologically(model)?, ..Report::default() };
    loop {
        report.rounds += 1;
        let split = if passes.has(Pass::WeightLayout) { split_weights(model) } else { 0 };
        let layouts = if passes.has(Pass::WeightLayout) { fold_weight_layout(model)? } else { 0 };
        let shapes = if passes.has(Pass::Shapes) { fold_shapes(model) } else { 0 };
        let constants = if passes.has(Pass::Constants) { fold_constants(model) } else { 0 };
        let duplicates = if passes.has(Pass::Duplicates) { merge_duplicates(model) } else { 0 };
        let dead = remove_dead_nodes(model);
        report.weights_split += split;
        report.weight_layouts_folded += layouts;
        report.shapes_folded += shapes;
        report.constants_folded += constants;
        report.duplicates_merged += duplicates;
        report.dead_removed += dead;
        if split + layouts + shapes + constants + duplicates + dead == 0 {
            return Ok(report);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, DataType, Dim, Initializer, TensorData};

    fn model() -> Model {
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Float, [Dim::from("n"), Dim::Fixed(4)]);
        let w = b.initializer("w", Initializer::weight(DataType::Float, &[8, 4], TensorData::raw(vec![1; 128])));
        let t = b.transpose(&w, &[1, 0]);
        let h = b.op("MatMul", &[&x, &t]);
        // The second extent of `h` is known only once the weight's is.
        let shape = b.op("Shape", &[&h]);
        let one = b.ints(&[1]);
        let width = b.gather(&shape, &one, 0);
        let (two, minus) = (b.ints(&[2]), b.ints(&[-1]));
        let half = b.op("Div", &[&width, &two]);
        let target = b.concat(&[&minus, &half], 0);
        let y = b.op("Reshape", &[&h, &target]);
        b.output("y", &y, DataType::Float, [Dim::from("m"), Dim::Fixed(4)]);
        b.finish().unwrap()
    }

    #[test]
    fn optimize_of_weights_and_shape_arithmetic_leaves_only_the_work() {
        let mut model = model();
        let report = optimize(&mut model).unwrap();
        let ops: Vec<&str> = model.graph.nodes.iter().map(|n| n.op_type.as_str()).collect();
        assert_eq!(ops, ["MatMul", "Reshape"]);
        assert_eq!(model.graph.nodes[0].inputs, ["x", "w"]);
        let target = &model.graph.initializers[&model.graph.nodes[1].inputs[1]];
        assert_eq!(target.data.to_bytes().unwrap(), [-1i64, 4].map(i64::to_le_bytes).concat());
        assert_eq!(model.graph.initializers.len(), 2);
        assert_eq!((report.weight_layouts_folded, report.shapes_folded, report.constants_folded), (1, 1, 2));
        let again = optimize(&mut model).unwrap();
        assert_eq!(again, Report { rounds: 1, ..Report::default() });
    }

    #[test]
    fn optimize_of_equal_models_gives_equal_bytes() {
        let bytes = || {
            let mut model = model();
            optimize(&mut model).unwrap();
            let at = |_: &str| Some(crate::Location { file: "w".into(), offset: 0, length: 128 });
            crate::encode_model(&model, &at).unwrap()
        };
        assert_eq!(bytes(), bytes());
    }

    #[test]
    fn optimize_of_cycle_is_an_error_that_names_the_nodes() {
        let mut model = model();
        model.graph.nodes[1].inputs[0] = "y".into();
        let error = optimize(&mut model).unwrap_err().to_string();
        assert!(error.contains("`Reshape` -> `MatMul`"), "{error}");
    }
}
