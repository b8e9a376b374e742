"""A real `v2l serve` with the miniature, and what its jobs took."""

from __future__ import annotations

import base64
import json
import os
import platform
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Dict, List, Optional

MINIATURE = Path(__file__).parents[1] / "fixtures/miniature"
IMAGE = MINIATURE / "images/08.png"
PROMPT: str = json.loads((MINIATURE / "images/captions.json").read_text())["08.png"]
#: The miniature's video.
FRAMES, STEPS = 9, 4


def command(name: str) -> str:
    """The path of a command of the wheel in this environment, else on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise SystemExit(f"there is no {name}; install the wheel: pip install \"$(bin/dev/wheel)[serve,video]\"")
    return found


def machine() -> Dict[str, Any]:
    """The machine in words, and how busy it is."""
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {"cpu": cpu, "cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 1), "python": platform.python_version()}


def prepare(work: Path) -> Path:
    """Engines of the miniature with low-rank branches, and a folder with one adapter that was predicted; made once."""
    engines = work / "engines"
    if not (work / "loras/squash.safetensors").is_file():
        work.mkdir(parents=True, exist_ok=True)
        hypernetwork, light = MINIATURE / "hypernetwork.safetensors", MINIATURE / "checkpoint-checkpoint-100.safetensors"
        bundle = work / "bundle"
        run("v2l-export", MINIATURE, "-o", bundle, "--hypernetwork", hypernetwork, "--light-lora", light, "--quiet")
        run("v2l-compile", bundle, "-o", engines, "--lora-rank", 4, "--quiet")
        (work / "loras").mkdir(exist_ok=True)
        reference = ["--reference", MINIATURE / "references/squash", "--reference-range", "signed", "--image", IMAGE]
        run("v2l-run", "--engine", engines, *reference, "--seed", 43, "--save-lora", work / "loras/squash.safetensors", "--quiet")
    return engines


def run(name: str, *words: object) -> None:
    """Runs a command of the wheel, or ends with what it said."""
    made = subprocess.run([command(name), *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if made.returncode != 0:
        raise SystemExit(f"{name} ended with {made.returncode}: {made.stderr}")


class Server:
    """A server in a process of its own."""

    def __init__(self, work: Path, label: str, *flags: object) -> None:
        engines = prepare(work)
        self.data = work / f"data-{label}"
        shutil.rmtree(self.data, ignore_errors=True)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        words = ["serve", engines, "--model", "miniature", "--data", self.data, "--port", port, "--lora-folder", work / "loras"]
        words += ["--max-queued", 100_000, "--threads", 1, *flags]
        if "--ray" not in flags:
            words.append("--no-ray")
        self._log = open(work / f"{label}.log", "wb")
        self._process = subprocess.Popen([command("v2l"), *map(str, words)], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        self.url = f"http://127.0.0.1:{port}"
        url = "data:image/png;base64," + base64.b64encode(IMAGE.read_bytes()).decode()
        self._body = {"prompt": PROMPT, "image_reference": {"image_url": url}, "guidance_scale": 1, "seed": 43}
        until = time.monotonic() + 120
        while True:
            try:
                self.get("/health")
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"the server does not answer; {self._log.name} says why") from None
            time.sleep(0.1)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)
        self._log.close()

    def get(self, path: str) -> bytes:
        """The body of an answer."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            body: bytes = answer.read()
            return body

    def create(self, strength: float, steps: int = STEPS) -> str:
        """Makes a job with the adapter at a strength, 0 for the base model; gives its identifier."""
        body: Dict[str, Any] = {**self._body, "num_frames": FRAMES, "num_inference_steps": steps}
        if strength:
            body["lora"] = {"name": "squash", "scale": strength}
        request = urllib.request.Request(self.url + "/v1/videos", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            id: str = json.load(answer)["id"]
            return id

    def rows(self) -> List[Dict[str, Any]]:
        """Jobs as the store has them, oldest first."""
        with sqlite3.connect(f"file:{self.data}/jobs.sqlite?mode=ro", uri=True) as store:
            store.row_factory = sqlite3.Row
            rows = store.execute("SELECT * FROM jobs ORDER BY number").fetchall()
        return [{**dict(row), "durations": json.loads(row["durations"] or "{}")} for row in rows]

    def finish(self, ids: Optional[List[str]] = None, seconds: float = 900) -> List[Dict[str, Any]]:
        """Waits until the jobs are done; gives them."""
        until = time.monotonic() + seconds
        while True:
            rows = [row for row in self.rows() if ids is None or row["id"] in ids]
            bad = [row["error_message"] for row in rows if row["status"] == "failed"]
            if bad or time.monotonic() > until:
                raise SystemExit(f"jobs failed or took too long: {bad[:1]}")
            if all(row["status"] == "completed" for row in rows):
                return rows
            time.sleep(0.2)
