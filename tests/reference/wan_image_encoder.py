"""Golden files for CLIPVisionModel and CLIPVisionModelWithProjection: tests/fixtures/wan/image_encoder/<variant>/.

Each variant is a small model of random weights in transformers' on-disk layout, the weights as a recipe of
random_weights.py. `case_*.safetensors` holds `input.pixel_values` and `output.hidden_states`: `hidden_states[-2]`, which
diffusers' WanImageToVideoPipeline takes. Everything is computed in f32. The metadata's `noise_floor` is the relative L2
distance of the f32 result from the same network in f64.

Run: python tests/reference/wan_image_encoder.py [--out DIR]
"""

import copy
import json
import shutil

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

import random_weights
from common import noise_floor, output_dir, randn, report, save_case

BASE = dict(hidden_size=12, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, projection_dim=8)

# name: (class, configuration)
VARIANTS = {
    "plain": (CLIPVisionModel, BASE | dict(image_size=20, patch_size=4, hidden_act="gelu", layer_norm_eps=1e-4)),
    "projected": (CLIPVisionModelWithProjection, BASE | dict(image_size=18, patch_size=7, hidden_act="quick_gelu")),
}


def main() -> None:
    """Writes every variant."""
    root = output_dir(__doc__, "wan/image_encoder")
    for number, (name, (kind, options)) in enumerate(VARIANTS.items()):
        directory = root / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        model = kind(CLIPVisionConfig(**options)).eval()
        # In files, both classes have the prefix.
        prefix = "" if kind is CLIPVisionModelWithProjection else "vision_model."
        own = {prefix + key: value for key, value in model.state_dict().items()}
        recipe = random_weights.recipe_for(f"wan/image_encoder/{name}", own)
        made = random_weights.save_recipe(directory / "model.safetensors", recipe)
        model.load_state_dict({key.removeprefix(prefix): value for key, value in made.items()})
        config = model.config.to_dict() | {"architectures": [kind.__name__]}
        (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        double = copy.deepcopy(model).double()
        side = options["image_size"]
        for batch in (1, 2):
            pixels = randn(batch, 3, side, side, seed=10 * number + batch)
            states = model(pixels, output_hidden_states=True).hidden_states[-2]
            exact = double(pixels.double(), output_hidden_states=True).hidden_states[-2]
            facts = {"noise_floor": noise_floor(states, exact)}
            file = directory / f"case_b{batch}.safetensors"
            save_case(file, {"pixel_values": pixels}, {"hidden_states": states}, facts)
    report(root)


if __name__ == "__main__":
    main()
