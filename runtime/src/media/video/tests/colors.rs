//! Colours of videos: written ones against ffmpeg, read ones of every kind of tag.

use std::path::Path;
use std::process::Command;

use super::ffmpeg;
use crate::media::video::{Frames, read_frames, write_video};

/// Side of a patch, and patches in a row.
const SIDE: usize = 32;
const COLUMNS: usize = 12;

/// Colours on a grid, with its corners.
fn colors() -> Vec<[u8; 3]> {
    let levels = [0, 64, 128, 192, 255];
    (0..COLUMNS * 10).map(|at| [at / 25, at / 5 % 5, at % 5].map(|place| levels[place])).collect()
}

/// Frames of patches.
fn patches() -> Frames {
    let (colors, width) = (colors(), COLUMNS * SIDE);
    let height = colors.len() / COLUMNS * SIDE;
    let pixel = |i: usize| colors[i / width / SIDE * COLUMNS + i % width / SIDE];
    let frame: Vec<u8> = (0..width * height).flat_map(pixel).collect();
    Frames::new(width, height, frame.repeat(3), Some(8.0)).unwrap()
}

/// How far the middles of patches are from their colours, in levels.
fn farthest(width: usize, data: &[u8]) -> u8 {
    let colors = colors();
    let frame = width * (colors.len() / COLUMNS * SIDE) * 3;
    assert!(data.len() >= 3 * frame);
    let mut most = 0;
    for frame in data.chunks_exact(frame) {
        for (at, color) in colors.iter().enumerate() {
            for (y, x) in (8..24).flat_map(|y| (8..24).map(move |x| (y, x))) {
                let at = ((at / COLUMNS * SIDE + y) * width + at % COLUMNS * SIDE + x) * 3;
                most = frame[at..at + 3].iter().zip(color).map(|(a, b)| a.abs_diff(*b)).fold(most, u8::max);
            }
        }
    }
    most
}

fn run(arguments: &[&str], input: &[u8]) -> (Vec<u8>, String) {
    use std::io::Write;
    use std::process::Stdio;
    let mut command = Command::new(ffmpeg());
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    });
    (output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What ffmpeg says of the video stream.
fn stream(path: &Path) -> String {
    let (_, said) = run(&["-hide_banner", "-i", path.to_str().unwrap()], &[]);
    said.lines().find(|line| line.contains("Video:")).unwrap_or_else(|| panic!("{said}")).to_owned()
}

#[test]
fn written_videos_are_tagged_bt709_and_their_colors_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let frames = patches();
    for name in ["a.mp4", "a.mov", "a.mkv", "a.webm"] {
        let path = folder.path().join(name);
        write_video(&path, &frames, 8.0, Some(&ffmpeg())).unwrap();
        let said = stream(&path);
        // One word stands for a matrix, primaries and transfer that are the same.
        assert!(said.contains("yuv420p(tv, bt709,"), "{name}: {said}");
        if name != "a.mkv" && name != "a.webm" {
            // The container says it, too: players ask it before the stream.
            assert!(std::fs::read(&path).unwrap().windows(6).any(|bytes| bytes == b"colrnc"), "{name}");
        }
        // ffmpeg's exact conversion: what is told by the file alone.
        let flags = "accurate_rnd+full_chroma_int+full_chroma_inp";
        let exact = ["-v", "error", "-i", path.to_str().unwrap()];
        let (data, said) = run(
            &[&exact[..], &["-vf", &format!("scale=flags={flags}"), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]]
                .concat(),
            &[],
        );
        assert!(farthest(frames.width(), &data) <= 2, "{name}: {} {said}", farthest(frames.width(), &data));
        // Read without its tags it is another: the test sees the difference between matrices.
        let as_601 = format!("scale=in_color_matrix=bt601:flags={flags}");
        let (data, _) = run(&[&exact[..], &["-vf", &as_601, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]].concat(), &[]);
        assert!(farthest(frames.width(), &data) > 20, "{name}");
        // ffmpeg's usual conversion, by which videos are read here and by imageio and diffusers, is a level less exact.
        let read = read_frames(&path, Some(&ffmpeg())).unwrap();
        assert!(farthest(read.width(), read.data()) <= 3, "{name}: {}", farthest(read.width(), read.data()));
    }
}

#[test]
fn written_gif_keeps_its_colors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gif");
    let frames = patches();
    write_video(&path, &frames, 8.0, Some(&ffmpeg())).unwrap();
    let read = read_frames(&path, None).unwrap();
    assert!(farthest(read.width(), read.data()) <= 2, "{}", farthest(read.width(), read.data()));
}

#[test]
fn tags_of_a_video_say_its_colors_and_without_any_it_is_bt601() {
    let folder = tempfile::tempdir().unwrap();
    let frames = patches();
    let size = format!("{}x{}", frames.width(), frames.height());
    // The matrix and range of the numbers; what the file is tagged with; the codec and its pixels.
    let h264 = ["libx264", "yuv420p"];
    type Tagged<'a> = (&'a str, &'a str, &'a [&'a str], [&'a str; 2], &'a str);
    let cases: &[Tagged<'_>] = &[
        ("bt709", "tv", &["-colorspace", "bt709"], h264, "709.mp4"),
        ("bt709", "pc", &["-colorspace", "bt709", "-color_range", "pc"], h264, "709full.mp4"),
        ("bt601", "tv", &["-colorspace", "smpte170m"], h264, "601.mp4"),
        ("bt601", "tv", &[], h264, "untagged.mp4"),
        ("bt601", "tv", &[], ["libx264", "yuv444p"], "444.mkv"),
        ("bt2020", "tv", &["-colorspace", "bt2020nc"], h264, "2020.mp4"),
        ("bt709", "tv", &["-colorspace", "bt709"], ["libx264", "yuv420p10le"], "709ten.mkv"),
        ("bt709", "tv", &["-colorspace", "bt709"], ["libx265", "yuv420p10le"], "709ten.mp4"),
        ("bt709", "tv", &["-colorspace", "bt709"], ["libvpx-vp9", "yuv420p"], "709.webm"),
        ("bt601", "pc", &["-color_range", "pc"], ["mjpeg", "yuvj420p"], "mjpeg.mov"),
        ("", "pc", &[], ["ffv1", "bgr0"], "rgb.mkv"),
        ("", "pc", &[], ["png", "rgb24"], "png.mov"),
    ];
    for (matrix, range, tags, [codec, pixels], name) in cases {
        let path = folder.path().join(name);
        let scale = if matrix.is_empty() {
            "null".to_owned()
        } else {
            format!("scale=out_color_matrix={matrix}:out_range={range}")
        };
        // The frames forget what they are made of: the options alone tag the file.
        let filter = format!(
            "{scale},format={pixels},setparams=range={range}:colorspace={}",
            match *tags {
                ["-colorspace", space, ..] => *space,
                _ if matrix.is_empty() => "gbr",
                _ => "unknown",
            }
        );
        let arguments =
            ["-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", &size, "-framerate", "8", "-i", "-"];
        let quality = ["-c:v", codec, "-crf", "4", "-b:v", "0", "-q:v", "1", "-vf", &filter];
        let (_, said) = run(&[&arguments[..], &quality, tags, &["-y", path.to_str().unwrap()]].concat(), frames.data());
        let read = read_frames(&path, Some(&ffmpeg())).unwrap_or_else(|error| panic!("{name}: {error} {said}"));
        assert_eq!((read.width(), read.count()), (frames.width(), 3), "{name}");
        let most = farthest(read.width(), read.data());
        assert!(most <= 4, "{name}: {most} levels; {}", stream(&path));
    }
}
