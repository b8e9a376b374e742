//! `cargo fuzz run NAME`: the target of the program's own name; see `targets.rs`.

#![no_main]

#[path = "../targets.rs"]
mod targets;

use std::sync::LazyLock;

use targets::Target;

static TARGET: LazyLock<&Target> = LazyLock::new(|| Target::find(env!("CARGO_BIN_NAME")));

libfuzzer_sys::fuzz_target!(
    init: {
        TARGET.tried_seeds();
    },
    |bytes: &[u8]| (TARGET.run)(bytes)
);
