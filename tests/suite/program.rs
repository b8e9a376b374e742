//! The program `v2l`: its names and subcommands, engines that are made at first use, the cache of them, and what it says of the machine.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value as Json;

use crate::cli::events;
use crate::tools::{PROGRAM, Run, Scratch, TOOLS, args, binary, output, run_ok, sample, sample_model};

/// `v2l` with these words, and its cache in `scratch`.
fn v2l<S: AsRef<OsStr>>(scratch: &Scratch, words: &[S]) -> Command {
    let emulator = std::env::var("V2L_TEST_EMULATOR").unwrap_or_default();
    let mut program = emulator.split_whitespace().chain([PROGRAM]);
    let mut command = Command::new(program.next().unwrap());
    command
        .args(program)
        .args(words)
        .env("COLUMNS", "100")
        .env("V2L_CACHE", scratch.path("cache"))
        .stdin(Stdio::null());
    command
}

#[track_caller]
fn v2l_ok<S: AsRef<OsStr>>(scratch: &Scratch, words: &[S]) -> Run {
    let run = output(v2l(scratch, words));
    assert_eq!(run.code, 0, "{}", run.stderr);
    run
}

/// The events of this name.
fn named(run: &Run, name: &str) -> Vec<Json> {
    events(&run.stdout).into_iter().filter(|(found, _)| found == name).map(|(_, event)| event).collect()
}

/// A short video of a model, as events.
fn generate(model: &Path, out: &Path) -> Vec<OsString> {
    let image = sample_model().join("image.png");
    let video = args!["generate", model, "--image", image, "--prompt", "x", "-o", out, "--json"];
    [video, args!["--num-frames", "5", "--guidance", "1", "--width", "32", "--height", "32", "--steps", "1"]].concat()
}

/// What lies in the cache besides locks.
fn kept(scratch: &Scratch) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(scratch.path("cache")).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_none_or(|extension| extension != "lock")).collect()
}

#[test]
fn every_name_of_a_tool_is_the_tool() {
    let scratch = Scratch::new();
    let stubs = [
        env!("CARGO_BIN_EXE_v2l-export"),
        env!("CARGO_BIN_EXE_v2l-compile"),
        env!("CARGO_BIN_EXE_v2l-run"),
        env!("CARGO_BIN_EXE_v2l-inspect"),
    ];
    for (tool, stub) in TOOLS.into_iter().zip(stubs) {
        let expected = format!("v2l-{tool} {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(v2l_ok(&scratch, &[tool, "--version"]).stdout, expected);
        for program in [stub, binary(tool)] {
            let said = Command::new(program).arg("--version").output().unwrap();
            assert_eq!(String::from_utf8(said.stdout).unwrap(), expected, "{program}");
        }
        let wrong = |mut command: Command| {
            output({
                command.arg("--no-such-flag").stdin(Stdio::null());
                command
            })
        };
        let (whole, alone) = (wrong(v2l(&scratch, &[tool])), wrong(Command::new(stub)));
        assert_eq!((whole.code, alone.code), (2, 2));
        assert!(whole.stderr.contains(&format!("Usage: v2l {tool} ")), "{}", whole.stderr);
        assert!(alone.stderr.contains(&format!("Usage: v2l-{tool} ")), "{}", alone.stderr);
    }
}

#[test]
fn name_without_its_program_says_what_is_missing() {
    let scratch = Scratch::new();
    let alone = scratch.path("v2l-run");
    std::fs::create_dir_all(scratch.root()).unwrap();
    // By another process: a program that a process of the tests, forked meanwhile, has open for writing cannot be started.
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_v2l-run")).arg(&alone).status().unwrap().success());
    let run = output(Command::new(&alone));
    assert_eq!(run.code, 6);
    assert!(run.stderr.starts_with("error: ") && run.stderr.contains("/v2l: "), "{}", run.stderr);
}

#[test]
fn unknown_subcommand_is_refused_with_the_one_that_was_meant() {
    let scratch = Scratch::new();
    let run = output(v2l(&scratch, &["genrate", "--json"]));
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("'genrate'") && run.stderr.contains("'generate'"), "{}", run.stderr);
    assert_eq!(named(&run, "error")[0]["class"], "usage");
    assert_eq!(output(v2l(&scratch, &[""; 0])).code, 2);
}

