//! Pictures and videos.

pub mod resize;
pub mod video;
