"""Fusing against PEFT and plain PyTorch on a 6-layer CogVideoX transformer of full width (3072), bf16.

Run: python tests/checks/peers/peers.py --work DIR [--model cogvideox | wan-14b] [--ranks 1 16 128] [--stack 1] [--rounds 5]
In a virtual environment of tests/reference/requirements.txt; builds the release binaries with cargo; about 8 GB of disk
and 8 GB of memory. Two threads on either side. Every round measures, one after the other:

- peft: diffusers' `fuse_lora` of a loaded adapter (attention and ff: 36 linears), then `unfuse_lora`, not counted;
- addmm: `torch.addmm(W, B, A, out=W')` for the same weights, W' warm; copy: the bytes of the weights, into warm memory;
- v2l: the same adapter file into the engine's weights in bf16, into the memory of the fuse before it (warm) and into new
  memory (fresh), with the survival report;
- branches: the inputs of the low-rank branches for the same adapter: what swapping it costs there.

Then, in new processes: from the checkpoint on disk to the first forward (290 tokens) with the adapter fused, the processor's
seconds and the private memory at the end; v2l on ONNX Runtime, and on OpenVINO in bf16 (`bin/setup --openvino`). Prints medians and the ratios of the pairs; `--json` one event per line. Nothing is asserted.

`--model wan-14b` is a Wan 2.1 transformer of 14B's widths (5120 and 13824) with 8 layers, 80 linears; about 15 GB of disk and 18 GB of memory. New memory,
branches and the forward are left out. `--stack N` fuses N adapters of each rank at once.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[3]


class CogVideoX:
    """6 layers of 3072; attention and ff."""

    network, blocks, layers = CogVideoXTransformer3DModel, "transformer_blocks", 6
    modules = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")
    config = {
        "num_attention_heads": 48,
        "attention_head_dim": 64,
        "num_layers": layers,
        "in_channels": 33,
        "out_channels": 16,
        "use_rotary_positional_embeddings": True,
    }


class Wan14B:
    """8 layers of 5120; both attentions and ffn."""

    network, blocks, layers = WanTransformer3DModel, "blocks", 8
    modules = (
        *(f"attn{n}.{part}" for n in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")),
        *("ffn.net.0.proj", "ffn.net.2"),
    )
    config = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": layers}


MODELS = {"cogvideox": CogVideoX, "wan-14b": Wan14B}


def make_model(kind, folder: Path):
    torch.manual_seed(0)
    with torch.device("cpu"):
        torch.set_default_dtype(torch.bfloat16)
        model = kind.network(**kind.config)
        torch.set_default_dtype(torch.float32)
    model.to(torch.bfloat16).save_pretrained(folder)


def make_adapter(kind, model, rank, seed, path: Path):
    """diffusers' form; ‖ΔW‖ is about 1 % of ‖W‖."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for block in range(kind.layers):
        for module in kind.modules:
            name = f"{kind.blocks}.{block}.{module}"
            linear = model.get_submodule(name)
            down = torch.randn(rank, linear.in_features, generator=generator)
            up = torch.randn(linear.out_features, rank, generator=generator)
            scale = 0.01 * linear.weight.float().norm() / (down.norm() * up.norm() / rank**0.5)
            tensors[f"transformer.{name}.lora_A.weight"] = down
            tensors[f"transformer.{name}.lora_B.weight"] = up * scale
    save_file(tensors, path)