#[test]
fn help_of_the_program_lists_every_subcommand() {
    let help = v2l_ok(&Scratch::new(), &["--help"]).stdout;
    for name in ["generate", "predict", "export", "compile", "inspect", "run", "serve", "doctor", "cache"] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(name)), "{name} is not in\n{help}");
    }
}

#[test]
fn short_help_of_generate_is_a_screen_with_examples_first_and_long_help_has_the_rest() {
    let scratch = Scratch::new();
    let (short, long) =
        (v2l_ok(&scratch, &["generate", "-h"]).stdout, v2l_ok(&scratch, &["generate", "--help"]).stdout);
    assert!((24..=40).contains(&short.lines().count()), "{} lines:\n{short}", short.lines().count());
    let examples: Vec<&str> = short.lines().skip(1).take_while(|line| line.starts_with("  v2l generate ")).collect();
    assert!(short.starts_with("Examples:\n") && examples.len() == 5, "{short}");
    assert!(short.lines().all(|line| line.len() <= 100), "{short}");
    for flag in ["--prompt", "--lora", "--reference", "--steps", "--seed"] {
        assert!(short.contains(flag) && long.contains(flag), "{flag}");
    }
    for flag in ["--prediction-cache", "--cache-size", "--fuse-mode", "--openvino-lib"] {
        assert!(!short.contains(flag) && long.contains(flag), "{flag}");
    }
    assert!(!long.contains("--encode"), "{long}");
}

#[test]
fn model_is_exported_and_compiled_at_first_use_and_again_once_it_changed() {
    let scratch = Scratch::new();
    let model = scratch.copy(sample_model(), "model");
    let out = |name: &str| scratch.path(&format!("{name}.safetensors"));
    let first = v2l_ok(&scratch, &generate(&model, &out("first")));
    assert_eq!(named(&first, "engines")[0]["made"], true);
    assert!(
        !named(&first, "component").is_empty() && first.stderr.contains("exported and compiled once"),
        "{}",
        first.stderr
    );
    let second = v2l_ok(&scratch, &generate(&model, &out("second")));
    assert_eq!(named(&second, "engines")[0]["made"], false);
    assert!(named(&second, "component").is_empty() && named(&second, "engine").is_empty());
    let read = |name: &str| std::fs::read(out(name)).unwrap();
    assert!(read("first") == read("second"));
    assert_eq!(kept(&scratch).len(), 1);
    // The engines are those that the tools make one by one.
    let engines = PathBuf::from(named(&first, "engines")[0]["path"].as_str().unwrap());
    let (bundle, compiled) = (scratch.path("bundle"), scratch.path("engines"));
    run_ok("export", args![&model, "-o", &bundle]);
    run_ok("compile", args![&bundle, "-o", &compiled]);
    let bytes = |folder: &Path| std::fs::read(folder.join("transformer.engine")).unwrap();
    assert!(bytes(&engines) == bytes(&compiled));
    // Of a bundle they are made, too; of engines they are not.
    let bundled = v2l_ok(&scratch, &generate(&bundle, &out("bundled")));
    assert_eq!(named(&bundled, "engines")[0]["made"], true);
    assert!(named(&v2l_ok(&scratch, &generate(&compiled, &out("compiled"))), "engines").is_empty());
    assert!(read("bundled") == read("first") && read("compiled") == read("first"));
    // The same bytes, written again.
    let file = model.join("model_index.json");
    let index = std::fs::read(&file).unwrap();
    std::fs::write(&file, index).unwrap();
    let third = v2l_ok(&scratch, &generate(&model, &out("third")));
    assert_eq!(named(&third, "engines")[0]["made"], true);
    assert_eq!(kept(&scratch).len(), 3);
}

