"""Measures the times that the simulation is fed with, by the real tools on the miniature.

    python measure.py --work DIR [--rounds N] [--only PART…]      writes measured/miniature.json

`v2l-run --json` prints an event when a phase begins and when a step is done; this script notes when each comes. A fresh process opens its engines first,
so that a second part asks a warm `v2l serve`, which reports the seconds of each phase. A third asks the server's store alone, with as many jobs at work
as there would be replicas. Needs the wheel with `[serve,video]`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from server import FRAMES, IMAGE, MINIATURE, PROMPT, STEPS, Server, command, machine, prepare

OUT = Path(__file__).parent / "measured/miniature.json"
#: Steps of the sampler in the first part; the server makes videos with fewer.
LONG = 20


def events(*words: object) -> List[Tuple[float, Dict[str, Any]]]:
    """The events of `v2l-run`, and when each came after the start of the process."""
    began = time.monotonic()
    found = []
    with subprocess.Popen(
        [command("v2l-run"), *map(str, words), "--json"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            found.append((time.monotonic() - began, json.loads(line)))
    if process.returncode != 0:
        raise SystemExit(f"v2l-run ended with {process.returncode}")
    return found


def phases(found: Sequence[Tuple[float, Dict[str, Any]]]) -> Dict[str, float]:
    """Seconds of each phase of a cold run."""

    def at(**wanted: Any) -> float:
        return next(when for when, event in found if all(event.get(key) == value for key, value in wanted.items()))

    if any(event.get("phase") == "encode reference" for _, event in found):
        began = at(event="phase", phase="encode reference")
        return {"start": began, "predict": at(event="adapter") - began, "whole process": found[-1][0]}
    seconds = {"start": at(event="memory")}
    ready = at(event="phase", phase="encode text")
    if any(event["event"] == "fuse_mode" for _, event in found):
        seconds["apply"] = at(event="fuse_mode") - at(event="memory")
    seconds["encode text"] = at(event="step", phase="encode_text") - ready
    seconds["encode image"] = at(event="step", phase="encode_condition") - at(event="step", phase="encode_text")
    # The first step opens the session.
    first, last = at(event="step", phase="denoise", done=1), at(event="step", phase="denoise", done=LONG)
    seconds["one step"] = (last - first) / (LONG - 1)
    seconds["decode and write"] = at(event="video") - at(event="phase", phase="decode")
    seconds["whole process"] = found[-1][0]
    return seconds


def medians(rounds: Sequence[Dict[str, float]]) -> Dict[str, float]:
    """The median of each phase."""
    names = list(dict.fromkeys(name for times in rounds for name in times))
    return {name: round(statistics.median(times[name] for times in rounds if name in times), 5) for name in names}


def cold(work: Path, rounds: int) -> Dict[str, Dict[str, float]]:
    """Runs of `v2l-run`, in turn."""
    engines, adapter = prepare(work), work / "loras/squash.safetensors"
    request = ["--engine", engines, "--image", IMAGE, "--prompt", PROMPT, "--num-frames", FRAMES, "--steps", LONG]
    request += ["--guidance", 1, "--seed", 43, "--threads", 1, "-o", work / "out.mp4"]
    reference = ["--engine", engines, "--reference", MINIATURE / "references/squash", "--reference-range", "signed"]
    reference += ["--image", IMAGE, "--seed", 43, "--threads", 1, "--save-lora", work / "out.safetensors"]
    ways = {
        "predict": reference,
        "base": request,
        "fuse": [*request, "--lora", adapter, "--fuse-mode", "fuse"],
        "branch": [*request, "--lora", adapter, "--fuse-mode", "branch"],
    }
    found: Dict[str, List[Dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, words in ways.items():
            found[way].append(phases(events(*words)))
    return {way: medians(times) for way, times in found.items()}


def warm(work: Path, rounds: int) -> Dict[str, Any]:
    """Jobs of a server that is warm, one after the other: with the stack of the job before, and with another."""
    measured: Dict[str, Any] = {}
    with Server(work, "fuse", "--workers", 1, "--adapter-mode", "fuse") as fuse, Server(
        work, "branch", "--workers", 1, "--adapter-mode", "branch"
    ) as branch:
        servers = {"fuse": fuse, "branch": branch}
        found: Dict[Tuple[str, str, int], List[Dict[str, Any]]] = {}
        for turn in range(rounds + 1):
            for steps in (STEPS, LONG):
                for mode, server in servers.items():
                    for kind, strength in (("swap", 0.5), ("same", 0.5), ("swap", 0.8), ("same", 0.8)):
                        (row,) = server.finish([server.create(strength, steps)])
                        # The first turn opens the sessions.
                        if turn:
                            found.setdefault((mode, kind, steps), []).append(row)
        for (mode, kind, steps), rows in found.items():
            whole = [row["completed"] - row["started"] for row in rows]
            times = medians([row["durations"] for row in rows])
            measured.setdefault(mode, {}).setdefault(f"{steps} steps", {})[kind] = {
                "job": round(statistics.median(whole), 5),
                "jobs": [round(seconds, 4) for seconds in whole],
                "phases": times,
            }
    return measured


def store(work: Path, rounds: int) -> Dict[str, Any]:
    """Seconds of a sign of life, and of a look for work that finds none, in the store of the server's jobs."""
    from v2l.serve.sqlite_store import SqliteStore

    measured: Dict[str, Any] = {}
    for replicas in (1, 10, 100, 1000):
        with tempfile.TemporaryDirectory(dir=work) as folder:
            jobs = SqliteStore(Path(folder), "miniature", "engines")
            claimed = []
            for number in range(replicas):
                jobs.create(str(number), {"prompt": PROMPT, "seed": number}, "", replicas)
                # The other machine's workers; of this machine's the store asks the system, too.
                claimed.append(jobs.claim(f"another/{number}/1/worker"))
            beats, looks = [], []
            for turn in range(20 * rounds):
                job = claimed[turn % replicas]
                assert job is not None
                began = time.monotonic()
                assert jobs.beat(job, 50)
                beats.append(time.monotonic() - began)
                began = time.monotonic()
                jobs.recover(3600.0)
                assert jobs.claim("another/0/1/worker", stack="a", patience=60.0) is None
                looks.append(time.monotonic() - began)
            measured[str(replicas)] = {"beat": round(statistics.median(beats), 6), "look": round(statistics.median(looks), 6)}
    return {"rounds": 20 * rounds, "replicas": measured}


PARTS = {"v2l-run": cold, "v2l serve": warm, "store": store}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True, help="folder for engines, videos and jobs")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    work = options.work.resolve()
    prepare(work)
    measured: Dict[str, Any] = json.loads(OUT.read_text()) if OUT.is_file() else {}
    video = f"the miniature's, {FRAMES} frames, one thread, other work on the machine"
    measured.update(machine=machine(), video=video, rounds=options.rounds)
    for part in options.only:
        measured[part] = PARTS[part](work, options.rounds)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(measured, indent=1) + "\n")
    print(OUT.read_text())


if __name__ == "__main__":
    main()
