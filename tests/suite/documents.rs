//! The documentation is true: commands run on shipped data, flags exist, links lead somewhere, the reference of the command line is
//! current, sentences stay short.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use indexmap::IndexMap;
use v2l_graphs::{Builder, DataType, Dim, Initializer, encode_model};
use v2l_runtime::engine::Engine;
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::lora::adapter::{AdapterFormat, write_adapter};
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::architecture::root;
use crate::support::fixtures;
use crate::swaps::adapter;
use crate::tools::{PROGRAM, Scratch, TOOLS, args, run_ok, sample_model};
use crate::wan_pipelines::{engines, folder, runs};

/// The subcommands that the reference of the command line has, in its order.
const SUBCOMMANDS: [&str; 9] =
    ["generate", "predict", "export", "compile", "run", "inspect", "serve", "doctor", "cache"];

/// Commands that contain these words are not run, and why. Their flags are checked all the same.
const NOT_RUN: &[(&str, &str)] = &[
    ("…", "not a whole command"),
    ("v2l-export FILE", "not a whole command"),
    ("--backend tensorrt-rtx", "needs TensorRT; tests/suite/trt.rs"),
    ("--provider cuda", "needs a GPU; tests/suite/device_weights.rs"),
    ("--trt-lib", "needs a GPU; tests/suite/trt.rs"),
    ("--effect", "needs a predictor of prompts; tests/suite/packages.rs"),
    ("--control", "needs a file of controls; tests/suite/control.rs"),
    ("predictor.onnx", "needs a predictor; tests/suite/predictor_maps.rs"),
    ("--predictor", "needs a predictor; tests/suite/packages.rs and predictor_maps.rs"),
    ("fp8", "needs ComfyUI's files; tests/suite/wan_folders.rs"),
    (".gguf", "needs a GGUF file; tests/suite/checkpoints.rs"),
    ("umt5_xxl_fp16", "needs ComfyUI's files; tests/suite/wan_folders.rs"),
    ("Wan2.2-T2V-A14B", "needs the authors' folder; tests/suite/wan_folders.rs"),
    ("v2l serve", "needs the Python package; tests/python"),
    ("ENGINE_DIR", "stands for a folder of the reader's"),
];

/// README, ARCHITECTURE and so on, and every page below docs/.
fn documents() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "tests/README.md"]
        .map(|name| root().join(name))
        .to_vec();
    let pages = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    found.extend(pages.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    found.sort();
    found
}

/// The commands of a document's `sh` blocks: lines that continue joined, comments left out.
fn commands(text: &str) -> Vec<String> {
    let (mut found, mut inside, mut joined) = (Vec::new(), false, String::new());
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = line.trim() == "```sh";
            continue;
        }
        if !inside || line.trim_start().starts_with('#') {
            continue;
        }
        let line = line.find(" #").map_or(line, |at| &line[..at]).trim_end();
        match line.strip_suffix('\\') {
            Some(begun) => joined.push_str(begun),
            None if !line.trim().is_empty() => found.push(std::mem::take(&mut joined) + line),
            None => {}
        }
    }
    found
}

/// Every command of the documents that runs one of the tools, once, with the document that has it first.
fn tool_commands() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for document in documents() {
        let name = document.strip_prefix(root()).unwrap().display().to_string();
        for command in commands(&std::fs::read_to_string(&document).unwrap()) {
            if split(&command).is_some() {
                found.entry(command.split_whitespace().collect::<Vec<_>>().join(" ")).or_insert_with(|| name.clone());
            }
        }
    }
    found
}

/// The subcommand of a command that runs one, and what stands behind it.
fn split(command: &str) -> Option<(String, String)> {
    let (first, rest) = command.trim_start().split_once(' ')?;
    let (name, rest) = match first.strip_prefix("v2l-") {
        Some(name) => (name, rest),
        None if first == "v2l" => rest.trim_start().split_once(' ').unwrap_or((rest, "")),
        None => return None,
    };
    Some((name.trim().to_owned(), rest.to_owned()))
}

