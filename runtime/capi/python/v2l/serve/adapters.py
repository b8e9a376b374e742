"""Which adapters a request may name, and where they lie: below the folders that the server was given, and nowhere else."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import struct
import threading
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from .errors import Refused

_ENDING = ".safetensors"
#: The most adapters of one request.
MOST = 16
#: The most files of which is kept whether they can be used.
_MOST_KNOWN = 4096
#: The largest header of a file that is read, as the format has it.
_MOST_HEADER = 100_000_000


def is_text(name: str) -> bool:
    """Whether a name of the file system is text, which an answer can hold and a request can say."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_safetensors(file: Path, size: int) -> bool:
    """Whether a file has a header of safetensors, and the bytes that the header tells of."""
    with open(file, "rb") as opened:
        start = opened.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MOST_HEADER, size - 8):
            return False
        text = opened.read(length)
    try:
        header = json.loads(text)
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        return bool(8 + length + max(ends, default=0) == size and ends)
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
        return False


def _text(value: Mapping[str, Any], *names: str) -> Optional[str]:
    for name in names:
        found = value.get(name)
        if found is not None and not isinstance(found, str):
            raise Refused(400, f"lora.{name} is {type(found).__name__}; expected text", "lora")
        if found:
            return found
    return None


def strength_of(value: Any, what: str) -> float:
    """A strength, from a number or from text."""
    try:
        strength = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        strength = math.nan
    if not math.isfinite(strength) or abs(strength) > 100:
        raise Refused(400, f"{what} is {value!r:.40}; expected a number of at most 100", "lora")
    return strength


#: An adapter of a request: its file, its strength, and the transformers that it is for as :class:`v2l.Experts` counts them.
Entry = Tuple[str, float, int]

#: Which transformers an adapter is for, in SGLang's words and in those of ``v2l-run``.
_TARGETS = {"all": 3, "both": 3, "transformer": 1, "high": 1, "transformer_2": 2, "low": 2}
TARGET_NAMES = {0: "all", 1: "transformer", 2: "transformer_2", 3: "all"}


def has_two_transformers(engines: Path) -> bool:
    """True for an engine directory with ``transformer_2``."""
    described = json.loads((engines / "pipeline.json").read_text(encoding="utf-8"))
    return "transformer_2" in described["components"]


