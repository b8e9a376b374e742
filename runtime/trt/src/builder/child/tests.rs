//! The request's format against damaged files, and the parent against programs that are no builders.

use std::ffi::OsStr;
use std::io::{Seek, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};

use super::wire::{Held, HeldRefit, append};
use super::*;
use crate::builder::{Range, Refit};
use crate::{Capability, ffi};

fn range() -> Range {
    Range { input: "x".into(), min: vec![1, 4], opt: vec![2, 4], max: vec![3, 4] }
}

const CAPABILITIES: [Capability; 1] = [Capability { major: 8, minor: 9 }];

/// A file with a request of two weights, one of them empty.
fn written() -> File {
    let mut file = tempfile::tempfile().unwrap();
    let weights = [("w".to_owned(), &[1_u8, 2, 3][..]), ("none".to_owned(), &[][..])];
    let profiles = [vec![range()]];
    let request = Request {
        model: b"a model",
        weights: &weights,
        profiles: &profiles,
        capabilities: &CAPABILITIES,
        refit: Refit::Placeholders,
        timing_cache: Some(b"learned"),
    };
    write_request(&mut file, Flavour::Rtx, (Some(Path::new("/a/b")), Path::new("lib")), &request).unwrap();
    file
}

fn damaged(damage: impl FnOnce(&File)) -> String {
    let file = written();
    damage(&file);
    Held::read(&file).err().expect("a damaged request is read").to_string()
}

#[test]
fn request_in_a_file_is_read_as_it_was_written() {
    let mut file = written();
    let plan = append(&mut file, b"a plan").unwrap();
    let held = Held::read(&file).unwrap();
    assert_eq!(held.model(), b"a model");
    assert_eq!(held.weights(), [("w".to_owned(), &[1_u8, 2, 3][..]), ("none".to_owned(), &[][..])]);
    assert_eq!(held.timing_cache(), Some(&b"learned"[..]));
    let header = &held.header;
    assert_eq!((header.flavour, &header.library[..]), (Flavour::Rtx, OsStr::new("lib")));
    assert_eq!((&header.profiles, &header.capabilities[..]), (&vec![vec![range()]], &CAPABILITIES[..]));
    assert!(matches!(header.refit, HeldRefit::Placeholders) && held.folder() == Some(Path::new("/a/b")));
    assert_eq!(&PlanBytes::read(&file, &plan).unwrap()[..], b"a plan");
    for outside in [plan.start..plan.end + 1, plan.start..usize::MAX, plan.end..plan.end] {
        assert!(PlanBytes::read(&file, &outside).is_err(), "{outside:?}");
    }
}

#[test]
fn request_of_empty_parts_is_read_as_it_was_written() {
    let mut file = tempfile::tempfile().unwrap();
    let (weights, refit, timing_cache) = ([("none".to_owned(), &[][..])], Refit::None, Some(&b""[..]));
    let request = Request { model: b"", weights: &weights, profiles: &[], capabilities: &[], refit, timing_cache };
    write_request(&mut file, Flavour::TensorRt, (None, Path::new("lib")), &request).unwrap();
    let held = Held::read(&file).unwrap();
    assert_eq!((held.model(), held.weights(), held.timing_cache()), (&b""[..], weights.to_vec(), Some(&b""[..])));
}

#[test]
fn library_of_the_loader_has_no_folder() {
    assert_eq!(split(Path::new("/a/b/lib.so.1")), (Some("/a/b".into()), Path::new("lib.so.1")));
    assert_eq!(split(Path::new("lib.so.1")), (None, Path::new("lib.so.1")));
}

#[test]
fn request_that_is_damaged_is_refused() {
    let length = written().metadata().unwrap().len();
    for cut in [0, 1, 15, 16, 4111, 4112, 4140, length - 1] {
        damaged(|file| file.set_len(cut).unwrap());
    }
    assert!(damaged(|file| file.write_all_at(b"V", 0).unwrap()).contains("no request of this version"));
    assert!(damaged(|file| file.write_all_at(&u64::MAX.to_le_bytes(), 8).unwrap()).contains("no request"));
    assert!(damaged(|file| file.write_all_at(&(1_u64 << 20).to_le_bytes(), 8).unwrap()).contains("cut off"));
}

