//! OpenVINO for v2l: safe Rust over its C API. The library is found and loaded at run time; nothing of it is needed to build.
//!
//! [`Core`] is the library, [`Model`] a graph that it has read, [`Compiled`] what a device runs, and [`Request`] one caller's inputs and outputs
//! of that. Weights are inputs over memory that the caller owns ([`Borrowed`]): nothing is copied, and another weight is another
//! [`Request::set_input`]. What changes with every run is lent to it ([`Lent`], [`Request::run_on`]).
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use v2l_openvino::{Borrowed, CompileOptions, Core, Element, Model};
//!
//! let core = Core::open(None)?;
//! let model = Model::from_onnx_bytes(&core, &std::fs::read("graph.onnx")?)?;
//! let mut request = core.compile(&model, &CompileOptions::default())?.request()?;
//! request.set_input("x", Borrowed::new(Element::F32, &[1, 4], Arc::new(vec![0_u8; 16]))?)?;
//! request.run(&|| false)?;
//! println!("{:?}", request.output("y")?.shape());
//! # Ok(())
//! # }
//! ```

mod borrowed;
mod compiled;
mod constants;
mod core;
mod element;
mod error;
mod handle;
mod library;
mod model;
mod request;

pub use self::borrowed::{Borrowed, Lent};
pub use self::compiled::{CompileOptions, Compiled, Precision};
pub use self::core::Core;
pub use self::element::Element;
pub use self::error::OpenVinoError;
pub use self::library::{MINIMUM, Version};
pub use self::model::Model;
pub use self::request::{NodeTime, Output, Ran, Request};
pub use v2l_search::{Found, LibraryError};
