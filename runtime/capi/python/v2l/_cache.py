"""Engine directories that were made from models, in the cache of ``v2l generate``, which ``v2l cache`` lists and clears."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, List, Mapping, Optional

from . import Cancel, tools
from . import Path as AnyPath


def _words(name: str, flags: Mapping[str, Any]) -> List[str]:
    return [f"{name}={os.fsdecode(word)}" for word in tools._flags(dict(flags))]


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
    words = [*_words("--export-flag", export), *_words("--compile-flag", compile)]
    if cache is not None:
        words += ["--cache", os.fsdecode(cache)]
    events = tools._call("v2l", ["cache", "add", os.path.abspath(model), *words], progress, cancel)
    return Path(next(event["path"] for event in reversed(events) if event["event"] == "added"))