#[test]
fn cache_is_listed_bounded_and_cleared() {
    let scratch = Scratch::new();
    let add = |precision: &str| {
        let words =
            args!["cache", "add", sample_model(), "--precision", precision, "--compile-flag=--no-verify", "--json"];
        let run = v2l_ok(&scratch, words);
        PathBuf::from(named(&run, "added")[0]["path"].as_str().unwrap())
    };
    assert!(named(&v2l_ok(&scratch, &["cache", "list", "--json"]), "cached").is_empty());
    let (one, two) = (add("fp32"), add("bf16"));
    assert!(one != two && add("fp32") == one);
    let listed = named(&v2l_ok(&scratch, &["cache", "list", "--json"]), "cached");
    // What was used last comes first.
    let paths: Vec<&str> = listed.iter().map(|entry| entry["path"].as_str().unwrap()).collect();
    assert_eq!(paths, [one.to_str().unwrap(), two.to_str().unwrap()]);
    let bytes = listed[0]["bytes"].as_u64().unwrap();
    assert!(bytes > 0 && listed.iter().all(|entry| entry["in_use"] == false));
    let text = v2l_ok(&scratch, &["cache", "list"]).stdout;
    assert!(text.lines().count() == 3 && text.contains(&format!("{}  ", sample_model().display())), "{text}");
    let pruned = v2l_ok(&scratch, &["cache", "prune", "--max-size", &bytes.to_string(), "--json"]);
    assert_eq!(named(&pruned, "removed")[0]["path"], two.to_str().unwrap());
    assert!(one.is_dir() && !two.exists());
    let cleared = v2l_ok(&scratch, &["cache", "clear", "--json"]);
    assert_eq!(named(&cleared, "cache")[0]["entries"], 0);
    assert_eq!(std::fs::read_dir(scratch.path("cache")).unwrap().count(), 0);
    // A cache that is too small for any makes way for the engines in use alone.
    add("fp32");
    let words =
        args!["cache", "add", sample_model(), "--precision", "bf16", "--compile-flag=--no-verify", "--cache-size", "1"];
    v2l_ok(&scratch, words);
    assert_eq!(kept(&scratch).len(), 1);
}

#[test]
#[cfg(unix)]
fn interrupted_export_leaves_nothing_in_the_cache() {
    let scratch = Scratch::new();
    for moment in ["\"bundle\"", "\"phase\":\"text_encoder\""] {
        let mut command = v2l(&scratch, &generate(sample_model(), &scratch.path("out.safetensors")));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains(moment)), "no {moment}");
        assert!(Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status().unwrap().success());
        lines.for_each(drop);
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert!(kept(&scratch).is_empty(), "{:?}", kept(&scratch));
    }
}

