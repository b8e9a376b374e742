//! Pictures and animations of every kind, against Pillow. The table in docs/pictures.md has the same lines.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

use super::{ffmpeg, fixture};
use crate::media::video::{self, Frames, MAX_BYTES, VideoError, read_first_frame, read_frames};

/// Pictures with what Pillow shows, from `tests/reference/pictures.py`.
pub(super) struct Pictures {
    bytes: Vec<u8>,
    metadata: HashMap<String, String>,
}

impl Pictures {
    pub(super) fn read() -> Self {
        let bytes = std::fs::read(fixture("pictures/pictures.safetensors")).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = metadata.metadata().clone().unwrap_or_default();
        Self { bytes, metadata }
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap()
    }

    pub(super) fn names(&self) -> Vec<String> {
        let tensors = self.tensors();
        let mut names: Vec<String> =
            tensors.names().iter().filter(|name| !name.contains('|')).map(|name| (*name).to_owned()).collect();
        names.sort();
        names
    }

    pub(super) fn file(&self, name: &str) -> Vec<u8> {
        self.tensors().tensor(name).unwrap().data().to_vec()
    }

    /// What Pillow shows: (width, height), and the frames' bytes.
    fn shown(&self, name: &str, what: &str) -> ((usize, usize), Vec<u8>) {
        let own = format!("{name}|{what}");
        let tensors = self.tensors();
        let tensor = tensors.tensor(self.metadata.get(&own).unwrap_or(&own)).unwrap();
        let &[_, height, width, 3] = tensor.shape() else { panic!("{name}: {:?}", tensor.shape()) };
        ((width, height), tensor.data().to_vec())
    }

    fn milliseconds(&self, name: &str) -> Option<Vec<f64>> {
        let said = self.metadata.get(&format!("{name}|milliseconds"))?;
        Some(said.split(' ').map(|number| number.parse().unwrap()).collect())
    }
}

fn size(frames: &Frames) -> (usize, usize) {
    (frames.width(), frames.height())
}

fn decode_picture(bytes: &[u8], first: bool, name: &Path) -> Result<Option<Frames>, VideoError> {
    video::decode_picture(bytes, first, MAX_BYTES, name)
}