/// What a subcommand says of itself, under its own name where it has one.
fn generated(name: &str, kind: &str) -> String {
    if TOOLS.contains(&name) {
        return run_ok(name, args!["--generate", kind]).stdout;
    }
    let said = Command::new(PROGRAM).args([name, "--generate", kind]).output().unwrap();
    assert!(said.status.success(), "v2l {name}");
    String::from_utf8(said.stdout).unwrap()
}

/// A text in which a quotation mark or space ends a word, as a shell would take it apart.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut quoted) = (vec![String::new()], false);
    for c in command.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The names that documents use, for a shipped model: what a reader would have after the commands before.
struct Stage {
    folder: Scratch,
}

impl Stage {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path(name)
    }

    /// The miniature with its predictor, which is trained, so that checks of rounding mean something.
    fn cogvideox() -> Self {
        let stage = Self { folder: Scratch::new() };
        let model = stage.folder.copy(&fixtures().join("miniature"), "CogVideoX-Fun-V1.1-5b-InP");
        for name in ["hypernetwork.safetensors", "checkpoint-checkpoint-100.safetensors"] {
            std::fs::rename(model.join(name), stage.path(name)).unwrap();
        }
        std::fs::copy(model.join("images/08.png"), stage.path("first.png")).unwrap();
        for (from, to) in [("reference.mp4", "effect.mp4"), ("reference2.mp4", "clip.mp4")] {
            std::fs::copy(sample_model().join(from), stage.path(to)).unwrap();
        }
        let [hypernetwork, light, bundle, engines] =
            ["hypernetwork.safetensors", "checkpoint-checkpoint-100.safetensors", "bundle", "engines"]
                .map(|name| stage.path(name));
        run_ok("export", args![&model, "-o", &bundle, "--hypernetwork", hypernetwork, "--light-lora", light]);
        let compiled = args![&bundle, "-o", &engines, "--lora-rank", "64", "--backend", "openvino"];
        run_ok("compile", &[compiled, args!["--precision", "bf16", "--no-verify"]].concat());
        let effect = stage.path("effect.safetensors");
        run_ok("run", args!["--engine", &engines, "--reference", stage.path("effect.mp4"), "--save-lora", &effect]);
        for name in ["lora", "camera", "style", "a", "b"] {
            std::fs::copy(&effect, stage.path(&format!("{name}.safetensors"))).unwrap();
        }
        let video = args!["--engine", &engines, "--image", stage.path("first.png"), "--prompt", "a paper boat"];
        let short = ["--steps", "1", "--num-frames", "9"].map(Into::into);
        let kept = args!["-o", stage.path("made.mp4"), "--record-inputs", stage.path("recorded")];
        run_ok("run", &[video, &short, kept].concat());
        let recorded = std::fs::read_dir(stage.path("recorded")).unwrap().map(|entry| entry.unwrap().path());
        let step = recorded.filter(|path| path.to_string_lossy().contains("transformer.step")).min().unwrap();
        std::fs::copy(step, stage.path("in.safetensors")).unwrap();
        let encoded = stage.path("encoded.safetensors");
        run_ok("run", args!["--engine", &engines, "--encode", stage.path("clip.mp4"), "--outputs", &encoded]);
        let mean = read_tensors(&encoded).unwrap().swap_remove("mean").unwrap();
        stage.write_tensor("latents.safetensors", "latents", mean);
        let plan =
            args![&bundle, "-o", stage.path("planned"), "--precision", "fp16", "--no-calibration", "--no-verify"];
        run_ok("compile", &[plan, args!["--save-precision-plan", stage.path("plan.txt")]].concat());
        stage.onnx();
        stage
    }

    fn write_tensor(&self, name: &str, key: &str, tensor: Tensor) {
        write_tensors(self.path(name), &NamedTensors::from([(key.to_owned(), tensor)]), &IndexMap::new()).unwrap();
    }

    /// A graph from elsewhere, the checkpoint that it comes from, and inputs.
    fn onnx(&self) {
        const WIDTH: usize = 64;
        let values: Vec<f32> = (0..WIDTH * WIDTH).map(|i| ((i * 37 % 101) as f32 - 50.0) / 400.0).collect();
        let weight = Tensor::from_f32(&[WIDTH, WIDTH], values.clone()).unwrap();
        let mut b = Builder::new("model");
        let x = b.input("x", DataType::Float, ["rows", "columns"]);
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let matrix = b.initializer("layer.weight", Initializer::inline(DataType::Float, &[WIDTH, WIDTH], bytes));
        let each = b.unsqueeze(&x, &[2]);
        let ramp: Vec<f32> = (0..WIDTH).map(|i| 0.1 + i as f32 / 64.0).collect();
        let ramp = b.floats(&[WIDTH], &ramp);
        let wide = b.op("Mul", &[&each, &ramp]);
        let y = b.op("MatMul", &[&wide, &matrix]);
        b.output("y", &y, DataType::Float, [Dim::from("rows"), Dim::from("columns"), Dim::from(WIDTH)]);
        self.folder.write("model.onnx", encode_model(&b.finish().unwrap(), &|_| None).unwrap());
        self.write_tensor("checkpoint.safetensors", "layer.weight", weight);
        self.write_tensor("x.safetensors", "x", Tensor::from_f32(&[1, 256], vec![0.5; 256]).unwrap());
        run_ok("compile", args![self.path("model.onnx"), "-o", self.path("model.engine"), "--optShapes", "x:1x256"]);
    }

    /// The models of Wan that the documents name.
    fn wan() -> Self {
        let stage = Self { folder: Scratch::new() };
        for (name, run) in [("wan", "t2v"), ("wan-i2v", "i2v"), ("wan-flf2v", "flf2v"), ("wan22", "experts")] {
            let made = engines(&runs()[run]);
            std::fs::rename(made.path("engines"), stage.path(name)).unwrap();
            if name == "wan" {
                std::fs::rename(made.path("model"), stage.path("Wan2.1-T2V-1.3B-Diffusers")).unwrap();
                std::fs::rename(made.path("bundle"), stage.path("bundle")).unwrap();
            }
        }
        let engine = Engine::open(stage.path("wan/transformer.engine")).unwrap();
        let blocks = || engine.manifest().slots.iter().filter(|slot| slot.name.starts_with("blocks."));
        for (seed, name) in
            ["lora", "effect", "lightx2v_high_noise", "lightx2v_low_noise", "distill_high_noise", "distill_low_noise"]
                .into_iter()
                .enumerate()
        {
            let made = adapter(name, blocks(), 2, seed as u64);
            write_adapter(&stage.path(&format!("{name}.safetensors")), &made, AdapterFormat::Comfy).unwrap();
        }
        // Commands that make engines of a model by these names find them as made.
        std::os::unix::fs::symlink(stage.path("wan22"), stage.path("engines")).unwrap();
        for (from, to) in [("wide.png", "first.png"), ("tall.png", "last.png")] {
            std::fs::copy(folder().join(from), stage.path(to)).unwrap();
        }
        stage
    }

    /// Runs a command in a folder of its own, in which every name of the stage is found that the command does not write.
    fn run(&self, command: &str, more: &[&str]) -> Result<(), String> {
        let own = Scratch::new();
        let (tool, rest) = split(command).unwrap();
        let words = words(&rest);
        let written = |name: &str| {
            let after = |flags: &[&str]| words.windows(2).any(|pair| flags.contains(&&*pair[0]) && pair[1] == name);
            after(&["-o", "--outputs", "--save-lora", "--record-inputs", "--saveEngine", "--save-precision-plan"])
        };
        for entry in std::fs::read_dir(self.folder.root()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !written(&name) {
                std::os::unix::fs::symlink(self.path(&name), own.path(&name)).unwrap();
            }
        }
        let mut run = Command::new(PROGRAM);
        run.arg(tool).args(&words).args(more).current_dir(own.root()).env("V2L_CACHE", own.path("cache"));
        let output = run.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(format!("{command}\n  {:?}: {said}", output.status.code())) }
    }
}

