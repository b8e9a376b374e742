"""Stage 3: hypernetwork and LightLoRA's auxiliary matrices; backbone, text encoder and VAE are frozen.

Run: python train_hyper.py --work DIR [--minutes 40] [--resume]        (needs stages 1 and 2)
Leaves DIR/hyper.pt and DIR/hyper.jsonl. Loss: the diffusion loss of targets whose reference is another clip (another
scene, another variant) of the same effect. k = 4, rank 1, a = 88, b = 44. The zero-shot variants and `still` never occur.

--probe SHARE spends the first SHARE of the time on classifying the effect from the mean of the predicted tokens with a
head that is thrown away. That is not "diffusion loss only"; the default, 0, is.
"""

import lab  # first: it finds the folder above
import torch
import torch.nn.functional as F
from torch import nn

import clips
import model
from cache import Cache
from evaluate import evaluate


def main():
    a = lab.arguments(
        __doc__, 40,
        ("--lr", {"type": float, "default": 5e-4}),
        ("--aux-lr", {"type": float, "default": 1e-3}),
        ("--references", {"type": int, "default": 16}),
        ("--targets", {"type": int, "default": 2, "help": "per reference"}),
        ("--probe", {"type": float, "default": 0.0}),
    )  # fmt: skip
    mini = model.Miniature(a.work, parts=("vae", "dit"))
    cache = Cache(a.work, mini.scale)
    slots = len(mini.steering.slots)
    hypernetwork, width = model.new_hypernetwork(slots), model.A + model.B
    head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(clips.EFFECTS)))
    average = lab.Average(hypernetwork, mini.hypernetwork, 0.998)
    frozen = model.Miniature(a.work, parts=("vae", "dit"))  # `mini` samples with averages, this one trains
    steering, transformer = frozen.steering, frozen.transformer
    steering_average = lab.Average(steering, mini.steering, 0.998)
    run = lab.Run(
        "hyper", a,
        {
            "hyper": hypernetwork, "steering": steering, "head": head,
            "average": average.shadow, "steering_average": steering_average.shadow,
        },
        [
            {"params": [*hypernetwork.parameters(), *head.parameters()], "lr": a.lr},
            {"params": list(steering.parameters()), "lr": a.aux_lr},
        ],
        log_every=50,
    )  # fmt: skip
    rope, next_evaluation = model.rotary(transformer), run.used + 5
    while run.on():
        rng, gen = run.rng(), torch.Generator().manual_seed(run.at)
        effects = rng.integers(len(clips.EFFECTS), size=a.references)
        reference = torch.tensor([rng.choice(cache.by_effect[e]) for e in effects])
        tokens = hypernetwork(cache.reference(reference), model.ITERATIONS)
        if run.fraction() < a.probe:
            logits = head(tokens.mean(1))
            right = (logits.argmax(1).numpy() == effects).mean()
            run.step(F.cross_entropy(logits, torch.from_numpy(effects)), {"probe_accuracy": float(right)})
        else:
            target = torch.tensor([rng.choice(cache.by_effect[e]) for e in effects.repeat(a.targets)])
            latents, conditions, caption = cache.target(target)
            count = len(latents)
            high = torch.rand(count, generator=gen) < 0.6  # the effect is decided at high noise
            early, late = (torch.randint(*r, (count,), generator=gen) for r in ((700, 1000), (0, 700)))
            t = torch.where(high, early, late)
            with torch.no_grad():
                text = frozen.text_encoder(caption).last_hidden_state
            steering.tokens = tokens.repeat_interleave(a.targets, 0)
            noise = torch.randn(latents.shape, generator=gen)
            loss = model.diffusion_loss(transformer, frozen.scheduler, latents, conditions, text, rope, t, noise)
            run.step(loss)
        average.update(run.at)
        steering_average.update(run.at)
        if run.used > next_evaluation and run.fraction() >= a.probe:
            result = evaluate(mini, a.work, 4, modes=("steered",))
            run.tick(count=False)
            run.log(steered=result["steered"]["accuracy"], per_effect=result["steered"]["per_effect"])
            next_evaluation = run.used + 5
    run.save()


if __name__ == "__main__":
    main()
