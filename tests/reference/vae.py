"""Golden files of the 3D causal VAE (diffusers' AutoencoderKLCogVideoX, tiny random weights).

Run: python tests/reference/vae.py [--out DIR]

Writes vae/<model>/ with `config.json`, `diffusion_pytorch_model.safetensors` as a recipe of random_weights.py, and
cases:
- `case_encode_*`: input.x [B,3,F,H,W] -> output.moments (mean and raw logvar on the channel axis),
  output.mean, output.logvar (clamped to [-30, 20]). Nothing is multiplied by the scaling factor.
- `case_decode_*`: input.z [B,16,T,h,w] -> output.sample, in diffusers' chunks ([3,2,2,...] latent
  frames, or [2,2,...] when T is even).
- `case_fun_t*`: the same in VideoX-Fun's chunks [1,2,2,...], a last chunk of one frame included.
- `case_*tiled*`: diffusers' tiling; sizes, overlap factors, strides and blend extents in the metadata.
- `case_fun_chunks`: two decoder calls by hand, with the conv caches between them
  (output.cache.<module>, two frames each).

`tiny` is stored in f32; `bf16` has three blocks (spatial factor 4) and is stored in bf16, and the
goldens use its rounded weights in f32. Before writing, the chunking is checked against the outputs
of the official VideoX-Fun code in fixtures/official/open_fun_vae.
"""

import types
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.upsampling import CogVideoXUpsample3D

import random_weights
from common import fixtures_dir, output_dir, randn, randomize_, report, save_case

MODELS = {
    "tiny": {"channels": (4, 8, 8, 12), "layers": 1, "groups": 4, "dtype": "F32"},
    "bf16": {"channels": (4, 8, 8), "layers": 2, "groups": 2, "dtype": "BF16"},
}


def make_vae(channels, layers, groups, seed, sample_size=(96, 128), scaling_factor=0.7):
    """Random VAE with the real module tree; `sample_size` is (height, width)."""
    vae = AutoencoderKLCogVideoX(
        block_out_channels=channels,
        down_block_types=("CogVideoXDownBlock3D",) * len(channels),
        up_block_types=("CogVideoXUpBlock3D",) * len(channels),
        layers_per_block=layers,
        norm_num_groups=groups,
        sample_height=sample_size[0],
        sample_width=sample_size[1],
        scaling_factor=scaling_factor,
    )
    return randomize_(vae, seed)


def store(model, directory: Path, dtype):
    """Saves in the storage type and returns the stored weights widened to f32."""
    model.to(dtype).save_pretrained(directory)
    return model.float().eval()


def _upsample_every_frame(module, x):
    """VideoX-Fun's upsampling after the first chunk: a single frame is doubled in time, too."""
    if module.compress_time:
        x = F.interpolate(x, scale_factor=2.0)
    else:
        x = F.interpolate(x, scale_factor=(1.0, 2.0, 2.0))
    b, _, t, h, w = x.shape
    y = module.conv(x.transpose(1, 2).flatten(0, 1))
    return y.reshape(b, t, -1, h, w).transpose(1, 2)


def fun_decode_chunks(vae, z, caches=None):
    """Yields (frames, conv cache) for latent frames [0], [1,2], [3,4], ... of `z` (unscaled)."""
    upsamplers = [m for m in vae.decoder.modules() if isinstance(m, CogVideoXUpsample3D)]
    cache = None
    for start in [0, *range(1, z.shape[2], 2)]:
        chunk = z[:, :, start : start + (2 if start else 1)]
        try:
            if start:
                for module in upsamplers:
                    module.forward = types.MethodType(_upsample_every_frame, module)
            frames, cache = vae.decoder(chunk, conv_cache=cache)
        finally:
            for module in upsamplers:
                module.__dict__.pop("forward", None)
        yield frames, cache