#[test]
fn request_whose_parts_lie_outside_the_file_is_refused() {
    let file = written();
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 8).unwrap();
    let mut text = vec![0; u64::from_le_bytes(length) as usize];
    file.read_exact_at(&mut text, 4112).unwrap();
    let text = String::from_utf8(text).unwrap();
    let part = r#""model":{"start":0,"end":7}"#;
    assert!(text.contains(part), "{text}");
    for (start, end) in [("0", "9999999"), ("7", "0"), ("18446744073709551615", "18446744073709551615")] {
        let text = text.replace(part, &format!(r#""model":{{"start":{start},"end":{end}}}"#));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"v2lplan1").unwrap();
        file.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
        file.write_all(&[0; 4096]).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.set_len(1 << 16).unwrap();
        file.rewind().unwrap();
        let error = Held::read(&file).err().expect("a part outside the file is read").to_string();
        assert!(error.contains("does not lie within"), "{error}");
    }
}

/// What comes of a builder that is a shell script, and how many steps were told. The second step ends the build.
fn run(script: &str) -> (Result<(Ended, bool), BuildError>, u32) {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let request = Request {
        model: b"m",
        weights: &[],
        profiles: &[],
        capabilities: &CAPABILITIES,
        refit: Refit::None,
        timing_cache: None,
    };
    let found = Found { path: "lib".into(), from: "a test".into() };
    let mut steps = 0;
    let child = Child { program: &program, scratch: folder.path() };
    let ended = build_in_child(Flavour::Rtx, &found, child, &request, &mut |_| {
        steps += 1;
        steps < 2
    });
    (ended, steps)
}

// One test, since a program that is being written cannot be started, and a child that another thread starts meanwhile holds it open.
#[test]
fn child_that_answers_dies_or_is_stopped_is_told_apart() {
    let step = r#"echo '{"Step":{"phase":"p","done":1,"of":2}}'"#;
    let said = r#"{"errors":["e"],"warnings":[],"parser":[],"refittable":[],"cancelled":false}"#;
    let answer = format!(r#"echo 'noise'; echo '{{"Ended":{{"status":9,"detail":0,"said":{said},"plan":null}}}}'"#);

    let (ended, steps) = run(&format!("{step}; {answer}"));
    let (ended, _) = ended.unwrap();
    assert_eq!((ended.status, ended.said.errors, steps), (9, vec!["e".to_owned()], 1));
    assert!(ended.plan.is_none() && ended.status != ffi::OK);

    let (stopped, steps) = run(&format!("{step}; {step}; exec sleep 1000"));
    assert_eq!((stopped.err(), steps), (Some(BuildError::Cancelled), 2));

    let text = |script| run(script).0.err().expect("no error").to_string();
    let message = text("echo last words >&2; kill -SEGV $$");
    assert!(message.starts_with("TensorRT-RTX: the builder was ended by signal 11: last words; "), "{message}");
    assert!(text("kill -KILL $$").contains("signal 9; if memory ran out"));
    assert!(text("exit 3").contains("exit status: 3 without an answer"));
    assert!(text(r#"echo '{"Refused":"because"}'"#).contains("gave up: because"));
    let outside =
        format!(r#"echo '{{"Ended":{{"status":0,"detail":0,"said":{said},"plan":{{"start":0,"end":99999}}}}}}'"#);
    assert!(text(&outside).contains("does not lie within the file"));

    // Where the system allows it, addresses are fixed, and only the child's.
    let before = personality::get().unwrap();
    let (message, fixed) = (text("cat /proc/self/personality >&2; exit 1"), FixedAddresses::begin().is_some());
    assert_eq!(message.contains("00040000"), fixed, "{message}");
    assert_eq!(personality::get().unwrap(), before);

    let child = Child { program: Path::new("/nowhere/program"), scratch: Path::new("/tmp") };
    let request =
        Request { model: b"m", weights: &[], profiles: &[], capabilities: &[], refit: Refit::None, timing_cache: None };
    let found = Found { path: "lib".into(), from: "a test".into() };
    let missing = build_in_child(Flavour::Rtx, &found, child, &request, &mut |_| true);
    assert!(missing.err().unwrap().to_string().contains("the builder cannot be started"));
}
