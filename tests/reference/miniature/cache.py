"""Between stages 1 and 2: encodes training clips once.

Run: python cache.py --work DIR [--scenes 4000] [--per-scene 3]        (needs DIR/vae/)
Writes DIR/cache/<shard>.safetensors, 250 scenes each; shards that exist are kept, so it can be interrupted.
latents [n,16,T,h,w] f16 (mean, unscaled), effect [n] and scene [n] of each clip; condition [250,16,T,h,w] f16 and
ids [250,16] of each scene. A scene's clips share their first frame and caption.
"""

import argparse
from pathlib import Path

import lab  # first: it finds the folder above
import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import load_file, save_file

import clips
import model

SHARD = 250


def shard(vae, words, number, per_scene):
    videos, effects, scenes, stills, texts = [], [], [], [], []
    for index in range(number * SHARD, (number + 1) * SHARD):
        rng = np.random.default_rng([7, index])
        for effect in rng.choice(len(clips.CLASSES), per_scene, replace=False):
            variant = 2_000_000 + int(rng.integers(1_000_000))
            videos.append(clips.clip("train", 2_000_000 + index, clips.CLASSES[effect], lab.FRAMES, lab.SIZE, variant)[0])
            effects.append(int(effect))
            scenes.append(index)
        stills.append(clips.clip("train", 2_000_000 + index, clips.STILL, lab.FRAMES, lab.SIZE)[0])
        texts.append(clips.caption(clips.scene("train", 2_000_000 + index)))
    with lab.fast():
        latents = lab.encode_all(vae, lab.to_pixels(videos))
        condition = lab.encode_all(vae, lab.condition(lab.to_pixels(stills)))
    return {
        "latents": latents.half(),
        "effect": torch.tensor(effects),
        "scene": torch.tensor(scenes),
        "condition": condition.half(),
        "ids": model.ids(words, texts),
    }


class Cache:
    """All shards, in memory; latents and conditions leave it scaled and in the backbone's layout [B,T,c,h,w]."""

    def __init__(self, work: Path, scale: float):
        shards = [load_file(path) for path in sorted((work / "cache").glob("*.safetensors"))]
        assert shards, "run cache.py first"
        self.scale = scale
        self.parts = {key: torch.cat([s[key] for s in shards]) for key in shards[0]}
        self.by_effect = [torch.nonzero(self.parts["effect"] == k)[:, 0].numpy() for k in range(len(clips.CLASSES))]

    def __len__(self):
        return len(self.parts["effect"])

    def reference(self, chosen):
        return self.parts["latents"][chosen].float() * self.scale

    def target(self, chosen):
        """(latents, inpainting channels, caption ids) of clips."""
        scenes = self.parts["scene"][chosen]
        condition = self.parts["condition"][scenes].float() * self.scale
        return self.reference(chosen).transpose(1, 2), model.inpaint(condition, self.scale), self.parts["ids"][scenes]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--per-scene", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    vae = AutoencoderKLCogVideoX.from_pretrained(a.work / "vae").float().eval()
    words = model.new_tokenizer(a.work / "tokenizer")
    (a.work / "cache").mkdir(exist_ok=True)
    for number in range(a.scenes // SHARD):
        path = a.work / "cache" / f"{number:04}.safetensors"
        if not path.exists():
            save_file(shard(vae, words, number, a.per_scene), path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
            print(path.name, flush=True)


if __name__ == "__main__":
    main()
