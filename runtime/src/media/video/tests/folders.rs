//! Folders of frames.

use std::path::Path;

use super::pictures::Pictures;
use crate::media::video::{Frames, VideoError, read_first_frame, read_frames, write_png};

fn picture(level: u8) -> image::RgbImage {
    image::RgbImage::from_pixel(4, 4, image::Rgb([level; 3]))
}

fn levels(frames: &Frames) -> Vec<u8> {
    frames.iter().map(|frame| frame[0]).collect()
}

/// A folder with pictures of these levels.
fn folder(names: &[(&str, u8)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, level) in names {
        write_png(&folder.path().join(name), &picture(*level)).unwrap();
    }
    folder
}

#[test]
fn frames_are_ordered_as_people_count() {
    let folder = folder(&[("1.png", 1), ("10.png", 10), ("11.png", 11), ("2.png", 2), ("9.png", 9)]);
    assert_eq!(levels(&read_frames(folder.path(), None).unwrap()), [1, 2, 9, 10, 11]);
    assert_eq!(levels(&read_first_frame(folder.path(), None).unwrap()), [1]);
}

#[test]
fn file_that_is_no_frame_is_named() {
    let notes = |folder: &Path| std::fs::write(folder.join("notes.txt"), "taken by hand").unwrap();
    let video = |folder: &Path| std::fs::write(folder.join("2.mp4"), b"\0\0\0\x18ftypisom").unwrap();
    let inner = |folder: &Path| std::fs::create_dir(folder.join("masks")).unwrap();
    let avif = |folder: &Path| std::fs::write(folder.join("3.avif"), Pictures::read().file("avif_444.avif")).unwrap();
    type Put = fn(&Path);
    let cases: [(Put, &str, &str); 4] = [
        (notes, "notes.txt", "another kind of file"),
        (video, "2.mp4", "another kind of file"),
        (inner, "masks", "a folder"),
        (avif, "3.avif", "an AVIF picture"),
    ];
    for (add, name, what) in cases {
        let folder = folder(&[("1.png", 1)]);
        add(folder.path());
        for read in [read_frames, read_first_frame] {
            let error = read(folder.path(), None).unwrap_err();
            assert!(matches!(error, VideoError::NotAFrame { .. }), "{error}");
            assert!(error.to_string().contains(name) && error.to_string().contains(what), "{error}");
        }
    }
}

#[test]
fn what_systems_leave_in_folders_is_passed_over() {
    let folder = folder(&[("1.png", 1), ("2.png", 2)]);
    for name in [".DS_Store", "Thumbs.db", "desktop.ini", "._1.png", ".hidden.png"] {
        std::fs::write(folder.path().join(name), "not a picture").unwrap();
    }
    for name in ["__MACOSX", "@eaDir", ".git"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    assert_eq!(levels(&read_frames(folder.path(), None).unwrap()), [1, 2]);
}

#[test]
fn frames_of_a_folder_are_upright_whatever_their_endings() {
    let (pictures, folder) = (Pictures::read(), tempfile::tempdir().unwrap());
    let frames =
        [("1.jpg", "png_orientation_6.png"), ("2.dat", "webp_orientation_6.webp"), ("10", "png_orientation_xmp.png")];
    for (name, source) in frames {
        std::fs::write(folder.path().join(name), pictures.file(source)).unwrap();
    }
    let read = read_frames(folder.path(), None).unwrap();
    assert_eq!((read.width(), read.height(), read.count()), (8, 12, 3));
    let first = read.iter().next().unwrap();
    assert!(read.iter().all(|frame| frame == first));
    std::fs::write(folder.path().join("3.png"), pictures.file("png_orientation_1.png")).unwrap();
    let error = read_frames(folder.path(), None).unwrap_err();
    assert!(matches!(&error, VideoError::MixedSizes { path, .. } if path.ends_with("3.png")), "{error}");
}

#[test]
fn animation_among_frames_is_refused() {
    for name in ["apng_even.png", "webp_even.webp", "gif_even.gif"] {
        let folder = folder(&[("1.png", 1)]);
        std::fs::write(folder.path().join("2.png"), Pictures::read().file(name)).unwrap();
        let error = read_frames(folder.path(), None).unwrap_err().to_string();
        assert!(error.contains("2.png: an animation among single frames"), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("1.gif"), Pictures::read().file("gif_still.gif")).unwrap();
    assert_eq!(read_frames(folder.path(), None).unwrap().count(), 1);
}
