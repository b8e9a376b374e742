"""What a request costs beyond its video: the same call in this process, through `v2l serve`, and through Ray, in turn; medians.

    python overhead.py [--rounds N] [--ray]

Needs the wheel with its extras and pytest's neighbours of this file; `V2L_TEST_FIXTURES` names `tests/fixtures`.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import requests

import v2l
from conftest import IMAGE, MINIATURE, PREDICTOR, PROMPT
from test_serve import Server

#: Two requests of the miniature: its smallest, and the usual one.
SIZES = {"1 frame, 1 step": (1, 1), "9 frames, 20 steps": (9, 20)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pipeline = v2l.Pipeline.from_pretrained(MINIATURE, cache=work / "cache", export=PREDICTOR)
        servers = {"v2l serve": Server(pipeline.directory, work / "plain")}
        if options.ray:
            servers["v2l serve --ray"] = Server(pipeline.directory, work / "ray", "--ray")
        session = requests.Session()

        def in_process(frames: int, steps: int) -> bytes:
            file = work / "out.mp4"
            given: Dict[str, Any] = {"num_frames": frames, "num_inference_steps": steps, "guidance_scale": 1.0, "seed": 43}
            pipeline.generate(PROMPT, image=IMAGE, file=file, **given)
            return file.read_bytes()

        def through(server: Server) -> Callable[[int, int], bytes]:
            def call(frames: int, steps: int) -> bytes:
                form = {"prompt": PROMPT, "num_frames": frames, "num_inference_steps": steps, "guidance_scale": 1, "seed": 43}
                with open(IMAGE, "rb") as image:
                    answer = session.post(f"{server.url}/v1/videos/sync", data=form, files={"input_reference": image}, timeout=60)
                assert answer.status_code == 200, answer.text
                return answer.content

            return call

        ways = {"in process": in_process, **{name: through(server) for name, server in servers.items()}}
        for size, (frames, steps) in SIZES.items():
            seconds: Dict[str, List[float]] = {name: [] for name in ways}
            for turn in range(options.rounds + 3):
                made = set()
                for name, call in ways.items():
                    began = time.perf_counter()
                    made.add(call(frames, steps))
                    # The first ones open sessions.
                    if turn >= 3:
                        seconds[name].append(time.perf_counter() - began)
                assert len(made) == 1
            medians = {name: statistics.median(times) for name, times in seconds.items()}
            base = medians["in process"]
            for name, median in medians.items():
                print(json.dumps({"request": size, "way": name, "median_ms": round(1000 * median, 1), "ratio": round(median / base, 2)}))
        for server in servers.values():
            for process in (server.process.pid,):
                status = Path(f"/proc/{process}/status").read_text().splitlines()
                resident = next(line.split()[1] for line in status if line.startswith("VmRSS"))
                print(json.dumps({"process": " ".join(server.process.args[1:3]), "resident_mb": round(int(resident) / 1024)}))
            server.stop()


if __name__ == "__main__":
    main()
