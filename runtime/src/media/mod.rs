//! Pictures and videos.

pub mod clip;
pub mod resize;
pub mod video;
