use std::path::PathBuf;

use super::*;

mod colors;
mod folders;
mod pictures;
mod streams;
mod whole;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// The ffmpeg of a developer's set-up. A test that needs one fails without it: it must not pass unseen.
fn ffmpeg() -> PathBuf {
    crate::io::library::find_ffmpeg(None).expect("bin/setup fetches ffmpeg").path
}

fn gradient(width: usize, height: usize, count: usize) -> Frames {
    let data = (0..count * width * height)
        .flat_map(|i| [(i % width * 4) as u8, (i / width % height * 4) as u8, (i / (width * height) * 20) as u8])
        .collect();
    Frames::new(width, height, data, Some(8.0)).unwrap()
}

#[test]
fn frames_refuse_sizes_that_do_not_fit() {
    assert!(matches!(Frames::new(0, 2, vec![0; 6], None), Err(VideoError::Size { .. })));
    assert!(matches!(Frames::new(MAX_SIDE + 1, 1, vec![0; 6], None), Err(VideoError::Size { .. })));
    assert!(matches!(Frames::new(2, 2, vec![0; 13], None), Err(VideoError::Length { .. })));
    assert!(matches!(Frames::new(2, 2, vec![], None), Err(VideoError::Length { .. })));
    assert!(matches!(Frames::new(1, 1, vec![0; 3 * (MAX_FRAMES + 1)], None), Err(VideoError::Size { .. })));
}

#[test]
fn sample_video_gives_all_its_frames() {
    let ffmpeg = ffmpeg();
    let frames = read_frames(&fixture("sample/reference.mp4"), Some(&ffmpeg)).unwrap();
    assert_eq!((frames.width(), frames.height(), frames.count()), (96, 64, 17));
    assert_eq!(frames.fps(), Some(8.0));
}

#[test]
fn written_mp4_has_equal_bytes_and_reads_back_alike() {
    let ffmpeg = ffmpeg();
    let folder = tempfile::tempdir().unwrap();
    let frames = gradient(48, 32, 9);
    let paths = ["a.mp4", "b.mp4"].map(|name| folder.path().join(name));
    for path in &paths {
        write_video(path, &frames, 8.0, Some(&ffmpeg)).unwrap();
    }
    assert!(std::fs::read(&paths[0]).unwrap() == std::fs::read(&paths[1]).unwrap());
    let read = read_frames(&paths[0], Some(&ffmpeg)).unwrap();
    assert_eq!((read.width(), read.height(), read.count(), read.fps()), (48, 32, 9, Some(8.0)));
    let difference: u64 = read.data().iter().zip(frames.data()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    assert!(difference / (frames.data().len() as u64) < 6, "{difference}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");
}

#[test]
fn other_containers_are_written_by_extension() {
    let ffmpeg = ffmpeg();
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.gif", "a.webm", "a.mkv", "a.mov"] {
        let path = folder.path().join(name);
        let other = folder.path().join(format!("other-{name}"));
        write_video(&path, &gradient(17, 31, 5), 8.0, Some(&ffmpeg)).unwrap();
        write_video(&other, &gradient(17, 31, 5), 8.0, Some(&ffmpeg)).unwrap();
        assert!(std::fs::read(&path).unwrap() == std::fs::read(&other).unwrap(), "{name}");
        assert_eq!(read_frames(&path, Some(&ffmpeg)).unwrap().count(), 5, "{name}");
    }
}

#[test]
fn folder_of_png_files_keeps_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    let frames = gradient(5, 4, 12);
    let path = PathBuf::from(format!("{}/frames/", folder.path().display()));
    write_video(&path, &frames, 8.0, None).unwrap();
    let read = read_frames(&path, None).unwrap();
    assert_eq!((read.data(), read.count(), read.fps()), (frames.data(), 12, None));
    let one = read_frames(&path.join("00003.png"), None).unwrap();
    assert_eq!(one.data(), frames.iter().nth(3).unwrap());
}

#[test]
fn unreadable_video_gives_the_words_of_ffmpeg() {
    let ffmpeg = ffmpeg();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("noise.mp4");
    std::fs::write(&path, [7; 4096]).unwrap();
    let error = read_frames(&path, Some(&ffmpeg)).unwrap_err();
    let VideoError::Ffmpeg { message, .. } = &error else { panic!("{error}") };
    assert!(message.contains("Invalid data"), "{error}");
}

