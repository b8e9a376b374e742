"""What a server is told."""

from __future__ import annotations

import contextlib
import hmac
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

_MIB = 1 << 20


def _spellings(key: str) -> List[bytes]:
    """The bytes that a key is sent as."""
    spelled = [key.encode("utf-8", "surrogateescape")]
    with contextlib.suppress(UnicodeError):
        spelled.append(key.encode("latin-1"))
    return spelled


def warning_of(key: str) -> Optional[str]:
    """Why clients may not be able to send a key; ``None`` if all can."""
    if any(ord(character) < 32 or ord(character) == 127 for character in key):
        return "the key holds a line break or another control character, which no header can carry: no client can send it"
    if not key.isascii():
        return "the key has characters outside ASCII: clients must send it in UTF-8 or Latin-1, and some can do neither"
    return None


@dataclass(frozen=True)
class Config:
    """What a server is told. Sizes are in bytes, times in seconds."""

    #: The engine directory.
    engines: Path
    #: Jobs, uploads, videos, predictions and fused weights; made if it is not there. Servers and workers that share it share the jobs.
    data: Path
    #: What clients call the model.
    model: str
    #: The address of the Redis that keeps the jobs, as ``redis://HOST:PORT/NUMBER``; without it they lie in SQLite in ``data``.
    store: str = ""
    #: Adapters are served from below these folders only, by their names or paths.
    lora_folders: Tuple[Path, ...] = ()
    #: What clients must send as ``Authorization: Bearer``; nothing if it is not set.
    api_key: Optional[str] = None
    #: Jobs that may wait; more are refused with 429.
    max_queued: int = 64
    #: The largest body of a request with files.
    max_upload: int = 256 * _MIB
    #: The largest body of JSON, and so of files in ``data:`` URLs.
    max_json: int = 32 * _MIB
    #: The most bytes of pixels that an uploaded video may decode to.
    max_decoded: int = 1024 * _MIB
    #: The longest side of a video, in pixels.
    max_side: int = 2048
    #: The most frames of a video.
    max_frames: int = 1024
    #: The most pixels of a video, all frames together, as a multiple of those of the model's own video; 0 is without end.
    max_times: float = 4.0
    #: The most steps of a sampler.
    max_steps: int = 200
    #: How long finished videos are kept.
    keep: float = 24 * 3600.0
    #: How long a job may run; 0 is without end.
    max_seconds: float = 0.0
    #: How long a worker may be silent before its job is given to another.
    lease: float = 15.0
    #: How long a job may finish when the server ends, before it goes back to the queue.
    drain: float = 10.0
    #: Jobs with equal adapters go together: to a replica that has them, and before older jobs while these have waited less than ``patience``.
    affinity: bool = True
    patience: float = 300.0
    #: Jobs run inside the server; else others run them, over the same ``data``.
    in_process: bool = True
    #: The name of the cluster that this process belongs to; the store says to all of its processes when it ends.
    generation: str = ""
    #: The hash of the engines, which jobs belong to; see :func:`v2l.serve.identity.identity_of`. It is taken when the server begins.
    identity: str = ""
    #: Options of :class:`v2l.Pipeline`.
    pipeline: Dict[str, Any] = field(default_factory=dict)

    def authorised(self, header: str) -> bool:
        """True if a request with this ``Authorization`` may come in."""
        if self.api_key is None:
            return True
        # The header comes as Latin-1, byte for byte.
        scheme, _, given = header.partition(" ")
        sent = given.strip(" ").encode("latin-1", "replace")
        # Clients send what is not ASCII in UTF-8, or in Latin-1 as some libraries do.
        same = [hmac.compare_digest(sent, key) for key in _spellings(self.api_key)]
        return scheme.lower() == "bearer" and any(same)

    def describe(self) -> Dict[str, Any]:
        """``pipeline.json`` of the engine directory."""
        described: Dict[str, Any] = json.loads((self.engines / "pipeline.json").read_text())
        return described

    def to_json(self) -> str:
        """The configuration for a process of its own; see :meth:`from_json`."""
        values = dict(vars(self), engines=str(self.engines), data=str(self.data))
        values["lora_folders"] = [str(folder) for folder in self.lora_folders]
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Reads what :meth:`to_json` wrote."""
        values = json.loads(text)
        values["engines"], values["data"] = Path(values["engines"]), Path(values["data"])
        values["lora_folders"] = tuple(Path(folder) for folder in values["lora_folders"])
        return cls(**values)
