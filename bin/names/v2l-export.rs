//! `v2l-export`, a name of `v2l`.

mod program;

fn main() -> std::process::ExitCode {
    program::become_v2l("v2l-export")
}
