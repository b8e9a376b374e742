"""Whole requests on ONNX Runtime and on OpenVINO, phase by phase.

Run: python tests/checks/peers/video.py --work DIR [--rounds 3] [--layers 4] [--steps 4] [--json]
In a virtual environment of tests/reference/requirements.txt, with OpenVINO from `bin/setup --openvino`; builds the release binaries
with cargo, or takes those in `--tools`. About 8 GB of disk and 8 GB of memory.

Two pipelines, both compiled by `v2l-compile --precision bf16 --backend openvino`:

- miniature: the trained one of tests/fixtures, an adapter predicted from a reference, 9 frames of 48 x 48 pixels, 20 steps;
- mid-size: random weights; a transformer of CogVideoX's full width with `--layers` blocks, a T5 of two layers of full width, an
  autoencoder of half the usual width; a LoRA of rank 16 on every block, 9 frames of 192 x 192 pixels, `--steps` steps with guidance.

In every round each backend runs `v2l-run --json` once, in a process of its own. A phase lasts from its event `phase` to the next.
Prints medians of each phase's seconds and processor's seconds, and of the whole process; `--json` one event per line. Asserts that the
two make nearly the same video.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from safetensors.numpy import load_file
from transformers import T5Config, T5EncoderModel

import peers

ROOT = Path(__file__).resolve().parents[3]
MINIATURE = ROOT / "tests/fixtures/miniature"
BACKENDS = {"ort": ["--backend", "ort"], "openvino": ["--backend", "openvino"]}
TICKS = os.sysconf("SC_CLK_TCK")


def mid_size(folder: Path, layers):
    """A pipeline of random weights in bf16, in the hub's layout, and an adapter for it."""
    if (folder / "rank16.safetensors").exists():
        return
    shutil.copytree(MINIATURE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("[!stm]*", "trials", "vae"))
    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(**(peers.CogVideoX.config | {"num_layers": layers}))
    vae = AutoencoderKLCogVideoX(block_out_channels=(64, 128, 128, 256), sample_height=192, sample_width=192)
    vocabulary = json.loads((MINIATURE / "text_encoder/config.json").read_text())["vocab_size"]
    text = T5Config(vocab_size=vocabulary, d_model=4096, d_kv=64, d_ff=10240, num_layers=2, num_heads=64, feed_forward_proj="gated-gelu")
    for name, network in (("transformer", transformer), ("vae", vae), ("text_encoder", T5EncoderModel(text))):
        shutil.rmtree(folder / name, ignore_errors=True)
        network.to(torch.bfloat16).save_pretrained(folder / name)
    kind = type("Kind", (peers.CogVideoX,), {"layers": layers})
    peers.make_adapter(kind, transformer, 16, 16, folder / "rank16.safetensors")


def processor_seconds(process):
    """What the process has worked so far; `None` once it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / TICKS


def run(command, environment):
    """{phase: (seconds, processor's seconds)} of one `v2l-run`, `total` among them."""
    start = time.perf_counter()
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, text=True, env=environment)
    marks = [("open", start, 0.0)]
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "phase":
            marks.append((event["phase"], time.perf_counter(), processor_seconds(process.pid) or marks[-1][2]))
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    end = (time.perf_counter(), usage.ru_utime + usage.ru_stime)
    phases = {}
    for (name, at, worked), (_, next_at, next_worked) in zip(marks, [*marks[1:], ("", *end)]):
        seconds, processor = phases.get(name, (0, 0))
        phases[name] = seconds + next_at - at, processor + next_worked - worked
    return phases | {"total": (end[0] - start, end[1])}


def compare(name, command, work: Path, rounds, say):
    taken = {backend: [] for backend in BACKENDS}
    outputs = {backend: work / f"{name}.{backend}.safetensors" for backend in BACKENDS}
    for number in range(rounds + 1):
        for backend, flags in BACKENDS.items():
            phases = run([*command, *flags, "--outputs", outputs[backend], "-o", work / f"{name}.{backend}.mp4"], os.environ)
            if number:  # the first round fills the page cache
                taken[backend].append(phases)
    apart = [next(iter(load_file(path).values())).astype(np.float64) for path in outputs.values()]
    error = float(np.linalg.norm(apart[1] - apart[0]) / np.linalg.norm(apart[0]))
    for backend, all_rounds in taken.items():
        phases = {
            phase: [statistics.median(round[phase][what] for round in all_rounds) for what in (0, 1)] for phase in all_rounds[0]
        }
        text = ", ".join(f"{phase} {seconds:.2f} ({processor:.2f})" for phase, (seconds, processor) in phases.items())
        say({"event": "video", "pipeline": name, "backend": backend, "phases": phases}, f"{name}, {backend}: {text}")
    ratios = {
        phase: statistics.median(ov[phase][1] / max(ort[phase][1], 1e-9) for ov, ort in zip(taken["openvino"], taken["ort"]))
        for phase in ("denoise", "decode", "total")
        if phase in taken["ort"][0]
    }
    text = ", ".join(f"{phase} {ratio:.2f}" for phase, ratio in ratios.items())
    say({"event": "ratio", "pipeline": name, "openvino_over_ort": ratios}, f"{name}: processor's seconds on OpenVINO over ONNX Runtime: {text}")
    say({"event": "error", "pipeline": name, "relative_l2": error}, f"{name}: final latents differ by {error:.1e} (relative L2)")
    assert error < 0.1, error


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tools", type=Path, help="folder of built binaries")
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    work, tools = a.work.resolve(), a.tools or peers.built_tools()
    work.mkdir(parents=True, exist_ok=True)
    say = (lambda event, text: print(json.dumps(event))) if a.json else (lambda event, text: print(text, flush=True))
    machine = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), "unknown")
    say({"event": "machine", "cpu": machine}, f"{machine}; seconds, and in brackets the processor's")
    mid = work / "mid-size"
    mid_size(mid, a.layers)

    def engines(name, model, *flags):
        made = work / f"{name}.engines"
        if not made.exists():
            bundle = work / f"{name}.bundle"
            for command in (
                [tools / "v2l-export", model, "-o", bundle, "--quiet", *flags],
                [tools / "v2l-compile", bundle, "-o", made, "--precision", "bf16", "--no-calibration", "--backend", "openvino", "--quiet"],
            ):
                subprocess.run([str(c) for c in command], check=True, stdout=sys.stderr)
        return made

    predictor = ["--hypernetwork", MINIATURE / "hypernetwork.safetensors", "--light-lora", MINIATURE / "checkpoint-checkpoint-100.safetensors"]
    command = [tools / "v2l-run", "--engine", engines("miniature", MINIATURE, *predictor), "--json", "--threads", "2", "--num-frames", "9"]
    command += ["--reference", MINIATURE / "references/squash", "--reference-range", "signed", "--image", MINIATURE / "images/08.png"]
    command += ["--prompt", "a blue disc", "--steps", "20", "--guidance", "1", "--seed", "43"]
    compare("miniature", command, work, a.rounds, say)
    command = [tools / "v2l-run", "--engine", engines("mid-size", mid), "--json", "--threads", "2", "--num-frames", "9"]
    command += ["--lora", mid / "rank16.safetensors", "--image", MINIATURE / "images/08.png", "--width", "192", "--height", "192"]
    command += ["--prompt", "a blue disc", "--steps", a.steps, "--guidance", "6", "--seed", "43"]
    compare("mid-size", command, work, a.rounds, say)


if __name__ == "__main__":
    main()
