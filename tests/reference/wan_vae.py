"""Golden files for AutoencoderKLWan: tests/fixtures/wan/vae/<version>/.

Each version is a small model of random weights in diffusers' on-disk layout, the weights as a recipe of
random_weights.py; those of 2.2 are stored in bfloat16. `inputs.safetensors` is a recipe, too: `x.<case>` pixels and
`z.<case>` latents. `case_<case>.safetensors` holds `output.mean`, `output.logvar` (unclamped) and `output.sample`, which
diffusers' `encode` and `decode` give for the whole video. Everything is computed in f32. The metadata's `noise_floor`
is the relative L2 distance of the samples from those of the same network in f64.

Run: python tests/reference/wan_vae.py [--out DIR]
"""

import copy
import json
import shutil

import torch
from diffusers import AutoencoderKLWan
from diffusers.utils import logging

import random_weights
from common import noise_floor, output_dir, report, save_case

BASE = dict(base_dim=4, dim_mult=[1, 2, 3, 3], num_res_blocks=1)
STATISTICS = dict(latents_mean=[i / 64 for i in range(48)], latents_std=[1 + i / 64 for i in range(48)])
RESIDUAL = dict(
    z_dim=48, is_residual=True, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16,
    dim_mult=[1, 2, 4, 4], base_dim=3, decoder_base_dim=4, num_res_blocks=2,
)

# version: (config, type of the weights, cases as (batch, frames, height, width) in pixels)
VERSIONS = {
    "2_1": (BASE, "F32", [(1, 1, 24, 16), (2, 5, 16, 24), (1, 13, 16, 24)]),
    "2_2": (BASE | STATISTICS | RESIDUAL, "BF16", [(1, 1, 48, 16), (2, 5, 16, 32), (1, 13, 16, 32)]),
}


def inputs_recipe(version: str, config, shapes: list) -> dict:
    """Pixels in [-1, 1), and latents of about unit variance."""
    tensors = {}
    for batch, frames, height, width in shapes:
        case = name((batch, frames, height, width))
        side = config.scale_factor_spatial
        latent = [batch, config.z_dim, 1 + (frames - 1) // 4, height // side, width // side]
        tensors[f"x.{case}"] = {"dtype": "F32", "shape": [batch, 3, frames, height, width], "scale": 1.0, "offset": 0.0}
        tensors[f"z.{case}"] = {"dtype": "F32", "shape": latent, "scale": 1.75, "offset": 0.0}
    return {"key": f"wan/vae/{version}/inputs", "tensors": tensors}


def name(shape: tuple) -> str:
    batch, frames, height, width = shape
    return f"b{batch}_f{frames}_{height}x{width}"


def main() -> None:
    """Writes both versions."""
    root = output_dir(__doc__, "wan/vae")
    logging.set_verbosity_error()
    for version, (config, dtype, shapes) in VERSIONS.items():
        directory = root / version
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        model = AutoencoderKLWan(**config)
        own = model.state_dict()
        # Most samples, not all, stay inside of [-1, 1], where they are not clamped.
        scales = {"decoder.conv_out.weight": 0.2}
        recipe = random_weights.recipe_for(f"wan/vae/{version}", own, dtype, scales)
        made = random_weights.save_recipe(directory / "diffusion_pytorch_model.safetensors", recipe)
        model.load_state_dict({key: value.float() for key, value in made.items()})
        (directory / "config.json").write_text(json.dumps(json.loads(model.to_json_string()), indent=2) + "\n")
        recipe = inputs_recipe(version, model.config, shapes)
        inputs = random_weights.save_recipe(directory / "inputs.safetensors", recipe)
        double = copy.deepcopy(model).double()
        for shape in shapes:
            x, z = inputs[f"x.{name(shape)}"], inputs[f"z.{name(shape)}"]
            moments = model.encode(x).latent_dist.parameters
            mean, logvar = moments.chunk(2, dim=1)
            sample = model.decode(z).sample
            floor = noise_floor(sample, double.decode(z.double()).sample)
            clamped = (sample.abs() == 1).float().mean().item()
            facts = {"noise_floor": floor, "clamped": f"{clamped:.3f}"}
            outputs = {"mean": mean, "logvar": logvar, "sample": sample}
            save_case(directory / f"case_{name(shape)}.safetensors", {}, outputs, facts)
            print(version, name(shape), facts)
    report(root)


if __name__ == "__main__":
    main()
