"""Golden files made by the official Video2LoRA code (repository BerserkerVV/Video2LoRA, commit 12494e6983).

Run: python tests/reference/official.py CHECKOUT [--out DIR]

CHECKOUT is a clone of that repository; its modules are imported as they are, with empty stand-ins for
packages that they import and this script does not reach (torchvision, timm, the multi-GPU helpers). Writes into official/:

- `open_d100u50_r1/` (2 blocks, 21 slots, D 100 + 50, f32, LoRA weight 0.55, which the official code applies
  twice) and `open_d120u60_r1_bf16/` (1 block, 13 slots, D 120 + 60, predictor stored in bf16, weight 1):
  `transformer/` (33 input channels), `hypernetwork.safetensors` and `lora_diffusion_pytorch_model.safetensors` as recipes of
  random_weights.py; `inputs.safetensors`: `latents` [1,16,T,h,w] of the reference, and the transformer's arguments;
  `outputs.safetensors`: `pred_weights` [1,N,a+b], `sample_base`, `sample_lora` (LoRA modules in place), and ΔW [out,in]
  of some layers at the applied strength, `dW::<layer>`. The metadata has the order of the layers.
- `open_fun_vae/`: `AutoencoderKLCogVideoX` as VideoX-Fun runs it: `moments_*` (mean and logvar of pixels) and `decoded_*`
  (pixels of latents), `untiled` and `tiled` (tiles of half the sample size, overlap 1/6 and 1/5; of
  `decoded_tiled` frames 0, 3, 4 and 8). No scaling factor.
"""

import argparse
import importlib
import json
import sys
import types
from pathlib import Path

import diffusers.models.lora  # before the stand-ins: it looks for torchvision
import torch
import transformers  # the same
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from safetensors.torch import save

import random_weights
from common import _sorted_metadata, fixtures_dir, noise_floor, report

CASES = {
    "open_d100u50_r1": {"layers": 2, "down": 100, "up": 50, "strength": 0.55, "dtype": "F32"},
    "open_d120u60_r1_bf16": {"layers": 1, "down": 120, "up": 60, "strength": 1.0, "dtype": "BF16"},
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def stand_in(name: str, *members: str) -> None:
    module = types.ModuleType(name)
    for member in members:
        setattr(module, member, None)
    sys.modules[name] = module


def official(checkout: Path):
    """The official modules: hypernetwork, LoRA network, transformer, autoencoder."""
    for package in ("videox_fun", "videox_fun.models", "videox_fun.utils"):
        module = types.ModuleType(package)
        module.__path__ = [str(checkout / package.replace(".", "/"))]
        sys.modules[package] = module
    stand_in("torchvision")
    stand_in("torchvision.transforms")
    stand_in("torchvision.transforms.functional", "resize")
    stand_in("timm", "create_model")
    stand_in(
        "videox_fun.dist", "get_sequence_parallel_rank", "get_sequence_parallel_world_size", "get_sp_group",
        "xFuserLongContextAttention",
    )
    stand_in("videox_fun.dist.cogvideox_xfuser", "CogVideoXMultiGPUsAttnProcessor2_0")
    names = ("utils.hypernet", "utils.lora_utils", "models.cogvideox_transformer3d", "models.cogvideox_vae")
    return [importlib.import_module(f"videox_fun.{name}") for name in names]


def save_tensors(path: Path, tensors: dict, metadata: dict | None = None) -> None:
    for name, tensor in tensors.items():
        assert not tensor.is_floating_point() or torch.isfinite(tensor).all(), name
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    path.write_bytes(_sorted_metadata(save(tensors, metadata)))


def randomize(model, file: Path, key: str, dtype: str) -> None:
    """Gives the model the recipe's weights, and writes the recipe that stands for `file`."""
    # LoRA modules hold the layers that they stand before, whose weights are the transformer's.
    own = {name: tensor for name, tensor in model.state_dict().items() if ".org_module." not in name}
    scales = {name: 1.0 for name in own if name.endswith("block_pos_emb")}
    # Small, as in training: an adapter steers, and does not drown, the base.
    scales |= {name: 0.02 for name in own if name.endswith("delta_proj.1.weight")}
    made = random_weights.save_recipe(file, random_weights.recipe_for(key, own, dtype, scales))
    rest = model.load_state_dict({name: tensor.float() for name, tensor in made.items()}, strict=False)
    assert not rest.unexpected_keys and all(".org_module." in name for name in rest.missing_keys), rest
    model.eval()


def predictor_case(modules, folder: Path, name: str, case: dict) -> None:
    hypernet, lora_utils, transformer3d, _ = modules
    transformer = transformer3d.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=33, out_channels=16, time_embed_dim=32, text_embed_dim=48,
        num_layers=case["layers"], sample_width=12, sample_height=8, sample_frames=33, max_text_seq_length=10,
        use_rotary_positional_embeddings=True,
    )
    randomize(transformer, folder / "transformer" / WEIGHTS, f"{name}/transformer", "F32")
    transformer.save_config(folder / "transformer")
    strength = case["strength"]
    network = lora_utils.create_network(
        strength, 1, strength, None, transformer, down_dim=case["down"], up_dim=case["up"]
    )
    light_lora = folder / "lora_diffusion_pytorch_model.safetensors"
    randomize(network, light_lora, f"{name}/lilora", case["dtype"])
    count = len(network.unet_loras)
    model = hypernet.VideoHyperDream(16, case["down"] + case["up"], count)
    randomize(model, folder / "hypernetwork.safetensors", f"{name}/hypernetwork", case["dtype"])

    def made(of, *shape):
        return torch.from_numpy(random_weights.values(f"{name}/inputs", of, shape, 3**0.5, 0.0))

    latents = made("latents", 1, 16, 3, 4, 6)
    cos, sin = get_3d_rotary_pos_embed(16, ((0, 0), (4, 6)), (4, 6), 5)
    step = {
        "hidden_states": made("hidden_states", 1, 5, 33, 8, 12),
        "encoder_hidden_states": made("encoder_hidden_states", 1, 10, 48),
        "timestep": torch.tensor([437]),
    }
    call = dict(step, image_rotary_emb=(cos, sin))
    hidden, inpaint = call.pop("hidden_states").split([16, 17], dim=2)
    call |= {"hidden_states": hidden, "inpaint_latents": inpaint}
    base = transformer(**call, return_dict=False)[0]
    tokens, each = model(latents)
    floor = noise_floor(tokens, model.double()(latents.double())[0])
    outputs = {"pred_weights": tokens, "sample_base": base}
    network.apply_to(None, transformer, apply_text_encoder=False)
    for lora, token in zip(network.unet_loras, each, strict=True):
        lora.update_weight(token)
    for lora in (network.unet_loras[0], network.unet_loras[4], network.unet_loras[-1]):
        down, up = lora.weight_embedding[0].split([case["down"], case["up"]])
        delta = (lora.up_aux @ up[:, None]) @ (down[None] @ lora.down_aux)
        outputs[f"dW::{lora.lora_name}"] = strength * strength * delta
    outputs["sample_lora"] = transformer(**call, return_dict=False)[0]
    difference = (outputs["sample_lora"] - base).abs().max().item()
    assert difference > 0.1, f"the adapter changes too little to be seen: {difference}"
    names = json.dumps([lora.lora_name for lora in network.unet_loras])
    save_tensors(folder / "inputs.safetensors", step | {"latents": latents, "rope_cos": cos, "rope_sin": sin})
    metadata = {"layers": names, "noise_floor": f"{floor:.3e}", "strength": repr(strength * strength)}
    save_tensors(folder / "outputs.safetensors", outputs, metadata)


