"""Golden files for Wan's pipelines: tests/fixtures/wan/pipeline/.

Pipelines of diffusers over small networks of random weights, most of them those of wan_transformer.py, wan_vae.py and
wan_image_encoder.py. New here are text encoders and a second transformer, as recipes of random_weights.py.
`runs.json` says what each run is: the networks, `model_index.json`'s values, the scheduler, the settings of the request
and its images. `<run>.safetensors` holds `latents`, the noise that goes in, `prompt_embeds` and `negative_prompt_embeds`
of runs without prompts, `output.latents`, which the last step leaves, and for some runs `output.pixels` in [-1, 1].
Runs with `loras` have these fused by diffusers, each into the transformer that it says: recipes `<name>.safetensors`, in Wan's own names.
Everything is computed in f32.

Run: python tests/reference/wan_pipelines.py [--out DIR]
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.wan import pipeline_wan_i2v
from diffusers.utils import logging
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

import random_weights
from common import output_dir, randn, report, save_json
from safetensors.torch import save_file

FIXTURES = Path(__file__).parent.parent / "fixtures"
WAN = FIXTURES / "wan"
UNIPC = dict(
    _class_name="UniPCMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0,
    num_train_timesteps=1000, solver_order=2, solver_type="bh2", predict_x0=True, final_sigmas_type="zero",
)
EULER = dict(_class_name="FlowMatchEulerDiscreteScheduler", shift=5.0, num_train_timesteps=1000)
PROMPT = dict(prompt="  A red ball &amp;  a cat run on the beach ", negative_prompt="blurry, static")
SMALL = dict(height=16, width=32, num_frames=5, num_inference_steps=4)
T2V = dict(transformer="transformer/t2v", vae="vae/2_1", text_encoder="pipeline/text_encoder_20")
I2V = dict(transformer="transformer/i2v_2_1", vae="vae/2_1", text_encoder="pipeline/text_encoder_4")
TI2V = dict(transformer="transformer/ti2v", vae="vae/2_2", text_encoder="pipeline/text_encoder_20")
PLAIN = dict(size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20})
PROJECTED = dict(size={"shortest_edge": 18}, crop_size={"height": 18, "width": 18})

RUNS = {
    "t2v": dict(networks=T2V, scheduler=UNIPC, settings=SMALL | PROMPT | dict(num_frames=9, guidance_scale=5.0), pixels=True),
    "t2v_single": dict(networks=T2V, scheduler=UNIPC, settings=SMALL | PROMPT | dict(num_frames=1, guidance_scale=5.0)),
    "t2v_euler": dict(networks=T2V, scheduler=EULER, settings=SMALL | dict(guidance_scale=1.0)),
    "t2v_euler_guided": dict(networks=T2V, scheduler=EULER, settings=SMALL | dict(guidance_scale=4.0)),
    "experts": dict(
        networks=T2V | dict(transformer_2="pipeline/transformer_2"), scheduler=UNIPC, index=dict(boundary_ratio=0.875),
        settings=SMALL | PROMPT | dict(guidance_scale=4.0, guidance_scale_2=3.0),
    ),
    "experts_plain": dict(
        networks=T2V | dict(transformer_2="pipeline/transformer_2"), scheduler=UNIPC, index=dict(boundary_ratio=0.875),
        settings=SMALL | PROMPT | dict(guidance_scale=1.0, guidance_scale_2=1.0),
    ),
    "i2v": dict(
        networks=I2V | dict(image_encoder="image_encoder/plain"), scheduler=UNIPC, processor=PLAIN, images=["tall"],
        settings=SMALL | PROMPT | dict(guidance_scale=5.0), pixels=True,
    ),
    "i2v_2_2": dict(
        networks=T2V | dict(transformer="transformer/i2v_2_2"), scheduler=UNIPC, images=["wide"],
        settings=SMALL | PROMPT | dict(guidance_scale=3.5),
    ),
    "flf2v": dict(
        networks=I2V | dict(transformer="transformer/flf2v", image_encoder="image_encoder/projected"), scheduler=UNIPC,
        processor=PROJECTED, images=["wide", "tall"], settings=SMALL | PROMPT | dict(guidance_scale=5.5),
    ),
    "ti2v": dict(
        networks=TI2V, scheduler=UNIPC, index=dict(expand_timesteps=True),
        settings=SMALL | PROMPT | dict(height=32, width=64, guidance_scale=5.0),
    ),
    "ti2v_image": dict(
        networks=TI2V, scheduler=UNIPC, index=dict(expand_timesteps=True), images=["wide"],
        settings=SMALL | PROMPT | dict(height=32, width=64, guidance_scale=5.0),
    ),
    # As distillations are used: four steps, no guidance, and an effect on top.
    "experts_stack": dict(
        networks=T2V | dict(transformer_2="pipeline/transformer_2"), scheduler=UNIPC | dict(flow_shift=5.0),
        index=dict(boundary_ratio=0.875), settings=SMALL | PROMPT | dict(guidance_scale=1.0, guidance_scale_2=1.0),
        loras=[
            dict(name="distill_high_noise", transformer="transformer", rank=4, alpha=2, strength=1.0),
            dict(name="distill_low_noise", transformer="transformer_2", rank=4, alpha=2, strength=1.0),
            dict(name="effect_high_noise", transformer="transformer", rank=2, alpha=2, strength=1.5),
            dict(name="effect_low_noise", transformer="transformer_2", rank=2, alpha=2, strength=0.6),
        ],
    ),
}
IMAGES = {"tall": (22, 41), "wide": (50, 27)}


def text_encoder(directory: Path, tokenizer, width: int) -> None:
    """Writes a small UMT5EncoderModel."""
    config = UMT5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=6, num_heads=2, d_ff=24, num_layers=2,
        feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )
    model = UMT5EncoderModel(config)
    model.save_pretrained(directory)
    (directory / "model.safetensors").unlink()
    recipe = random_weights.recipe_for(f"wan/pipeline/{directory.name}", stored(model), "F32")
    random_weights.save_recipe(directory / "model.safetensors", recipe)


def stored(model) -> dict:
    """The weights but for a table's second name."""
    return {key: value for key, value in model.state_dict().items() if key != "encoder.embed_tokens.weight"}


