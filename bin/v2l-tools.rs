//! The four tools in one program, for packages: the name that it is called by says which one it is. What they share is there once.

#[path = "v2l-compile.rs"]
mod compile;
#[path = "v2l-export.rs"]
mod export;
#[path = "v2l-inspect.rs"]
mod inspect;
#[path = "v2l-run.rs"]
mod run;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    // A builder of plans is this program under another name.
    if let Some(exit) = v2l_export::trt::builder::serve_if_asked() {
        return exit;
    }
    let name = std::env::args_os().next().unwrap_or_default();
    match Path::new(&name).file_name().and_then(|name| name.to_str()) {
        Some("v2l-compile") => compile::main(),
        Some("v2l-export") => export::main(),
        Some("v2l-inspect") => inspect::main(),
        Some("v2l-run") => run::main(),
        _ => {
            eprintln!("error: call this program by a link named v2l-export, v2l-compile, v2l-run or v2l-inspect");
            ExitCode::from(v2l_cli::Exit::Usage as u8)
        }
    }
}
