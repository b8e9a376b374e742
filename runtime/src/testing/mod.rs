//! Stand-ins: what tests put in the place of something that is large, costly or not there.
//!
//! | for | stand-in |
//! |---|---|
//! | the CUDA driver and its memory | [`driver::StandInDriver`]: host memory, and the kernel compiled for the CPU |
//! | TensorRT on a GPU | `backends/tensorrt/stand_in.rs`: ONNX Runtime on the weights that the refitter was given |
//! | the libraries of both, from the command line down | `tests/trt_stand_in`, `runtime/cuda/kernels/driver.cpp` |
//! | a compiled engine | [`engines`]: one of a few kilobytes |
//! | a model family | [`family`]: two linear layers and an autoencoder that changes nothing |
//! | a kind of predictor | `predict/toy.rs`: a prompt, tensors and pristine weights, and no network |
//! | a scheduler | `schedulers/toy.rs`: a flow of second order |
//! | ONNX Runtime, where a sanitizer runs | `runtime/capi/src/stand_in.rs` |
//! | another backend | `tests/suite/backends.rs` |

pub(crate) mod driver;
pub(crate) mod engines;
pub(crate) mod family;