class Worker:
    """v2l's side, waiting for orders."""

    def __init__(self, *arguments):
        command = [str(a) for a in arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=os.environ | {"RAYON_NUM_THREADS": "2"}, **pipes)

    def __call__(self, order):
        print(order, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())["seconds"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def built_tools():
    """The folder of the release binaries, which cargo builds."""
    build = ["cargo", "build", "--release", "--locked", "-p", "v2l", "-p", "v2l-checks", "--bins"]
    subprocess.run(build, cwd=ROOT, check=True)
    metadata = ["cargo", "metadata", "--no-deps", "--format-version", "1"]
    found = subprocess.run(metadata, cwd=ROOT, check=True, capture_output=True).stdout
    return Path(json.loads(found)["target_directory"]) / "release"


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def rounds(kind, work: Path, peers: Path, rank, stack, count):
    """{case: [seconds]}"""
    adapters = [work / f"rank{rank}.{number}.safetensors" for number in range(stack)]
    model = kind.network.from_pretrained(work / "transformer", torch_dtype=torch.bfloat16)
    for number, adapter in enumerate(adapters):
        if not adapter.exists():
            make_adapter(kind, model, rank, 1000 * number + rank, adapter)
    v2l = Worker(peers, work / "engines/transformer.engine", *adapters)
    factors = [load_file(adapter) for adapter in adapters]
    names = [key.removesuffix(".lora_A.weight") for key in factors[0] if key.endswith(".lora_A.weight")]
    joined = lambda name, part, axis: torch.cat([f[f"{name}.{part}.weight"] for f in factors], axis).to(torch.bfloat16)  # noqa: E731
    plain = [
        (model.get_submodule(n.removeprefix("transformer.")).weight.data, joined(n, "lora_B", 1), joined(n, "lora_A", 0))
        for n in names
    ]
    warm = [torch.empty_like(w) for w, _, _ in plain]

    def addmm():
        for (w, b, a), out in zip(plain, warm):
            torch.addmm(w, b, a, out=out)

    def copy():
        for (w, _, _), out in zip(plain, warm):
            out.copy_(w)

    orders = {"v2l warm": "fuse"} | ({"v2l fresh": "fuse fresh", "v2l branches": "branches"} if kind is CogVideoX else {})
    times = {name: [] for name in ("copy", "addmm", *orders, "peft")}
    with torch.no_grad():
        for number in range(count + 1):
            seconds = {"copy": timed(copy), "addmm": timed(addmm)} | {case: v2l(order) for case, order in orders.items()}
            if number:  # the first round warms up
                for case, value in seconds.items():
                    times[case].append(value)
        del warm
        chosen = [f"a{number}" for number in range(stack)]
        for name, values in zip(chosen, factors):
            model.load_lora_adapter({k: v.clone() for k, v in values.items()}, adapter_name=name, prefix="transformer")
        if stack > 1:
            model.set_adapters(chosen)
        for _ in range(count):
            times["v2l warm"].append(v2l("fuse"))
            times["peft"].append(timed(lambda: model.fuse_lora(adapter_names=chosen)))
            model.unfuse_lora()
    v2l.close()
    return times


FORWARD = """
import sys, time
import torch
from diffusers import CogVideoXTransformer3DModel
from safetensors.torch import load_file
torch.set_num_threads(2)
start = time.perf_counter()
model = CogVideoXTransformer3DModel.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16)
model.load_lora_adapter(sys.argv[2], use_safetensors=True, prefix="transformer")
model.fuse_lora()
fused = time.perf_counter() - start
i = load_file(sys.argv[3])
with torch.no_grad():
    model(
        torch.cat([i["hidden_states"], i["inpaint_latents"]], dim=2).bfloat16(), i["encoder_hidden_states"].bfloat16(),
        i["timestep"], image_rotary_emb=(i["image_rotary_emb_cos"], i["image_rotary_emb_sin"]),
    )
done = time.perf_counter() - start
cpu = time.process_time()
private = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024
import json
print(json.dumps({"fused": fused, "done": done, "cpu": cpu, "private": private}))
"""


def forward_inputs(path: Path):
    """64 latent tokens and 226 of text."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    generator = torch.Generator().manual_seed(1)
    cos, sin = get_3d_rotary_pos_embed(64, ((0, 0), (8, 8)), (8, 8), 1)
    randn = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    tensors = {
        "hidden_states": randn(1, 1, 16, 16, 16),
        "inpaint_latents": randn(1, 1, 17, 16, 16),
        "encoder_hidden_states": randn(1, 226, 4096),
        "timestep": torch.tensor([500]),
        "image_rotary_emb_cos": cos.float(),
        "image_rotary_emb_sin": sin.float(),
    }
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)


def last_line(command):
    environment = os.environ | {"RAYON_NUM_THREADS": "2"}
    done = subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", choices=MODELS, default="cogvideox")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--stack", type=int, default=1, help="adapters that are fused at once")
    parser.add_argument("--tools", type=Path, help="folder of built binaries")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(2)
    work = a.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    kind, tools = MODELS[a.model], a.tools or built_tools()
    if not (work / "engines").exists():
        make_model(kind, work / "transformer")
        run = lambda *command: subprocess.run([str(c) for c in command], check=True, stdout=sys.stderr)  # noqa: E731
        run(tools / "v2l-export", work / "transformer", "-o", work / "bundle", "--quiet")
        branches = ["--lora-rank", 128, "--backend", "openvino"] if kind is CogVideoX else ["--no-verify"]
        run(tools / "v2l-compile", work / "bundle", "-o", work / "engines", *branches, "--quiet")

    machine = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), "unknown")
    say = (lambda event, text: print(json.dumps(event))) if a.json else (lambda event, text: print(text))
    say({"event": "machine", "cpu": machine, "torch": torch.__version__}, f"{machine}, 2 threads, torch {torch.__version__}")
    peers = tools / "peers"
    for rank in a.ranks:
        times = rounds(kind, work, peers, rank, a.stack, a.rounds)
        medians = {case: statistics.median(values) for case, values in times.items()}
        over = {
            "peft / v2l": statistics.median(p / v for p, v in zip(times["peft"], times["v2l warm"][a.rounds :])),
            "v2l / addmm": statistics.median(v / p for v, p in zip(times["v2l warm"], times["addmm"])),
            "v2l / copy": statistics.median(v / p for v, p in zip(times["v2l warm"], times["copy"])),
        }
        line = ", ".join(f"{case} {1e3 * seconds:.1f} ms" for case, seconds in medians.items())
        line += "; " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in over.items())
        say({"event": "fuse", "rank": rank, "stack": a.stack, "seconds": medians, "ratios": over}, f"rank {rank}, {a.stack} at once: {line}")
    if kind is not CogVideoX:
        return
    inputs, adapter = work / "inputs.safetensors", work / f"rank{a.ranks[0]}.0.safetensors"
    forward_inputs(inputs)
    engine = work / "engines/transformer.engine"
    for name, command in (
        ("diffusers bf16", [sys.executable, "-c", FORWARD, work / "transformer", adapter, inputs]),
        ("v2l f32", [peers, engine, adapter, "--inputs", inputs]),
        ("v2l stored", [peers, engine, adapter, "--inputs", inputs, "--stored"]),
        ("v2l openvino bf16", [peers, engine, adapter, "--inputs", inputs, "--openvino"]),
    ):
        taken = last_line(command)
        text = f"{name}: fused after {taken['fused']:.2f} s, first forward done after {taken['done']:.2f} s"
        say({"event": "first forward", "case": name} | taken, f"{text}, {taken['cpu']:.2f} s of the processor, {taken['private'] / 1e9:.2f} GB private")


if __name__ == "__main__":
    main()
