//! What else a video may be: turned, odd, through a pipe.

use std::process::Command;

use super::{ffmpeg, fixture, gradient};
use crate::media::video::{read_first_frame, read_frames, write_video};

#[test]
fn video_that_says_how_it_is_turned_is_turned() {
    let (ffmpeg, folder) = (ffmpeg(), tempfile::tempdir().unwrap());
    let [plain, turned] = ["plain.mp4", "turned.mp4"].map(|name| folder.path().join(name));
    write_video(&plain, &gradient(48, 32, 4), 8.0, Some(&ffmpeg)).unwrap();
    let run = Command::new(&ffmpeg)
        .args(["-v", "error", "-display_rotation", "90", "-i"])
        .arg(&plain)
        .args(["-c", "copy"])
        .arg(&turned)
        .status();
    assert!(run.unwrap().success());
    let read = read_frames(&turned, Some(&ffmpeg)).unwrap();
    assert_eq!((read.width(), read.height(), read.count()), (32, 48, 4));
}

#[test]
fn first_frame_of_a_video_is_the_first_of_all() {
    let ffmpeg = ffmpeg();
    let path = fixture("sample/reference.mp4");
    let (all, first) = (read_frames(&path, Some(&ffmpeg)).unwrap(), read_first_frame(&path, Some(&ffmpeg)).unwrap());
    assert_eq!(first.count(), 1);
    assert_eq!(Some(first.data()), all.iter().next());
}

#[cfg(unix)]
#[test]
fn video_from_a_pipe_is_the_one_from_a_file() {
    let (ffmpeg, folder) = (ffmpeg(), tempfile::tempdir().unwrap());
    let [video, pipe] = ["a.mkv", "pipe"].map(|name| folder.path().join(name));
    write_video(&video, &gradient(48, 32, 9), 8.0, Some(&ffmpeg)).unwrap();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let read = std::thread::scope(|scope| {
        scope.spawn(|| std::fs::write(&pipe, std::fs::read(&video).unwrap()).unwrap());
        crate::media::clip::read_frames(&pipe, Some(&ffmpeg)).unwrap()
    });
    assert_eq!(read.data(), read_frames(&video, Some(&ffmpeg)).unwrap().data());
}
