use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::process::Command;

use super::*;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn atomic_file_follows_links_to_what_they_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir(path("sub")).unwrap();
    std::fs::write(path("sub/old"), b"old").unwrap();
    symlink("sub/old", path("link")).unwrap();
    symlink("link", path("sub/dangling")).unwrap();
    symlink(path("link"), path("second")).unwrap();
    write_file(path("second"), b"new").unwrap();
    write_file(path("sub/dangling"), b"made").unwrap();
    assert_eq!(std::fs::read(path("sub/old")).unwrap(), b"new");
    assert_eq!(std::fs::read(path("sub/link")).unwrap(), b"made");
    for link in ["link", "second", "sub/dangling"] {
        assert!(path(link).symlink_metadata().unwrap().is_symlink(), "{link}");
    }
    symlink("round", path("round")).unwrap();
    assert!(write_file(path("round"), b"x").is_err());
}

#[test]
fn atomic_file_writes_through_to_a_pipe() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(is_special(&pipe));
    // No reader waits: looking must not wait for one, nor end what it would read.
    probe_file(&pipe).unwrap();
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read(pipe).unwrap()
    });
    probe_file(&pipe).unwrap();
    let bytes: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
    write_file(&pipe, &bytes).unwrap();
    assert!(reader.join().unwrap() == bytes);
    assert!(pipe.symlink_metadata().unwrap().file_type().is_fifo());
    assert_eq!(listing(dir.path()), ["pipe"]);
}

#[test]
fn atomic_file_writes_through_to_a_device() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("null");
    symlink("/dev/null", &link).unwrap();
    write_file(&link, b"gone").unwrap();
    assert!(Path::new("/dev/null").symlink_metadata().unwrap().file_type().is_char_device());
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert_eq!(write_file("/dev/full", b"full").unwrap_err().kind(), io::ErrorKind::StorageFull);
}

#[test]
fn atomic_file_appends_to_a_file_that_is_open() {
    use std::os::fd::AsRawFd;
    let dir = tempfile::tempdir().unwrap();
    let mut file = File::create(dir.path().join("open")).unwrap();
    file.write_all(b"old").unwrap();
    let numbered = format!("/dev/fd/{}", file.as_raw_fd());
    assert!(is_special(Path::new(&numbered)));
    write_file(&numbered, b"new").unwrap();
    assert_eq!(std::fs::read(dir.path().join("open")).unwrap(), b"oldnew");
}

/// What a process of its own would give: the mask belongs to the whole process, where other tests make files.
#[test]
fn outputs_have_the_mode_of_new_files_and_keep_that_of_earlier_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    File::create(path("file")).unwrap();
    std::fs::create_dir(path("folder")).unwrap();
    write_file(path("written"), b"").unwrap();
    let folder = AtomicFolder::create(&path("made")).unwrap();
    folder.write("file", b"").unwrap();
    folder.commit().unwrap();
    assert_eq!(mode(&path("written")), mode(&path("file")));
    assert_eq!(mode(&path("made")), mode(&path("folder")));
    assert_eq!(mode(&path("made/file")), mode(&path("file")));
    std::fs::set_permissions(path("file"), PermissionsExt::from_mode(0o640)).unwrap();
    write_file(path("file"), b"new").unwrap();
    assert_eq!(mode(&path("file")), 0o640);
}