/// Flags that keep a run short, where the command does not have them.
fn short(command: &str, wan: bool) -> Vec<&'static str> {
    let generates = ["v2l-run", "v2l generate"].iter().any(|name| command.starts_with(name))
        && command.contains(" -o ")
        && !command.contains("--decode");
    let mut flags: Vec<[&str; 2]> = Vec::new();
    if generates {
        flags.extend([["--steps", "1"], ["--num-frames", if wan { "5" } else { "9" }]]);
        if wan {
            flags.extend([["--height", "16"], ["--width", "32"]]);
        }
    }
    flags.into_iter().filter(|[flag, _]| !command.contains(flag)).flatten().collect()
}

#[test]
fn commands_of_the_documents_run_on_shipped_models() {
    let commands = tool_commands();
    assert!(commands.len() > 50, "only {} commands were found", commands.len());
    let (cogvideox, wan) = (Stage::cogvideox(), Stage::wan());
    let (mut failures, mut ran, mut left) = (Vec::new(), 0, BTreeMap::<&str, usize>::new());
    for (command, document) in &commands {
        if let Some((_, why)) = NOT_RUN.iter().find(|(words, _)| command.contains(words)) {
            *left.entry(why).or_default() += 1;
            continue;
        }
        // Which model a command means, its own words say, or else the page that it stands on.
        let is_wan = ["wan", "Wan", "_noise", "@high", "--control"].iter().any(|word| command.contains(word))
            || document == "README.md";
        let stage = if is_wan { &wan } else { &cogvideox };
        match stage.run(command, &short(command, is_wan)) {
            Ok(()) => ran += 1,
            Err(why) => failures.push(format!("{document}: {why}")),
        }
    }
    println!("{ran} commands ran; not run: {left:#?}");
    assert!(failures.is_empty(), "{} of {} failed:\n{}", failures.len(), ran + failures.len(), failures.join("\n"));
}

