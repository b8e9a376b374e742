//! Fuzzing without further tools, for a bounded time: mutations of good files, one after the other, in this process; for
//! the target `graphs`, bytes at random; for the target `commands`, runs of the tools.
//!
//! `cargo run -p v2l-checks --bin fuzz -- TARGET [SECONDS] [SEED]`; targets: those of `fuzz/targets.rs`, and commands. Prints what it did and ends with 1 at the first panic, leaving the input in `fuzz-<target>.crash`; if the process dies, the input is the last one
//! that was written there. `cargo fuzz run TARGET` in `fuzz/` runs the same targets, but for `commands`, with coverage. That one
//! takes the tools beside it (`cargo build`), and prints the command that is a finding.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[cfg(unix)]
mod commands;
#[cfg(unix)]
#[path = "../../recipes.rs"]
mod recipes;
#[path = "../../../fuzz/targets.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use targets::{TARGETS, Target};

/// Longest time that one input may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Draws that depend on a seed only.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// A position: half of the time among the first 4 KiB, where headers are.
fn position(draws: &mut Draws, length: usize) -> usize {
    let bound = if draws.below(2) == 0 { length.min(4096) } else { length };
    draws.below(bound)
}

/// Changes a few things of `bytes`.
fn mutate(draws: &mut Draws, bytes: &mut Vec<u8>) {
    const NUMBERS: [u64; 8] = [0, 1, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];
    for _ in 0..=draws.below(6) {
        if bytes.is_empty() {
            return;
        }
        let at = position(draws, bytes.len());
        let length = (1 + draws.below(64)).min(bytes.len() - at);
        match draws.below(8) {
            0 => bytes[at] ^= 1 << draws.below(8),
            1 => bytes[at] = draws.next() as u8,
            2 => {
                let number = NUMBERS[draws.below(NUMBERS.len())].to_le_bytes();
                let width = [1, 2, 4, 8][draws.below(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            3 => drop(bytes.drain(at..at + length)),
            4 => {
                let chunk = bytes[at..at + length].to_vec();
                let to = position(draws, bytes.len());
                bytes.splice(to..to, chunk);
            }
            5 => bytes.truncate(at),
            // A digit of a header, which is text.
            6 => {
                if let Some(digit) = bytes[at..].iter_mut().take(512).find(|byte| byte.is_ascii_digit()) {
                    *digit = b'0' + draws.below(10) as u8;
                }
            }
            _ => bytes[at..at + length].fill(b"\0\xff\"{[-9"[draws.below(7)]),
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(target) = arguments.first() else {
        let names = TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join("|");
        eprintln!("usage: fuzz {names}|commands [SECONDS] [SEED]");
        return ExitCode::from(2);
    };
    let number = |at: usize, default: u64| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (seconds, seed) = (number(1, 600), number(2, 1));
    let mut draws = Draws(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    #[cfg(unix)]
    if target == "commands" {
        return commands::fuzz(seconds, seed, &mut draws);
    }
    let target = Target::find(target);
    let name = target.name;
    let crash = PathBuf::from(format!("fuzz-{name}.crash"));
    let (start, mut inputs) = (Instant::now(), 0u64);
    let corpus = target.tried_seeds();
    // What a panic says is said once, below.
    std::panic::set_hook(Box::new(|_| {}));
    while start.elapsed() < Duration::from_secs(seconds) {
        let mut bytes = corpus[draws.below(corpus.len())].clone();
        match target.drawn {
            true => bytes.iter_mut().for_each(|byte| *byte = (draws.next() >> 24) as u8),
            false => mutate(&mut draws, &mut bytes),
        }
        std::fs::write(&crash, &bytes).unwrap();
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(&bytes)));
        inputs += 1;
        if let Err(payload) = outcome {
            let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
            println!("{name}: input {inputs} panicked: {}; see {}", text.unwrap_or("?"), crash.display());
            return ExitCode::FAILURE;
        }
        if began.elapsed() > PATIENCE {
            println!("{name}: input {inputs} took {:?}; see {}", began.elapsed(), crash.display());
            return ExitCode::FAILURE;
        }
    }
    let _ = std::fs::remove_file(&crash);
    println!("{name}: {inputs} inputs in {seconds} s, no crash; seed {seed}");
    ExitCode::SUCCESS
}
