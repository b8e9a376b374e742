//! Low-rank adapters: their files and algebra, fusion into weights, and branches beside them.

pub mod adapter;
pub mod algebra;
pub mod branch;
pub mod fuse;
pub mod mode;
mod strength;

pub use strength::Strength;
