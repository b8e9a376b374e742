"""End-to-end golden files: whole pipelines of four steps at guidance 6, from given noise.

Run: python tests/reference/pipelines.py [--out DIR]        (after sample.py: `fun` uses the sample model)

Writes
- pipeline/{t2v,i2v,i2v_1_5}/: a model in the hub's layout and `case_*.safetensors`, computed by diffusers'
  CogVideoXPipeline and CogVideoXImageToVideoPipeline. input.latents [1,T,16,h,w] (padding frames of 1.5
  included), input.image [H,W,3] u8 (also `image_*.png`); output.latents_final, and output.frames [F,H,W,3] u8, the 256
  levels that [0,1] is cut to.
  The image latents are the distribution's *mode*, where diffusers samples: the only deviation.
- pipeline/fun/: the CogVideoX-Fun inpainting pipeline (our own transcription, VideoX-Fun's VAE chunks)
  on fixtures/sample, in f32. `base`: no adapter, no noise augmentation; `steered`: adapter predicted
  from `reference_frames/` (stretched to the target size, range [0,1], all frames, latent = mean),
  strength 1; `noise`: base with the augmentation noise input.augmentation_noise [1,3,F,H,W] scaled by
  noise_aug_strength; `tiled`: steered, and large enough for the VAE to tile.
Prompts, sizes and settings are in the metadata.
"""

import json
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
)
from diffusers.pipelines.cogvideo import pipeline_cogvideox_image2video
from PIL import Image
from safetensors.torch import load_file
from transformers import T5EncoderModel, T5Tokenizer

import random_weights
from common import fixtures_dir, levels, output_dir, randn, report, save_case
from hypernetwork import LIGHT_LORA_FILE, Hypernetwork, deltas, fused, linear_modules, make_transformer
from rope import fun_tables
from sample import SCHEDULER, draw_scene, give_networks, model_index, text_encoder, tokenizer
from text import train
from vae import fun_decode, make_vae

PROMPT = "A red balloon slowly floats above the quiet city."
NEGATIVE = "low resolution, watermark, distortion of the background"
STEPS, GUIDANCE, TEXT = 4, 6.0, 226


# diffusers' pipelines


def make_pipeline(kind, directory: Path, seed):
    """A tiny pipeline of diffusers' class, stored in the hub's layout; weights as stored, in f32."""
    options = {"in_channels": 32 if kind is CogVideoXImageToVideoPipeline else 16, "max_text_seq_length": TEXT}
    scheduler = dict(SCHEDULER)
    vae = make_vae((4, 4, 4, 8), layers=1, groups=2, seed=seed + 1, sample_size=(64, 96))
    if directory.name == "t2v":  # as the 2b model: position table instead of rotary, other scales
        options |= {"use_rotary_positional_embeddings": False, "sample_frames": 9}
        scheduler["snr_shift_scale"] = 3.0
        vae.register_to_config(scaling_factor=1.15258426)
    if directory.name == "i2v_1_5":
        options |= {"patch_size_t": 2, "patch_bias": False, "ofs_embed_dim": 32}
        vae.register_to_config(invert_scale_latents=True)
    networks = make_transformer(seed, layers=2, **options), text_encoder(vocabulary=320), vae
    transformer, encoder, vae = give_networks(directory, f"pipeline/{directory.name}", *networks)
    pipeline = kind(
        tokenizer=tokenizer(directory / "tokenizer", train(vocab_size=200, normalization_rule_name="identity")),
        text_encoder=encoder,
        vae=vae,
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(**{k: v for k, v in scheduler.items() if not k.startswith("_")}),
    )
    pipeline.scheduler.save_pretrained(directory / "scheduler")
    model_index(directory, kind.__name__, "CogVideoXDDIMScheduler", "0.42.1")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def mode_of(encoded, generator=None, sample_mode="sample"):
    """Stands in for diffusers' `retrieve_latents`: no random draw."""
    return encoded.latent_dist.mode()


