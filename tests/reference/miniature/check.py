"""Facts that training relies on, checked in seconds with random weights.

Run: python check.py
"""

import lab  # first: it finds the folder above
import numpy as np
import torch

import clips
import measures
import model
from hypernetwork import deltas, fused, linear_modules


def steering_equals_fused_weights():
    torch.manual_seed(0)
    transformer = model.new_transformer().eval()
    steering = model.Steering(transformer)
    hypernetwork = model.new_hypernetwork(len(steering.slots))
    assert steering.slots == linear_modules(transformer)
    hypernetwork.img_weight_generator.decoder_model.delta_proj[1].weight.data *= 4
    tokens = hypernetwork(torch.randn(2, 16, 3, 6, 6), model.ITERATIONS)
    x, text, t = torch.randn(2, 3, 33, 6, 6), torch.randn(2, model.TEXT, 64), torch.tensor([900, 300])
    rope = model.rotary(transformer)
    run = lambda: transformer(x, text, t, image_rotary_emb=rope).sample  # noqa: E731
    base = run()
    steering.tokens = tokens
    steered = run()
    steering.tokens = None
    for sample in range(2):
        with fused(transformer, deltas(tokens[sample], steering.named(), steering.slots)):
            torch.testing.assert_close(run()[sample], steered[sample], atol=2e-4, rtol=1e-3)
    print("steering moves the output by", (steered - base).std().item(), "of std", base.std().item())


def first_frame_is_the_same_for_every_effect():
    for index in range(20):
        first = [clips.clip("train", index, e, variant_index=k)[0][0] for k, e in enumerate(clips.CLASSES)]
        assert all(np.array_equal(first[0], f) for f in first)


def captions_never_name_an_effect():
    words = {w for text in clips.captions() for w in text.split()}
    effects = {w for e in clips.CLASSES for w in e.split("_")}
    assert not words & effects, words & effects


def captions_fit():
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        words = model.new_tokenizer(Path(folder))
        numbers = words(clips.captions()).input_ids
    longest, unknown = max(len(i) for i in numbers), sum(2 in i for i in numbers)
    print(len(words), "pieces, extra ids included; longest caption", longest, "tokens; unknown pieces in", unknown)
    assert longest <= model.TEXT and unknown == 0 and len(words) <= 1000


def measures_do_not_depend_on_size_or_length():
    a = measures.features(clips.clip("classifier", 5, "right", 9, 48)[0])
    b = measures.features(clips.clip("classifier", 5, "right", 9, 96)[0])
    assert abs(a - b)[:9].max() < 0.05, abs(a - b)


if __name__ == "__main__":
    with torch.no_grad():
        steering_equals_fused_weights()
    first_frame_is_the_same_for_every_effect()
    captions_never_name_an_effect()
    captions_fit()
    measures_do_not_depend_on_size_or_length()
    print("ok")
