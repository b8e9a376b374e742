"""What a request comes to, asked of the runtime before a job is made of it: nothing here decides a size, a length or a default."""

from __future__ import annotations

import threading
from typing import Any, Dict, Mapping, Optional, Tuple

import v2l

from .config import Config
from .engine import FILES, arguments
from .errors import Refused, of_library
from .identity import EnginesReplaced, check

#: What a job keeps of the answer, for those who ask what its video is.
KEPT = ("width", "height", "num_frames", "fps", "seconds", "num_inference_steps", "warnings")


class Door:
    """Looks at requests before they become jobs."""

    def __init__(self, config: Config) -> None:
        self._config = config
        #: Whether adapters can be predicted, from references or prompts.
        self.predicts = "hypernetwork" in (config.describe().get("components") or {})
        # Pictures are decoded here: one at a time, so that many uploads do not fill the memory together.
        self._lock = threading.Lock()
        self._pipeline: Optional[v2l.Pipeline] = None
        #: What `pipeline.json` was when the engines were looked at last.
        self._seen: Optional[Tuple[int, int, int, int]] = None

    def resolved(self, request: Mapping[str, Any], names: Mapping[str, str]) -> Dict[str, Any]:
        """Size, length and steps of a request's video, or the refusal that generating it would end with.

        ``names`` are the fields that the request's files came in, by what they are.
        """
        self._check_engines()
        files = {request[what]: names[what] for what in FILES if what in names}
        ffmpeg = self._config.pipeline.get("ffmpeg")
        try:
            with self._lock:
                if self._pipeline is None:
                    # It opens no engine that is not asked for.
                    self._pipeline = v2l.Pipeline(self._config.engines, ffmpeg=ffmpeg)
                found = self._pipeline.resolve(**arguments(request))
        except v2l.Error as error:
            refused = of_library(error, files)
            if refused.field == "num_frames" and "seconds" in request:
                refused.field = "seconds"
            raise refused from None
        except (ValueError, OverflowError) as error:
            raise Refused(400, f"the request has a value that the library does not take: {error}"[:300]) from None
        for what, read, field in (("reference", "reference", "reference_video"), ("effect", "prompt", "effect")):
            if request.get(what) and found["predicts_from"] is not None and read not in found["predicts_from"]:
                takes = " and ".join(found["predicts_from"])
                raise Refused(400, f"{field} is not read by this model's predictor, which reads {takes}", names.get(what, field), "unsupported")
        self._limit(request, found)
        return {name: found[name] for name in KEPT}

    def _check_engines(self) -> None:
        """Refuses requests once other engines lie where the server's were: its workers would make none of them."""
        try:
            found = (self._config.engines / "pipeline.json").stat()
            seen = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
            if seen != self._seen:
                check(self._config)
                self._seen = seen
        except EnginesReplaced as replaced:
            raise Refused(503, str(replaced), None, "engines_replaced") from None
        except FileNotFoundError:
            raise Refused(503, "the engines are no longer there; start the server anew, and send this again", None, "engines_replaced") from None

    def _limit(self, request: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Refuses what is much more work than the model's own video."""
        longest = self._config.max_side
        for name in ("width", "height"):
            if found[name] > longest:
                field = "input_reference" if request.get("width") is None else "size"
                told = f"the video is {found['width']}x{found['height']} pixels; expected sides of at most {longest}: ask for a smaller size"
                raise Refused(400, told, field)
        frames, most = found["num_frames"], self._config.max_frames
        if "seconds" in request and frames > most:
            raise Refused(400, f"seconds is {request['seconds']:g}, which takes {frames} frames; expected at most {most}", "seconds")
        own, times = found["own"], self._config.max_times
        if not own or not times:
            return

        def pixels(video: Mapping[str, Any]) -> int:
            total: int = video["width"] * video["height"] * video["num_frames"]
            return total

        def shown(video: Mapping[str, Any]) -> str:
            return f"{video['num_frames']} frames of {video['width']}x{video['height']}"

        if pixels(found) > times * pixels(own):
            long = "num_frames" in request and found["num_frames"] > times * own["num_frames"]
            field = "num_frames" if long else "seconds" if "seconds" in request else "size"
            raise Refused(
                400,
                f"the video is {shown(found)}; expected at most {times:g} times the pixels of the model's own, {shown(own)}: ask for a smaller "
                "size or fewer frames; the server's operator can allow more with --max-times",
                field,
                "too_much_work",
            )
