//! Compiles the shim, if a feature needs it: one C++ translation unit per flavour of TensorRT.

fn main() {
    println!("cargo::rerun-if-changed=shim");
    println!("cargo::rerun-if-changed=headers");
    #[cfg(any(feature = "build", feature = "run"))]
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .files(["shim/rtx.cpp", "shim/tensorrt.cpp"])
        .include("shim")
        // NVIDIA's headers: their warnings are not ours.
        .flag("-isystem")
        .flag("headers")
        .flag("-fvisibility=hidden")
        .warnings_into_errors(true)
        .extra_warnings(true)
        .compile("v2l_trt_shim");
}