def vae_case(modules, folder: Path) -> None:
    channels = (16, 32, 32, 48)
    vae = modules[3].AutoencoderKLCogVideoX(
        block_out_channels=channels, down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4, layers_per_block=2, norm_num_groups=8, sample_height=96,
        sample_width=80, scaling_factor=0.7,
    )
    randomize(vae, folder / "vae" / WEIGHTS, "open_fun_vae", "F32")
    vae.save_config(folder / "vae")
    shapes = {
        "pixels_untiled": (1, 3, 13, 24, 40),
        "latents_untiled": (1, 16, 5, 3, 5),
        "pixels_tiled": (1, 3, 9, 96, 80),
        "latents_tiled": (1, 16, 3, 12, 10),
    }
    recipe = random_weights.recipe_for(
        "open_fun_vae/inputs",
        {name: torch.empty(shape) for name, shape in shapes.items()},
        scales={name: 1.0 if name.startswith("pixels") else 3**0.5 for name in shapes},
    )
    inputs = random_weights.save_recipe(folder / "inputs.safetensors", recipe)
    outputs = {}
    for form in ("untiled", "tiled"):
        if form == "tiled":
            vae.enable_tiling()
        outputs[f"moments_{form}"] = vae.encode(inputs[f"pixels_{form}"]).latent_dist.parameters
        outputs[f"decoded_{form}"] = vae.decode(inputs[f"latents_{form}"]).sample
    # Of the large one some frames of every chunk.
    outputs["decoded_tiled"] = outputs["decoded_tiled"][:, :, [0, 3, 4, 8]]
    save_tensors(folder / "outputs.safetensors", outputs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--out", type=Path, default=fixtures_dir(), help="default: tests/fixtures")
    arguments = parser.parse_args()
    modules = official(arguments.checkout)
    directory = arguments.out / "official"
    for name, case in CASES.items():
        predictor_case(modules, directory / name, name, case)
    vae_case(modules, directory / "open_fun_vae")
    report(directory)


if __name__ == "__main__":
    main()
