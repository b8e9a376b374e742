//! Pictures that are cut off, that stand one behind the other, and animations of one frame.

use std::path::Path;

use super::ffmpeg;
use super::pictures::Pictures;
use crate::media::video::{Frames, MAX_BYTES, VideoError, decode_picture, read_first_frame, read_frames};

fn decode(bytes: &[u8], first: bool) -> Result<Frames, VideoError> {
    Ok(decode_picture(bytes, first, MAX_BYTES, "a".as_ref())?.expect("it is a picture"))
}

/// What `read` makes of a pipe through which these bytes come.
#[cfg(unix)]
fn through_a_pipe<T>(bytes: &[u8], read: impl FnOnce(&Path) -> T) -> T {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::thread::scope(|scope| {
        scope.spawn(|| std::fs::write(&pipe, bytes).unwrap());
        read(&pipe)
    })
}

#[test]
fn cut_pictures_are_errors() {
    let pictures = Pictures::read();
    for name in pictures.names() {
        let bytes = pictures.file(&name);
        for percent in [50, 90] {
            for first in [false, true] {
                let cut = &bytes[..bytes.len() * percent / 100];
                let read = decode_picture(cut, first, MAX_BYTES, name.as_ref());
                assert!(read.is_err(), "{name} cut at {percent} %, first: {first}");
            }
        }
    }
}

#[test]
fn cut_pictures_of_any_length_are_no_others() {
    let pictures = Pictures::read();
    for name in pictures.names().iter().filter(|name| !name.ends_with("avif")) {
        let bytes = pictures.file(name);
        let Ok(whole) = decode(&bytes, true) else { continue };
        for end in (16..bytes.len()).step_by(7) {
            if let Ok(Some(read)) = decode_picture(&bytes[..end], true, MAX_BYTES, name.as_ref()) {
                assert!(read == whole, "{name} cut at {end}");
            }
        }
    }
}

#[test]
fn pictures_one_behind_the_other_are_a_video_and_no_single_frame() {
    let (pictures, ffmpeg, folder) = (Pictures::read(), ffmpeg(), tempfile::tempdir().unwrap());
    for (name, file) in [("jpeg_444.jpg", "1.jpg"), ("png_rgb.png", "1.png")] {
        let one = pictures.file(name);
        let single = decode(&one, false).unwrap();
        let path = folder.path().join(file);
        std::fs::write(&path, one.repeat(3)).unwrap();
        let frames = read_frames(&path, Some(&ffmpeg)).unwrap();
        assert_eq!((frames.count(), frames.width(), frames.height()), (3, single.width(), single.height()), "{name}");
        assert!(matches!(read_frames(&path, None), Err(VideoError::NoFfmpeg { .. })), "{name}");
        assert_eq!(read_first_frame(&path, None).unwrap(), single, "{name}");
        let error = read_frames(folder.path(), None).unwrap_err().to_string();
        assert!(error.contains("a file of several pictures is not read") && error.contains(file), "{error}");
        std::fs::remove_file(&path).unwrap();
    }
}

#[cfg(unix)]
#[test]
fn pictures_one_behind_the_other_come_through_a_pipe() {
    let (pictures, ffmpeg) = (Pictures::read(), ffmpeg());
    let one = pictures.file("png_rgb.png");
    let frames = through_a_pipe(&one.repeat(3), |pipe| read_frames(pipe, Some(&ffmpeg)).unwrap());
    assert_eq!(frames.data(), decode(&one, false).unwrap().data().repeat(3));
}

#[test]
fn jpeg_that_lists_what_stands_behind_it_is_one_picture() {
    let one = Pictures::read().file("jpeg_444.jpg");
    let single = decode(&one, false).unwrap();
    let container = b"\xff\xe1\x00\x2chttp://ns.google.com/photos/1.0/container/";
    for segment in [&b"\xff\xe2\x00\x08MPF\0\0\0"[..], container] {
        let listed = [&one[..2], segment, &one[2..], &one].concat();
        assert_eq!(decode(&listed, false).unwrap(), single);
    }
    let error = decode(&one.repeat(2), false).unwrap_err().to_string();
    assert!(error.contains("several pictures"), "{error}");
}

#[cfg(unix)]
#[test]
fn avif_through_a_pipe_is_refused_by_name() {
    let bytes = Pictures::read().file("avif_orientation_6.avif");
    let error = through_a_pipe(&bytes, |pipe| read_frames(pipe, None).unwrap_err().to_string());
    assert!(error.contains("an AVIF picture through a pipe is not read"), "{error}");
}

/// An APNG of this many frames of one grey.
fn apng(count: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 4, 4);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_animated(count, 0).unwrap();
    let mut writer = encoder.write_header().unwrap();
    for _ in 0..count {
        writer.write_image_data(&[90; 16]).unwrap();
    }
    writer.finish().unwrap();
    bytes
}

/// An animated WebP of this many frames, each the lossless picture `still` of 12 x 8 pixels.
fn animated_webp(still: &[u8], count: usize) -> Vec<u8> {
    let chunk = |name: &[u8], content: &[u8]| [name, &(content.len() as u32).to_le_bytes(), content].concat();
    let size = [11u8, 0, 0, 7, 0, 0];
    let picture = &still[12..];
    let frame = chunk(b"ANMF", &[&[0u8; 6][..], &size, &[100, 0, 0, 0], picture].concat());
    let flags = [&[2u8, 0, 0, 0][..], &size].concat();
    let body = [&b"WEBP"[..], &chunk(b"VP8X", &flags), &chunk(b"ANIM", &[0; 6]), &frame.repeat(count)].concat();
    chunk(b"RIFF", &body)
}

#[test]
fn animation_of_one_frame_is_a_frame_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let still = Pictures::read().file("webp_lossless.webp");
    let moving = |count: u32| [("1.png", apng(count)), ("1.webp", animated_webp(&still, count as usize))];
    for (name, bytes) in moving(1) {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(read_frames(folder.path(), None).unwrap().count(), 1, "{name}");
        std::fs::remove_file(&path).unwrap();
    }
    for (name, bytes) in moving(2) {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = read_frames(folder.path(), None).unwrap_err().to_string();
        assert!(error.contains("an animation among single frames"), "{error}");
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn animation_is_turned_by_what_stands_behind_its_frames() {
    let bytes = Pictures::read().file("apng_orientation_6.png");
    let at = bytes.windows(4).position(|name| name == b"eXIf").unwrap() - 4;
    let length = 12 + u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let end = bytes.len() - 12;
    let behind = [&bytes[..at], &bytes[at + length..end], &bytes[at..at + length], &bytes[end..]].concat();
    assert_eq!(decode(&behind, false).unwrap(), decode(&bytes, false).unwrap());
}
