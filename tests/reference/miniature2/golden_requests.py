"""What the shipped second miniature does in PyTorch, for the tests of the port.

Run: python golden_requests.py --model FOLDER        (FOLDER: what ship.py wrote)
Writes FOLDER/golden/case_<effects>.safetensors: whole requests through diffusers' WanImageToVideoPipeline and transformers, f32. Prompts
go through the text encoder and the predictor's plain definition (../prompt2effect.py, f64); their adapters are fused into the
weights. input.latents [1,c,T,h,w]; output.adapter_A and adapter_B of one layer, of the first prompt; output.latents_final,
normalised as the transformer sees them; output.frames [F,H,W,3] u8. Settings are in the metadata.
`base` has no adapter, guidance, a higher image and fewer frames; of its outputs it holds the latents alone.
"""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import world  # first: it finds the folders of the first miniature
import networks
import torch
from diffusers import WanImageToVideoPipeline
from diffusers.pipelines.wan import pipeline_wan_i2v
from PIL import Image
from safetensors.torch import load_file
from transformers import T5Tokenizer

import measures
import prompt2effect
from common import levels, randn, report, save_case

CASES = {"up_right": (("up_right", 1, 1.0),), "to_blue+squash": (("to_blue", 0, 1.0), ("squash", 2, 0.8))}
# The base draws two trials' first frames, one above the other's upper half.
BASE = {"effect": "left", "height": 48, "num_frames": 5, "guidance_scale": 2.5, "negative_prompt": "a grey square"}
SHOWN = "blocks.1.attn1.to_q"


def adapters(folder: Path, pipe, effects, prompts):
    """[{slot: (A, B)}], f64."""
    config = json.loads((folder / "predictor" / "config.json").read_text())
    weights = {name: value.double() for name, value in load_file(folder / "predictor" / "model.safetensors").items()}
    base = {name: value for name, value in pipe.transformer.state_dict().items() if value.ndim == 2 and name.startswith("blocks.")}
    kinds = list(config["module_vocab"])
    rows = [
        (layer, kind, prompt2effect.block_of(layer), 1 + kinds.index(kind), prompt2effect.block_of(layer))
        for layer, kind in prompt2effect.layers_of(config, base, prompt2effect.WAN)
    ]
    found = []
    for effect, which, _ in effects:
        ids, mask = networks.tokens(pipe.tokenizer, [prompts[effect]["held_out"][which]])
        text = networks.hidden(pipe.text_encoder, ids, mask)[0].double()
        found.append(prompt2effect.predict(config, weights, rows, base, text, mask[0].bool()))
    return found


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    folder = parser.parse_args().model
    # Image to video takes ftfy for granted, which would change nothing of these captions.
    pipeline_wan_i2v.ftfy = SimpleNamespace(fix_text=lambda text: text)
    index = json.loads((folder / "trials" / "trials.json").read_text())
    classifier = measures.Classifier.load(folder / "classifier.json")
    size, frames = index["size"], index["frames"]
    for seed, (name, effects) in enumerate({**CASES, "base": ()}.items()):
        words = T5Tokenizer.from_pretrained(folder / "tokenizer")
        pipe = WanImageToVideoPipeline.from_pretrained(folder, torch_dtype=torch.float32, tokenizer=words)
        pipe.set_progress_bar_config(disable=True)
        settings = dict(height=size, num_frames=frames, guidance_scale=1.0) if effects else dict(BASE)
        first = effects[0][0] if effects else settings.pop("effect")
        height = settings["height"]
        image = Image.open(folder / "trials" / f"{first}.png").convert("RGB").crop((0, 0, size, height))
        caption = index["captions"][first][0]
        found = adapters(folder, pipe, effects, index["prompts"])
        for factors, (_, _, strength) in zip(found, effects):
            for slot, (a, b) in factors.items():
                layer = pipe.transformer.get_submodule(slot)
                layer.weight.data = (layer.weight.double() + strength * (b @ a)).float()
        time, high = (settings["num_frames"] - 1) // 4 + 1, networks.LATENT_SIZE * height // size
        latents = randn(1, networks.LATENT, time, high, networks.LATENT_SIZE, seed=900 + seed)
        run = dict(width=size, num_inference_steps=index["steps"], output_type="latent", return_dict=False)
        final = pipe(image=image, prompt=caption, latents=latents.clone(), **run, **settings)[0]
        path, told = folder / "golden" / f"case_{name}.safetensors", {"effect": first, "prompt": caption}
        if not effects:
            settings = {key: str(value) for key, value in settings.items()}
            save_case(path, {"latents": latents}, {"latents_final": final}, told | settings)
            continue
        mean, std = networks.statistics(pipe.vae)
        pixels = pipe.vae.decode(final * std + mean, return_dict=False)[0]
        video = (pixels / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 3, 0)
        a, b = found[0][SHOWN]
        outputs = {"adapter_A": a.float(), "adapter_B": b.float(), "latents_final": final, "frames": levels(video)}
        asked = [[index["prompts"][e]["held_out"][which], strength] for e, which, strength in effects]
        save_case(path, {"latents": latents}, outputs, told | {"layer": SHOWN, "effects": json.dumps(asked)})
        print(f"{name}: shows {classifier(video.numpy())}")
    report(folder / "golden")


if __name__ == "__main__":
    main()
