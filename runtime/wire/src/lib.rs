//! ONNX models as protobuf bytes, for what does not decode them: the fields of a message, and the files that a model's tensors name.
//!
//! A runtime that is handed ONNX bytes opens the files that tensors name, and ONNX Runtime and OpenVINO take one name for an address in
//! the process's own memory. So whoever hands over bytes that a stranger may have written looks at [`external_data`] first.

mod external;
mod fields;
mod put;

pub use external::{External, external_data, is_address};
pub use fields::{Field, LENGTH, Malformed, fields};
pub use put::{put_message, put_varint};
