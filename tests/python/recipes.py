"""Models whose weights are recipes in the fixtures: random numbers of given shapes and sizes."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any, Dict

import numpy as np

from conftest import FIXTURES

WAN = FIXTURES / "wan"
_CLASSES = {
    "vae": ["diffusers", "AutoencoderKLWan"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": ["diffusers", "WanTransformer3DModel"],
}


def write_weights(recipe: Path, file: Path, **names: str) -> None:
    """Writes the weights that a recipe describes; they are always the same. ``names`` replace beginnings of keys."""
    described = json.loads(recipe.read_text())
    header: Dict[str, Any] = {}
    data = b""
    random = np.random.default_rng(zlib.crc32(described["key"].encode()))
    for name, tensor in described["tensors"].items():
        assert tensor["dtype"] == "F32", name
        for old, new in names.items():
            name = name.replace(old, new)
        values = random.uniform(-1, 1, tensor["shape"]).astype(np.float32) * np.float32(tensor["scale"]) + np.float32(tensor["offset"])
        content = np.asarray(values, np.float32).tobytes()
        header[name] = {"dtype": "F32", "shape": tensor["shape"], "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_wan(run: str, folder: Path) -> Dict[str, Any]:
    """Writes the small Wan model of a run of the pipelines' fixtures; gives the run's settings."""
    described: Dict[str, Any] = json.loads((WAN / "pipeline/runs.json").read_text())[run]
    index: Dict[str, Any] = {"_class_name": "WanPipeline", "tokenizer": ["transformers", "T5Tokenizer"]}
    index["scheduler"] = ["diffusers", described["scheduler"]["_class_name"]]
    for place, fixture in described["networks"].items():
        index[place] = _CLASSES[place]
        (folder / place).mkdir(parents=True)
        (folder / place / "config.json").write_bytes((WAN / fixture / "config.json").read_bytes())
        for recipe in (WAN / fixture).glob("*.recipe.json"):
            if not recipe.name.startswith("inputs."):
                write_weights(recipe, folder / place / recipe.name.removesuffix(".recipe.json"))
    index.update(described.get("index") or {})
    for name, content in (
        ("model_index.json", json.dumps(index)),
        ("scheduler/scheduler_config.json", json.dumps(described["scheduler"])),
        ("tokenizer/tokenizer.json", (FIXTURES / "tokenizer/tokenizer.json").read_text()),
        ("tokenizer/tokenizer_config.json", (FIXTURES / "tokenizer/tokenizer_config.json").read_text()),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    settings: Dict[str, Any] = described["settings"]
    return settings
