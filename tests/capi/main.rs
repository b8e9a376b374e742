//! The C ABI as programs meet it: compiled against the installed header, linked with the installed library, run on the sample model.

mod abi;
mod examples;
mod frontends;
mod header;
mod misuse;
mod python;
mod support;
