"""Between stages 1 and 2: encodes training clips once.

Run: python cache.py --work DIR [--scenes 3000] [--per-scene 4]        (needs DIR/vae/)
Writes DIR/cache/<shard>.safetensors, 250 scenes each; shards that exist are kept, so it can be interrupted. `latents`
[n,c,T,h,w] f16 (normalised), `class`, `level` and `scene` of each clip; `condition` of each scene, and `ids` and `mask` of its caption.
"""

import argparse
from pathlib import Path

import networks
import lab
import numpy as np
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file

import clips
import world

SHARD = 250


def draw(rng):
    """Class and level of a clip."""
    at = rng.random()
    names = world.EFFECTS if at < 0.6 else world.PAIRS if at < 0.92 else (world.STILL,)
    effect = names[rng.integers(len(names))]
    return world.CLASSES.index(effect), rng.uniform(0.85, 1.15) if rng.random() < 0.5 else rng.uniform(0.1, 1.4)


def shard(vae, words, number, per_scene):
    videos, stills, texts, told = [], [], [], []
    for index in range(number * SHARD, (number + 1) * SHARD):
        rng = np.random.default_rng([8, index])
        for _ in range(per_scene):
            effect, level = draw(rng)
            how = 2_000_000 + int(rng.integers(1_000_000))
            videos.append(world.clip("train", 2_000_000 + index, world.CLASSES[effect], how, level)[0])
            told.append((effect, level, index))
        stills.append(world.clip("train", 2_000_000 + index, world.STILL)[0])
        texts.append(clips.caption(clips.scene("train", 2_000_000 + index)))
    with lab.fast():
        latents = networks.encode(vae, lab.to_pixels(videos))
        condition = networks.encode(vae, networks.condition(lab.to_pixels(stills)))
    effect, level, scene = zip(*told)
    ids, mask = networks.tokens(words, texts)
    return {
        "latents": latents.half(), "class": torch.tensor(effect), "level": torch.tensor(level).float(),
        "scene": torch.tensor(scene), "condition": condition.half(), "ids": ids, "mask": mask,
    }  # fmt: skip


class Cache:
    """All shards, in memory."""

    def __init__(self, work: Path):
        shards = [load_file(path) for path in sorted((work / "cache").glob("*.safetensors"))]
        assert shards, "run cache.py first"
        self.parts = {key: torch.cat([s[key] for s in shards]) for key in shards[0]}
        self.by_class = [torch.nonzero(self.parts["class"] == k)[:, 0].numpy() for k in range(len(world.CLASSES))]
        level = self.parts["level"].numpy()
        # A gentle variant at strength 1.3 goes no further than this.
        self.gentle = {e: own[level[own] < 1.3 * world.GENTLE] for e, own in zip(world.CLASSES, self.by_class)}

    def __len__(self):
        return len(self.parts["class"])

    def target(self, chosen):
        """(latents, conditions, ids, mask) of clips."""
        scenes = self.parts["scene"][chosen]
        of = lambda key: self.parts[key][scenes]  # noqa: E731
        return self.parts["latents"][chosen].float(), of("condition").float(), of("ids"), of("mask")

    def steered(self, rng, count, pairs=0.3, among=tuple(range(len(world.BANK)))):
        """Clips, and what makes them: members [count,2] of `among` (by their place in it) and strengths [count,2], 0 where there is one only.
        `among` are places in world.BANK."""
        names = [world.BANK[i] for i in among]
        both = [k for k, c in enumerate(world.CLASSES) if "+" in c and all(e in names for e in c.split("+"))]
        chosen, members, strengths = [], [], []
        for _ in range(count):
            if both and rng.random() < pairs:
                k = both[rng.integers(len(both))]
                at = int(rng.choice(self.by_class[k]))
                members.append([names.index(e) for e in world.CLASSES[k].split("+")])
                strengths.append([float(self.parts["level"][at])] * 2)
            else:
                name = names[rng.integers(len(names))]
                effect, gentle = world.VARIANTS.get(name, name), name in world.VARIANTS
                at = int(rng.choice(self.gentle[effect] if gentle else self.by_class[world.CLASSES.index(effect)]))
                members.append([names.index(name), 0])
                strengths.append([float(self.parts["level"][at]) / (world.GENTLE if gentle else 1), 0.0])
            chosen.append(at)
        return torch.tensor(chosen), torch.tensor(members), torch.tensor(strengths)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=3000)
    parser.add_argument("--per-scene", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    vae = AutoencoderKLWan.from_pretrained(a.work / "vae").float().eval()
    words = networks.new_tokenizer(a.work / "tokenizer")
    (a.work / "cache").mkdir(exist_ok=True)
    for number in range(a.scenes // SHARD):
        path = a.work / "cache" / f"{number:04}.safetensors"
        if not path.exists():
            save_file(shard(vae, words, number, a.per_scene), path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
            print(path.name, flush=True)


if __name__ == "__main__":
    main()
