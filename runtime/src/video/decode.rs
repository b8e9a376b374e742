//! Video files to frames, through ffmpeg.

use std::path::Path;

use ffmpeg_sidecar::child::FfmpegChild;
use ffmpeg_sidecar::command::FfmpegCommand;
use ffmpeg_sidecar::event::{FfmpegEvent, LogLevel};

use super::{Frames, VideoError, check_total};

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

/// Starts ffmpeg.
pub(super) fn spawn(command: &mut FfmpegCommand, ffmpeg: &Path) -> Result<FfmpegChild, VideoError> {
    command.spawn().map_err(|source| VideoError::Spawn { ffmpeg: ffmpeg.to_owned(), source })
}

/// Waits for ffmpeg and turns a bad exit status into an error.
pub(super) fn finish(mut child: FfmpegChild, path: &Path, messages: &Messages) -> Result<(), VideoError> {
    let status = child.wait().map_err(super::io_error(path))?;
    if status.success() {
        return Ok(());
    }
    Err(VideoError::Ffmpeg { path: path.to_owned(), status: status.to_string(), message: messages.text() })
}

/// Kills ffmpeg and hands the error on.
pub(super) fn abort(mut child: FfmpegChild, error: VideoError) -> VideoError {
    // It may have ended by itself; either way there is nothing more to do about it.
    let _ = child.kill();
    let _ = child.wait();
    error
}

/// A path that ffmpeg cannot take for an option or a protocol.
pub(super) fn file_argument(path: &Path) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from("file:");
    argument.push(path);
    argument
}

/// Decodes every frame of the first video stream.
pub(super) fn decode(path: &Path, ffmpeg: &Path) -> Result<Frames, VideoError> {
    let mut command = FfmpegCommand::new_with_path(ffmpeg);
    command
        .input(file_argument(path))
        .args(["-map", "0:v:0", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24"])
        .output("-");
    let mut child = spawn(&mut command, ffmpeg)?;
    let mut messages = Messages::default();
    let mut data = Vec::new();
    let mut size = None;
    let mut fps = None;
    let events = match child.iter() {
        Ok(events) => events,
        Err(e) => {
            let source = std::io::Error::other(e.to_string());
            return Err(abort(child, VideoError::Spawn { ffmpeg: ffmpeg.to_owned(), source }));
        }
    };
    for event in events {
        messages.record(&event);
        match event {
            // The size is known before the first frame is allocated.
            FfmpegEvent::ParsedOutputStream(stream) => {
                if let Some(video) = stream.video_data() {
                    fps = Some(f64::from(video.fps));
                    if let Err(error) = check_total(video.width as usize, video.height as usize, 1) {
                        return Err(abort(child, error));
                    }
                }
            }
            FfmpegEvent::OutputFrame(frame) => {
                let found = (frame.width as usize, frame.height as usize);
                let (width, height) = *size.get_or_insert(found);
                let count = data.len() / (width * height * 3).max(1) + 1;
                if let Err(error) = check_total(width, height, count) {
                    return Err(abort(child, error));
                }
                data.extend_from_slice(&frame.data);
            }
            _ => {}
        }
    }
    finish(child, path, &messages)?;
    let (width, height) = size.ok_or_else(|| VideoError::NoFrames { path: path.to_owned() })?;
    Frames::new(width, height, data, fps)
}
