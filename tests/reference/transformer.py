"""Golden files for CogVideoXTransformer3DModel: tests/fixtures/transformer/<variant>/.

Each variant is a small randomly initialised model in diffusers' on-disk layout, its weights as a recipe
of random_weights.py unless they are stored in parts, plus
`case_*.safetensors`: `input.*` under the names of `forward` (`image_rotary_emb` as two tensors;
for `fun_inp` the channels after the 16th as `inpaint_latents`, which belongs behind
`hidden_states` on the channel axis) and `output.sample`. Everything is computed in f32, from the
weights as they were rounded for storage. The metadata's `noise_floor` is the relative L2 distance of
the f32 result from the same network in f64.

Run: python tests/reference/transformer.py [--out DIR]
"""

import contextlib
import copy
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.utils import logging

import random_weights
from common import noise_floor, output_dir, randn, randomize_, report, save_case
from rope import VAE_SCALE, pipeline_tables

TEXT_DIM = 24
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
MAX_TEXT = 10
BASE = dict(
    num_attention_heads=2,
    attention_head_dim=16,
    num_layers=2,
    time_embed_dim=32,
    text_embed_dim=TEXT_DIM,
    max_text_seq_length=MAX_TEXT,
    sample_height=8,
    sample_width=12,
    sample_frames=9,  # three latent frames
    use_rotary_positional_embeddings=True,
)
V15 = BASE | dict(patch_size_t=2, patch_bias=False, sample_height=12, sample_width=16)

# Cases: (batch, latent frames, latent height, latent width, text length)
FREE = [(2, 4, 8, 12, MAX_TEXT), (1, 3, 12, 8, MAX_TEXT), (1, 1, 6, 10, 7)]
PAIRS = [(2, 4, 8, 12, MAX_TEXT), (1, 6, 12, 16, MAX_TEXT), (1, 2, 6, 10, 7)]

# name: (config overrides, storage type, save_pretrained options, cases)
VARIANTS = {
    "rotary_t2v": (BASE, torch.float32, dict(max_shard_size="80KB"), FREE),
    # Position tables are made for any size, but only for the full text length.
    "sincos_t2v": (
        BASE | dict(num_attention_heads=3, num_layers=1, use_rotary_positional_embeddings=False),
        torch.float32,
        {},
        [(2, 4, 8, 12, MAX_TEXT), (1, 3, 8, 12, MAX_TEXT), (1, 3, 12, 8, MAX_TEXT), (2, 1, 6, 10, MAX_TEXT)],
    ),
    # The learned table serves sample_frames only; other frame counts get the sincos table.
    "learned_i2v": (
        BASE | dict(in_channels=32, use_learned_positional_embeddings=True),
        torch.float32,
        {},
        [(2, 3, 8, 12, MAX_TEXT), (1, 4, 8, 12, MAX_TEXT), (1, 1, 8, 12, MAX_TEXT)],
    ),
    "fun_inp": (BASE | dict(in_channels=33), torch.bfloat16, {}, FREE),
    "v15_t2v": (V15, torch.float32, {}, PAIRS),
    "v15_i2v": (
        V15 | dict(in_channels=32, ofs_embed_dim=32),
        torch.float16,
        {},
        [(2, 4, 8, 12, MAX_TEXT), (1, 6, 8, 16, MAX_TEXT), (1, 2, 6, 10, 7)],
    ),
}


@contextlib.contextmanager
def float_means_double():
    """diffusers writes `.float()` around RoPE and time embeddings; an f64 run has to keep f64 there."""
    original = torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.Tensor.float = original


def run(model, inputs: dict) -> torch.Tensor:
    inputs = dict(inputs)
    if "inpaint_latents" in inputs:
        latents = [inputs["hidden_states"], inputs.pop("inpaint_latents")]
        inputs["hidden_states"] = torch.cat(latents, dim=2)
    if "image_rotary_emb_cos" in inputs:
        tables = inputs.pop("image_rotary_emb_cos"), inputs.pop("image_rotary_emb_sin")
        inputs["image_rotary_emb"] = tables
    return model(**inputs, return_dict=False)[0]


