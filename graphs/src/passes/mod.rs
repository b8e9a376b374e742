//! Passes: rewrites that keep what a model computes.
//!
//! Every pass takes the model as it is and returns how often it fired. Equal models give equal results, names and order
//! included. A pass that is unsure about a node leaves it alone.

mod dead_nodes;
mod error;
mod extract;
mod fold_constants;
mod fold_shapes;
mod fold_weight_layout;
mod infer_shapes;
mod links;
mod logic;
mod low_rank_branch;
mod lower_openvino;
mod lower_opset;
mod lower_ort;
mod lower_tensorrt;
mod merge_duplicates;
mod optimize;
mod parts;
mod precompute;
mod quantize_weights;
mod split_weights;
mod switches;
mod topological_sort;
mod transforms;

pub use dead_nodes::remove_dead_nodes;
pub use error::PassError;
pub use extract::Extractor;
pub use fold_constants::fold_constants;
pub use fold_shapes::fold_shapes;
pub use fold_weight_layout::fold_weight_layout;
pub use infer_shapes::{Extent, Footprint, Sum, footprint, infer_shapes, settle_extents};
pub use logic::lower_logic;
pub use low_rank_branch::{BranchError, BranchSlot, add_branches};
pub use lower_openvino::{LoweredForOpenVino, NotForOpenVino, lower_for_openvino};
pub use lower_opset::{LateNode, Versions, lower_opset};
pub use lower_ort::{Lowered, lower_for_ort};
pub use lower_tensorrt::lower_for_tensorrt;
pub use merge_duplicates::merge_duplicates;
pub use optimize::{Report, optimize, optimize_with};
pub use precompute::{Precomputed, TimestepRows, flops_per_row, precompute};
pub use quantize_weights::{INT8_SUFFIX, SCALES_SUFFIX, quantizable, quantize_weights, restore_quantized};
pub use split_weights::split_weights;
pub use switches::{Pass, Passes};
pub use topological_sort::sort_topologically;
pub use transforms::{ALIASES_KEY, TRANSFORMS_KEY};

pub use crate::walk::{label, rename_uses};
pub(crate) use topological_sort::order;
