//! Low-rank adapters: their files, fusion into weights, and branches beside them.

pub mod adapter;
pub mod branch;
pub mod fuse;
pub mod mode;
