//! Pictures and clips through the real binaries: turned upright, in the order of people, whole.

use std::path::Path;

use ndarray::{ArrayD, Axis};
use v2l_runtime::io::weights::read_tensors;
use v2l_runtime::media::video::{Frames, write_video};
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::support::fixtures;
use crate::tools::{Scratch, args, command, output, run_ok, sample};

fn pictures() -> NamedTensors {
    read_tensors(fixtures().join("pictures/pictures.safetensors")).unwrap()
}

fn bytes(pictures: &NamedTensors, name: &str) -> ArrayD<u8> {
    match &pictures[name] {
        Tensor::U8(bytes) => bytes.clone(),
        other => panic!("{name}: {}", other.dtype()),
    }
}

/// Writes frames of the fixture's shape `[F, H, W, 3]` as PNG files.
fn write_frames(shown: &ArrayD<u8>, folder: &Path) {
    let data = shown.iter().copied().collect();
    let frames = Frames::new(shown.len_of(Axis(2)), shown.len_of(Axis(1)), data, None).unwrap();
    write_video(&folder.join(""), &frames, 8.0, None).unwrap();
}

fn latents(engines: &Path, image: &Path, target: &Path) -> Vec<u8> {
    let small =
        ["--num-frames", "5", "--steps", "1", "--guidance", "1", "--width", "32", "--height", "32", "--seed", "1"];
    let mut run = command("run", args!["--engine", engines, "--prompt", "x", "--image", image, "--outputs", target]);
    run.args(small);
    let run = output(run);
    assert_eq!(run.code, 0, "{}: {}", image.display(), run.stderr);
    std::fs::read(target).unwrap()
}

/// A prediction from a reference.
fn adapter(engines: &Path, reference: &Path, target: &Path) -> Vec<u8> {
    let size = args!["--width", "32", "--height", "32", "--reference-frames", "all"];
    let given = args!["--engine", engines, "--reference", reference, "--save-lora", target];
    run_ok("run", &[given, size].concat());
    std::fs::read(target).unwrap()
}

#[test]
fn image_of_a_turned_camera_is_animated_upright() {
    let (scratch, pictures, sample) = (Scratch::new(), pictures(), sample());
    let engines = sample.engines();
    write_frames(&bytes(&pictures, "png_orientation_6.png|frames"), &scratch.path("upright"));
    let target = scratch.path("latents.safetensors");
    let upright = latents(&engines, &scratch.path("upright/00000.png"), &target);
    for name in ["png_orientation_6.png", "webp_orientation_6.webp"] {
        let file = bytes(&pictures, name);
        let image = scratch.write(&format!("x.{name}"), file.as_slice().unwrap());
        assert!(latents(&engines, &image, &target) == upright, "{name}");
        // The name says nothing.
        let image = scratch.write("y.jfif", file.as_slice().unwrap());
        assert!(latents(&engines, &image, &target) == upright, "{name} as .jfif");
    }
    let lying = scratch.write("z.png", bytes(&pictures, "png_orientation_1.png").as_slice().unwrap());
    assert!(latents(&engines, &lying, &target) != upright);
}

#[test]
fn folder_without_padded_numbers_predicts_as_the_padded_one() {
    let (scratch, sample) = (Scratch::new(), sample());
    let engines = sample.engines();
    let (padded, counted) = (scratch.path("padded"), scratch.path("counted"));
    let levels = ArrayD::from_shape_fn(vec![11, 32, 32, 3], |at| (at[0] * 23 + at[1] * 3 + at[2]) as u8);
    write_frames(&levels, &padded);
    std::fs::create_dir(&counted).unwrap();
    for frame in 0..11 {
        std::fs::copy(padded.join(format!("{frame:05}.png")), counted.join(format!("{frame}.png"))).unwrap();
    }
    let target = scratch.path("lora.safetensors");
    assert!(adapter(&engines, &counted, &target) == adapter(&engines, &padded, &target));
    std::fs::write(counted.join("notes.txt"), "x").unwrap();
    let run = output(command("run", args!["--engine", &engines, "--reference", counted, "--save-lora", target]));
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(run.stderr.contains("notes.txt: it is another kind of file in a folder of frames"), "{}", run.stderr);
}

#[test]
fn animation_predicts_as_the_folder_of_its_frames() {
    let (scratch, pictures, sample) = (Scratch::new(), pictures(), sample());
    let engines = sample.engines();
    let target = scratch.path("lora.safetensors");
    for (frames, names) in [
        ("apng_even.png", &["apng_even.png", "webp_even.webp"][..]),
        ("gif_even.gif", &["gif_even.gif", "gif_uneven.gif"]),
    ] {
        let folder = scratch.path(&format!("{frames}.frames"));
        write_frames(&bytes(&pictures, &format!("{frames}|frames")), &folder);
        let expected = adapter(&engines, &folder, &target);
        for name in names {
            let reference = scratch.write(name, bytes(&pictures, name).as_slice().unwrap());
            assert!(adapter(&engines, &reference, &target) == expected, "{name}");
        }
    }
}
