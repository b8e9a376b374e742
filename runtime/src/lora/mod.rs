//! Adapters: their files and algebra, sets of them, fusion into weights, and low-rank branches beside them.

pub mod adapter;
pub mod algebra;
pub mod branch;
pub mod fuse;
pub mod mode;
mod set;
mod strength;

pub use set::{AdapterSet, Branch, Variant, Weighted, borrowed};
pub use strength::Strength;
