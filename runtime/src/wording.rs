//! What options are called where this library is used: each front end sets its own words once, as a program sets its locale.
//!
//! Errors name an option by one of the constants here, and so tell every user what to change in the words of the tool, language or
//! function that they use.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

/// A front end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Speaker {
    /// This crate: names of its types and members.
    Rust,
    /// The command-line tools: flags.
    CommandLine,
    /// The C library: members and constants.
    C,
}

static SPEAKER: AtomicU8 = AtomicU8::new(Speaker::Rust as u8);

/// Says whose words errors use, in the whole process and from now on.
pub fn speak(speaker: Speaker) {
    SPEAKER.store(speaker as u8, Ordering::Relaxed);
}

/// What an option, or a value of one, is called in Rust, on the command line and in C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words(&'static [&'static str; 3]);

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let speaker = usize::from(SPEAKER.load(Ordering::Relaxed));
        f.write_str(self.0.get(speaker).unwrap_or(&self.0[0]))
    }
}

/// Adapters in low-rank branches.
pub const BRANCH: Words = Words(&["`AdapterMode::Branch`", "--fuse-mode side", "V2L_ADAPTERS_SIDE"]);
/// The shift of a scheduler.
pub const SHIFT: Words = Words(&["`shift`", "--shift", "`shift`"]);
/// Width and height of the video.
pub const SIZE: Words = Words(&["`width` and `height`", "--width and --height", "`width` and `height`"]);
/// The autoencoder's tiles.
pub const TILING: Words = Words(&["`vae_tiling: Some(true)`", "--vae-tiling on", "V2L_TILING_ON"]);
