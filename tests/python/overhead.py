"""What a request costs beyond its video: the same call in this process, through `v2l serve`, and through Ray, in turn; medians.

    python overhead.py [--rounds N] [--ray]

Needs the wheel with its extras and pytest's neighbours of this file; `V2L_TEST_FIXTURES` names `tests/fixtures`.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import requests

import v2l
from conftest import IMAGE, MINIATURE, PREDICTOR, PROMPT
from recipes import write_wan
from test_serve import Server

#: Two requests of the miniature, its smallest and the usual one, and one of a model that needs milliseconds: it has random weights, and
#: its frames are copied by a stand-in for ffmpeg, whose start and H.264 take longer than all the rest.
SIZES = {"miniature, 1 frame, 1 step": (1, 1), "miniature, 9 frames, 20 steps": (9, 20)}
TINY = {"random weights, 1 frame, 1 step, frames copied": (1, 1)}
COPY = '#!/bin/sh\nfor last; do :; done\nexec cat >"${last#file:}"\n'


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pipeline = v2l.Pipeline.from_pretrained(MINIATURE, cache=work / "cache", export=PREDICTOR)
        compare(work / "miniature", pipeline, SIZES, {"prompt": PROMPT, "guidance_scale": 1.0}, IMAGE, options)
        copy = work / "copy"
        copy.write_text(COPY)
        copy.chmod(0o755)
        os.environ["V2L_FFMPEG"] = str(copy)
        settings = write_wan("t2v", work / "tiny")
        size = {name: settings[name] for name in ("width", "height")}
        pipeline = v2l.Pipeline.from_pretrained(work / "tiny", cache=work / "cache", threads=1)
        compare(work / "random", pipeline, TINY, {"prompt": "a cat", "guidance_scale": 1.0, **size}, None, options, "--threads", 1)


def compare(
    work: Path,
    pipeline: v2l.Pipeline,
    sizes: Dict[str, Any],
    request: Dict[str, Any],
    image: Optional[Path],
    options: argparse.Namespace,
    *flags: object,
) -> None:
    """Makes the videos of some sizes in every way, and prints what each took."""
    work.mkdir()
    servers = {"v2l serve": Server(pipeline.directory, work / "plain", *flags)}
    if options.ray:
        servers["v2l serve --ray"] = Server(pipeline.directory, work / "ray", "--ray", *flags)
    session = requests.Session()

    def given(frames: int, steps: int) -> Dict[str, Any]:
        return {**request, "num_frames": frames, "num_inference_steps": steps, "seed": 43}

    def without_file(frames: int, steps: int) -> bytes:
        pipeline.generate(image=image, **given(frames, steps))
        return b""

    def in_process(frames: int, steps: int) -> bytes:
        file = work / "out.mp4"
        pipeline.generate(image=image, file=file, **given(frames, steps))
        return file.read_bytes()

    def through(server: Server) -> Callable[[int, int], bytes]:
        def call(frames: int, steps: int) -> bytes:
            with contextlib.ExitStack() as opened:
                files = {"input_reference": opened.enter_context(open(image, "rb"))} if image is not None else None
                answer = session.post(f"{server.url}/v1/videos/sync", data=given(frames, steps), files=files, timeout=60)
            assert answer.status_code == 200, answer.text
            return answer.content

        return call

    ways = {"in process": in_process, **{name: through(server) for name, server in servers.items()}, "in process, no file": without_file}
    for size, (frames, steps) in sizes.items():
        seconds: Dict[str, List[float]] = {name: [] for name in ways}
        for turn in range(options.rounds + 3):
            made = set()
            for name, call in ways.items():
                began = time.perf_counter()
                made.add(call(frames, steps))
                # The first ones open sessions.
                if turn >= 3:
                    seconds[name].append(time.perf_counter() - began)
            assert len(made - {b""}) == 1
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        for name, median in medians.items():
            added = round(1000 * (median - medians["in process"]), 1)
            ratio = round(median / medians["in process"], 2)
            print(json.dumps({"request": size, "way": name, "median_ms": round(1000 * median, 1), "ratio": ratio, "added_ms": added}), flush=True)
    for server in servers.values():
        status = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
        resident = next(line.split()[1] for line in status if line.startswith("VmRSS"))
        print(json.dumps({"process": " ".join(server.process.args[1:3]), "resident_mb": round(int(resident) / 1024)}))
        server.stop()


if __name__ == "__main__":
    main()
