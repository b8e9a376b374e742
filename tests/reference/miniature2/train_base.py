"""Stage 2: the image-to-video transformer and its text encoder, on cached latents, and a bank of adapters with it.

Run: python train_base.py --work DIR [--minutes 14] [--resume] [--init FILE]        (needs DIR/vae/ and DIR/cache/)
Leaves DIR/base.pt (weights and their average, decay .998) and DIR/base.jsonl. Loss: flow matching, times as at shift 3.
Captions name no effect, so the transformer alone learns the mixture of all of them; one caption in ten is empty. In two steps of
three each sample has the adapter of its effect, as in stage 3, so that the transformer learns to be steered.
"""

from pathlib import Path

import world  # first: it finds the folders of the first miniature
import lab
import numpy as np
import torch

import clips
import judge
import networks
from cache import Cache


def main():
    a = lab.arguments(
        __doc__, 14, ("--lr", {"type": float, "default": 1.5e-3}), ("--batch", {"type": int, "default": 32}),
        ("--init", {"type": Path, "help": "start from an earlier base.pt"}),
    )  # fmt: skip
    cache, words = Cache(a.work), networks.new_tokenizer(a.work / "tokenizer")
    transformer, text_encoder = networks.new_transformer(), networks.new_text_encoder(len(words))
    if a.init:
        state = torch.load(a.init, weights_only=False)
        transformer.load_state_dict(state["base"])
        text_encoder.load_state_dict(state["text"])
    branches, bank = networks.Branches(transformer), networks.Bank(transformer)
    average = lab.Average(transformer, networks.new_transformer(), 0.998)
    text_average = lab.Average(text_encoder, networks.new_text_encoder(len(words)), 0.998)
    bank_average = lab.Average(bank, networks.Bank(transformer), 0.998)
    run = lab.Run(
        "base", a,
        {
            "base": transformer, "text": text_encoder, "bank": bank, "average": average.shadow,
            "text_average": text_average.shadow, "bank_average": bank_average.shadow,
        },
        [{"params": [*transformer.parameters(), *text_encoder.parameters()], "lr": a.lr}, {"params": list(bank.parameters()), "lr": 2.5 * a.lr}],
        log_every=50,
    )  # fmt: skip
    empty, empty_mask = networks.tokens(words, [""])
    while run.on():
        rng, gen = run.rng(), torch.Generator().manual_seed(run.at)
        steered = run.at % 3 > 0
        chosen, members, strengths = cache.steered(rng, a.batch)
        if not steered:
            chosen = torch.from_numpy(rng.integers(len(cache), size=a.batch))
        latents, conditions, ids, mask = cache.target(chosen)
        none = torch.rand(a.batch, 1, generator=gen) < 0.1
        text = networks.hidden(text_encoder, torch.where(none, empty, ids), torch.where(none, empty_mask, mask))
        branches.factors = networks.blend(bank(), members, strengths) if steered else None
        run.step(networks.flow_loss(transformer, latents, conditions, text, gen))
        for shadow in (average, text_average, bank_average):
            shadow.update(run.at)
    run.save()

    # What it does unsteered, for held-out first frames.
    lots = judge.Judge(a.work)
    videos = lots.generate([judge.trial(world.STILL, i) for i in range(60)])
    names, counts = np.unique([lots.classifier(v) for v in videos], return_counts=True)
    clips.sheet(videos[:12], a.work / "base.png")
    run.tick(count=False)
    run.log(unsteered={str(n): int(c) for n, c in zip(names, counts)})


if __name__ == "__main__":
    main()
