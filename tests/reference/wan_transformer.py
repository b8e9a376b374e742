"""Golden files for WanTransformer3DModel: tests/fixtures/wan/transformer/<variant>/.

Each variant is a small model of random weights in diffusers' on-disk layout, the weights as a recipe of
random_weights.py, and `case_*.safetensors`: `input.*` under the names of `forward` and `output.sample`. Everything is
computed in f32. The metadata's `noise_floor` is the relative L2 distance of the f32 result from the same network in f64.

Run: python tests/reference/wan_transformer.py [--out DIR]
"""

import copy
import json
import shutil

import torch
from diffusers import WanTransformer3DModel
from diffusers.utils import logging

import random_weights
from common import noise_floor, output_dir, randn, report, save_case
from transformer import float_means_double

BASE = dict(
    patch_size=[1, 2, 2],
    num_attention_heads=2,
    attention_head_dim=16,  # 8 columns for time, 4 for each of the others
    in_channels=16,
    out_channels=16,
    text_dim=20,
    freq_dim=24,
    ffn_dim=56,
    num_layers=2,
    rope_max_seq_len=32,
)
IMAGE = dict(in_channels=36, text_dim=4, image_dim=12, added_kv_proj_dim=32)

# name: (config, cases as (batch, latent frames, latent height, latent width, text length))
VARIANTS = {
    "t2v": (BASE | dict(attention_head_dim=24, num_attention_heads=3), [(2, 3, 6, 10, 9), (1, 1, 8, 4, 5)]),
    "i2v_2_1": (BASE | IMAGE, [(2, 2, 4, 6, 512), (1, 3, 6, 2, 512)]),
    "flf2v": (BASE | IMAGE | dict(pos_embed_seq_len=10), [(2, 2, 4, 6, 512), (1, 3, 6, 2, 512)]),
    "i2v_2_2": (BASE | dict(in_channels=36), [(2, 2, 6, 4, 9), (1, 3, 4, 4, 7)]),
    "ti2v": (BASE | dict(in_channels=48, out_channels=48), [(2, 2, 4, 6, 9), (1, 3, 6, 4, 7)]),
    "no_cross_norm": (BASE | dict(cross_attn_norm=False, patch_size=[1, 1, 2]), [(1, 2, 3, 6, 4), (2, 1, 5, 4, 3)]),
}


def make_inputs(config, shape: tuple, seed: int) -> dict:
    """What a pipeline gives the model."""
    batch, frames, height, width, text = shape
    timestep = torch.tensor([999.0, 41.0] if batch == 2 else [612.5])
    if config.in_channels == 48:
        # Zero for the tokens of the first frame, as with an image.
        each = height * width // 4
        timestep = timestep[:, None].repeat(1, frames * each)
        timestep[:, :each] = 0
    inputs = {
        "hidden_states": randn(batch, config.in_channels, frames, height, width, seed=seed),
        "timestep": timestep,
        "encoder_hidden_states": randn(batch, text, config.text_dim, seed=seed + 1),
    }
    if config.image_dim is not None:
        images, tokens = (2 * batch, config.pos_embed_seq_len // 2) if config.pos_embed_seq_len else (batch, 7)
        inputs["encoder_hidden_states_image"] = randn(images, tokens, config.image_dim, seed=seed + 2)
    return inputs


def main() -> None:
    """Writes every variant."""
    root = output_dir(__doc__, "wan/transformer")
    logging.set_verbosity_error()
    for number, (name, (config, shapes)) in enumerate(VARIANTS.items()):
        directory = root / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        model = WanTransformer3DModel(**config)
        own = {key: value for key, value in model.state_dict().items()}
        recipe = random_weights.recipe_for(f"wan/{name}", own)
        made = random_weights.save_recipe(directory / "diffusion_pytorch_model.safetensors", recipe)
        model.load_state_dict(made)
        (directory / "config.json").write_text(json.dumps(json.loads(model.to_json_string()), indent=2) + "\n")
        double = copy.deepcopy(model).double()
        for case, shape in enumerate(shapes):
            inputs = make_inputs(model.config, shape, seed=1000 * number + 10 * case)
            sample = model(**inputs, return_dict=False)[0]
            with float_means_double():
                exact = double(**{k: v.double() for k, v in inputs.items()}, return_dict=False)[0]
            batch, frames, height, width, text = shape
            file = directory / f"case_b{batch}_t{frames}_{height}x{width}_s{text}.safetensors"
            save_case(file, inputs, {"sample": sample}, {"noise_floor": noise_floor(sample, exact)})
    report(root)


if __name__ == "__main__":
    main()
