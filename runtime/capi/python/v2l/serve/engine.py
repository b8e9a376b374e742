"""What makes the videos: one pipeline with its predictor, and the adapters that it was given last."""

from __future__ import annotations

import collections
import os
import time
from pathlib import Path
from typing import Any, Callable, Dict, Hashable, List, Mapping, Optional, Tuple

import v2l

from .config import Config
from .identity import check

_MOST_ADAPTERS = 16
_RANGES = {None: v2l.Range.DEFAULT, "unit": v2l.Range.UNIT, "signed": v2l.Range.SIGNED}


#: Files of a job's request that are frames of its video.
FILES = ("image", "last_image")


def arguments(request: Mapping[str, Any]) -> Dict[str, Any]:
    """The arguments of :meth:`v2l.Pipeline.generate` for a job's request; adapters are not among them."""
    return {name: request[name] for name in (*v2l.FIELDS, *FILES) if request.get(name) is not None}


def _strength(request: Mapping[str, Any], name: str) -> float:
    given = request.get(name)
    return 1.0 if given is None else float(given)


class Generator:
    """An engine directory that answers one request after the other."""

    def __init__(self, config: Config) -> None:
        self._options = dict(config.pipeline)
        self._options.setdefault("prediction_cache", config.data / "predictions")
        self._options.setdefault("fused_cache", config.data / "fused")
        self._config = config
        self._pipeline = v2l.Pipeline(config.engines, **self._options)
        # What was opened is what the server began with, or is not used.
        check(config)
        self._predictor: Optional[v2l.Predictor] = None
        self._kept: "collections.OrderedDict[Hashable, v2l.Adapter]" = collections.OrderedDict()
        self._set: Optional[Tuple[Tuple[Hashable, float], ...]] = None
        #: The stack of the last request.
        self.stack: Optional[str] = None
        #: Whether the last request changed the adapters.
        self.swapped = False

    def close(self) -> None:
        """Frees everything."""
        self._kept.clear()
        if self._predictor is not None:
            self._predictor.close()
        self._pipeline.close()

    def _adapter(self, key: Hashable, make: Callable[[], v2l.Adapter]) -> v2l.Adapter:
        """An adapter, made unless it is one of those that were used last."""
        if key not in self._kept:
            self._kept[key] = make()
            while len(self._kept) > _MOST_ADAPTERS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _stack(
        self, request: Mapping[str, Any], progress: v2l.Progress, cancel: v2l.Cancel
    ) -> List[Tuple[Hashable, v2l.Adapter, float]]:
        """The adapters of a request with what tells them from others: files, and what is predicted for it."""
        stack: List[Tuple[Hashable, v2l.Adapter, float]] = []
        for file, strength, target in request.get("lora") or []:
            found = os.stat(file)
            key: Hashable = (file, found.st_size, found.st_mtime_ns, target)
            loaded = self._adapter(key, lambda: self._pipeline.adapter(file, experts=v2l.Experts(target)))
            stack.append((key, loaded, strength))
        width, height = request.get("width") or 0, request.get("height") or 0
        if request.get("reference"):
            key = ("reference", request["reference_hash"], request.get("reference_range"), request.get("image_hash"))
            key = (*key, width, height, request["seed"])

            def predict() -> v2l.Adapter:
                return self._predicting().predict(
                    request["reference"],
                    image=request.get("image"),
                    range=_RANGES[request.get("reference_range")],
                    seed=request["seed"],
                    progress=progress,
                    cancel=cancel,
                    width=width,
                    height=height,
                )

            stack.append((key, self._adapter(key, predict), _strength(request, "reference_strength")))
        if request.get("effect"):
            key = ("effect", request["effect"])

            def imagine() -> v2l.Adapter:
                return self._predicting().predict(prompt=request["effect"], progress=progress, cancel=cancel)

            stack.append((key, self._adapter(key, imagine), _strength(request, "effect_strength")))
        return stack

    def _predicting(self) -> v2l.Predictor:
        if self._predictor is None:
            predictor = v2l.Predictor(self._config.engines, **self._options)
            check(self._config)
            self._predictor = predictor
        return self._predictor

    def run(
        self, request: Mapping[str, Any], file: Path, progress: v2l.Progress, cancel: v2l.Cancel
    ) -> Dict[str, float]:
        """Makes the video of a request into ``file``; gives the seconds of each phase. Raises :class:`v2l.Error`."""
        durations: Dict[str, float] = {}
        began = phase_began = time.monotonic()
        phase = "predict"

        def ended(next_phase: str) -> None:
            nonlocal phase, phase_began
            now = time.monotonic()
            durations[phase] = durations.get(phase, 0.0) + now - phase_began
            phase, phase_began = next_phase, now

        def on_progress(at: v2l.Phase, done: int, total: int) -> None:
            if phase not in ("predict", "swap") and at.name.lower() != phase:
                ended(at.name.lower())
            progress(at, done, total)

        stack = self._stack(request, on_progress, cancel)
        ended("swap")
        wanted = tuple((key, strength) for key, _, strength in stack)
        self.swapped = wanted != self._set
        if self.swapped:
            self._set = None
            self._pipeline.set_adapters([(adapter, strength) for _, adapter, strength in stack], cancel=cancel)
            self._set = wanted
        ended("prepare")
        self._pipeline.generate(**arguments(request), file=file, progress=on_progress, cancel=cancel)
        ended("done")
        durations["total"] = time.monotonic() - began
        return durations