#[test]
fn flags_of_the_documents_exist() {
    let known: BTreeMap<&str, BTreeSet<String>> = SUBCOMMANDS
        .iter()
        .map(|tool| {
            let flags = |text: &str| -> BTreeSet<String> {
                let word = |c: char| !(c.is_alphanumeric() || c == '-' || c == '_');
                text.split(word).filter(|part| part.starts_with("--") && part.len() > 2).map(str::to_owned).collect()
            };
            (*tool, flags(&generated(tool, "markdown")))
        })
        .collect();
    let mut checked = 0;
    for (command, document) in tool_commands() {
        let (tool, rest) = split(&command).unwrap();
        let words = words(&rest);
        let Some(flags) = known.get(&*tool) else { panic!("{document}: {command}: no such tool") };
        // Its flags are the Python package's.
        if tool == "serve" {
            continue;
        }
        for word in words.iter().filter(|word| word.starts_with("--") && word.len() > 2) {
            let flag = word.split(['=', '[']).next().unwrap();
            let common = ["--help", "--version", "--generate"].contains(&flag);
            assert!(common || flags.contains(flag), "{document}: {command}: there is no {flag}");
            checked += 1;
        }
    }
    assert!(checked > 100, "only {checked} flags were found");
}

#[test]
fn programs_that_the_documents_name_are_there() {
    let manifest = std::fs::read_to_string(root().join("tests/checks/Cargo.toml")).unwrap();
    let mut checked = 0;
    for document in documents() {
        for command in commands(&std::fs::read_to_string(&document).unwrap()) {
            let words = words(&command);
            for pair in words.windows(2) {
                let (flag, value) = (&*pair[0], &*pair[1]);
                if flag == "--bin" && value != "NAME" {
                    let named = value == "v2l"
                        || value.starts_with("v2l-")
                        || manifest.contains(&format!("name = \"{value}\""));
                    assert!(named, "{}: {command}: there is no program {value}", document.display());
                    checked += 1;
                }
            }
            let script = |word: &&String| {
                ["bin/", "tests/", "export/", ".ci/", "runtime/"].iter().any(|folder| word.starts_with(folder))
            };
            for word in words.iter().filter(script) {
                assert!(root().join(word).exists(), "{}: {command}: there is no {word}", document.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 20, "only {checked} programs were found");
}

/// What GitHub makes of a heading, to link to it.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let mut code = false;
    let headings = text.lines().filter(|line| {
        code ^= line.trim_start().starts_with("```");
        !code && line.starts_with('#')
    });
    headings.map(anchor).collect()
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    let mut checked = 0;
    let mut broken = String::new();
    for document in documents().into_iter().chain([root().join("CHANGELOG.md")]) {
        let text = std::fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") || link.contains(' ') {
                continue;
            }
            let (file, heading) = link.split_once('#').map_or((link, None), |(file, heading)| (file, Some(heading)));
            let target = if file.is_empty() { document.clone() } else { document.parent().unwrap().join(file) };
            let there = match heading {
                None => target.exists(),
                Some(heading) => std::fs::read_to_string(&target).is_ok_and(|text| anchors(&text).contains(heading)),
            };
            if !there {
                let _ = writeln!(broken, "{}: {link}", document.display());
            }
            checked += 1;
        }
    }
    assert!(broken.is_empty(), "these links lead nowhere:\n{broken}");
    assert!(checked > 100, "only {checked} links were found");
}

