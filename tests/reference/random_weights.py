"""Random tensors that Python and Rust make alike, so that fixtures need not store them.

A recipe, `<file>.recipe.json`, stands for the safetensors file `<file>`:

    {"key": "vae", "tensors": {"conv.weight": {"dtype": "F32", "shape": [4, 3], "scale": 0.5, "offset": 0.0}, …}}

Element `i` of a tensor depends on nothing but the key, the tensor's name and `i`:

    seed     = FNV-1a (64 bits) of the UTF-8 bytes of "<key>/<name>"
    bits     = SplitMix64's output function of seed + (i + 1) · 0x9E3779B97F4A7C15     (Steele, Lea and Flood, 2014)
    uniform  = (bits >> 40) / 2^23 - 1                                              exact in f32, in [-1, 1)
    value    = f32(f32(uniform · scale) + offset), then rounded to the tensor's type

`scale` and `offset` are f32. `tests/suite/random_weights.rs` does the same in Rust; both are tested on the same numbers.
"""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

GAMMA = 0x9E3779B97F4A7C15
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def fnv1a(text: str) -> int:
    state = 0xCBF29CE484222325
    for byte in text.encode():
        state = ((state ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return state


def values(key: str, name: str, shape, scale: float, offset: float) -> np.ndarray:
    """The f32 values of one tensor."""
    count = int(np.prod(shape, dtype=np.int64))
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GAMMA) + np.uint64(fnv1a(f"{key}/{name}"))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    uniform = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    return (uniform * np.float32(scale) + np.float32(offset)).reshape(shape)


def make(recipe: dict) -> dict[str, torch.Tensor]:
    """Every tensor of a recipe."""
    return {
        name: torch.from_numpy(values(recipe["key"], name, t["shape"], t["scale"], t["offset"])).to(DTYPES[t["dtype"]])
        for name, t in recipe["tensors"].items()
    }


def recipe_for(key: str, tensors: dict[str, torch.Tensor], dtype: str = "F32", scales: dict | None = None) -> dict:
    """A recipe for tensors of these names and shapes; `scales` names those whose spread is given.

    Matrices and kernels get a standard deviation of fan_in ** -0.5, biases one of 0.2, and other vectors, a norm's
    weights, one of 0.2 around 1, so that a swapped scale and shift, or a forgotten bias, shows.
    """
    entries = {}
    for name, tensor in sorted(tensors.items()):
        offset, deviation = 0.0, 0.2
        if tensor.ndim >= 2:
            deviation = tensor[0].numel() ** -0.5
        elif not name.endswith("bias"):
            offset = 1.0
        scale = (scales or {}).get(name, 3**0.5 * deviation)
        entries[name] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "scale": float(np.float32(scale)),
            "offset": offset,
        }
    return {"key": key, "tensors": entries}


def compact(value) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


def save_recipe(file: Path, recipe: dict) -> dict[str, torch.Tensor]:
    """Writes the recipe that stands for `file`; gives its tensors."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"{compact(name)}:{compact(t)}" for name, t in recipe["tensors"].items())
    text = f'{{"key":{compact(recipe["key"])},"tensors":{{\n{lines}\n}}}}\n'
    file.with_name(file.name + ".recipe.json").write_text(text)
    return make(recipe)


def give(model, file: Path, key: str, dtype: str = "F32", scales: dict | None = None):
    """Gives the model a recipe's weights as they are stored, in f32, and writes the recipe that stands for `file`.

    Returns the model. Tables that it stores count as weights.
    """
    made = save_recipe(file, recipe_for(key, model.state_dict(), dtype, scales))
    model.load_state_dict({name: tensor.float() for name, tensor in made.items()})
    return model.float().eval()


@contextlib.contextmanager
def made(folder: Path):
    """A copy of a folder, gone when the context ends, with the files that recipes stand for."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as scratch:
        copy = shutil.copytree(folder, Path(scratch) / folder.name)
        for recipe in copy.rglob("*.recipe.json"):
            file = recipe.with_name(recipe.name.removesuffix(".recipe.json"))
            save_file(make(json.loads(recipe.read_text())), file, {"format": "pt"})
            recipe.unlink()
        yield copy


def load(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, or of the recipe that stands for it."""
    recipe = file.with_name(file.name + ".recipe.json")
    if recipe.exists():
        return make(json.loads(recipe.read_text()))
    from safetensors.torch import load_file

    return load_file(file)