def fun_decode(vae, z):
    """VideoX-Fun's decode: T latent frames become 4 * T - 3 frames. Tiled if the VAE says so and `z`
    is larger than a tile; every tile is decoded over all its chunks, with its own caches."""
    tile_h, tile_w = vae.tile_latent_min_height, vae.tile_latent_min_width
    if not vae.use_tiling or (z.shape[3] <= tile_h and z.shape[4] <= tile_w):
        return torch.cat([frames for frames, _ in fun_decode_chunks(vae, z)], dim=2)
    overlap_h, overlap_w = vae.tile_overlap_factor_height, vae.tile_overlap_factor_width
    blend_h, blend_w = int(vae.tile_sample_min_height * overlap_h), int(vae.tile_sample_min_width * overlap_w)
    keep_h, keep_w = vae.tile_sample_min_height - blend_h, vae.tile_sample_min_width - blend_w
    above, rows = [], []
    for top in range(0, z.shape[3], int(tile_h * (1 - overlap_h))):
        row = []
        for left in range(0, z.shape[4], int(tile_w * (1 - overlap_w))):
            part = z[..., top : top + tile_h, left : left + tile_w]
            tile = torch.cat([frames for frames, _ in fun_decode_chunks(vae, part)], dim=2)
            if above:
                tile = vae.blend_v(above[len(row)], tile, blend_h)
            if row:
                tile = vae.blend_h(row[-1], tile, blend_w)
            row.append(tile)
        rows.append(torch.cat([tile[..., :keep_h, :keep_w] for tile in row], dim=4))
        above = row
    return torch.cat(rows, dim=3)


def named_caches(module, cache, prefix):
    """Flattens diffusers' nested conv cache to {module path: [B,C,2,h,w]}; 1x1x1 convolutions
    also return one, which is never read, and are left out."""
    found = {}
    for name, value in cache.items():
        if isinstance(value, dict):
            head, _, index = name.rpartition("_")
            plural = {"resnet": "resnets", "down_block": "down_blocks", "up_block": "up_blocks"}
            path = f"{plural[head]}.{index}" if head in plural else name
            found |= named_caches(module, value, f"{prefix}.{path}")
        elif value is not None and module.get_submodule(f"{prefix}.{name}").time_kernel_size == 3:
            found[f"{prefix}.{name}"] = value
    return found


