"""Files from strangers: what they are is read from their first bytes, what they cost is tried before a job is made of them."""

from __future__ import annotations

import base64
import binascii
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Optional

import v2l_tools

from .errors import Refused

#: Kinds of files by their first bytes: where the mark stands, the mark, the file's ending, ffmpeg's demuxer. Only containers that name no
#: other files: no playlists, no scripts.
_KINDS = (
    (0, b"\x89PNG\r\n\x1a\n", ".png", None),
    (0, b"\xff\xd8\xff", ".jpg", None),
    (4, b"ftyp", ".mp4", "mov"),
    (0, b"\x1a\x45\xdf\xa3", ".webm", "matroska"),
    (0, b"GIF8", ".gif", "gif"),
)
_VIDEOS = ("mov", "matroska", "gif")
#: How long ffmpeg may take to show what is in an upload.
_PROBE_SECONDS = 60.0
#: The most pixels of a frame.
_MOST_PIXELS = 8192 * 8192


def kind_of(start: bytes, what: str) -> "tuple[str, Optional[str]]":
    """The ending and the demuxer of a file that begins so; refuses what is neither picture nor video."""
    for place, mark, ending, demuxer in _KINDS:
        if start[place : place + len(mark)] == mark:
            return ending, demuxer
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return ".webp", None
    raise Refused(400, f"{what} is not a picture or video of a known kind; expected png, jpeg, webp, mp4, mov, webm, mkv or gif", what)


def decoded_url(url: str, what: str) -> bytes:
    """The content of a ``data:`` URL. No other address is ever opened."""
    found = re.match(r"data:[\w.+/-]*(?:;[\w=.-]+)*;base64,", url)
    if found is None:
        raise Refused(400, f"{what} is an address; expected a data: URL with base64, or an uploaded file; nothing is fetched", what)
    try:
        return base64.b64decode(url[found.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, f"{what} is not intact base64", what) from None


def check_video(file: Path, demuxer: str, most: int, what: str) -> None:
    """Decodes a video to nowhere, and refuses one that gives more than ``most`` bytes of pixels, or none."""
    ffmpeg = os.environ.get("V2L_FFMPEG") or v2l_tools.libraries().get("V2L_FFMPEG") or "ffmpeg"
    command = [ffmpeg, "-nostdin", "-v", "error", "-max_pixels", str(_MOST_PIXELS), "-protocol_whitelist", "file", "-f", demuxer]
    command += ["-i", f"file:{file}", "-map", "0:v:0", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    # The file may not name another protocol; what is written goes to a pipe all the same.
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError as missing:
        raise Refused(503, f"ffmpeg does not run ({missing}), and videos cannot be read; install v2l[video]", what) from None
    assert process.stdout is not None
    total, until = 0, time.monotonic() + _PROBE_SECONDS
    try:
        while chunk := process.stdout.read(1 << 20):
            total += len(chunk)
            if total > most or time.monotonic() > until:
                raise Refused(400, f"{what} decodes to more than {most >> 20} MiB, or for too long; send a shorter or smaller video", what)
        if process.wait() != 0 or total == 0:
            raise Refused(400, f"{what} is no intact video", what)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def check(file: Path, *, video: bool, most: int, what: str) -> Path:
    """Gives an uploaded file the ending of what it is, and refuses what cannot be read or costs too much."""
    with open(file, "rb") as opened:
        start = opened.read(16)
    ending, demuxer = kind_of(start, what)
    if demuxer is not None and not video:
        raise Refused(400, f"{what} is a video; expected a picture", what)
    if demuxer is not None:
        check_video(file, demuxer, most, what)
    named = file.with_suffix(ending)
    file.rename(named)
    return named