#[test]
fn two_that_ask_at_once_make_the_engines_once() {
    let scratch = Scratch::new();
    let words = args!["cache", "add", sample_model(), "--compile-flag=--no-verify", "--json"];
    let both = [(); 2].map(|()| v2l(&scratch, words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let made = both.map(|child| {
        let said = child.wait_with_output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        let run = Run { code: 0, stdout: String::from_utf8(said.stdout).unwrap(), stderr: String::new() };
        named(&run, "engines")[0]["made"].as_bool().unwrap()
    });
    assert_eq!(made.into_iter().filter(|made| *made).count(), 1);
    assert_eq!(kept(&scratch).len(), 1);
}

#[test]
fn flags_that_would_change_nothing_are_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let out = scratch.path("o.mp4");
    let cases = [
        (
            args!["generate", sample.engines(), "-o", &out, "--precision", "bf16"],
            "these are engines, so that --precision",
        ),
        (args!["generate", sample.bundle(), "-o", &out, "--export-flag=--vae=x"], "this is a bundle"),
        (args!["generate", sample.engines(), "-o", &out, "--encode", "x"], "--encode"),
        (args!["generate", sample.engines(), "--prompt", "x"], "give -o VIDEO"),
        (args!["generate", scratch.path("none"), "-o", &out], "there is no such file or folder"),
        (
            args!["generate", sample_model(), "-o", &out, "--export-flag=--no-such"],
            "v2l export: unexpected argument '--no-such'",
        ),
        (args!["predict", sample.engines(), "-o", &out, "--reference", "x", "--steps", "2"], "--steps"),
        (args!["predict", sample.engines(), "--reference", "x"], "--save-lora"),
        (args!["cache", "prune", "--max-size", "much"], "such as 100GB"),
    ];
    for (words, expected) in cases {
        let run = output(v2l(&scratch, words));
        assert!(run.code == 2 && run.stderr.contains(expected), "{words:?}: {}: {}", run.code, run.stderr);
    }
    assert!(kept(&scratch).is_empty());
}

#[test]
fn predict_saves_what_run_saves_from_engines_and_from_a_model() {
    let (scratch, sample, model) = (Scratch::new(), sample(), sample_model());
    let reference = model.join("image.png");
    let paths = ["run", "engines", "model"].map(|name| scratch.path(&format!("{name}.safetensors")));
    run_ok("run", args!["--engine", sample.engines(), "--reference", &reference, "--save-lora", &paths[0]]);
    v2l_ok(&scratch, args!["predict", sample.engines(), "--reference", &reference, "-o", &paths[1]]);
    let (hypernetwork, light_lora) =
        (model.join("hypernetwork.safetensors"), model.join("checkpoint-checkpoint-100.safetensors"));
    let predictor = args!["--hypernetwork", hypernetwork, "--light-lora", light_lora];
    v2l_ok(&scratch, &[args!["predict", model, "--reference", &reference, "-o", &paths[2]], predictor].concat());
    let read = paths.map(|path| std::fs::read(path).unwrap());
    assert!(read[0] == read[1] && read[0] == read[2]);
}

#[test]
fn doctor_says_what_is_there_and_ends_with_the_class_of_what_is_missing() {
    let scratch = Scratch::new();
    let run = v2l_ok(&scratch, &["doctor", "--json"]);
    for name in ["processor", "memory", "disk", "library", "gpus", "backend", "doctor"] {
        assert!(!named(&run, name).is_empty(), "no {name} in {}", run.stdout);
    }
    let libraries = named(&run, "library");
    let usable: Vec<_> = libraries.iter().map(|found| (&found["name"], &found["usable"])).collect();
    assert_eq!(usable, [(&"ONNX Runtime".into(), &true.into()), (&"ffmpeg".into(), &true.into())]);
    assert!(
        libraries
            .iter()
            .all(|found| found["version"].is_string() && found["path"].is_string() && found["from"].is_string())
    );
    assert_eq!(named(&run, "disk")[0]["path"], scratch.path("cache").to_str().unwrap());
    assert_eq!(named(&run, "doctor")[0]["can_run"], true);
    assert!(v2l_ok(&scratch, &["doctor"]).stdout.ends_with("this machine can run models and write videos\n"));
    let mut without = v2l(&scratch, &["doctor", "--json"]);
    without.env("V2L_ORT_LIB", "/nowhere");
    let without = output(without);
    assert_eq!(without.code, 6);
    assert_eq!(named(&without, "doctor")[0]["can_run"], false);
    let reason = named(&without, "library")[0]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("V2L_ORT_LIB names /nowhere, which does not exist"), "{reason}");
    assert_eq!(named(&without, "error")[0]["class"], "version");
}

#[test]
fn serve_without_the_python_package_says_how_to_get_it() {
    let scratch = Scratch::new();
    let mut serve = v2l(&scratch, &["serve", "engines", "--port", "1"]);
    serve.env("PATH", scratch.root());
    let run = output(serve);
    assert_eq!(run.code, 6);
    assert!(run.stderr.contains("pip install 'v2l[serve]'"), "{}", run.stderr);
}

#[test]
#[cfg(unix)]
fn serve_hands_its_words_to_the_python_that_has_the_package() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    let python = scratch.write("python3", "#!/bin/sh\n[ \"$1\" = -c ] || echo \"$@\"\n");
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut serve = v2l(&scratch, &["serve", "engines", "--help", "--port", "1"]);
    serve.env("PATH", format!("{}:/bin:/usr/bin", scratch.root().display()));
    let run = output(serve);
    assert_eq!((run.code, run.stdout.as_str()), (0, "-m v2l.serve engines --help --port 1\n"), "{}", run.stderr);
}