class Adapters:
    """The adapters below some folders."""

    def __init__(self, folders: Tuple[Path, ...], two: bool = False) -> None:
        self._two = two
        self._intact: Dict[Tuple[str, int, int], bool] = {}
        self._folders = [Path(os.path.realpath(folder)) for folder in folders]

    def names(self) -> Dict[str, Path]:
        """Adapters by name: the path below its folder, without the ending. The first folder wins.

        What no request could use is left out: what is no file, links that lead out, names that are no text, and what is no intact file.
        """
        found: Dict[str, Path] = {}
        for folder in self._folders:
            for place, _, files in os.walk(folder):
                for name in files:
                    file = Path(place, name)
                    known = str(file.relative_to(folder))[: -len(_ENDING)]
                    if name.endswith(_ENDING) and is_text(known) and self._inside(file, folder) is not None and self._is_intact(file):
                        found.setdefault(known, file)
        return dict(sorted(found.items()))

    def _is_intact(self, file: Path) -> bool:
        """Whether a file is as long as its header says; each is read once, and again when it has changed."""
        try:
            status = os.stat(file)
            key = (str(file), status.st_size, status.st_mtime_ns)
            if key not in self._intact:
                if len(self._intact) >= _MOST_KNOWN:
                    self._intact.clear()
                self._intact[key] = is_safetensors(file, status.st_size)
            return self._intact[key]
        except OSError:
            return False

    @staticmethod
    def _inside(candidate: Path, folder: Path) -> Optional[Path]:
        """The regular file that a name stands for, if it lies below the folder."""
        try:
            file = Path(os.path.realpath(candidate))
            inside = file.suffix == _ENDING and file.is_relative_to(folder) and stat.S_ISREG(os.stat(file).st_mode)
        except (OSError, ValueError):
            # A name that no file can have: too long, or not to be written in the file system's encoding.
            return None
        return file if inside else None

    def find(self, name: Optional[str], path: Optional[str]) -> Path:
        """The file of an adapter by its name, or by its path below a folder."""
        shown = path or name or ""
        parts = Path(shown).parts
        if "\0" in shown or len(shown) > 1024 or not is_text(shown):
            raise Refused(400, "lora has a name that no file has", "lora")
        if Path(shown).is_absolute() or ".." in parts:
            # Nothing is looked up for it: whether it is there would tell what lies outside.
            raise Refused(400, f"lora is {shown!r:.200}; expected a name or path below the server's folders, without `..`", "lora", "unknown_lora")
        for folder in self._folders:
            for candidate in (folder / shown, folder / (shown + _ENDING)):
                file = self._inside(candidate, folder)
                if file is not None:
                    return file
        raise Refused(400, f"there is no adapter {shown!r:.200}; GET /v1/list_loras lists all that there are", "lora", "unknown_lora")

    def target(self, given: Any) -> int:
        """The transformers that an adapter is for, of a model with two: those that its file says, unless a request does."""
        if given is None or given == "":
            return 0
        if not isinstance(given, str) or given not in _TARGETS:
            raise Refused(400, f"lora.target is {given!r:.40}; expected {', '.join(_TARGETS)}", "lora", "unsupported")
        target = _TARGETS[given]
        if not self._two:
            if target == 2:
                raise Refused(400, f"lora.target is {given}; this model has one transformer, leave target out", "lora", "unsupported")
            return 0
        return target

    def resolve(self, given: Any) -> List[Entry]:
        """Files, strengths and targets of what a request says: an adapter or a list of such."""
        if given is None:
            return []
        entries = given if isinstance(given, list) else [given]
        if len(entries) > MOST:
            raise Refused(400, f"lora has {len(entries)} adapters; expected at most {MOST}", "lora")
        stack = []
        for entry in entries:
            if isinstance(entry, str):
                entry = {"name": entry}
            if not isinstance(entry, dict):
                raise Refused(400, f"lora is {type(entry).__name__}; expected an object with name and scale, or a list of such", "lora")
            known = {"name", "lora_name", "adapter", "path", "local_path", "lora_path", "scale", "lora_scale", "strength", "int_id", "target"}
            unknown = sorted(set(entry) - known)
            if unknown:
                raise Refused(400, f"lora has {unknown[0]!r:.40}; expected {', '.join(sorted(known))}", "lora")
            name, path = _text(entry, "name", "lora_name", "adapter"), _text(entry, "path", "local_path", "lora_path")
            if name is None and path is None:
                raise Refused(400, "lora names no adapter; expected name or path", "lora")
            scale = next((entry[key] for key in ("scale", "lora_scale", "strength") if entry.get(key) is not None), 1.0)
            stack.append((str(self.find(name, path)), strength_of(scale, "lora.scale"), self.target(entry.get("target"))))
        return stack


def stack_key(request: Mapping[str, Any]) -> str:
    """A name for what a request does to the weights; equal for equal stacks, "" for the base model."""
    facts: List[Any] = []
    for file, strength, target in request.get("lora") or []:
        try:
            found = os.stat(file)
            facts.append([file, found.st_size, found.st_mtime_ns, strength, target])
        except OSError:
            facts.append([file, strength, target])
    if request.get("reference"):
        names = ("reference_hash", "reference_strength", "reference_range", "width", "height", "image_hash", "seed")
        facts.append([request.get(name) for name in names])
    if request.get("effect"):
        facts.append([request["effect"], request.get("effect_strength")])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32] if facts else ""


class Checker:
    """Reads adapters against the engine before a job is made of them, each once."""

    def __init__(self, engines: Path) -> None:
        self._engines = engines
        self._lock = threading.Lock()
        self._opened: Any = None
        self._good: Dict[Tuple[str, int, int, int], None] = {}
        self._two = has_two_transformers(engines)

    def _engine(self, component: str) -> Any:
        import v2l

        return v2l.Engine(self._engines / f"{component}.engine")

    def check(self, stack: List[Entry]) -> None:
        """Refuses an adapter that the engine does not take, in the library's words."""
        import v2l

        for file, _, target in stack:
            try:
                found = os.stat(file)
            except OSError:
                raise Refused(400, f"the adapter {Path(file).stem} is no longer there", "lora", "unknown_lora") from None
            key = (file, found.st_size, found.st_mtime_ns, target)
            with self._lock:
                if key in self._good:
                    continue
                if self._opened is None:
                    self._opened = self._engine("transformer"), self._engine("transformer_2") if self._two else None
                first, second = self._opened
                try:
                    v2l.Adapter(first, file, second=second, experts=v2l.Experts(target)).close()
                except v2l.Error as error:
                    # The client knows the adapter by its name; where it lies is the server's business.
                    message = str(error).replace(file, Path(file).name)
                    raise Refused(400, message, "lora", "bad_lora") from None
                if len(self._good) >= _MOST_KNOWN:
                    self._good.clear()
                self._good[key] = None