def make_inputs(name: str, config, shape: tuple, seed: int) -> dict:
    batch, frames, height, width, text = shape
    latents = randn(batch, frames, config.in_channels, height, width, seed=seed)
    inputs = {
        "hidden_states": latents,
        "encoder_hidden_states": randn(batch, text, TEXT_DIM, seed=seed + 1),
        "timestep": torch.tensor([999, 19] if batch == 2 else [601]),
    }
    if name == "fun_inp":
        inputs["hidden_states"], inputs["inpaint_latents"] = latents.split([16, 17], dim=2)
    if config.use_rotary_positional_embeddings:
        cos, sin = pipeline_tables(dict(config), height * VAE_SCALE, width * VAE_SCALE, frames)
        inputs |= {"image_rotary_emb_cos": cos, "image_rotary_emb_sin": sin}
    if config.ofs_embed_dim is not None:
        inputs["ofs"] = torch.tensor([2.0 if batch == 2 else 0.75])
    return inputs


def factor(name: str) -> float:
    """What a parameter's values are multiplied by. What goes into a LayerNorm is made small, so that a wrong epsilon shows."""
    if name.startswith(("patch_embed", "norm_final")):
        return 0.05
    return 0.02 if ".to_q." in name or ".to_k." in name else 1.0


def build(directory: Path, config: dict, dtype: torch.dtype, options: dict, seed: int):
    """Writes a model with random weights and returns it as it is stored, in f32.

    The weights are a recipe, but those of a model that is stored in parts.
    """
    model = CogVideoXTransformer3DModel(**config)
    if options:
        for name, parameter in randomize_(model, seed).named_parameters():
            parameter.mul_(factor(name))
        model = model.to(dtype)
        model.save_pretrained(directory, **options)
        return model.float()
    table = "patch_embed.pos_embedding"
    recipe = random_weights.recipe_for(f"transformer/{directory.name}", model.state_dict(), NAMES[dtype], {table: 3**0.5})
    for name, entry in recipe["tensors"].items():
        if name != table:
            entry["scale"], entry["offset"] = (float(np.float32(entry[key] * factor(name))) for key in ("scale", "offset"))
    found = random_weights.save_recipe(directory / "diffusion_pytorch_model.safetensors", recipe)
    model.load_state_dict({name: tensor.float() for name, tensor in found.items()})
    model.save_config(directory)
    return model.float().eval()


def main() -> None:
    root = output_dir(__doc__, "transformer")
    logging.set_verbosity_error()
    for number, (name, (config, dtype, options, shapes)) in enumerate(VARIANTS.items()):
        directory = root / name
        shutil.rmtree(directory, ignore_errors=True)
        model = build(directory, config, dtype, options, seed=1000 * (number + 1))
        if name == "fun_inp":  # CogVideoX-Fun's own key, unknown to diffusers
            path = directory / "config.json"
            config_file = json.loads(path.read_text()) | {"add_noise_in_inpaint_model": True}
            path.write_text(json.dumps(config_file, indent=2) + "\n")

        double = copy.deepcopy(model).double()
        for case, shape in enumerate(shapes):
            inputs = make_inputs(name, model.config, shape, seed=1000 * (number + 1) + 10 * (case + 1))
            sample = run(model, inputs)
            wide = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
            with float_means_double():
                floor = noise_floor(sample, run(double, wide))
            batch, frames, height, width, text = shape
            label = f"b{batch}_t{frames}_{height}x{width}_s{text}"
            print(f"{name} {label}: noise floor {floor:.1e}, rms {sample.square().mean().sqrt():.2f}")
            metadata = {"noise_floor": f"{floor:.2e}", "storage": str(dtype).removeprefix("torch.")}
            save_case(directory / f"case_{label}.safetensors", inputs, {"sample": sample}, metadata)
    report(root)


if __name__ == "__main__":
    main()
