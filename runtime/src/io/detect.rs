//! Files of other kinds, given where v2l reads its own: what they are, and the way out.
//!
//! Known by how they begin. What is asked is only a file that could not be read, or one that can be nothing else.

/// A kind of file that v2l does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is {what}; {way_out}")]
pub struct OtherKind {
    /// What it is, with its article.
    pub what: &'static str,
    /// What to do about it.
    pub way_out: &'static str,
}

/// Bytes of a file by which its kind is known.
pub const START: usize = 512;

const PICKLE: &str = "a PyTorch checkpoint (a pickle), which can run any code when it is read";
const TO_SAFETENSORS: &str = "save the model with `save_pretrained(…, safe_serialization=True)`, or turn the file into safetensors with `python export/convert/weights.py FILE -o FILE.safetensors`";
const UNPACK: &str = "unpack it, and give the file inside";
const LOG_IN: &str = "the download went wrong, perhaps for want of a login; download the file again";
const EXPORT: &str = "`v2l-export` reads such a checkpoint; here, give a safetensors or ONNX file";
const OTHER_FORMAT: &str = "give the model's safetensors or ONNX file";

/// Offset, the bytes there, what begins so, and the way out.
const MAGICS: &[(usize, &[u8], &str, &str)] = &[
    (0, b"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint (.pt, .pth, .bin, .ckpt)", TO_SAFETENSORS),
    (0, b"\x80\x02", PICKLE, TO_SAFETENSORS),
    (0, b"\x80\x03", PICKLE, TO_SAFETENSORS),
    (0, b"\x80\x04", PICKLE, TO_SAFETENSORS),
    (0, b"\x80\x05", PICKLE, TO_SAFETENSORS),
    (0, b"GGUF", "a GGUF file (llama.cpp, ComfyUI-GGUF)", EXPORT),
    (0, b"lmgg", "a GGML file (llama.cpp)", OTHER_FORMAT),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)", OTHER_FORMAT),
    (4, b"TFL3", "a TensorFlow Lite model", OTHER_FORMAT),
    (0, b"\x93NUMPY", "a NumPy array (.npy)", "save it with `safetensors.numpy.save_file`"),
    (0, b"\x1f\x8b", "a gzip archive", UNPACK),
    (0, b"BZh", "a bzip2 archive", UNPACK),
    (0, b"\xfd7zXZ\0", "an xz archive", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
    (0, b"Rar!", "a RAR archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, b"\x7fELF", "a program or a library", "give the model's file"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture", "pictures are for `v2l-run --image` and `--reference`"),
    (0, b"\xff\xd8\xff", "a JPEG picture", "pictures are for `v2l-run --image` and `--reference`"),
    (4, b"ftyp", "a video (MP4)", "videos are for `v2l-run --reference` and `--encode`"),
];

/// The kind of a file that begins with `start`, where it is none of v2l's; [`START`] bytes are enough.
pub fn of(start: &[u8]) -> Option<OtherKind> {
    let known = MAGICS.iter().find(|(at, magic, ..)| start.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    stand_in(start).or_else(|| known.map(|&(_, _, what, way_out)| OtherKind { what, way_out }))
}

/// [`of`] for a file that should hold binary tensors: no text is one.
pub fn of_tensors(start: &[u8]) -> Option<OtherKind> {
    let found = |what, way_out| Some(OtherKind { what, way_out });
    // The length of a header, and perhaps the header: this one is damaged, or cut.
    if start.get(4..8) == Some(&[0; 4]) && start.get(8).is_none_or(|&byte| byte == b'{') {
        return None;
    }
    match start {
        [] => found("empty", "was it downloaded completely? Download it again"),
        [b'{' | b'[', b' ' | b'\n' | b'\r' | b'\t' | b'"' | b'}' | b']', ..] => {
            found("JSON text", "give the file with the tensors; for an index of shards give their folder")
        }
        _ if start.len() >= 16 && start.iter().all(|&byte| byte == 0) => {
            found("full of zeros where it begins", "was it downloaded completely? Download it again")
        }
        // `ir_version`, then another field of a ModelProto.
        [8, 1..=32, 0x12 | 0x1a | 0x22 | 0x2a | 0x32 | 0x3a | 0x42 | 0x72, ..] => {
            found("an ONNX model", "compile it with v2l-compile first")
        }
        _ => of(start),
    }
}

/// What stands where a file should be: the pointer that Git leaves without its extension for large files, or the page that a
/// server sent instead.
pub fn stand_in(start: &[u8]) -> Option<OtherKind> {
    let text = start.trim_ascii_start();
    let begins = |with: &str| text.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with.as_bytes()));
    if begins("version https://git-lfs.github.com/spec/") || begins("version https://hawser.github.com/spec/") {
        return Some(OtherKind {
            what: "a Git LFS pointer, which stands for the file",
            way_out: "run `git lfs install` and `git lfs pull` in its repository, or download the file itself",
        });
    }
    let page = begins("<!doctype html") || begins("<html") || begins("<?xml");
    page.then_some(OtherKind { what: "a web page", way_out: LOG_IN })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_magic_is_found_where_it_stands() {
        for (at, magic, what, _) in MAGICS {
            let mut bytes = vec![1; *at];
            bytes.extend_from_slice(magic);
            bytes.extend_from_slice(&[1; 9]);
            assert_eq!(of(&bytes).unwrap().what, *what);
            assert_eq!(of(&bytes[..at + magic.len() - 1]), None, "{what}");
        }
    }

    #[test]
    fn stand_ins_are_found_in_any_spelling() {
        for text in
            ["version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "\n<!DOCTYPE HTML>", "<html>"]
        {
            assert!(stand_in(text.as_bytes()).is_some(), "{text}");
            assert_eq!(of_tensors(text.as_bytes()), stand_in(text.as_bytes()));
        }
        assert_eq!(stand_in(b"version 1"), None);
    }

    #[test]
    fn headers_of_safetensors_are_no_other_kind() {
        let header = b"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        for length in [8, 9, bytes.len()] {
            assert_eq!(of_tensors(&bytes[..length]), None);
        }
        // Lengths whose bytes are those of a pickle, of JSON and of an ONNX model.
        for length in [0x280u64, 0x20, 0x7b, 0x12_0408] {
            assert_eq!(of_tensors(&length.to_le_bytes()), None, "{length}");
        }
        assert!(of_tensors(&[0; 16]).is_some());
        assert_eq!(of_tensors(b"{\"weight_map\": {}}").unwrap().what, "JSON text");
        assert_eq!(of_tensors(&[8, 10, 0x12, 7, b'p']).unwrap().what, "an ONNX model");
        assert_eq!(of_tensors(&[]).unwrap().what, "empty");
    }
}
