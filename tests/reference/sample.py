"""The sample model: a tiny, random, complete CogVideoX-Fun-V1.1-InP pipeline with a Video2LoRA predictor.

Run: python tests/reference/sample.py [--out DIR]

Writes sample/ in the hub's layout (model_index.json, transformer/, vae/, text_encoder/, tokenizer/,
scheduler/), recipes (random_weights.py) of `hypernetwork.safetensors` and `checkpoint-checkpoint-100.safetensors` (all
linear layers, a 100, b 50, rank 1), two reference videos, a first frame and a README. No weight is trained: scales
are chosen so that latents and pixels keep a sensible range, and so that prompt and reference show in
the numbers. `pipelines.py` makes the goldens of this model.
"""

import json
import math
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import T5Config, T5EncoderModel, T5Tokenizer

import random_weights
from common import output_dir, report, save_json
from hypernetwork import give_predictor, linear_modules, make_transformer
from text import train
from vae import make_vae

A, B = 100, 50
WIDTH, HEIGHT, FPS = 96, 64, 8
SCHEDULER = {
    "_class_name": "CogVideoXDDIMScheduler",
    "_diffusers_version": "0.30.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "snr_shift_scale": 1.0,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}
README = """\
# Sample model

A complete image-to-video pipeline in the layout of CogVideoX-Fun-V1.1-InP, small enough to export,
compile and run in seconds, with a Video2LoRA predictor for it. The weights are random, so the videos
show coloured noise; what it is good for is to see every stage work and to compare numbers.

| file | what it is |
|---|---|
| `transformer/` | 2 blocks, 2 heads of 16, 33 input channels, bf16 |
| `vae/` | spatial factor 8, temporal factor 4, 16 latent channels, bf16; tiles of 80x48 pixels |
| `text_encoder/`, `tokenizer/` | T5 encoder, width 32; SentencePiece model with 300 pieces |
| `scheduler/` | DDIM, v-prediction, zero terminal SNR, trailing spacing |
| `hypernetwork.safetensors` | reference latents -> 21 tokens of 150 values, 4 iterations, bf16 |
| `checkpoint-checkpoint-100.safetensors` | auxiliary matrices (a 100, b 50) of all 21 linear layers, bf16 |
| `reference.mp4`, `reference2.mp4` | 17 and 9 frames, 96x64, 8 fps, drawn by the script |
| `image.png` | first frame, 96x64 |

Made by `tests/reference/sample.py`; nothing in it comes from a published checkpoint.
"""


def tokenizer(directory: Path, pieces: bytes):
    """Writes spiece.model and the JSON files that the hub's T5 tokenizers have beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "spiece.model").write_bytes(pieces)
    extra = [f"<extra_id_{i}>" for i in range(100)]
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    save_json(directory / "special_tokens_map.json", {"additional_special_tokens": extra} | special)
    config = {
        "additional_special_tokens": extra,
        "clean_up_tokenization_spaces": True,
        "extra_ids": 100,
        "model_max_length": 226,
        "tokenizer_class": "T5Tokenizer",
    }
    save_json(directory / "tokenizer_config.json", config | special)
    loaded = T5Tokenizer.from_pretrained(directory)
    save_json(directory / "added_tokens.json", {token: loaded.convert_tokens_to_ids(token) for token in extra})
    return loaded


def text_encoder(vocabulary):
    config = T5Config(
        vocab_size=vocabulary,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def give_networks(directory: Path, key: str, transformer, encoder, vae):
    """Gives a pipeline's networks weights of recipes, in bf16, and writes their folders.

    The prediction is moderate, latents have a standard deviation of about 1 / scaling factor, and most pixels lie in [-1, 1].
    """

    def give(model, part, factors):
        fan = lambda name: model.get_parameter(name)[0].numel()  # noqa: E731
        scales = {name: factor * (3 / fan(name)) ** 0.5 for name, factor in factors.items()}
        file = directory / part / "diffusion_pytorch_model.safetensors"
        random_weights.give(model, file, f"{key}/{part}", "BF16", scales)
        model.save_config(directory / part)

    give(transformer, "transformer", {"proj_out.weight": 0.7})
    give(vae, "vae", {"encoder.conv_out.conv.weight": 2.0, "decoder.conv_out.conv.weight": 0.3})
    tied = "encoder.embed_tokens.weight"
    tensors = {name: tensor for name, tensor in encoder.state_dict().items() if name != tied}
    recipe = random_weights.recipe_for(f"{key}/text_encoder", tensors, "BF16")
    file = directory / "text_encoder" / "model.safetensors"
    found = {name: tensor.float() for name, tensor in random_weights.save_recipe(file, recipe).items()}
    encoder.load_state_dict(found | {tied: found["shared.weight"]})
    encoder.config.architectures, encoder.config.dtype = ["T5EncoderModel"], torch.bfloat16
    encoder.config.save_pretrained(directory / "text_encoder")
    return transformer, encoder.float().eval(), vae


def model_index(directory: Path, pipeline: str, scheduler: str, version="0.30.0.dev0"):
    index = {
        "_class_name": pipeline,
        "_diffusers_version": version,
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }
    save_json(directory / "model_index.json", index)


def draw_scene(frame: int, frames: int, variant: int, size=(WIDTH, HEIGHT)) -> Image.Image:
    """Variant 0: a disc crosses a blue gradient while a bar turns. 1: a square grows on a warm checkerboard.
    2: a still scene, the image to animate."""
    width, height = size
    scale = 4  # drawn large and reduced, for smooth edges
    y, x = np.mgrid[0 : height * scale, 0 : width * scale] / (scale * height)
    t = frame / max(frames - 1, 1)
    if variant == 0:
        rgb = np.stack([0.15 + 0.1 * y, 0.25 + 0.3 * x, 0.75 - 0.4 * y], axis=-1)
    elif variant == 1:
        checks = (np.floor(4 * x - 2 * t) + np.floor(4 * y)) % 2
        rgb = np.stack([0.85 - 0.2 * checks, 0.5 + 0.25 * checks, 0.2 + 0.1 * y], axis=-1)
    else:
        rgb = np.stack([0.5 + 0.3 * np.sin(3 * x), 0.6 - 0.3 * y, 0.35 + 0.2 * x], axis=-1)
    image = Image.fromarray((rgb.clip(0, 1) * 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    unit = height * scale

    def disc(cx, cy, r, colour):
        pen.ellipse([(cx - r) * unit, (cy - r) * unit, (cx + r) * unit, (cy + r) * unit], fill=colour)

    if variant == 0:
        disc(0.2 + 1.1 * t, 0.65 - 0.25 * math.sin(math.pi * t), 0.18, (240, 80, 60))
        angle = math.pi * t
        dx, dy = 0.3 * math.cos(angle), 0.3 * math.sin(angle)
        ends = [(1.0 - dx) * unit, (0.35 - dy) * unit, (1.0 + dx) * unit, (0.35 + dy) * unit]
        pen.line(ends, fill=(250, 230, 90), width=int(0.06 * unit))
    elif variant == 1:
        r = 0.12 + 0.25 * t
        pen.rectangle([(0.75 - r) * unit, (0.5 - r) * unit, (0.75 + r) * unit, (0.5 + r) * unit], fill=(30, 90, 60))
        disc(1.3 - 0.2 * t, 0.2, 0.1, (250, 250, 250))
    else:
        disc(0.5, 0.55, 0.25, (70, 60, 160))
        pen.polygon([(0.9 * unit, 0.85 * unit), (1.15 * unit, 0.35 * unit), (1.4 * unit, 0.85 * unit)], fill=(60, 150, 80))
    return image.resize(size, Image.Resampling.LANCZOS)


def write_video(path: Path, images):
    """H.264 in MP4, one thread, no timestamps."""
    options = ["-crf", "12", "-preset", "slow", "-threads", "1", "-map_metadata", "-1", "-bitexact"]
    writer = imageio_ffmpeg.write_frames(
        str(path), images[0].size, fps=FPS, codec="libx264", quality=None, output_params=options, ffmpeg_log_level="error"
    )
    writer.send(None)
    for image in images:
        writer.send(np.ascontiguousarray(image))
    writer.close()


def main():
    out = output_dir(__doc__, "sample")

    words = tokenizer(out / "tokenizer", train(vocab_size=300, normalization_rule_name="nmt_nfkc"))
    encoder = text_encoder(vocabulary=448)
    assert len(words) <= encoder.config.vocab_size
    transformer = make_transformer(400, layers=2, max_text_seq_length=226)
    vae = make_vae((8, 8, 8, 16), layers=1, groups=4, seed=401, sample_size=(96, 160))
    give_networks(out, "sample", transformer, encoder, vae)
    config = json.loads((out / "transformer" / "config.json").read_text())
    for later in ("ofs_embed_dim", "patch_bias", "patch_size_t"):  # the hub's file is older than these
        del config[later]
    save_json(out / "transformer" / "config.json", config | {"add_noise_in_inpaint_model": True})

    save_json(out / "scheduler" / "scheduler_config.json", SCHEDULER)
    model_index(out, "CogVideoX_Fun_Pipeline_Inpaint", SCHEDULER["_class_name"])

    slots = linear_modules(transformer)
    give_predictor(out, "sample", transformer, slots, (A, B), delta=0.05, context=8.0, dtype="BF16")

    write_video(out / "reference.mp4", [draw_scene(i, 17, 0) for i in range(17)])
    write_video(out / "reference2.mp4", [draw_scene(i, 9, 1) for i in range(9)])
    draw_scene(0, 1, 2).save(out / "image.png", optimize=True)
    (out / "README.md").write_text(README, encoding="utf-8")
    report(out)


if __name__ == "__main__":
    main()
