"""What engines make videos: a hash that jobs belong to, cheap enough to take at every start."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator

from .config import Config

#: The most that is read of an engine's header and of its manifest, and of another file.
_MOST = 256 << 20
_MANIFEST = "v2l/manifest"


class EnginesReplaced(Exception):
    """The engine directory holds other engines than those that the server began with."""


def _strings(value: Any) -> Iterator[str]:
    """All text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for member in value.values() if isinstance(value, dict) else value:
            yield from _strings(member)


def _header_and_manifest(file: BinaryIO) -> bytes:
    """What an engine file says of itself: names, shapes and places of its tensors, and the hash of each. Raises if it is no engine."""
    length = int.from_bytes(file.read(8), "little")
    if length > _MOST:
        raise ValueError(length)
    header = file.read(length)
    begin, end = json.loads(header)[_MANIFEST]["data_offsets"]
    if not 0 <= begin <= end <= begin + _MOST:
        raise ValueError(end)
    file.seek(8 + length + begin)
    return header + file.read(end - begin)


def _content(path: Path) -> bytes:
    """What tells a file from another: an engine's own hashes, else the content, and of what is too large the size and the time of change."""
    with open(path, "rb") as file:
        try:
            return _header_and_manifest(file)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, OSError):
            found = path.stat()
            if found.st_size > _MOST or path.suffix == ".engine":
                return f"{found.st_size} {found.st_mtime_ns}".encode()
            file.seek(0)
            return file.read(_MOST)


def identity_of(engines: Path) -> str:
    """The hash of ``pipeline.json`` and of all files that it names. Weights are not read: an engine holds their hashes.

    A copy of the directory has the same. Raises :class:`OSError` if there is no ``pipeline.json``.
    """
    description = (engines / "pipeline.json").read_bytes()
    try:
        named = sorted(set(_strings(json.loads(description))))
    except (ValueError, RecursionError):
        named = []
    files: Dict[str, str] = {"pipeline.json": hashlib.sha256(description).hexdigest()}
    for name in named:
        try:
            path = engines / name
            if not Path(name).is_absolute() and ".." not in Path(name).parts and path.is_file():
                files[name] = hashlib.sha256(_content(path)).hexdigest()
        except ValueError:
            continue  # no file has such a name
        except OSError as error:
            # A prompt may be longer than a file's name.
            if error.errno != errno.ENAMETOOLONG:
                raise
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def identified(config: Config) -> Config:
    """The configuration with the identity of its engines, unless it says one already."""
    return config if config.identity else dataclasses.replace(config, identity=identity_of(config.engines))


def check(config: Config) -> None:
    """Raises :class:`EnginesReplaced` if the engines are no longer those of the configuration."""
    if identity_of(config.engines) != config.identity:
        raise EnginesReplaced("the engines are not those that the server began with; start the server anew, and send this again")