def second_transformer(directory: Path) -> None:
    """Writes a transformer like t2v with other weights."""
    source = WAN / "transformer" / "t2v"
    directory.mkdir(parents=True)
    shutil.copy(source / "config.json", directory)
    recipe = json.loads((source / "diffusion_pytorch_model.safetensors.recipe.json").read_text())
    recipe["key"] = "wan/pipeline/transformer_2"
    random_weights.save_recipe(directory / "diffusion_pytorch_model.safetensors", recipe)


def lora(root: Path, name: str, rank: int, alpha: int) -> dict:
    """An adapter of the t2v transformer's blocks, written as a recipe."""
    config = json.loads((WAN / "transformer" / "t2v" / "config.json").read_text())
    width, hidden = config["num_attention_heads"] * config["attention_head_dim"], config["ffn_dim"]
    layers = {f"{kind}_attn.{part}": (width, width) for kind in ("self", "cross") for part in "qkvo"}
    layers |= {"ffn.0": (hidden, width), "ffn.2": (width, hidden)}
    tensors = {}
    for block in range(config["num_layers"]):
        for layer, (rows, columns) in layers.items():
            stem = f"diffusion_model.blocks.{block}.{layer}"
            for part, shape, scale in (("lora_down", [rank, columns], 0.3), ("lora_up", [rows, rank], 0.3)):
                tensors[f"{stem}.{part}.weight"] = dict(dtype="F32", shape=shape, scale=scale, offset=0.0)
            tensors[f"{stem}.alpha"] = dict(dtype="F32", shape=[], scale=0.0, offset=float(alpha))
    recipe = dict(key=f"wan/pipeline/{name}", tensors=tensors)
    random_weights.save_recipe(root / f"{name}.safetensors", recipe)
    return random_weights.make(recipe)


def apply_loras(pipe, root: Path, loras: list) -> None:
    """Fuses adapters, each into its transformer."""
    for entry in loras:
        tensors = lora(root, entry["name"], entry["rank"], entry["alpha"])
        second = entry["transformer"] == "transformer_2"
        pipe.load_lora_weights(tensors, adapter_name=entry["name"], load_into_transformer_2=second)
    for component in ("transformer", "transformer_2") if loras else ():
        own = [entry for entry in loras if entry["transformer"] == component]
        names = [entry["name"] for entry in own]
        getattr(pipe, component).set_adapters(names, [entry["strength"] for entry in own])
        getattr(pipe, component).fuse_lora(adapter_names=names)


