//! Random graphs compiled with passes give what their files give, whatever rows come together and came before.

use crate::graphs::{Draws, Kind, draw, noise};
use crate::random_passes::{Trial, check, compare, runs, try_oracle};

/// What the `number`-th graph is drawn from.
fn bytes(number: u64) -> Vec<u8> {
    noise(number, 160).iter().map(|v| (v.abs() * 65_536.0) as u32 as u8).collect()
}

#[test]
fn random_steps_from_timesteps_and_settings_equal_whole_graphs_over_any_rows_in_used_and_fresh_sessions() {
    let folder = tempfile::tempdir().unwrap();
    let mut precomputed = [0; 2];
    for number in 0..48 {
        let kind = [Kind::Timesteps, Kind::Mixing][number as usize % 2];
        let drawn = draw(&mut Draws::new(&bytes(number)), kind);
        let mut trial = Trial::usual(&drawn);
        // What was announced, in every other pair of graphs.
        trial.prepare = number % 4 > 1;
        let seen = compare(&drawn.model, &drawn.model, &trial, &runs(), folder.path());
        precomputed[number as usize % 2] += i32::from(seen.unwrap_or_else(|e| panic!("graph {number}: {e}")).tables);
    }
    assert!(precomputed.iter().all(|&count| count > 6), "too few graphs with tables to say anything: {precomputed:?}");
}

#[test]
fn random_steps_hoisted_as_if_a_mean_of_rows_were_each_rows_own_are_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let found = |number| try_oracle(&bytes(number), folder.path()).unwrap_or_else(|e| panic!("graph {number}: {e}"));
    let precomputed = (0..8).filter(|&number| found(number)).count();
    assert!(precomputed > 4, "{precomputed} of 8 were a precomputed graph's doing");
}

#[test]
fn random_graphs_compiled_with_random_passes_equal_their_files() {
    let folder = tempfile::tempdir().unwrap();
    // What an engine's file names if it is there.
    let parts = ["RotaryEmbedding", "MultiHeadAttention", "MatMulNBits", r#""dtype":"F16""#, r#""dtype":"BF16""#];
    let mut seen = [0; 5];
    for number in 100..148 {
        check(&bytes(number), folder.path());
        let engine = std::fs::read(folder.path().join("graph.engine")).unwrap();
        let holds = |part: &str| engine.windows(part.len()).any(|bytes| bytes == part.as_bytes());
        seen.iter_mut().zip(parts).for_each(|(count, part)| *count += u32::from(holds(part)));
    }
    assert!(seen.iter().all(|&count| count > 1), "too few graphs with some of {parts:?} to say anything: {seen:?}");
}
