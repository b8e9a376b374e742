//! What options are called where these libraries are used: each front end sets its own words once, as a program sets its locale.
//!
//! Errors name an option by its [`Words`], and so tell every user what to change in the words of the tool, language or function that
//! they use.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

/// A front end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Speaker {
    /// Rust: names of types and members.
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
pub struct Words([&'static str; 3]);

impl Words {
    /// In Rust, on the command line and in C.
    pub const fn new(words: [&'static str; 3]) -> Self {
        Self(words)
    }
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let speaker = usize::from(SPEAKER.load(Ordering::Relaxed));
        f.write_str(self.0.get(speaker).unwrap_or(&self.0[0]))
    }
}

/// Options that are given together, each a name and perhaps a value.
pub fn together(options: &[String]) -> String {
    let spoken = SPEAKER.load(Ordering::Relaxed) == Speaker::CommandLine as u8;
    options.join(if spoken { " " } else { " and " })
}

/// How to come by a library or program that v2l loads and does not bring, as an imperative.
///
/// In a checkout, which has a script for it, that is named first; an installed program names what a package manager has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supply {
    checkout: Option<&'static str>,
    anywhere: &'static str,
}

impl Supply {
    /// With the command of a checkout, and what anybody can do.
    pub const fn new(checkout: &'static str, anywhere: &'static str) -> Self {
        Self { checkout: Some(checkout), anywhere }
    }

    /// With what anybody can do, where a checkout has no script for it.
    pub const fn anywhere(anywhere: &'static str) -> Self {
        Self { checkout: None, anywhere }
    }

    fn of(self, in_checkout: bool) -> String {
        match self.checkout.filter(|_| in_checkout) {
            Some(checkout) => format!("{checkout}, or {}", self.anywhere),
            None => self.anywhere.to_owned(),
        }
    }
}

impl fmt::Display for Supply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.of(crate::vendored("").is_some()))
    }
}

/// OpenVINO's library.
pub const OPENVINO_LIBRARY: Words = Words::new(["openvino.library", "--openvino-lib", "openvino_library"]);
/// TensorRT's library.
pub const TRT_LIBRARY: Words = Words::new(["trt.library", "--trt-lib", "trt_library"]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installed_programs_are_not_told_of_a_checkouts_scripts() {
        let supply = Supply::new("run `bin/setup`", "`apt install ffmpeg`");
        assert_eq!(supply.of(true), "run `bin/setup`, or `apt install ffmpeg`");
        assert_eq!(supply.of(false), "`apt install ffmpeg`");
    }
}