def load(root: Path, place: str, name: str):
    """A network of a fixture."""
    directory = root / name.removeprefix("pipeline/") if name.startswith("pipeline/") else WAN / name
    config = json.loads((directory / "config.json").read_text())
    if place in ("text_encoder", "image_encoder"):
        file = "model.safetensors"
        classes = {c.__name__: c for c in (UMT5EncoderModel, CLIPVisionModel, CLIPVisionModelWithProjection)}
        cls = classes[config["architectures"][0]]
        model = cls(cls.config_class(**config)) if place == "text_encoder" else cls(CLIPVisionConfig(**config))
    else:
        file = "diffusion_pytorch_model.safetensors"
        cls = AutoencoderKLWan if place == "vae" else WanTransformer3DModel
        model = cls.from_config(config)
    weights = {key: value.float() for key, value in random_weights.load(directory / file).items()}
    if place == "text_encoder":
        weights["encoder.embed_tokens.weight"] = weights["shared.weight"]
    own = set(model.state_dict())
    weights = {key if key in own else key.removeprefix("vision_model."): value for key, value in weights.items()}
    model.load_state_dict(weights)
    return model.float().eval()


def pipeline(root: Path, run: dict, tokenizer):
    """diffusers' pipeline for a run."""
    parts = {place: load(root, place, name) for place, name in run["networks"].items()}
    classes = {c.__name__: c for c in (UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler)}
    scheduler = dict(run["scheduler"])
    parts["scheduler"] = classes[scheduler.pop("_class_name")](**scheduler)
    if "images" not in run:
        return WanPipeline(tokenizer=tokenizer, **parts, **run.get("index", {}))
    for absent in ("image_encoder", "image_processor"):
        parts.setdefault(absent, None)
    if "processor" in run:
        parts["image_processor"] = CLIPImageProcessor(**run["processor"])
    return WanImageToVideoPipeline(tokenizer=tokenizer, **parts, **run.get("index", {}))


def carry_out(pipe, run: dict, seed: int, root: Path) -> dict:
    """The tensors of a run's file."""
    settings = dict(run["settings"])
    vae = pipe.vae.config
    frames, side = 1 + (settings["num_frames"] - 1) // 4, vae.scale_factor_spatial
    shape = [1, vae.z_dim, frames, settings["height"] // side, settings["width"] // side]
    tensors = {"latents": randn(*shape, seed=seed)}
    given = dict(settings)
    if "prompt" not in settings:
        for name, rows in (("prompt_embeds", 7), ("negative_prompt_embeds", 5)):
            tensors[name] = randn(1, rows, pipe.text_encoder.config.d_model, seed=seed + rows)
            padded = torch.zeros(1, 512, tensors[name].shape[2])
            padded[:, :rows] = tensors[name]
            given[name] = padded
    for name, image in zip(("image", "last_image"), run.get("images", [])):
        given[name] = Image.open(root / f"{image}.png").convert("RGB")
    pipe.set_progress_bar_config(disable=True)
    latents = pipe(**given, latents=tensors["latents"].clone(), output_type="latent", return_dict=False)[0]
    tensors["output.latents"] = latents
    if run.get("pixels"):
        mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.latents_mean, vae.latents_std))
        tensors["output.pixels"] = pipe.vae.decode(latents * std + mean, return_dict=False)[0]
    return {key: value.contiguous().clone() for key, value in tensors.items()}


@torch.no_grad()
def main() -> None:
    """Writes everything."""
    root = output_dir(__doc__, "wan/pipeline")
    logging.set_verbosity_error()
    # Image to video takes ftfy for granted, which would change nothing of these prompts.
    pipeline_wan_i2v.ftfy = SimpleNamespace(fix_text=lambda text: text)
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(FIXTURES / "tokenizer" / "tokenizer.json"), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    for width in (4, 20):
        text_encoder(root / f"text_encoder_{width}", tokenizer, width)
    second_transformer(root / "transformer_2")
    for name, (width, height) in IMAGES.items():
        pixels = random_weights.values("wan/pipeline", name, [height, width, 3], 127.5, 127.5)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / f"{name}.png")
    for number, (name, run) in enumerate(RUNS.items()):
        pipe = pipeline(root, run, tokenizer)
        apply_loras(pipe, root, run.get("loras", []))
        tensors = carry_out(pipe, run, 100 * number, root)
        save_file(tensors, root / f"{name}.safetensors")
        print(name, {key: list(value.shape) for key, value in tensors.items()}, tensors["output.latents"].std().item())
    save_json(root / "runs.json", RUNS)
    report(root)


if __name__ == "__main__":
    main()