#[test]
fn missing_ffmpeg_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.mp4");
    let error = write_video(&path, &gradient(4, 4, 2), 8.0, Some(Path::new("/nowhere/ffmpeg"))).unwrap_err();
    assert!(matches!(error, VideoError::Spawn { .. }), "{error}");
    assert!(error.to_string().contains("/nowhere/ffmpeg"));
    assert!(matches!(write_video(&path, &gradient(4, 4, 2), 8.0, None), Err(VideoError::NoFfmpeg { .. })));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// A program that counts its calls and is an ffmpeg, or fails.
#[cfg(unix)]
#[test]
fn ffmpeg_is_tried_once_for_a_format_until_it_is_another() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = tempfile::tempdir().unwrap();
    let (program, log) = (scratch.path().join("counted"), scratch.path().join("log"));
    let write = |last: &str| {
        std::fs::write(&program, format!("#!/bin/sh\necho >>'{}'\n{last}\n", log.display())).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let probe = |name: &str| probe_video(&scratch.path().join(name), Some(&program));
    let calls = || std::fs::read_to_string(&log).unwrap().lines().count();
    write("exit 1 # it fails");
    assert!(probe("a.mp4").is_err() && probe("a.mp4").is_err());
    assert_eq!(calls(), 2);
    write(&format!("exec '{}' \"$@\"", ffmpeg().display()));
    for (name, count) in [("a.mp4", 3), ("b.mp4", 3), ("a.gif", 4), ("b.gif", 4), ("none/a.mp4", 4)] {
        assert_eq!(probe(name).is_ok(), name != "none/a.mp4", "{name}");
        assert_eq!(calls(), count, "{name}");
    }
    write("exit 1 # another");
    assert!(probe("a.mp4").is_err());
}

#[test]
fn missing_files_and_empty_folders_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(read_frames(folder.path(), None), Err(VideoError::NoFrames { .. })));
    assert!(matches!(read_frames(&folder.path().join("x.mp4"), None), Err(VideoError::Io { .. })));
    std::fs::write(folder.path().join("x.png"), b"no image").unwrap();
    assert!(matches!(read_frames(folder.path(), None), Err(VideoError::Image { .. })));
}

#[test]
fn bad_rates_and_extensions_are_refused() {
    let frames = gradient(4, 4, 2);
    assert!(matches!(write_video(Path::new("x.mp4"), &frames, 0.0, None), Err(VideoError::Fps(_))));
    assert!(matches!(write_video(Path::new("x.txt"), &frames, 8.0, None), Err(VideoError::Extension { .. })));
}

#[test]
fn frames_survive_the_way_to_pixels_and_back() {
    let frames = gradient(6, 4, 3);
    let unit = frames_to_pixels(&frames, false);
    assert_eq!(unit[[0, 1, 2, 3, 4]], f32::from(frames.data()[((2 * 4 + 3) * 6 + 4) * 3 + 1]) / 255.0);
    let signed = frames_to_pixels(&frames, true);
    let back = pixels_to_frames(&signed, None).unwrap();
    assert!(back.data().iter().zip(frames.data()).all(|(a, b)| b - a <= 1), "floor loses at most one level");
}

#[test]
fn pixel_file_is_read_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, tensor: &str, shape: Vec<usize>, values: &[f32]| {
        let path = folder.path().join(name);
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &data).unwrap();
        safetensors::serialize_to_file([(tensor, view)], None, &path).unwrap();
        path
    };
    let good = write("a.safetensors", "pixels", vec![1, 3, 1, 1, 2], &[-1.0, 1.0, 0.5, 0.0, 0.25, -0.5]);
    assert_eq!(read_pixels(&good).unwrap()[[0, 1, 0, 0, 0]], 0.5);
    for (name, tensor, shape, value) in
        [("c", "pixels", vec![3, 1, 1, 1], 0.0), ("d", "pixels", vec![1, 3, 1, 1, 1], 1.5)]
    {
        let path = write(name, tensor, shape, &[value; 3]);
        assert!(matches!(read_pixels(&path), Err(VideoError::Tensor { .. })), "{name}");
    }
    let path = write("b", "frames", vec![1, 3, 1, 1, 1], &[0.5; 3]);
    assert!(read_pixels(&path).is_ok(), "there is only one");
    // What is not finite is a numeric failure, found by the pipeline.
    let path = write("e", "pixels", vec![1, 3, 1, 1, 1], &[f32::NAN; 3]);
    assert!(read_pixels(&path).unwrap().iter().all(|value| value.is_nan()));
}
