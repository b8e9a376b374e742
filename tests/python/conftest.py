"""What the tests share: the trained miniature, compiled once by the installed package."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

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
