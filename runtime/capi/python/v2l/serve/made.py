"""What is in a video that was made, by the tables of its mp4: what was asked for is another matter."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, Dict, Iterator, Optional, Tuple

#: Boxes that hold the boxes that are looked at.
_HOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
#: The most that is read of a box, and the most boxes.
_MOST = 256
_MOST_BOXES = 1000


def _boxes(file: BinaryIO, begin: int, end: int) -> Iterator[Tuple[bytes, bytes]]:
    """Boxes within a span by name, with their first bytes; those within others, too."""
    left = _MOST_BOXES
    spans = [(begin, end)]
    while spans and left:
        at, end = spans.pop()
        while at + 8 <= end and left:
            left -= 1
            file.seek(at)
            head = file.read(16)
            size, name = struct.unpack(">I4s", head[:8])
            begin = at + 8
            if size == 1 and len(head) == 16:
                size, begin = struct.unpack(">Q", head[8:])[0], at + 16
            until = end if size == 0 else at + size
            if until < begin or until > end:
                return
            if name in _HOLDERS:
                # What follows it comes after what is in it.
                spans += [(until, end), (begin, until)]
                break
            file.seek(begin)
            yield name, file.read(min(until - begin, _MOST))
            at = until


def made_of(path: Path) -> Optional[Dict[str, float]]:
    """``num_frames``, ``width``, ``height`` and ``fps`` of an mp4 of one video; ``None`` if its tables do not say them."""
    found: Dict[str, float] = {}
    try:
        with open(path, "rb") as file:
            for name, start in _boxes(file, 0, path.stat().st_size):
                if name == b"tkhd":
                    # Version 1 has times of 64 bits. Sizes are in 16.16.
                    found["width"], found["height"] = (side >> 16 for side in struct.unpack_from(">II", start, 88 if start[0] else 76))
                elif name == b"mdhd":
                    found["scale"], found["duration"] = struct.unpack_from(">IQ" if start[0] else ">II", start, 20 if start[0] else 12)
                elif name == b"stsz":
                    found["num_frames"] = struct.unpack_from(">I", start, 8)[0]
            found["fps"] = round(found["num_frames"] * found.pop("scale") / found.pop("duration"), 6)
    except (OSError, struct.error, KeyError, IndexError, ZeroDivisionError):
        return None
    return found if len(found) == 4 and all(value > 0 for value in found.values()) else None