#[test]
fn every_page_is_in_the_book() {
    let summary = std::fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    for page in documents().iter().filter(|page| page.parent() == Some(&root().join("docs"))) {
        let name = page.file_name().unwrap().to_string_lossy();
        assert!(name == "SUMMARY.md" || summary.contains(&format!("({name})")), "docs/SUMMARY.md lacks {name}");
    }
}

#[test]
fn reference_of_the_command_line_is_current() {
    const MARK: &str = "<!-- generated -->\n";
    let path = root().join("docs/cli.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (written, _) = text.split_once(MARK).expect("docs/cli.md has the mark where the generated part begins");
    let made: Vec<String> = SUBCOMMANDS.iter().map(|name| generated(name, "markdown")).collect();
    let expected = format!("{written}{MARK}\n{}", made.join("\n"));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, expected).unwrap();
    } else {
        assert!(text == expected, "docs/cli.md is old; UPDATE_DOCS=1 cargo test --test suite documents writes it");
    }
}

#[test]
fn manual_pages_and_completions_are_generated_and_other_kinds_are_refused() {
    for name in SUBCOMMANDS {
        assert!(generated(name, "man").contains(&format!(".TH v2l-{name}")));
        // A command without flags has nothing that fish could complete.
        let shells = if name == "serve" { &["bash", "zsh"][..] } else { &["bash", "fish", "zsh"] };
        for shell in shells {
            assert!(generated(name, shell).contains(&format!("v2l-{name}")), "v2l-{name} {shell}");
        }
    }
    for shell in ["bash", "fish", "zsh"] {
        let all = Command::new(PROGRAM).args(["--generate", shell]).output().unwrap();
        let all = String::from_utf8(all.stdout).unwrap();
        assert!(SUBCOMMANDS.iter().all(|name| all.contains(name)), "{shell}");
    }
    for tool in TOOLS {
        let refused = crate::tools::output(crate::tools::command(tool, args!["--generate", "ksh"]));
        assert_eq!(refused.code, 2);
        assert!(refused.stderr.contains("expected man, markdown, bash, fish or zsh"), "{}", refused.stderr);
    }
}

#[test]
fn few_sentences_of_the_documents_are_long() {
    let output = Command::new("python3").arg(root().join("bin/dev/readability")).arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let all: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let (long, count) = (all["over_30"].as_f64().unwrap(), all["sentences"].as_f64().unwrap());
    assert!(
        count > 500.0 && long / count < 0.05,
        "{long} of {count} sentences have more than 30 words; see bin/dev/readability --long"
    );
}

#[test]
fn commands_are_taken_from_blocks_of_a_shell_without_comments_and_joined() {
    let text = "a\n```sh\n# no\nv2l-run --engine e \\\n    --prompt \"a b\"   # why\n```\n```text\nv2l-run no\n```\n";
    assert_eq!(commands(text), ["v2l-run --engine e     --prompt \"a b\""]);
    assert_eq!(words("v2l-run --prompt \"a b\" -o x"), ["v2l-run", "--prompt", "a b", "-o", "x"]);
    assert_eq!(anchor("## What is computed, and `why`"), "what-is-computed-and-why");
}
