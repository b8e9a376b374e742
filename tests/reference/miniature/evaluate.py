"""How well generated clips carry the reference's effect, judged by measures.py.

Run: python evaluate.py --work DIR [--count 10] [--strength 1]        (needs all stages)
Prints and writes DIR/evaluation.json and DIR/evaluation.png (per effect: reference, base, steered).

For `count` held-out pairs of reference and first frame per effect, from weights rounded to bf16:
  base     no steering;       steered   by the reference;       other   by a reference of the next effect in the list.
`accuracy` counts clips whose class is the nominal effect, out of all 13 classes; `follows` (of `other`) those whose
class is the other reference's. `zero_shot`: the variants that stage 3 never saw, steered. DDIM, 20 steps, no guidance.
"""

import argparse
import json
from pathlib import Path

import lab  # first: it finds the folder above
import numpy as np
import torch

import clips
import measures
import model

MODES = ("base", "steered", "other")


def evaluate(mini, work: Path, count, modes=MODES, effects=clips.EFFECTS, picture=None, strength=1.0):
    classifier = measures.Classifier.load(work / "classifier.json")
    trials = [(effect, *model.trial(effect, i)) for effect in effects for i in range(count)]
    nominal, references, images, texts = map(list, zip(*trials))
    shifted = references[count:] + references[:count]
    result, videos = {}, {}
    for mode in modes:
        given = {"base": None, "steered": references, "other": shifted}[mode]
        videos[mode] = mini.generate(images, texts, given, strength=strength)
        answers = np.array([classifier(v) for v in videos[mode]])
        hit = answers == np.array(nominal)
        per = {e: float(hit[np.array(nominal) == e].mean()) for e in effects}
        result[mode] = {"accuracy": float(hit.mean()), "per_effect": per}
        families = {f: [per[e] for e in members if e in per] for f, members in clips.FAMILIES.items()}
        result[mode]["per_family"] = {f: float(np.mean(v)) for f, v in families.items() if v}
        result[mode]["answers"] = {e: answers[np.array(nominal) == e].tolist() for e in effects}
        if mode == "other":
            result[mode]["follows"] = float((answers == np.array(nominal[count:] + nominal[:count])).mean())
    if picture:
        rows = [r[k * count] for k in range(len(effects)) for r in (references, *videos.values())]
        clips.sheet(rows, picture)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    mini = model.Miniature(a.work).round_()
    result = {"count": a.count, "strength": a.strength}
    result |= evaluate(mini, a.work, a.count, picture=a.work / "evaluation.png", strength=a.strength)
    zero = evaluate(mini, a.work, a.count, ("base", "steered"), clips.ZERO_SHOT, strength=a.strength)
    result["zero_shot"] = zero
    (a.work / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    for mode in MODES:
        print(mode, json.dumps({k: v for k, v in result[mode].items() if k != "answers"}))
    print("zero-shot", json.dumps({mode: zero[mode]["per_effect"] for mode in zero}))


if __name__ == "__main__":
    main()
