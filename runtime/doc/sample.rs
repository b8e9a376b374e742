// The trained miniature as an engine directory, for the examples of the documentation: exported and compiled in a second or two.

fn sample() -> (tempfile::TempDir, v2l_runtime::generator::Options) {
    use v2l_export::{CompileOptions, ExportOptions, compile, export};
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the project");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = root.join("tests/fixtures/miniature");
    let light_lora = model.join("checkpoint-checkpoint-100.safetensors");
    let predictor = Some((model.join("hypernetwork.safetensors"), light_lora));
    let options = ExportOptions { predictor, ..ExportOptions::default() };
    export(&model, &folder.path().join("bundle"), &options, &mut |_| {}).expect("the miniature is exported");
    let (bundle, engines) = (folder.path().join("bundle"), folder.path().join("engines"));
    compile(&bundle, &engines, &CompileOptions::default(), &mut |_| {}).expect("the miniature is compiled");
    let mut options = v2l_runtime::generator::Options::default();
    // What `bin/setup` fetched; documentation examples do not run from the checkout's `target/`.
    let ort = root.join("vendor/ort/onnxruntime/capi");
    options.engines.ort.library = ort.is_dir().then_some(ort);
    (folder, options)
}
