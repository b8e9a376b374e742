//! How every session is configured.

use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use crate::options::WeightMode;

/// Optimisers that read weights. They would find the placeholder empty and fail the session; what they do belongs to
/// the compiler. (Names as registered in ONNX Runtime 1.31; an unknown name is ignored.)
const WEIGHT_READERS: &str = "ConstantFolding;TransposeOptimizer;TransposeOptimizer_CPUExecutionProvider;\
    NchwcTransformer;NhwcTransformer;FuseFp16InitializerToFp32NodeTransformer;UnsqueezeElimination;\
    ConvAddFusion;ConvMulFusion;ConvBNFusion;MatMul_BatchNormalization_Fusion";

pub(super) fn configured(
    builder: SessionBuilder,
    mode: WeightMode,
    threads: Option<usize>,
) -> Result<SessionBuilder, String> {
    let build = || -> ort::Result<SessionBuilder> {
        let mut builder = builder.with_disabled_optimizers(WEIGHT_READERS)?;
        // With patterns a second run of equal shapes would take all of its memory once more, beside what the first one took.
        builder = builder.with_memory_pattern(false)?;
        // Pairs of quantisation compute in f32 what they stand between, as the graph says, not in the 8 bits that they round to.
        builder = builder.with_quant_qdq(false)?.with_double_qdq_remover(false)?;
        if let Some(threads) = threads {
            builder = builder.with_intra_threads(threads)?;
        }
        if mode == WeightMode::Stored {
            // The graphs are optimised when they are compiled; looking for more takes most of the time that opening takes,
            // and opening fast is what this mode is for.
            builder = builder.with_optimization_level(GraphOptimizationLevel::Disable)?;
            let cpu = ort::ep::CPU::default().with_arena_allocator(false).build();
            builder = builder.with_execution_providers([cpu])?.with_prepacking(false)?;
        }
        Ok(builder)
    };
    build().map_err(|e| e.to_string())
}
