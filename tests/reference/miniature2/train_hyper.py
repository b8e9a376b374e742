"""Stage 4: the hypernetwork, in Prompt2Effect's two stages.

Run: python train_hyper.py --work DIR [--minutes 9] [--regress 3] [--resume]        (needs DIR/bank.pt)
Leaves DIR/hyper.pt and DIR/hyper.jsonl. The first --regress minutes bring updates near the bank's (normalised mean square error of B A,
which the log calls `nmse`; on canonical factors it stays at 1 for as long). The rest trains through the frozen transformer, with the
loss that trained the bank, and --keep times the first one. Half of the prompts are varied:
parts of two phrasings joined, words left out, and words put in that mean nothing.
"""

import json

import world  # first: it finds the folders of the first miniature
import lab
import torch

import hyper
import judge
import networks
from cache import Cache


OUT, IN = 0.2, 0.1


class Prompts:
    """Phrasings to train with, half of them varied."""

    def __init__(self):
        self.told = {effect: [prompt.split() for prompt in world.prompts(effect, False)] for effect in world.EFFECTS}
        self.words = {effect: set().union(*told) for effect, told in self.told.items()}
        uses = lambda word: sum(word in words for words in self.words.values())  # noqa: E731
        every = sorted(set().union(*self.words.values()))
        # Words of many effects tell none of them from another; those of one effect alone tell it.
        self.idle, self.telling = [w for w in every if uses(w) >= 6], {w for w in every if uses(w) == 1}

    def draw(self, rng, name):
        """What a member of the bank is called."""
        effect = world.VARIANTS.get(name, name)
        words = " ".join(self.varied(rng, effect) if rng.random() < 0.5 else self.any(rng, effect))
        return words if name == effect else world.GENTLY[False][rng.integers(len(world.GENTLY[False]))].format(words)

    def any(self, rng, effect):
        return self.told[effect][rng.integers(len(self.told[effect]))]

    def varied(self, rng, effect):
        """The first words of one phrasing and the last words of another, each word left out at OUT, an idle one before it at IN; a word that tells the effect stays."""
        while True:
            first, last = self.any(rng, effect), self.any(rng, effect)
            words = first[: rng.integers(len(first) + 1)] + last[rng.integers(len(last) + 1) :]
            words = [word for word in words if rng.random() >= OUT]
            if self.telling.intersection(words):
                put = lambda: [self.idle[rng.integers(len(self.idle))]] if rng.random() < IN else []  # noqa: E731
                return [part for word in words for part in (*put(), word)]


def nmse(found, bank, norms, members):
    """Mean over layers of |error|^2 / |bank's|^2, of the updates B A."""
    errors = []
    for slot, (down, up) in found.items():
        errors.append((up @ down - bank[slot][members]).square().sum((1, 2)).mean() / norms[slot])
    return torch.stack(errors).mean()


def main():
    a = lab.arguments(
        __doc__, 9, ("--lr", {"type": float, "default": 2e-3}), ("--batch", {"type": int, "default": 16}),
        ("--regress", {"type": float, "default": 3}), ("--keep", {"type": float, "default": 0.2}),
        ("--prompts", {"type": int, "default": 6}),
    )  # fmt: skip
    lots = judge.Judge(a.work)
    cache = Cache(a.work)
    bank = {slot: up @ down for slot, (down, up) in lots.bank().items()}
    norms = {slot: update.square().sum((1, 2)).mean() for slot, update in bank.items()}
    weights = hyper.weights(lots.transformer)
    network = hyper.new_network(lots.transformer)
    average = lab.Average(network, hyper.new_network(lots.transformer), 0.998)
    run = lab.Run("hyper", a, {"hyper": network, "average": average.shadow}, network.groups(a.lr), 25)
    prompts = Prompts()
    checked = run.used
    while run.on():
        rng, gen = run.rng(), torch.Generator().manual_seed(run.at)
        among = rng.choice(len(world.BANK), a.prompts, replace=False)
        with torch.no_grad():
            ids, mask = networks.tokens(lots.words, [prompts.draw(rng, world.BANK[i]) for i in among])
            text = networks.hidden(lots.text_encoder, ids, mask)
        found = network(weights, text, mask)
        distance = nmse(found, bank, norms, torch.from_numpy(among))
        if run.used < a.regress:
            run.step(distance, {"nmse": distance.item()})
        else:
            chosen, members, strengths = cache.steered(rng, a.batch, among=list(among))
            latents, conditions, ids, caption = cache.target(chosen)
            lots.branches.factors = networks.blend(found, members, strengths)
            with torch.no_grad():
                captions = networks.hidden(lots.text_encoder, ids, caption)
            flow = networks.flow_loss(lots.transformer, latents, conditions, captions, gen)
            run.step(flow + a.keep * distance, {"nmse": distance.item(), "flow": flow.item()})
            lots.branches.factors = None
        average.update(run.at)
        if run.used > checked + 4:
            run.save()
            report(run, 2)
            checked = run.used
    run.save()
    report(run, 5)


def report(run, count):
    """Scores of prompts that were seen, and of prompts that were held out."""
    lots = judge.Judge(run.a.work)
    for kind, held_out in (("seen", False), ("held_out", True)):
        told = lambda names, h=held_out: [world.prompts(n, h)[i % len(world.prompts(n, h))] for i, n in enumerate(names)]  # noqa: E731
        run.log(evaluation=kind, scores=json.dumps(judge.score(lots, lambda names: lots.predicted(told(names)), count)))
    run.tick(count=False)


if __name__ == "__main__":
    main()
