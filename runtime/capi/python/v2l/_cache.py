"""Engine directories that were made from models, kept for the next time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional

from . import Cancel, tools, version
from . import Path as AnyPath


def _default() -> Path:
    named = os.environ.get("V2L_CACHE")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "v2l" / "engines"


def _content(path: Path) -> Any:
    """What tells a file or folder from its earlier self: names, sizes and times of change."""
    if not path.is_dir():
        found = path.stat()
        return [str(path.resolve()), found.st_size, found.st_mtime_ns]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return [str(path.resolve()), [[str(file.relative_to(path)), *_content(file)[1:]] for file in files]]


def _flag(value: Any) -> Any:
    """A flag's value, and the content of the file that it names."""
    if isinstance(value, (list, tuple)):
        return [_flag(one) for one in value]
    if isinstance(value, (str, os.PathLike)) and Path(value).exists():
        return _content(Path(value))
    return str(value)


def _key(model: Path, export: Mapping[str, Any], compile: Mapping[str, Any]) -> str:
    flags = [{name: _flag(value) for name, value in given.items()} for given in (export, compile)]
    facts = json.dumps([version(), _content(model), flags], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:32]


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Holds a lock that ends with the process, however it ends."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def engines(
    folder: AnyPath,
    cache: Optional[AnyPath],
    export: Mapping[str, Any],
    compile: Mapping[str, Any],
    progress: Optional[tools.Progress],
    cancel: Optional[Cancel],
) -> Path:
    """The engine directory of a model, which is made if it is not there: whole, and once however many ask."""
    model = Path(folder)
    if not model.exists():
        raise FileNotFoundError(f"{model}: there is no such folder; expected a model's folder or file on this machine, download it first")
    if (model / "pipeline.json").is_file() and any(model.glob("*.engine")):
        return model
    root = Path(cache) if cache is not None else _default()
    root.mkdir(parents=True, exist_ok=True)
    key = _key(model, export, compile)
    made = root / key
    with _locked(root / f"{key}.lock"):
        if made.is_dir():
            return made
        # What an earlier process left, which held the lock and died.
        partial = root / f"{key}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            tools.export(model, output=partial / "bundle", progress=progress, cancel=cancel, **export)
            tools.compile(
                partial / "bundle", output=partial / "engines", progress=progress, cancel=cancel, **compile
            )
            os.rename(partial / "engines", made)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return made
