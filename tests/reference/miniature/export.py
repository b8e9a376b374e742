"""Ships the miniature: the hub's layout, the predictor's two files with official names, clips and images.

Run: python export.py --work DIR --out FOLDER        (needs all stages)
Prints every file's size; fails if the model is above 12 MB. References are folders of PNG frames (exact) and MP4 files
(to look at); trials/<effect>.png has one row per trial: the first frame to animate, then the reference's frames.
"""

import argparse
import shutil
from pathlib import Path

import lab  # first: it finds the folder above
import numpy as np
import torch
from PIL import Image

import clips
import model
from common import report, save_json
from hypernetwork import store_predictor
from sample import SCHEDULER, model_index, write_video

LIMIT = 12_000_000
TRIALS = 10  # per effect
README = """\
# A trained miniature of Video2LoRA

48x48 pixels, 9 frames, {effects} effects; made by `tests/reference/miniature/` (see its README for training and scores).
Trained with k = 4 iterations, a = 88, b = 44, references in [-1, 1] (`--reference-range signed`), guidance 1, no
noise on the condition image. `references/<effect>/` holds PNG frames and a clip each, `images/` first frames with
captions in `captions.json`, `trials/` the references, first frames and captions that the model is scored on; all of
them are held out of training. `golden/` is what PyTorch makes of some of them.
"""


def picture(pixels):
    return Image.fromarray((pixels * 255 + 0.5).astype(np.uint8))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    mini, out = model.Miniature(a.work), a.out
    shutil.copytree(a.work / "vae", out / "vae", dirs_exist_ok=True)
    shutil.copytree(a.work / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    store_predictor(out, mini.hypernetwork, mini.steering.named(), torch.bfloat16)
    mini.transformer.to(torch.bfloat16).save_pretrained(out / "transformer")
    config = model.read_json(out / "transformer" / "config.json")
    save_json(out / "transformer" / "config.json", config | {"add_noise_in_inpaint_model": False})
    mini.text_encoder.to(torch.bfloat16).save_pretrained(out / "text_encoder")
    save_json(out / "scheduler" / "scheduler_config.json", SCHEDULER)
    model_index(out, "CogVideoX_Fun_Pipeline_Inpaint", SCHEDULER["_class_name"])
    shutil.copy(a.work / "classifier.json", out)

    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    (out / "README.md").write_text(README.format(effects=len(clips.EFFECTS)), encoding="utf-8")
    write_references(out)
    write_trials(out / "trials")
    report(out)
    print(f"model: {size} bytes")
    assert size <= LIMIT, f"{size} bytes are more than {LIMIT}"


def write_references(out: Path):
    captions = {}
    (out / "images").mkdir(exist_ok=True)
    for number, effect in enumerate(clips.EFFECTS + clips.ZERO_SHOT):
        reference, image, captions[f"{number:02}.png"] = model.trial(effect, 9_000)
        folder = out / "references" / effect
        folder.mkdir(parents=True, exist_ok=True)
        for frame, pixels in enumerate(reference):
            picture(pixels).save(folder / f"{frame:02}.png", optimize=True)
        write_video(out / "references" / f"{effect}.mp4", [picture(p) for p in reference])
        picture(image).save(out / "images" / f"{number:02}.png", optimize=True)
    save_json(out / "images" / "captions.json", captions)


def write_trials(out: Path):
    out.mkdir(exist_ok=True)
    captions = {}
    for effect in clips.EFFECTS + clips.ZERO_SHOT:
        trials = [model.trial(effect, index) for index in range(TRIALS)]
        captions[effect] = [caption for _, _, caption in trials]
        rows = [np.concatenate([image, *reference], axis=1) for reference, image, _ in trials]
        picture(np.concatenate(rows)).save(out / f"{effect}.png", optimize=True)
    index = {"size": lab.SIZE, "families": clips.FAMILIES, "zero_shot": clips.ZERO_SHOT, "captions": captions}
    save_json(out / "trials.json", index)


if __name__ == "__main__":
    main()
