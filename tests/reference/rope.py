"""Golden files for CogVideoX's rotary tables: tests/fixtures/rope/<case>.safetensors.

`output.image_rotary_emb_{cos,sin}` come from diffusers' own pipeline method. For 1.0 models
`output.fun_image_rotary_emb_{cos,sin}` is the table of the CogVideoX-Fun and Video2LoRA
pipelines, which place the rows and columns of a cropped region a little differently (see
`fun_tables`). `input.rows` says which rows of the full table are stored, `input.{height, width,
num_frames}` are pixels, pixels and latent frames; the metadata holds the transformer's
configuration values, the grid and the crop region.

Run: python tests/reference/rope.py [--out DIR]
"""

from types import SimpleNamespace

import numpy as np
import torch
from diffusers import CogVideoXPipeline
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

from common import generator, output_dir, report, save_case

VAE_SCALE = 8
BASE_5B = dict(sample_height=60, sample_width=90, attention_head_dim=64, patch_size=2, patch_size_t=None)
BASE_15 = dict(sample_height=96, sample_width=170, attention_head_dim=64, patch_size=2, patch_size_t=2)
TINY = dict(sample_height=8, sample_width=12, attention_head_dim=16, patch_size=2, patch_size_t=None)
TINY_15 = dict(sample_height=12, sample_width=16, attention_head_dim=16, patch_size=2, patch_size_t=2)

# name: (config, pixel height, pixel width, latent frames)
CASES = {
    "5b_480x720": (BASE_5B, 480, 720, 13),
    "5b_384x672": (BASE_5B, 384, 672, 7),
    "5b_720x480": (BASE_5B, 720, 480, 3),
    "5b_512x512": (BASE_5B, 512, 512, 3),
    "5b_720x1280": (BASE_5B, 720, 1280, 2),  # crop offset 2.5 rounds to even: 2
    "5b_304x480": (BASE_5B, 304, 480, 2),  # resize height 28.5 rounds to even: 28
    "tiny_64x96": (TINY, 64, 96, 3),
    "tiny_96x64": (TINY, 96, 64, 4),
    "tiny_16x16": (TINY, 16, 16, 1),  # one token
    "v15_768x1360": (BASE_15, 768, 1360, 22),
    "v15_480x720": (BASE_15, 480, 720, 6),
    "v15_tiny_64x96": (TINY_15, 64, 96, 5),  # odd frame count: rounded up
}


def pipeline_tables(config: dict, height: int, width: int, frames: int):
    """cos and sin `[T*gh*gw, head_dim]` as diffusers' CogVideoX pipelines make them."""
    pipeline = SimpleNamespace(
        vae_scale_factor_spatial=VAE_SCALE, transformer=SimpleNamespace(config=SimpleNamespace(**config))
    )
    return CogVideoXPipeline._prepare_rotary_positional_embeddings(
        pipeline, height, width, frames, torch.device("cpu")
    )


def geometry(config: dict, height: int, width: int):
    """Token grid (gh, gw) and, for 1.0, the crop region ((top, left), (bottom, right))."""
    patch = config["patch_size"]
    grid = (height // (VAE_SCALE * patch), width // (VAE_SCALE * patch))
    if config["patch_size_t"] is not None:
        return grid, None
    base = (config["sample_width"] // patch, config["sample_height"] // patch)
    return grid, get_resize_crop_region_for_grid(grid, *base)


def fun_tables(config: dict, height: int, width: int, frames: int):
    """The 1.0 tables with rows at `start + i * (stop - start) / n` for i < n, as CogVideoX-Fun has them.

    diffusers spaces n points evenly over [start, stop * (n - 1) / n]; both agree where start is 0.
    """
    grid, (start, stop) = geometry(config, height, width)
    head = config["attention_head_dim"]
    rows = [np.linspace(a, b, n, endpoint=False, dtype=np.float32) for a, b, n in zip(start, stop, grid)]
    axes = [
        get_1d_rotary_pos_embed(dim, positions, use_real=True)
        for dim, positions in (
            (head // 4, np.arange(frames, dtype=np.float32)),
            (head // 8 * 3, rows[0]),
            (head // 8 * 3, rows[1]),
        )
    ]
    t, h, w = torch.meshgrid(*(torch.arange(n) for n in (frames, *grid)), indexing="ij")
    index = [i.flatten() for i in (t, h, w)]
    return tuple(torch.cat([axes[a][part][index[a]] for a in range(3)], dim=1) for part in (0, 1))


def main() -> None:
    directory = output_dir(__doc__, "rope")
    for seed, (name, (config, height, width, frames)) in enumerate(CASES.items()):
        cos, sin = pipeline_tables(config, height, width, frames)
        tokens = cos.shape[0]
        if tokens <= 100:
            rows = torch.arange(tokens)
        else:
            inner = torch.randperm(tokens - 2, generator=generator(seed))[:46] + 1
            rows = torch.cat([torch.tensor([0, tokens - 1]), inner]).sort().values
        outputs = {"image_rotary_emb_cos": cos[rows], "image_rotary_emb_sin": sin[rows]}
        grid, crop = geometry(config, height, width)
        if crop is not None:
            fun_cos, fun_sin = fun_tables(config, height, width, frames)
            outputs |= {"fun_image_rotary_emb_cos": fun_cos[rows], "fun_image_rotary_emb_sin": fun_sin[rows]}
            print(name, "grid", grid, "crop", crop, "max |diffusers - fun|", (cos - fun_cos).abs().max().item())
        inputs = {"rows": rows} | {
            key: torch.tensor(value) for key, value in (("height", height), ("width", width), ("num_frames", frames))
        }
        metadata = config | {"grid": grid, "crop": crop, "tokens": tokens}
        save_case(directory / f"{name}.safetensors", inputs, outputs, metadata)
    report(directory)


if __name__ == "__main__":
    main()
