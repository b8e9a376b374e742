"""Files from strangers: what they are is read from their first bytes, what they cost is tried before a job is made of them."""

from __future__ import annotations

import base64
import binascii
import os
import re
import subprocess
import time
from pathlib import Path
from typing import BinaryIO, Callable, Dict, Optional

import v2l_tools

from .errors import Refused

#: Kinds of files by their first bytes: where the mark stands, the mark, the file's ending, ffmpeg's demuxer. Only containers that name no
#: other files: no playlists, no scripts.
_KINDS = (
    (0, b"\x89PNG\r\n\x1a\n", ".png", None),
    (0, b"\xff\xd8\xff", ".jpg", None),
    (4, b"ftypavif", ".avif", "mov"),
    (4, b"ftypavis", ".avif", "mov"),
    (4, b"ftyp", ".mp4", "mov"),
    (0, b"\x1a\x45\xdf\xa3", ".webm", "matroska"),
    (0, b"GIF8", ".gif", "gif"),
)
#: Endings of what may be a picture.
_PICTURES = (".png", ".jpg", ".webp", ".avif", ".gif")
#: How long ffmpeg may take to show what is in an upload.
_PROBE_SECONDS = 60.0
#: The most chunks of a picture that are looked at.
_MOST_CHUNKS = 100_000
#: The most pixels of a frame.
_MOST_PIXELS = 8192 * 8192


def kind_of(start: bytes, what: str) -> "tuple[str, Optional[str]]":
    """The ending and the demuxer of a file that begins so; refuses what is neither picture nor video."""
    for place, mark, ending, demuxer in _KINDS:
        if start[place : place + len(mark)] == mark:
            return ending, demuxer
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return ".webp", None
    raise Refused(400, f"{what} is not a picture or video of a known kind; expected png, jpeg, webp, avif, gif, mp4, mov, webm or mkv", what)


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


def _png(opened: BinaryIO) -> int:
    """Bytes of pixels that a PNG comes to, all frames of an animated one together: as its first chunks say."""
    head = opened.read(33)
    if len(head) < 33 or head[12:16] != b"IHDR":
        return 0
    width, height = (int.from_bytes(head[place : place + 4], "big") for place in (16, 20))
    frames = 1
    for _ in range(_MOST_CHUNKS):
        chunk = opened.read(8)
        if len(chunk) < 8 or chunk[4:] in (b"IDAT", b"IEND"):
            break
        length = int.from_bytes(chunk[:4], "big")
        if chunk[4:] == b"acTL":
            frames = max(1, int.from_bytes(opened.read(4), "big"))
            break
        opened.seek(length + 4, os.SEEK_CUR)
    return 3 * width * height * frames


def _webp(opened: BinaryIO) -> int:
    """The same of a WebP: an animated one has its size in front, and a chunk for each frame."""
    head = opened.read(30)
    if head[12:16] != b"VP8X":
        return 0
    width, height = (int.from_bytes(head[place : place + 3], "little") + 1 for place in (24, 27))
    frames = 0
    for _ in range(_MOST_CHUNKS):
        chunk = opened.read(8)
        if len(chunk) < 8:
            break
        frames += chunk[:4] == b"ANMF"
        length = int.from_bytes(chunk[4:], "little")
        opened.seek(length + length % 2, os.SEEK_CUR)
    return 3 * width * height * frames


#: What a picture comes to, before it is decoded; of other kinds the library bounds it.
_SIZES: Dict[str, Callable[[BinaryIO], int]] = {".png": _png, ".webp": _webp}


def check(file: Path, *, video: bool, most: int, what: str) -> Path:
    """Gives an uploaded file the ending of what it is, and refuses what cannot be read or costs too much."""
    with open(file, "rb") as opened:
        ending, demuxer = kind_of(opened.read(16), what)
        if not video and ending not in _PICTURES:
            raise Refused(400, f"{what} is a video; expected a picture", what)
        opened.seek(0)
        if ending in _SIZES and _SIZES[ending](opened) > most:
            raise Refused(400, f"{what} decodes to more than {most >> 20} MiB; send fewer or smaller frames", what)
    if demuxer is not None:
        check_video(file, demuxer, most, what)
    named = file.with_suffix(ending)
    file.rename(named)
    return named
