//! Video files to frames, through ffmpeg.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ffmpeg_sidecar::child::FfmpegChild;
use ffmpeg_sidecar::command::FfmpegCommand;
use ffmpeg_sidecar::event::{FfmpegEvent, LogLevel};
use ffmpeg_sidecar::iter::FfmpegIterator;

use super::frames::{Frames, VideoError, check_total, io_error};
use super::growing::Growing;
use crate::interrupt::{Leftover, Unfinished};

/// The last lines that ffmpeg wrote, errors before all else.
#[derive(Default)]
pub(super) struct Messages {
    errors: Vec<String>,
    others: Vec<String>,
}

impl Messages {
    const KEPT: usize = 12;

    pub(super) fn record(&mut self, event: &FfmpegEvent) {
        let (lines, line) = match event {
            FfmpegEvent::Log(LogLevel::Error | LogLevel::Fatal, line) => (&mut self.errors, line),
            FfmpegEvent::Log(_, line) => (&mut self.others, line),
            _ => return,
        };
        if lines.len() == Self::KEPT {
            lines.remove(0);
        }
        lines.push(line.clone());
    }

    fn text(&self) -> String {
        let lines = if self.errors.is_empty() { &self.others } else { &self.errors };
        if lines.is_empty() { "(no message)".to_owned() } else { lines.join("\n") }
    }
}

/// An ffmpeg at work. Dropped, or interrupted, it is killed and waited for.
pub(super) struct Running {
    child: Unfinished<Shared>,
    ffmpeg: PathBuf,
}

/// Locked for moments only, so that an interruption can always kill it.
type Shared = Arc<Mutex<FfmpegChild>>;

fn lock(child: &Shared) -> MutexGuard<'_, FfmpegChild> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills ffmpeg, unless it has ended.
fn kill(child: &Shared) {
    let mut child = lock(child);
    let _ = child.kill();
    let _ = child.as_inner_mut().wait();
}

impl Running {
    pub(super) fn start(command: &mut FfmpegCommand, ffmpeg: &Path) -> Result<Self, VideoError> {
        let child = Unfinished::with(
            || command.spawn().map(|child| Arc::new(Mutex::new(child))),
            |child| {
                let child = Arc::clone(child);
                Leftover::Process(Arc::new(move || kill(&child)))
            },
        );
        let spawn = |source| VideoError::Spawn { ffmpeg: ffmpeg.to_owned(), source };
        Ok(Self { child: child.map_err(spawn)?, ffmpeg: ffmpeg.to_owned() })
    }

    pub(super) fn stdin(&self) -> Option<ChildStdin> {
        lock(&self.child).take_stdin()
    }

    pub(super) fn events(&self) -> Result<FfmpegIterator, VideoError> {
        lock(&self.child).iter().map_err(|e| {
            let source = std::io::Error::other(e.to_string());
            VideoError::Spawn { ffmpeg: self.ffmpeg.clone(), source }
        })
    }

    /// Waits for the end, and turns a bad exit status into an error.
    pub(super) fn finish(self, path: &Path, messages: &Messages) -> Result<(), VideoError> {
        let status = loop {
            if let Some(status) = lock(&self.child).as_inner_mut().try_wait().map_err(io_error(path))? {
                break status;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        if status.success() {
            return Ok(());
        }
        Err(VideoError::Ffmpeg { path: path.to_owned(), status: status.to_string(), message: messages.text() })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        kill(&self.child);
    }
}

/// A path that ffmpeg cannot take for an option or a protocol.
pub(super) fn file_argument(path: &Path) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from("file:");
    argument.push(path);
    argument
}

/// Where ffmpeg reads.
pub(super) enum Input<'a> {
    /// A file.
    File(&'a Path),
    /// What was read of a pipe already, and the pipe.
    Pipe(Vec<u8>, File),
}

/// What is wanted of the frames.
#[derive(Clone, Copy)]
pub(super) struct Wish {
    /// The first only.
    pub(super) first: bool,
    /// It is a picture: colours as its own decoders give them, which takes longer.
    pub(super) picture: bool,
}

/// Options for colours of a picture: chroma of half size is brought to full size smoothly, and rounded once.
const PICTURE: [&str; 2] = ["-sws_flags", "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"];

/// Decodes the frames of the first video stream of what `path` names.
///
/// ffmpeg converts by the matrix and range that the file is tagged with. It takes one without tags for BT.601.
pub(super) fn decode(input: Input<'_>, path: &Path, ffmpeg: &Path, wish: Wish) -> Result<Frames, VideoError> {
    let mut command = FfmpegCommand::new_with_path(ffmpeg);
    match &input {
        Input::File(path) => command.input(file_argument(path)),
        Input::Pipe(..) => command.input("pipe:0"),
    };
    command.args(["-map", "0:v:0", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24"]);
    if wish.first {
        command.args(["-frames:v", "1"]);
    }
    if wish.picture {
        command.args(PICTURE);
    }
    command.output("-");
    let child = Running::start(&mut command, ffmpeg)?;
    if let Input::Pipe(start, mut pipe) = input
        && let Some(mut stdin) = child.stdin()
    {
        // It ends when the pipe does, or when ffmpeg takes no more. Nobody waits for it: the pipe may be silent for ever.
        std::thread::spawn(move || stdin.write_all(&start).and_then(|()| std::io::copy(&mut pipe, &mut stdin)));
    }
    let mut messages = Messages::default();
    let mut data = Growing::default();
    let mut count = 0;
    let mut size = None;
    let mut fps = None;
    let events = child.events()?;
    for event in events {
        messages.record(&event);
        match event {
            // The size is known before the first frame is allocated.
            FfmpegEvent::ParsedOutputStream(stream) => {
                if let Some(video) = stream.video_data() {
                    fps = Some(f64::from(video.fps)).filter(|_| !wish.picture);
                    check_total(video.width as usize, video.height as usize, 1)?;
                }
            }
            FfmpegEvent::OutputFrame(frame) => {
                let found = (frame.width as usize, frame.height as usize);
                count += 1;
                data.make_room(*size.get_or_insert(found), count)?;
                data.extend_from_slice(&frame.data);
            }
            _ => {}
        }
    }
    child.finish(path, &messages)?;
    let (width, height) = size.ok_or_else(|| VideoError::NoFrames { path: path.to_owned() })?;
    Frames::new(width, height, data.into(), fps)
}