def pixels(*shape, seed):
    """Smooth noise in [-1, 1]: a coarse random grid, enlarged."""
    b, c, f, h, w = shape
    coarse = randn(b, c, max(f // 2, 1), h // 4, w // 4, seed=seed, scale=0.6)
    fine = F.interpolate(coarse, size=(f, h, w), mode="trilinear")
    return (fine + randn(*shape, seed=seed + 1, scale=0.1)).clamp(-1, 1)


def encode_outputs(vae, x):
    dist = vae.encode(x).latent_dist
    return {"moments": dist.parameters, "mean": dist.mean, "logvar": dist.logvar}


def tiling(vae, height, width, overlap_height, overlap_width):
    """Switches tiling on and returns what it implies, as metadata."""
    vae.enable_tiling(height, width, overlap_height, overlap_width)
    return {
        "tile_sample_min_height": height,
        "tile_sample_min_width": width,
        "tile_latent_min_height": vae.tile_latent_min_height,
        "tile_latent_min_width": vae.tile_latent_min_width,
        "tile_overlap_factor_height": overlap_height,
        "tile_overlap_factor_width": overlap_width,
        "stride_sample_height": int(height * (1 - overlap_height)),
        "stride_sample_width": int(width * (1 - overlap_width)),
        "stride_latent_height": int(vae.tile_latent_min_height * (1 - overlap_height)),
        "stride_latent_width": int(vae.tile_latent_min_width * (1 - overlap_width)),
        "blend_latent_height": int(vae.tile_latent_min_height * overlap_height),
        "blend_latent_width": int(vae.tile_latent_min_width * overlap_width),
        "blend_sample_height": int(height * overlap_height),
        "blend_sample_width": int(width * overlap_width),
    }


def write_tiny(vae, directory):
    shapes = {
        "f1": (1, 1, 24, 32),
        "f9": (1, 9, 16, 40),
        "f10_odd_size": (1, 10, 20, 28),
        "f13": (1, 13, 16, 24),
        "f17": (1, 17, 16, 24),
        "batch2": (2, 5, 16, 24),
    }
    for seed, (name, (b, f, h, w)) in enumerate(shapes.items(), start=200):
        x = pixels(b, 3, f, h, w, seed=seed)
        save_case(directory / f"case_encode_{name}.safetensors", {"x": x}, encode_outputs(vae, x))

    for t in (1, 2, 3, 4, 5):
        z = randn(2 if t == 2 else 1, 16, t, 2, 3, seed=220 + t)
        save_case(directory / f"case_decode_t{t}.safetensors", {"z": z}, {"sample": vae.decode(z).sample})
        if t in (1, 3, 4, 5):
            save_case(directory / f"case_fun_t{t}.safetensors", {"z": z}, {"sample": fun_decode(vae, z)})

    z = randn(1, 16, 3, 1, 2, seed=230)
    (first, after_first), (rest, after_rest) = fun_decode_chunks(vae, z)
    outputs = {"first": first, "rest": rest}
    for label, cache in (("cache_first", after_first), ("cache_rest", after_rest)):
        for name, value in named_caches(vae, cache, "decoder").items():
            outputs[f"{label}.{name}"] = value
    save_case(directory / "case_fun_chunks.safetensors", {"z": z}, outputs)

    metadata = tiling(vae, 16, 24, 1 / 2, 1 / 3)
    x = pixels(1, 3, 17, 24, 40, seed=240)
    save_case(directory / "case_encode_tiled.safetensors", {"x": x}, encode_outputs(vae, x), metadata)
    z = randn(1, 16, 5, 3, 5, seed=241)
    sample = vae.decode(z).sample
    save_case(directory / "case_decode_tiled.safetensors", {"z": z}, {"sample": sample}, metadata)
    vae.disable_tiling()
    print("tiled against untiled decode, mean difference:", (sample - vae.decode(z).sample).abs().mean().item())


def write_bf16(vae, directory):
    x = pixels(1, 3, 9, 16, 24, seed=250)
    save_case(directory / "case_encode_f9.safetensors", {"x": x}, encode_outputs(vae, x))
    z = randn(1, 16, 3, 4, 6, seed=251)
    save_case(directory / "case_decode_t3.safetensors", {"z": z}, {"sample": vae.decode(z).sample})
    save_case(directory / "case_fun_t3.safetensors", {"z": z}, {"sample": fun_decode(vae, z)})


def check_against_official():
    """The [1,2,2,...] decode and the encode agree with VideoX-Fun's own VAE."""
    directory = fixtures_dir() / "official" / "open_fun_vae"
    inputs, outputs = (random_weights.load(directory / f"{n}.safetensors") for n in ("inputs", "outputs"))
    vae = AutoencoderKLCogVideoX.from_config(AutoencoderKLCogVideoX.load_config(directory / "vae")).eval()
    vae.load_state_dict(random_weights.load(directory / "vae" / "diffusion_pytorch_model.safetensors"))
    decoded = fun_decode(vae, inputs["latents_untiled"])
    moments = vae.encode(inputs["pixels_untiled"]).latent_dist.parameters
    torch.testing.assert_close(decoded, outputs["decoded_untiled"], atol=2e-5, rtol=0)
    torch.testing.assert_close(moments, outputs["moments_untiled"], atol=2e-5, rtol=0)
    vae.enable_tiling()
    tiled = fun_decode(vae, inputs["latents_tiled"])[:, :, [0, 3, 4, 8]]
    torch.testing.assert_close(tiled, outputs["decoded_tiled"], atol=2e-5, rtol=0)


def main():
    check_against_official()
    out = output_dir(__doc__, "vae")
    for name, spec in MODELS.items():
        vae = make_vae(spec["channels"], spec["layers"], spec["groups"], 0)
        random_weights.give(vae, out / name / "diffusion_pytorch_model.safetensors", f"vae/{name}", spec["dtype"])
        vae.save_config(out / name)
        {"tiny": write_tiny, "bf16": write_bf16}[name](vae, out / name)
    report(out)


if __name__ == "__main__":
    main()
