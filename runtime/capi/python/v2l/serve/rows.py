"""What the store holds of a job, and whether that can be: files and databases can be damaged, and others may write them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Optional

STATUSES = ("queued", "in_progress", "completed", "failed")
#: The code of a job that was lost because its row cannot be read.
DAMAGED = "damaged"

#: Identifiers and files become parts of paths.
_NAME = re.compile(r"\w[\w .:-]{0,127}", re.ASCII)
#: Machine, process, its start, label; see :func:`v2l.serve.store.worker_name`.
_WORKER = re.compile(r"[^/]*/\d{1,18}/[^/]*/[^/]*")
#: Times are seconds since 1970; this is some thousands of years from now.
_LATEST = 1e11
_SIZES = ("width", "height", "num_frames")


@dataclass(frozen=True)
class Job:
    """A job as it is."""

    id: str
    model: str
    #: The hash of the engines that make its video; see :func:`v2l.serve.identity.identity_of`.
    identity: str
    request: Dict[str, Any]
    stack: str
    created: float
    #: Its place in the order of all jobs; 0 until the store has it.
    number: int = 0
    status: str = "queued"
    progress: int = 0
    attempts: int = 0
    worker: Optional[str] = None
    heard: Optional[float] = None
    started: Optional[float] = None
    completed: Optional[float] = None
    file: Optional[str] = None
    error_code: Optional[str] = None
    error_message: Optional[str] = None
    durations: Dict[str, float] = field(default_factory=dict)
    #: What was really made, of a video that is done: ``num_frames``, ``width`` and ``height`` in pixels, ``fps``.
    made: Optional[Dict[str, float]] = None

    @property
    def is_damaged(self) -> bool:
        """True for what stands for a row that cannot be read."""
        return self.error_code == DAMAGED


def is_name(value: object) -> bool:
    """True for text that can be part of a path."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def is_number(value: object, least: float = 0.0, most: float = _LATEST) -> bool:
    """True for a number within bounds, which JSON can say."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def is_stack(value: object) -> bool:
    """True for a list of adapters: file, strength, transformers."""
    entries = value if isinstance(value, (list, tuple)) else [None]
    return all(
        isinstance(entry, (list, tuple)) and len(entry) == 3
        and isinstance(entry[0], str) and is_number(entry[1], -1e9, 1e9) and _is_whole(entry[2], 0, 3)
        for entry in entries
    )


def _check_request(request: Any) -> None:
    _expect(isinstance(request, dict), "request")
    # Numbers that JSON cannot say would break answers, and so would text that UTF-8 cannot say. Paths may be other bytes.
    json.dumps(request, allow_nan=False, ensure_ascii=False).encode("utf-8", "surrogateescape")
    json.dumps([request.get("prompt"), request.get("resolved")], ensure_ascii=False).encode()
    _expect(_is_text(request.get("prompt")), "prompt")
    _expect(_is_whole(request.get("seed"), 0, (1 << 64) - 1), "seed")
    for name in _SIZES:
        _expect(request.get(name) is None or _is_whole(request[name], 1, 1 << 31), name)
    fps = request.get("fps")
    _expect(fps is None or is_number(fps, most=1e9) and fps > 1e-9, "fps")
    _expect(request.get("lora") is None or is_stack(request["lora"]), "lora")
    _expect(request.get("resolved") is None or _is_resolved(request["resolved"]), "resolved")


def _is_resolved(value: object) -> bool:
    """True for what a request came to: numbers by name, and warnings."""
    return isinstance(value, dict) and all(
        one is None or (isinstance(one, list) and all(map(_is_text, one)) if name == "warnings" else is_number(one))
        for name, one in value.items()
    )


def _check_result(job: Job) -> None:
    _expect(job.file is None or is_name(job.file), "file")
    durations = job.durations
    _expect(isinstance(durations, dict) and all(map(_is_text, durations)) and all(map(is_number, durations.values())), "durations")
    made = job.made
    if made is not None:
        _expect(isinstance(made, dict) and sorted(made) == ["fps", "height", "num_frames", "width"], "made")
        _expect(all(_is_whole(made[name], 1, 1 << 31) for name in _SIZES), "made")
        _expect(is_number(made["fps"], most=1e9) and made["fps"] > 0, "made")


def check(job: Job) -> None:
    """Raises an error if no such job can be."""
    _expect(is_name(job.id) and len(job.id) <= 100, "id")
    texts = (job.model, job.identity, job.stack)
    _expect(all(map(_is_text, texts)), "text")
    maybe = (job.worker, job.error_code, job.error_message)
    _expect(all(text is None or _is_text(text) for text in maybe), "text")
    "".join([*texts, *(text or "" for text in maybe)]).encode()
    _check_request(job.request)
    _expect(job.status in STATUSES, "status")
    _expect(_is_whole(job.progress, 0, 100) and _is_whole(job.attempts, 0, 1 << 31), "progress")
    _expect(_is_whole(job.number, -(1 << 63), (1 << 63) - 1), "number")
    _expect(is_number(job.created), "created")
    _expect(all(time is None or is_number(time) for time in (job.heard, job.started, job.completed)), "times")
    _check_result(job)
    if job.status == "in_progress":
        _expect(job.worker is not None and _WORKER.fullmatch(job.worker) is not None and job.heard is not None, "worker")
    _expect((job.completed is not None) == (job.status in ("completed", "failed")), "completed")
    _expect(job.status != "completed" or job.file is not None, "file")
    _expect((job.error_code is not None) == (job.status == "failed"), "error")


def parsed(text: Any) -> Any:
    """A JSON text; :class:`ValueError` if it is none."""
    if not isinstance(text, str):
        raise ValueError(f"{type(text).__name__} in place of text")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def job_of(id: str, model: str, identity: str, values: Mapping[str, Any]) -> Job:
    """The job of a row of the store; one that has failed stands for a row that cannot be read."""
    try:
        job = Job(**values)
        check(job)
        _expect(job.id == id, "id")
        return job
    except (TypeError, ValueError, KeyError, RecursionError, OverflowError):
        return damaged(id, model, identity, values)


def damaged(id: str, model: str, identity: str, values: Mapping[str, Any]) -> Job:
    """What stands for a row that cannot be read, with as much of it as can be."""
    number, created, completed = values.get("number"), values.get("created"), values.get("completed")
    began = float(created) if created is not None and is_number(created) else 0.0
    return Job(
        id=id,
        model=model,
        identity=identity,
        request={"prompt": "", "seed": 0},
        stack="",
        created=began,
        number=number if isinstance(number, int) and abs(number) < 1 << 63 else 0,
        status="failed",
        completed=float(completed) if completed is not None and is_number(completed) else began,
        error_code=DAMAGED,
        error_message="the job's row in the store is damaged; delete it, and send the request again",
    )


def state_of(name: str, text: Any) -> Any:
    """A value that the store keeps under a name; ``None``, as if there were none, if it cannot be what was kept."""
    try:
        value = parsed(text)
        if name == "lora":
            _expect(isinstance(value, dict) and isinstance(value.get("active"), bool) and isinstance(value.get("stack"), list), name)
            for entry in value["stack"]:
                _expect(_is_text(entry["nickname"]), name)
                entry["nickname"].encode()
                _expect(is_stack([[entry["path"], entry["strength"], entry["target"]]]), name)
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8", "surrogateescape")
        return value
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def counted(name: Any, label: Any, value: Any) -> Optional[float]:
    """A counter's value; ``None`` if that cannot be one."""
    known = isinstance(name, str) and isinstance(label, str) and isinstance(value, (int, float))
    if not known or not math.isfinite(value):
        return None
    try:
        (name + label).encode()
    except UnicodeError:
        return None
    return float(value)
