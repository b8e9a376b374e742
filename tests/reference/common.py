"""Helpers shared by the golden-file generators of this directory.

A golden case is one safetensors file with the tensors `input.<argument>` and `output.<name>`
and string metadata; the checkpoint it belongs to lies beside it in its real on-disk layout.
Every generator is run as `python tests/reference/<name>.py [--out DIR]`; DIR defaults to
tests/fixtures. Importing this module limits torch to two threads, so that sums come out the
same on every run.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save

torch.set_num_threads(2)
torch.set_grad_enabled(False)


def fixtures_dir() -> Path:
    """tests/fixtures, found from this file."""
    return Path(__file__).resolve().parent.parent / "fixtures"


def output_dir(description: str, name: str) -> Path:
    """Parses the command line of a generator and returns its (created) output directory."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=fixtures_dir(), help="default: tests/fixtures")
    directory = parser.parse_args().out / name
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def generator(seed: int) -> torch.Generator:
    """A CPU random generator with the given seed."""
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    """Normal f32 tensor that depends on shape and seed only."""
    return torch.randn(*shape, generator=generator(seed)) * scale


def randomize_(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Overwrites every parameter with seeded values, in name order; buffers (tables) are left alone.

    Matrices and kernels become N(0, 1/fan_in), biases N(0, 0.2) and other vectors, a norm's
    weights, N(1, 0.2), so that a swapped scale and shift, or a forgotten bias, shows. Nothing of
    the constructor's unseeded values stays. Returns `module`.
    """
    gen = generator(seed)
    for name, parameter in sorted(module.named_parameters()):
        noise = torch.randn(parameter.shape, generator=gen, dtype=torch.float32)
        if parameter.ndim >= 2:
            value = noise / parameter[0].numel() ** 0.5
        elif name.endswith("bias"):
            value = 0.2 * noise
        else:
            value = 1 + 0.2 * noise
        parameter.data.copy_(value)
    return module.eval()


def noise_floor(f32: torch.Tensor, f64: torch.Tensor) -> float:
    """Relative L2 distance of an f32 result from the same computation in f64."""
    return ((f32.double() - f64).norm() / f64.norm()).item()


def save_case(path: Path, inputs: dict, outputs: dict, metadata: dict | None = None) -> None:
    """Writes one golden case: `input.*`, `output.*` and string metadata."""
    tensors = {f"input.{k}": v for k, v in inputs.items()}
    tensors |= {f"output.{k}": v for k, v in outputs.items()}
    tensors = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {name} is not finite")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_sorted_metadata(save(tensors, {k: str(v) for k, v in (metadata or {}).items()} or None)))


def levels(frames: torch.Tensor) -> torch.Tensor:
    """[0,1] -> the levels of 8-bit files."""
    return (frames * 255).floor().to(torch.uint8)


def _sorted_metadata(file: bytes) -> bytes:
    """A safetensors file with its metadata in key order; the library leaves it to chance."""
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + size])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + file[8 + size :]


def save_json(path: Path, value, indent: int | None = 1) -> None:
    """Writes JSON with a final newline, a list with one element per line; text stays UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, list):
        text = "[\n" + ",\n".join(json.dumps(element, ensure_ascii=False) for element in value) + "\n]"
    else:
        text = json.dumps(value, ensure_ascii=False, indent=indent)
    path.write_text(text + "\n", encoding="utf-8")


def report(directory: Path) -> None:
    """Prints every file under `directory` with its size."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    for path in files:
        print(f"{path.stat().st_size:9d}  {path.relative_to(directory.parent)}")
    print(f"{sum(p.stat().st_size for p in files):9d}  total")