def run_diffusers(pipeline, directory: Path, name, frames, height, width, seed):
    trace = {}
    patch_t = pipeline.transformer.config.patch_size_t or 1
    latent_frames = -(-((frames - 1) // 4 + 1) // patch_t) * patch_t
    latents = randn(1, latent_frames, 16, height // 8, width // 8, seed=seed)
    inputs, arguments = {"latents": latents}, {}
    if isinstance(pipeline, CogVideoXImageToVideoPipeline):
        image = draw_scene(0, 1, 2, (width, height))
        image.save(directory / f"image_{name}.png")
        inputs["image"] = torch.from_numpy(np.array(image))
        arguments["image"] = image

    def on_step(_, step, timestep, state):
        trace["latents_final"] = state["latents"].clone()
        return state

    with mock.patch.object(pipeline_cogvideox_image2video, "retrieve_latents", mode_of):
        result = pipeline(
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            height=height,
            width=width,
            num_frames=frames,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            latents=latents,
            output_type="np",
            callback_on_step_end=on_step,
            **arguments,
        )
    video = torch.from_numpy(result.frames[0])
    trace["frames"] = levels(video)
    metadata = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "num_frames": frames,
        "height": height,
        "width": width,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
    }
    save_case(directory / f"case_{name}.safetensors", inputs, trace, metadata)
    final = trace["latents_final"]
    print(
        f"{directory.name} {name}: latents {tuple(final.shape)} std {final.std():.2f}, frames {tuple(video.shape)}"
        f" mean {video.mean():.2f} std {video.std():.2f}, clipped {((video == 0) | (video == 1)).float().mean():.2f}"
    )


# CogVideoX-Fun


class FunModel:
    """A stored pipeline's components and its predictor, weights widened to f32; texts have `text` tokens."""

    def __init__(self, directory: Path, text=TEXT):
        self.text = text
        self.transformer = CogVideoXTransformer3DModel.from_pretrained(directory / "transformer").float().eval()
        self.vae = AutoencoderKLCogVideoX.from_pretrained(directory / "vae").float().eval()
        self.text_encoder = T5EncoderModel.from_pretrained(directory / "text_encoder").float().eval()
        self.tokenizer = T5Tokenizer.from_pretrained(directory / "tokenizer")
        self.scheduler = DDIMScheduler.from_pretrained(directory / "scheduler")
        self.hypernetwork = Hypernetwork.load(directory / "hypernetwork.safetensors")
        self.aux = load_file(directory / LIGHT_LORA_FILE)

    def encode_text(self, texts):
        tokens = self.tokenizer(texts, padding="max_length", max_length=self.text, truncation=True, return_tensors="pt")
        return self.text_encoder(tokens.input_ids).last_hidden_state

    def encode_video(self, pixels):
        """Mean of the latent distribution, times the scaling factor."""
        return self.vae.encode(pixels).latent_dist.mean * self.vae.config.scaling_factor

    def predict(self, images, size, signed=False):
        """Reference frames -> (their pixels as u8, latents, tokens); in [0,1], or [-1,1] if `signed`."""
        stack = np.stack([np.array(image.convert("RGB").resize(size)) for image in images])
        pixels = torch.from_numpy(stack).float() / 255  # [F,H,W,3]
        pixels = 2 * pixels - 1 if signed else pixels
        latents = self.encode_video(pixels.permute(3, 0, 1, 2)[None])
        return torch.from_numpy(stack), latents, self.hypernetwork(latents)


def resize_mask(mask, latents):
    """[1,1,F,H,W] -> latent size; the first frame by itself, the rest of the clip together."""
    _, _, frames, height, width = latents.shape
    parts = [F.interpolate(mask[:, :, :1], size=(1, height, width), mode="trilinear")]
    if frames > 1:
        parts.append(F.interpolate(mask[:, :, 1:], size=(frames - 1, height, width), mode="trilinear"))
    return torch.cat(parts, dim=2)


def run_fun(
    model: FunModel, image, frames, latents, augmentation=None, changes=None,
    texts=(NEGATIVE, PROMPT), steps=STEPS, guidance=GUIDANCE,
):  # fmt: skip
    """Inpainting pipeline for one first frame of the target size; `augmentation` is added to the
    condition wherever that is not exactly -1. With one text there is no guidance. Gives final latents, and frames in [0,1]."""
    width, height = image.size
    text = model.encode_text(list(texts))
    batch = len(texts)

    first = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    mask = torch.ones(1, 1, frames, height, width)
    mask[:, :, 0] = 0
    condition = torch.where(mask < 0.5, 2 * first[None, :, None] - 1, -1.0)
    if augmentation is not None:
        condition = condition + torch.where(condition == -1, 0.0, augmentation)
    masked_latents = model.encode_video(condition)
    mask_latents = resize_mask(1 - mask, masked_latents) * model.vae.config.scaling_factor
    inpaint = torch.cat([mask_latents, masked_latents], dim=1).transpose(1, 2)

    cos, sin = fun_tables(model.transformer.config, height, width, latents.shape[1])

    model.scheduler.set_timesteps(steps)
    x = latents * model.scheduler.init_noise_sigma
    with fused(model.transformer, changes or {}):
        for t in model.scheduler.timesteps:
            hidden = torch.cat([torch.cat([x] * batch), torch.cat([inpaint] * batch)], dim=2)
            v = model.transformer(hidden, text, t.expand(batch), image_rotary_emb=(cos, sin)).sample
            if batch == 2:
                unconditional, conditional = v.chunk(2)
                v = unconditional + guidance * (conditional - unconditional)
            x = model.scheduler.step(v, t, x).prev_sample
    decoded = fun_decode(model.vae, x.transpose(1, 2) / model.vae.config.scaling_factor)
    return x, (decoded / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 3, 0)


def write_fun(directory: Path, sample: Path):
    model = FunModel(sample)
    slots = linear_modules(model.transformer)
    (directory / "reference_frames").mkdir(parents=True, exist_ok=True)
    for index in range(9):
        draw_scene(index, 9, 0, (72, 56)).save(directory / "reference_frames" / f"{index:03d}.png")
    reference = [Image.open(path) for path in sorted((directory / "reference_frames").glob("*.png"))]

    def case(name, size, frames, seed, steered=False, strength=None, tiled=False):
        image = draw_scene(0, 1, 2, size)
        # Black pixels of the image are -1 as well, and so get no augmentation noise.
        image.paste((0, 0, 0), (size[0] - 12, 0, size[0], 8))
        image.save(directory / f"image_{size[0]}x{size[1]}.png")
        (model.vae.enable_tiling if tiled else model.vae.disable_tiling)()
        latents = randn(1, (frames - 1) // 4 + 1, 16, size[1] // 8, size[0] // 8, seed=seed)
        inputs = {"latents": latents, "image": torch.from_numpy(np.array(image))}
        outputs, changes, augmentation = {}, None, None
        if steered:
            pixels, _, weights = model.predict(reference, size)
            changes = deltas(weights[0], model.aux, slots)
            outputs = {"reference_pixels": pixels}
        if strength is not None:
            inputs["augmentation_noise"] = randn(1, 3, frames, size[1], size[0], seed=seed + 1)
            augmentation = inputs["augmentation_noise"] * strength
        final, video = run_fun(model, image, frames, latents, augmentation, changes)
        outputs |= {"latents_final": final, "frames": levels(video)}
        metadata = {
            "prompt": PROMPT,
            "negative_prompt": NEGATIVE,
            "num_frames": frames,
            "height": size[1],
            "width": size[0],
            "num_inference_steps": STEPS,
            "guidance_scale": GUIDANCE,
            "noise_aug_strength": strength or 0.0,
            "strength": 1.0 if steered else 0.0,
            "iterations": 4,
            "slots": json.dumps(slots),
            "tiling": tiled,
        }
        save_case(directory / f"case_{name}.safetensors", inputs, outputs, metadata)
        print(
            f"fun {name}: latents {tuple(final.shape)} std {final.std():.2f}, frames {tuple(video.shape)}"
            f" mean {video.mean():.2f} std {video.std():.2f}, clipped {((video == 0) | (video == 1)).float().mean():.2f}"
        )
        return final

    base = case("base", (32, 48), 13, seed=600)
    steered = case("steered", (32, 48), 13, seed=600, steered=True)
    noise = case("noise", (32, 48), 5, seed=610, strength=0.0563)
    case("tiled", (16, 64), 5, seed=620, steered=True, tiled=True)
    print(f"fun: steering moves the final latents by {(steered - base).std():.2f} of std {base.std():.2f}")
    quiet, _ = run_fun(model, Image.open(directory / "image_32x48.png"), 5, randn(1, 2, 16, 6, 4, seed=610))
    print(f"fun: augmentation moves them by {(noise - quiet).std():.3f}")
    model.vae.disable_tiling()
    other = [draw_scene(index, 9, 1, (72, 56)) for index in range(9)]
    first, second = (model.predict(images, (32, 48)) for images in (reference, other))
    print(
        f"fun: reference latents std {first[1].std():.2f}, tokens std {first[2].std():.3f},"
        f" another reference's differ by {(first[2] - second[2]).std():.3f}"
    )


def main():
    out = output_dir(__doc__, "pipeline")
    t2v = make_pipeline(CogVideoXPipeline, out / "t2v", 500)
    run_diffusers(t2v, out / "t2v", "9f_32x48", 9, 32, 48, seed=501)
    i2v = make_pipeline(CogVideoXImageToVideoPipeline, out / "i2v", 520)
    run_diffusers(i2v, out / "i2v", "9f_32x48", 9, 32, 48, seed=521)
    run_diffusers(i2v, out / "i2v", "17f_32x16", 17, 32, 16, seed=522)
    i2v_1_5 = make_pipeline(CogVideoXImageToVideoPipeline, out / "i2v_1_5", 540)
    run_diffusers(i2v_1_5, out / "i2v_1_5", "9f_32x48", 9, 32, 48, seed=541)  # one padding frame
    run_diffusers(i2v_1_5, out / "i2v_1_5", "5f_16x32", 5, 16, 32, seed=542)  # none
    with random_weights.made(fixtures_dir() / "sample") as sample:
        write_fun(out / "fun", sample)
    report(out)


if __name__ == "__main__":
    main()
