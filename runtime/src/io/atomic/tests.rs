use std::path::PathBuf;

use super::*;

#[cfg(unix)]
mod unix;

fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn atomic_file_commit_replaces_the_destination() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    std::fs::write(&path, b"old").unwrap();
    let mut file = AtomicFile::create(&path).unwrap();
    file.write_all(b"new").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    file.commit().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    assert_eq!(listing(dir.path()), ["out"]);
}

#[test]
fn atomic_file_dropped_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = AtomicFile::create(dir.path().join("out")).unwrap();
    file.write_all(b"half").unwrap();
    drop(file);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn atomic_file_in_a_missing_folder_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = AtomicFile::create(dir.path().join("missing").join("out")).unwrap_err().to_string();
    assert!(error.ends_with("missing does not exist; create it first"), "{error}");
}

#[test]
fn atomic_file_takes_no_folder_for_a_file() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_owned(), dir.path().join("new/"), PathBuf::from("/"), PathBuf::from("..")] {
        let error = AtomicFile::create(&path).unwrap_err().to_string();
        assert_eq!(error, "expected a file name, found a folder", "{}", path.display());
    }
}

#[test]
fn atomic_file_may_have_a_name_as_long_as_names_may_be() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n".repeat(255));
    write_file(&path, b"new").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
}

#[test]
fn probe_file_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    std::fs::write(&path, b"old").unwrap();
    probe_file(&path).unwrap();
    probe_file(&dir.path().join("new")).unwrap();
    assert_eq!((listing(dir.path()), std::fs::read(&path).unwrap()), (vec!["out".to_owned()], b"old".to_vec()));
    assert!(probe_file(dir.path()).is_err());
}

#[test]
fn atomic_folder_replaces_an_earlier_one_and_leaves_nothing_when_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made/on/the/way");
    drop(AtomicFolder::create(&path).unwrap());
    assert!(listing(dir.path()).is_empty());
    for name in ["first", "second"] {
        let folder = AtomicFolder::create(&path).unwrap();
        folder.write(name, b"x").unwrap();
        folder.write("sub/file", b"y").unwrap();
        folder.commit().unwrap();
        assert_eq!(
            (listing(&path), listing(path.parent().unwrap())),
            (vec![name.into(), "sub".into()], vec!["way".into()])
        );
    }
    std::fs::write(dir.path().join("file"), b"").unwrap();
    assert!(AtomicFolder::create(&dir.path().join("file")).is_err());
}

#[test]
fn file_set_replaces_what_it_is_told_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let set = |count: usize| {
        let files = FileSet::create(dir.path()).unwrap();
        let names: Vec<String> = (0..count).map(|i| format!("{i}.f")).collect();
        names.iter().for_each(|name| std::fs::write(files.path().join(name), count.to_string()).unwrap());
        files.commit(&names, |name| name.to_str().is_some_and(|name| name.ends_with(".f")))
    };
    set(3).unwrap();
    std::fs::write(dir.path().join("mine"), b"").unwrap();
    std::fs::create_dir(dir.path().join("5.f")).unwrap();
    set(2).unwrap();
    assert_eq!(listing(dir.path()), ["0.f", "1.f", "5.f", "mine"]);
    assert_eq!(std::fs::read(dir.path().join("1.f")).unwrap(), b"2");
    // A folder is in the way of one of them: all stays.
    set(7).unwrap_err();
    assert_eq!(listing(dir.path()), ["0.f", "1.f", "5.f", "mine"]);
    assert_eq!(std::fs::read(dir.path().join("1.f")).unwrap(), b"2");
}
