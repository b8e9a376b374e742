"""Ships the second miniature: diffusers' layout, the predictor as a package, adapters of the bank, what it is scored on.

Run: python ship.py --work DIR --out FOLDER        (needs all stages)
Prints every file's size; fails if the model is above 12 MB. The bank's other adapters go to DIR/bank/.
"""

import argparse
import shutil
from pathlib import Path

import world  # first: it finds the folders of the first miniature
import judge
import networks
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import hyper
from common import report, save_json

LIMIT = 12_000_000
TRIALS = 10  # per effect
SHIPPED = ("left", "to_red", "grow")
README = """\
# A trained miniature of Prompt2Effect over Wan

32x32 pixels, 9 frames, {effects} effects in three families; made by `tests/reference/miniature2/`, whose README says how it was
trained and scored. Wan's image-to-video form without an image encoder, in diffusers' layout, all weights bf16.

| folder | what it is |
|---|---|
| `transformer/`, `vae/`, `text_encoder/`, `tokenizer/`, `scheduler/` | the base: it animates a first frame, and no caption names an effect |
| `predictor/` | the hypernetwork, in the profile `paper`: a prompt -> an adapter of rank {rank} for every linear layer of the blocks |
| `bank/` | three of the {bank} adapters that it learned from, in canonical form |
| `trials/`, `classifier.json` | first frames and captions that training never saw, prompts seen and held out, and the classifier |
| `images/` | first frames to play with; `captions.json` |

Sampled without guidance, {steps} steps, 9 frames.
"""


def picture(pixels):
    return Image.fromarray((pixels * 255 + 0.5).astype(np.uint8))


def adapter(bank, at):
    """One of a bank under diffusers' names, canonical, bf16."""
    found = {}
    for slot, (down, up) in bank.items():
        down, up = networks.canonical(down[at], up[at])
        found[f"transformer.{slot}.lora_A.weight"] = down.to(torch.bfloat16).contiguous()
        found[f"transformer.{slot}.lora_B.weight"] = up.to(torch.bfloat16).contiguous()
    return found


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--without-predictor", action="store_true", help="the base and its bank alone")
    a = parser.parse_args()
    lots, out = judge.Judge(a.work), a.out
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(a.work / "vae", out / "vae")
    shutil.copytree(a.work / "tokenizer", out / "tokenizer")
    bank = lots.bank()
    if not a.without_predictor:
        write_predictor(lots, a.work, out)
    lots.transformer.to(torch.bfloat16).save_pretrained(out / "transformer")
    lots.text_encoder.to(torch.bfloat16).save_pretrained(out / "text_encoder")
    networks.new_scheduler().save_pretrained(out / "scheduler")
    index = {
        "_class_name": "WanImageToVideoPipeline",
        "_diffusers_version": "0.42.1",
        "boundary_ratio": None,
        "image_encoder": [None, None],
        "image_processor": [None, None],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    save_json(out / "model_index.json", index)
    for folder, names in ((out / "bank", SHIPPED), (a.work / "bank", world.BANK)):
        folder.mkdir(exist_ok=True)
        for name in names:
            save_file(adapter(bank, world.BANK.index(name)), folder / f"{name}.safetensors", {"format": "pt"})
    shutil.copy(a.work / "classifier.json", out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    sizes = dict(effects=len(world.EFFECTS), rank=networks.RANK, bank=len(world.BANK), steps=networks.STEPS)
    (out / "README.md").write_text(README.format(**sizes), encoding="utf-8")
    write_trials(out)
    report(out)
    print(f"model: {size} bytes")
    assert size <= LIMIT, f"{size} bytes are more than {LIMIT}"


def write_predictor(lots, work: Path, out: Path):
    network = hyper.new_network(lots.transformer)
    network.load_state_dict(torch.load(work / "hyper.pt", weights_only=False)["average"])
    (out / "predictor").mkdir(parents=True)
    weights = {name: value.to(torch.bfloat16) for name, value in hyper.published(network).items()}
    save_file(weights, out / "predictor" / "model.safetensors", {"format": "pt"})
    save_json(out / "predictor" / "config.json", network.config())


def write_trials(out: Path):
    (out / "trials").mkdir()
    captions = {}
    for effect in world.EFFECTS:
        images, captions[effect] = zip(*(judge.trial(effect, index) for index in range(TRIALS)))
        picture(np.concatenate(images)).save(out / "trials" / f"{effect}.png", optimize=True)
    prompts = {e: {"seen": world.prompts(e, False), "held_out": world.prompts(e, True)} for e in world.EFFECTS}
    index = {
        "size": world.SIZE, "frames": world.FRAMES, "steps": networks.STEPS, "families": world.FAMILIES,
        "captions": captions, "prompts": prompts, "pairs": world.PAIRS,
    }  # fmt: skip
    save_json(out / "trials" / "trials.json", index)
    (out / "images").mkdir()
    images = {f"{number:02}.png": judge.trial(world.STILL, 500 + number) for number in range(6)}
    for name, (pixels, _) in images.items():
        picture(pixels).save(out / "images" / name, optimize=True)
    save_json(out / "images" / "captions.json", {name: caption for name, (_, caption) in images.items()})


if __name__ == "__main__":
    main()
