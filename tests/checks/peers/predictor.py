"""One prediction of a Prompt2Effect network of the paper's size over Wan 2.1's 1.3B shapes, beside PyTorch.

Run: python tests/checks/peers/predictor.py --work DIR [--blocks 30] [--rounds 1] [--tools DIR] [--ort-weights auto|f32|stored]
In a virtual environment of tests/reference/requirements.txt; builds the release binaries with cargo, or takes those in `--tools`. The network
is random: width 2048, 32 heads, 14 blocks, 256 latents, rank 32, encoders by type of layer, 1.08 billion parameters. The base is a
random transformer of 1.3B's widths; `--blocks` says how many of its 30 blocks it has, 10 layers each. About 15 GB of disk and 12 GB of memory. On two cores a
block takes about 10 s, for each of the three predictions.

v2l predicts with an empty cache (cold), then for another prompt with what the first left (warm), each in a process of its own that opens the
engines and writes a LoRA file. PyTorch's side is `predict` of tests/reference/prompt2effect.py, the network's definition, in float32, after loading. Two
threads on either side. Prints seconds, the processor's seconds, the most private memory, operations of the network by its formula, and the distance
of the factors from PyTorch's; `--json` one event per line. Asserts that they agree to 1e-4.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests/reference"))
import prompt2effect as reference  # noqa: E402

CONFIG = reference.PAPER | dict(hidden_dim=2048, n_heads=32, n_layer=14, rank=32, text_len=512)
LATENTS, TEXT, TOKENS = 256, 4096, 512


def make_base(work: Path, blocks: int):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": blocks}
    model = WanTransformer3DModel(**config)
    torch.set_default_dtype(torch.float32)
    model.to(torch.bfloat16).save_pretrained(work / "transformer")


def base_weights(work: Path):
    return {k: v for file in sorted((work / "transformer").glob("*.safetensors")) for k, v in load_file(file).items()}


def rows_of(base):
    """Layers as the package numbers them: name, group, block, type, block; and the groups."""
    layers = reference.layers_of(CONFIG, base, reference.WAN)
    kinds = list(reference.WAN)
    groups = {kind: tuple(base[f"{layer}.weight"].shape) for layer, kind in layers}
    rows = [(layer, kind, reference.block_of(layer), 1 + kinds.index(kind), reference.block_of(layer)) for layer, kind in layers]
    return rows, groups


def make_package(work: Path, base, blocks: int):
    rows, groups = rows_of(base)
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, tensor in reference.shapes(CONFIG, groups, blocks, len(reference.WAN) + 1, TEXT, LATENTS).items():
        spread = 0.02 if tensor.ndim == 1 else tensor.shape[-1] ** -0.5
        offset = 1.0 if ".ln" in name and name.endswith(".weight") else 0.0
        tensors[name] = (torch.randn(tensor.shape, generator=generator) * spread + offset).bfloat16()
    package = work / "package"
    package.mkdir(exist_ok=True)
    save_file(tensors, package / "model.safetensors")
    enc = {kind: dict(group=kind, d_in=d_in, d_out=d_out) for kind, (d_out, d_in) in groups.items()}
    own = CONFIG | dict(text_dim=TEXT, num_latents=LATENTS, module_vocab=list(reference.WAN), enc_groups=enc)
    (package / "config.json").write_text(json.dumps(own))
    for number in range(2):
        text = torch.randn(1, 20 + number, TEXT, generator=generator)
        save_file({"text_hidden": text}, work / f"effect{number}.safetensors")
    return sum(tensor.numel() for tensor in tensors.values())


def operations(rows, base):
    """Multiplications and additions of one prediction: all of it, and what depends on the prompt or on its latents."""
    d, n, depth, rank = CONFIG["hidden_dim"], LATENTS, CONFIG["n_layer"], CONFIG["rank"]
    whole = prompt = 0
    for name, *_ in rows:
        out, into = base[f"{name}.weight"].shape
        tokens = out + into
        encode = 4 * out * into * d
        compress = 4 * tokens * d * d + 4 * n * d * d + 4 * n * tokens * d
        # In each block: attention to itself, then to the text, and one feed-forward network.
        self_attention, cross = 8 * n * d * d + 4 * n * n * d, 4 * n * d * d + 4 * n * TOKENS * d
        backbone = depth * (self_attention + cross + 16 * n * d * d)
        # Queries of all tokens; keys and values of the latents; the output projection is folded into the heads.
        queries, mixing = 2 * tokens * d * d, 2 * tokens * n * d + 2 * tokens * n * rank * CONFIG["n_heads"]
        whole += encode + compress + backbone + queries + mixing + 4 * n * d * d
        prompt += backbone - self_attention + mixing + 4 * n * d * d
    return whole, prompt


def watched(command, environment):
    """Runs a command: seconds, the processor's seconds, the most private bytes, and its standard output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start, most = time.perf_counter(), 0
    process = subprocess.Popen([str(c) for c in command], env=os.environ | environment, stdout=subprocess.PIPE, text=True)

    def watch():
        nonlocal most
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            most = max(most, *(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    text = process.communicate()[0]
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cpu, most, text


def torch_side(work: Path, number: int):
    """Runs in a process of its own: the factors of a prompt, and the seconds that they took."""
    base = {name: tensor.float() for name, tensor in base_weights(work).items()}
    rows, _ = rows_of(base)
    w = {name: tensor.float() for name, tensor in load_file(work / "package/model.safetensors").items()}
    text = load_file(work / f"effect{number}.safetensors")["text_hidden"][0]
    # The definition is written for float64.
    torch.Tensor.double = torch.Tensor.float
    code = reference.code
    reference.code = lambda length, width: code(length, width).float()
    start, before = time.perf_counter(), time.process_time()
    with torch.no_grad():
        found = reference.predict(CONFIG, w, rows, base, text, None)
    seconds, cpu = time.perf_counter() - start, time.process_time() - before
    tensors = {f"{name}.lora_{side}": part.contiguous() for name, pair in found.items() for side, part in zip("AB", pair)}
    save_file(tensors, work / "torch.safetensors")
    print(json.dumps({"seconds": seconds, "cpu": cpu}))


def distance(work: Path, lora: Path):
    expected, found = load_file(work / "torch.safetensors"), load_file(lora)
    worst = 0.0
    for name, theirs in expected.items():
        module, side = name.rsplit(".", 1)
        ours = found[f"transformer.{module}.{side}.weight"].float()
        worst = max(worst, ((ours - theirs).norm() / theirs.norm()).item())
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tools", type=Path, help="folder of built binaries")
    parser.add_argument("--ort-weights", default="auto", help="how v2l holds the network's weights: auto, f32 or stored")
    parser.add_argument("--torch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(2)
    work, tools = a.work.resolve(), a.tools
    if a.torch is not None:
        torch_side(work, a.torch)
        return
    work.mkdir(parents=True, exist_ok=True)
    if tools is None:
        subprocess.run(["cargo", "build", "--release", "--locked", "-p", "v2l", "--bins"], cwd=ROOT, check=True)
        tools = ROOT / "target/release"
    if not (work / "engines").exists():
        make_base(work, a.blocks)
        parameters = make_package(work, base_weights(work), a.blocks)
        (work / "parameters").write_text(str(parameters))
        run = lambda *command: subprocess.run([str(c) for c in command], check=True, stdout=sys.stderr)  # noqa: E731
        run(tools / "v2l-export", work / "transformer", "-o", work / "bundle", "--predictor", work / "package", "--quiet")
        run(tools / "v2l-compile", work / "bundle", "-o", work / "engines", "--no-verify", "--quiet")
    base = base_weights(work)
    rows, _ = rows_of(base)
    whole, prompt = operations(rows, base)
    del base
    parameters = int((work / "parameters").read_text())
    machine = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), "unknown")
    say = (lambda event, text: print(json.dumps(event), flush=True)) if a.json else (lambda event, text: print(text, flush=True))
    text = f"{machine}, 2 threads, torch {torch.__version__}; {parameters / 1e9:.2f} billion parameters, {len(rows)} layers: "
    text += f"{whole / 1e12:.1f} TFLOP, {prompt / 1e12:.1f} of them for each prompt"
    say({"event": "machine", "cpu": machine, "layers": len(rows), "flop": whole, "flop_prompt": prompt}, text)
    for _ in range(a.rounds):
        subprocess.run(["rm", "-rf", str(work / "cache")], check=True)
        taken = {}
        for case, number in (("cold", 0), ("warm", 1)):
            lora = work / f"{case}.safetensors"
            command = [tools / "v2l-run", "--engine", work / "engines", "--effect-embeds", work / f"effect{number}.safetensors"]
            command += ["--save-lora", lora, "--prediction-cache", work / "cache", "--threads", 2, "--quiet", "--ort-weights", a.ort_weights]
            taken[case] = watched(command, {"RAYON_NUM_THREADS": "2"})
        command = [sys.executable, __file__, "--work", work, "--torch", 1]
        _, _, private, text = watched(command, {"OMP_NUM_THREADS": "2"})
        peer = json.loads(text.strip().splitlines()[-1])
        away = distance(work, work / "warm.safetensors")
        say({"event": "torch", "private": private} | peer, f"torch float32: {peer['seconds']:.1f} s, {peer['cpu']:.1f} s of the processor, {private / 1e9:.2f} GB private")
        for case, (seconds, cpu, private, _) in taken.items():
            over = {"seconds": seconds / peer["seconds"], "cpu": cpu / peer["cpu"]}
            event = {"event": "v2l", "case": case, "seconds": seconds, "cpu": cpu, "private": private, "over_torch": over}
            text = f"v2l {case}: {seconds:.1f} s ({over['seconds']:.2f} of torch), {cpu:.1f} s of the processor ({over['cpu']:.2f}), {private / 1e9:.2f} GB private"
            say(event, text)
        say({"event": "distance", "relative_l2": away}, f"factors: {away:.1e} from torch's at most (relative L2)")
        assert away < 1e-4, away


if __name__ == "__main__":
    main()
