"""Stage 2: the image-to-video backbone and its text encoder, on cached latents.

Run: python train_dit.py --work DIR [--minutes 25] [--resume]        (needs DIR/vae/ and DIR/cache/)
Leaves DIR/dit.pt (weights and their average, decay .999) and DIR/dit.jsonl. Loss: velocity, zero terminal SNR, t uniform.
Captions do not name the effect, so the backbone learns the mixture of all classes; one caption in ten is empty.
"""

import lab  # first: it finds the folder above
import numpy as np
import torch

import clips
import measures
import model
from cache import Cache


def main():
    a = lab.arguments(__doc__, 25, ("--lr", {"type": float, "default": 1.5e-3}), ("--batch", {"type": int, "default": 32}))
    mini = model.Miniature(a.work, parts=("vae",))
    cache = Cache(a.work, mini.scale)
    transformer, text_encoder = model.new_transformer(), model.new_text_encoder(len(mini.words))
    average = lab.Average(transformer, mini.transformer, 0.999)
    text_average = lab.Average(text_encoder, mini.text_encoder, 0.999)
    run = lab.Run(
        "dit", a,
        {"dit": transformer, "text": text_encoder, "average": average.shadow, "text_average": text_average.shadow},
        [{"params": [*transformer.parameters(), *text_encoder.parameters()], "lr": a.lr}],
        log_every=50,
    )  # fmt: skip
    rope, scheduler = model.rotary(transformer), mini.scheduler
    empty = model.ids(mini.words, [""])
    while run.on():
        rng, gen = run.rng(), torch.Generator().manual_seed(run.at)
        latents, conditions, tokens = cache.target(torch.from_numpy(rng.integers(len(cache), size=a.batch)))
        tokens = torch.where(torch.rand(a.batch, 1, generator=gen) < 0.1, empty, tokens)
        text = text_encoder(tokens).last_hidden_state
        t = torch.randint(0, 1000, (a.batch,), generator=gen)
        noise = torch.randn(latents.shape, generator=gen)
        run.step(model.diffusion_loss(transformer, scheduler, latents, conditions, text, rope, t, noise))
        average.update(run.at)
        text_average.update(run.at)
    run.save()

    # What it does unsteered: which classes it falls into, for held-out first frames.
    classifier = measures.Classifier.load(a.work / "classifier.json")
    _, images, texts = zip(*(model.trial(clips.STILL, i) for i in range(60)))
    videos = mini.generate(list(images), list(texts))
    names, counts = np.unique([classifier(v) for v in videos], return_counts=True)
    clips.sheet(videos[:12], a.work / "dit.png")
    run.tick(count=False)
    run.log(unsteered={str(n): int(c) for n, c in zip(names, counts)})


if __name__ == "__main__":
    main()
