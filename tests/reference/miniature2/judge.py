"""The trained parts of a work folder together, and how well they do on held-out first frames.

Run: python judge.py --work DIR [--count 4] [--strength 1]
"""

import argparse
import json
from pathlib import Path

import world  # first: it finds the folders of the first miniature
import lab
import networks
import numpy as np
import torch
from diffusers import AutoencoderKLWan

import clips
import hyper
import measures


def trial(effect: str, index: int):
    """A held-out first frame, as an 8-bit file would hold it, and its caption."""
    number = 5_000_000 + world.CLASSES.index(effect) * 1000 + index
    image, _ = world.clip("held_out", number, world.STILL)
    return (np.floor(image[0] * 255 + 0.5) / 255).astype(np.float32), clips.caption(clips.scene("held_out", number))


class Judge:
    """Everything in f32, with weights as they are stored: rounded to bf16."""

    def __init__(self, work: Path):
        self.work = work
        self.vae = AutoencoderKLWan.from_pretrained(work / "vae").float().eval()
        self.words = networks.new_tokenizer(work / "tokenizer")
        self.transformer, self.text_encoder = base(work, self.words)
        self.branches = networks.Branches(self.transformer)
        self.classifier = measures.Classifier.load(work / "classifier.json")

    def bank(self):
        """{slot: (A, B)} of world.BANK."""
        bank = networks.Bank(self.transformer)
        bank.load_state_dict(torch.load(self.work / "bank.pt", weights_only=False)["average"])
        return {name: (down.detach(), up.detach()) for name, (down, up) in bank().items()}

    @torch.no_grad()
    def predicted(self, prompts):
        """{slot: (A, B)} of these prompts."""
        network = hyper.new_network(self.transformer)
        network.load_state_dict(torch.load(self.work / "hyper.pt", weights_only=False)["average"])
        network.to(torch.bfloat16).float().eval()
        ids, mask = networks.tokens(self.words, prompts)
        return network(hyper.weights(self.transformer), networks.hidden(self.text_encoder, ids, mask), mask)

    @torch.no_grad()
    def generate(self, trials, factors=None, seed=0, batch=60):
        """Trials (image [H,W,3] in [0,1], caption), and factors with an adapter for each -> videos [B,F,H,W,3]."""
        shape = (len(trials), networks.LATENT, networks.LATENT_FRAMES, networks.LATENT_SIZE, networks.LATENT_SIZE)
        noise, videos = torch.randn(shape, generator=torch.Generator().manual_seed(seed)), []
        for start in range(0, len(trials), batch):
            part = slice(start, start + batch)
            images, texts = zip(*trials[part])
            stills = lab.to_pixels([np.repeat(image[None], world.FRAMES, 0) for image in images])
            given = networks.encode(self.vae, networks.condition(stills))
            text = networks.hidden(self.text_encoder, *networks.tokens(self.words, list(texts)))
            self.branches.factors = factors and {name: (down[part], up[part]) for name, (down, up) in factors.items()}
            latents = networks.sample(self.transformer, given, text, noise[part])
            self.branches.factors = None
            videos.append(lab.to_videos(networks.decode(self.vae, latents)))
        return np.concatenate(videos)


def base(work: Path, words):
    """(transformer, text encoder), frozen, as they are stored."""
    transformer, text_encoder = networks.new_transformer(), networks.new_text_encoder(len(words))
    state = torch.load(work / "base.pt", weights_only=False)
    transformer.load_state_dict(state["average"])
    text_encoder.load_state_dict(state["text_average"])
    for module in (transformer, text_encoder):
        module.to(torch.bfloat16).float().eval().requires_grad_(False)
    return transformer, text_encoder


def shown(answer: str, effect: str) -> bool:
    """Whether a class shows an effect: it is this one, alone or with another."""
    return effect in answer.split("+")


def blended(factors, members, strengths):
    return networks.blend(factors, torch.tensor(members), torch.tensor(strengths, dtype=torch.float32))


def score(lots: Judge, factors_of, count: int, strength=1.0):
    """Exact answers for each effect, for pairs; `factors_of(names)` gives adapters in the order of names."""
    found = {}
    trials = [trial(e, i) for e in world.EFFECTS for i in range(count)]
    names = [e for e in world.EFFECTS for _ in range(count)]
    factors = blended(factors_of(names), [[i] for i in range(len(names))], [[strength]] * len(names))
    answers = [lots.classifier(v) for v in lots.generate(trials, factors)]
    found["effects"] = {e: np.mean([a == e for a, n in zip(answers, names) if n == e]).item() for e in world.EFFECTS}
    found["effect"] = float(np.mean([a == n for a, n in zip(answers, names)]))
    found["answers"] = {f"{n}->{a}": 1 for a, n in zip(answers, names) if a != n}
    chosen = world.PAIRS[:: max(1, len(world.PAIRS) // (4 * count))]
    parts = [name for pair in chosen for name in pair.split("+")]
    factors = blended(factors_of(parts), [[2 * i, 2 * i + 1] for i in range(len(chosen))], [[strength] * 2] * len(chosen))
    answers = [lots.classifier(v) for v in lots.generate([trial(p, 0) for p in chosen], factors)]
    found["both"] = float(np.mean([all(shown(a, e) for e in p.split("+")) for a, p in zip(answers, chosen)]))
    found["first"] = float(np.mean([shown(a, p.split("+")[0]) for a, p in zip(answers, chosen)]))
    found["second"] = float(np.mean([shown(a, p.split("+")[1]) for a, p in zip(answers, chosen)]))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--strength", type=float, default=1.0)
    a = parser.parse_args()
    lots = Judge(a.work)
    found = {}
    trials = [trial(e, i) for e in world.EFFECTS for i in range(a.count)]
    names = [e for e in world.EFFECTS for _ in range(a.count)]
    found["base"] = float(np.mean([lots.classifier(v) == e for v, e in zip(lots.generate(trials), names)]))
    bank = lots.bank()
    pick = lambda names: {k: (d[at], u[at]) for at in [[world.BANK.index(n) for n in names]] for k, (d, u) in bank.items()}  # noqa: E731
    found["bank"] = score(lots, pick, a.count, a.strength)
    if (a.work / "hyper.pt").exists():
        for kind, held_out in (("seen", False), ("held_out", True)):
            told = lambda names, h=held_out: [world.prompts(n, h)[i % len(world.prompts(n, h))] for i, n in enumerate(names)]  # noqa: E731
            found[kind] = score(lots, lambda names: lots.predicted(told(names)), a.count, a.strength)
    (a.work / "judged.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
