"""Stage 3: the bank, an adapter for each effect and variant, over the frozen transformer.

Run: python train_bank.py --work DIR [--minutes 6] [--resume]        (needs DIR/base.pt)
Leaves DIR/bank.pt and DIR/bank.jsonl. All adapters train together, each sample of a batch with its own. A clip's level is its
adapter's strength; three clips in ten show two effects and are made by the sum of two adapters. It starts from stage 2's bank,
over weights that are now rounded to bf16.
"""

import json

import world  # first: it finds the folders of the first miniature
import lab
import torch

import judge
import networks
from cache import Cache


def main():
    a = lab.arguments(__doc__, 6, ("--lr", {"type": float, "default": 2e-3}), ("--batch", {"type": int, "default": 32}))
    cache, words = Cache(a.work), networks.new_tokenizer(a.work / "tokenizer")
    transformer, text_encoder = judge.base(a.work, words)
    branches, bank = networks.Branches(transformer), networks.Bank(transformer)
    bank.load_state_dict(torch.load(a.work / "base.pt", weights_only=False)["bank_average"])
    average = lab.Average(bank, networks.Bank(transformer), 0.995)
    run = lab.Run("bank", a, {"bank": bank, "average": average.shadow}, [{"params": list(bank.parameters()), "lr": a.lr}], 50)
    while run.on():
        rng, gen = run.rng(), torch.Generator().manual_seed(run.at)
        chosen, members, strengths = cache.steered(rng, a.batch)
        latents, conditions, ids, mask = cache.target(chosen)
        branches.factors = networks.blend(bank(), members, strengths)
        with torch.no_grad():
            text = networks.hidden(text_encoder, ids, mask)
        run.step(networks.flow_loss(transformer, latents, conditions, text, gen))
        average.update(run.at)
    run.save()

    lots = judge.Judge(a.work)
    trained = lots.bank()
    pick = lambda names: {k: (d[at], u[at]) for at in [[world.BANK.index(n) for n in names]] for k, (d, u) in trained.items()}  # noqa: E731
    run.tick(count=False)
    run.log(evaluation=json.dumps(judge.score(lots, pick, 5)))


if __name__ == "__main__":
    main()
