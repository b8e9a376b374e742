"""Stage 4: the hypernetwork, in Prompt2Effect's two stages.

Run: python train_hyper.py --work DIR [--minutes 9] [--regress 3] [--resume]        (needs DIR/bank.pt)
Leaves DIR/hyper.pt and DIR/hyper.jsonl. The first --regress minutes bring updates near the bank's (normalised mean square error of B A,
which the log calls `nmse`; on canonical factors it stays at 1 for as long). The rest trains through the frozen transformer, with the
loss that trained the bank, and --keep times the first one.
"""

import json

import world  # first: it finds the folders of the first miniature
import lab
import torch

import hyper
import judge
import networks
from cache import Cache


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
    with torch.no_grad():
        told = {}
        for name in world.BANK:
            ids, mask = networks.tokens(lots.words, world.prompts(name, False))
            told[name] = (networks.hidden(lots.text_encoder, ids, mask), mask)
    checked = run.used
    while run.on():
        rng, gen = run.rng(), torch.Generator().manual_seed(run.at)
        among = rng.choice(len(world.BANK), a.prompts, replace=False)
        picks = [rng.integers(len(told[world.BANK[i]][0])) for i in among]
        text, mask = (torch.stack([told[world.BANK[i]][part][pick] for i, pick in zip(among, picks)]) for part in (0, 1))
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