fn farthest(one: &[u8], other: &[u8]) -> u8 {
    assert_eq!(one.len(), other.len());
    one.iter().zip(other).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

/// What is not read, and the word that the refusal has.
const REFUSED: &[(&str, &str)] = &[
    ("avif_even.avif", "animated AVIF"),
    ("avif_orientation_2.avif", "turned or mirrored"),
    ("avif_orientation_6.avif", "turned or mirrored"),
    ("jpeg_cmyk.jpg", "four colours"),
];

/// How far a decoder may be from Pillow's, in levels.
fn allowed(name: &str) -> u8 {
    match name {
        // Both round the cosine transform and the colours, each in its own way; libjpeg-turbo differs as much from libjpeg.
        _ if name.starts_with("jpeg") => 4,
        // libavif and ffmpeg bring chroma of half size to full size by other filters. On slopes these agree.
        _ if name.starts_with("avif_420") => 6,
        _ if name.starts_with("avif") => 2,
        _ => 0,
    }
}

/// Levels from Pillow, if that is too far.
fn too_far(name: &str, (width, height): (usize, usize), found: &[u8], shown: &[u8]) -> Option<u8> {
    // With chroma of half size, the last column and row are made with samples beyond the edge, where libjpeg repeats the last.
    let edge = if name.starts_with("jpeg_42") || name.starts_with("jpeg_restart") { 32 } else { allowed(name) };
    let differences = found.iter().zip(shown).map(|(a, b)| a.abs_diff(*b)).enumerate();
    let most = |at: usize| match (at / 3 % width == width - 1, at / 3 / width % height == height - 1) {
        (false, false) => allowed(name),
        _ => edge,
    };
    differences.filter(|(at, difference)| *difference > most(*at)).map(|(_, difference)| difference).max()
}

#[test]
fn pictures_are_what_pillow_shows() {
    let (pictures, ffmpeg) = (Pictures::read(), ffmpeg());
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for name in pictures.names() {
        let path = folder.path().join(&name);
        std::fs::write(&path, pictures.file(&name)).unwrap();
        let frames = read_frames(&path, Some(&ffmpeg));
        if let Some((_, word)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            let error = frames.unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(&name), "{name}: {error}");
            continue;
        }
        let frames = match frames {
            Ok(frames) => frames,
            Err(error) => {
                wrong.push(error.to_string());
                continue;
            }
        };
        let (shown_size, mut shown) = pictures.shown(&name, "frames");
        if name == "png_grey_16.png" {
            // Pillow shows all above 255 as white. Here the upper 8 bits stay, as Pillow has it for colours of 16 bits.
            assert!(shown.iter().all(|level| *level == 255 || *level == 0), "{shown:?}");
            shown = pictures.shown("png_grey_alpha_16.png", "frames").1;
        }
        if size(&frames) != shown_size || frames.data().len() != shown.len() {
            wrong.push(format!("{name}: {:?} x {}, expected {shown_size:?}", size(&frames), frames.count()));
        } else if let Some(found) = too_far(&name, shown_size, frames.data(), &shown) {
            wrong.push(format!("{name}: {found} levels from Pillow"));
        }
        let times = pictures.milliseconds(&name);
        let total: Option<f64> = times.as_ref().map(|times| times.iter().sum::<f64>() / 1000.0);
        let rate = total.map(|total| frames.count() as f64 / total);
        if frames.fps().is_some() != rate.is_some() || (frames.fps().unwrap_or(0.0) - rate.unwrap_or(0.0)).abs() > 1e-6
        {
            wrong.push(format!("{name}: {:?} frames per second, expected {rate:?}", frames.fps()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn input_image_is_what_pillow_opens() {
    let pictures = Pictures::read();
    let moving: Vec<String> =
        pictures.names().into_iter().filter(|name| pictures.milliseconds(name).is_some()).collect();
    assert!(moving.len() > 20, "{moving:?}");
    for name in moving {
        let what = if name == "apng_beside.png" { "first" } else { "frames" };
        let (shown_size, shown) = pictures.shown(&name, what);
        let Some(frames) = decode_picture(&pictures.file(&name), true, name.as_ref()).unwrap() else {
            // ffmpeg's.
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(&name);
            std::fs::write(&path, pictures.file(&name)).unwrap();
            let first = read_first_frame(&path, Some(&ffmpeg())).unwrap();
            assert!(farthest(first.data(), &shown[..first.data().len()]) <= allowed(&name), "{name}");
            continue;
        };
        assert_eq!((size(&frames), frames.count(), frames.fps()), (shown_size, 1, None), "{name}");
        assert_eq!(frames.data(), &shown[..frames.data().len()], "{name}");
    }
}

#[test]
fn animation_has_the_durations_of_its_frames() {
    let pictures = Pictures::read();
    for name in ["gif_uneven.gif", "apng_uneven.png", "webp_uneven.webp"] {
        let frames = decode_picture(&pictures.file(name), false, name.as_ref()).unwrap().unwrap();
        let starts: Vec<f64> = frames.starts().unwrap().iter().map(|start| (start * 1000.0).round()).collect();
        assert_eq!(starts, [0.0, 50.0, 350.0, 370.0], "{name}");
        let even = name.replace("uneven", "even");
        let even = decode_picture(&pictures.file(&even), false, name.as_ref()).unwrap().unwrap();
        assert_eq!((even.starts(), even.fps().map(f64::round)), (None, Some(10.0)), "{name}");
    }
}

#[test]
fn gif_has_the_frames_that_ffmpeg_gives() {
    let (pictures, ffmpeg) = (Pictures::read(), ffmpeg());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gif");
    for name in ["gif_even.gif", "gif_uneven.gif"] {
        std::fs::write(&path, pictures.file(name)).unwrap();
        let arguments = ["-v", "error", "-i", path.to_str().unwrap(), "-fps_mode", "passthrough"];
        let mut command = std::process::Command::new(&ffmpeg);
        command.args(arguments).args(["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]);
        let output = command.output().unwrap();
        assert!(output.status.success());
        assert!(read_frames(&path, None).unwrap().data() == output.stdout, "{name}");
    }
}

#[test]
fn picture_under_any_ending_gives_the_same_pixels() {
    let (pictures, ffmpeg) = (Pictures::read(), ffmpeg());
    let folder = tempfile::tempdir().unwrap();
    for name in ["jpeg_orientation_6.jpg", "png_orientation_6.png", "webp_orientation_6.webp", "gif_even.gif"] {
        let expected = decode_picture(&pictures.file(name), false, name.as_ref()).unwrap().unwrap();
        if !name.starts_with("gif") {
            assert_eq!(size(&expected), (8, 12), "{name} is upright");
        }
        for other in
            ["x.jfif", "x.jpg", "x.JPEG", "x.png", "x.webp", "x.gif", "x.avif", "x.mp4", "x.tiff", "x.txt", "x"]
        {
            let path = folder.path().join(other);
            std::fs::write(&path, pictures.file(name)).unwrap();
            assert_eq!(read_frames(&path, Some(&ffmpeg)).unwrap(), expected, "{name} as {other}");
        }
    }
}

#[test]
fn pictures_that_are_not_read_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let boxed = |brands: &[u8]| [&(8 + brands.len() as u32).to_be_bytes()[..], b"ftyp", brands, &[0; 64]].concat();
    let (heic, heif) = (boxed(b"heic\0\0\0\0mif1heic"), boxed(b"mif1\0\0\0\0mif1"));
    let tiff = [b"II*\0\x08\0\0\0".to_vec(), vec![0; 64]].concat();
    for (name, bytes, word) in [
        ("a.heic", &heic, "a HEIC picture is not read"),
        ("a.jpg", &heif, "a HEIF picture is not read"),
        ("a.tif", &tiff, "a TIFF or raw picture is not read"),
        ("a.png", &b"no image".to_vec(), "expected an intact image"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = read_frames(&path, None).unwrap_err();
        assert!(matches!(error, VideoError::Image { .. }), "{error}");
        assert!(error.to_string().contains(word) && error.to_string().contains(name), "{error}");
    }
}

#[test]
fn changed_pictures_are_refused_or_read_and_never_worse() {
    let pictures = Pictures::read();
    for name in pictures.names() {
        let bytes = pictures.file(&name);
        for at in 0..bytes.len().min(300) {
            let mut changed = bytes.clone();
            changed[at] = 0xff;
            let _ = decode_picture(&changed, at % 2 == 0, name.as_ref());
        }
    }
}

#[test]
fn picture_of_more_pixels_than_may_be_is_refused_before_they_are_there() {
    let mut png = Pictures::read().file("png_rgb.png");
    png[16..24].copy_from_slice(&[0, 0, 0x20, 1, 0, 0, 0, 1]);
    assert!(decode_picture(&png, false, "a.png".as_ref()).is_err());
    let mut gif = Pictures::read().file("gif_even.gif");
    gif[6..10].copy_from_slice(&[0xff; 4]);
    let error = decode_picture(&gif, false, "a.gif".as_ref()).unwrap_err();
    assert!(matches!(error, VideoError::Size { width: 65535, .. }), "{error}");
}

#[cfg(unix)]
#[test]
fn picture_from_a_pipe_is_the_one_from_a_file() {
    let pictures = Pictures::read();
    let folder = tempfile::tempdir().unwrap();
    let pipe: PathBuf = folder.path().join("pipe");
    for name in ["jpeg_orientation_6.jpg", "apng_even.png"] {
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let bytes = pictures.file(name);
        let expected = decode_picture(&bytes, false, name.as_ref()).unwrap().unwrap();
        let read = std::thread::scope(|scope| {
            scope.spawn(|| std::fs::write(&pipe, &bytes).unwrap());
            read_frames(&pipe, None).unwrap()
        });
        assert_eq!(read, expected, "{name}");
        std::fs::remove_file(&pipe).unwrap();
    }
}
