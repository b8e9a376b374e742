"""What the second miniature is shown and told: clips of the first one at 32x32 pixels, pairs of effects, and prompts.

Run: python world.py --work DIR       calibrates the classifier (DIR/classifier.json) and says how well it reads held-out clips
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent / "miniature"))

import clips  # noqa: E402
import measures  # noqa: E402

FRAMES, SIZE = 9, 32
FAMILIES = {
    "motion": ("left", "right", "up", "down", "up_right"),
    "appearance": ("to_red", "to_blue", "to_green", "night"),
    "deformation": ("grow", "squash", "dissolve"),
}
EFFECTS = tuple(effect for family in FAMILIES.values() for effect in family)
FAMILY = {effect: family for family, effects in FAMILIES.items() for effect in effects}
STILL = clips.STILL
# Effects of two families can be had at once. An object that dissolves leaves nothing to see the other one by.
PAIRS = tuple(
    f"{a}+{b}" for i, a in enumerate(EFFECTS) for b in EFFECTS[i + 1 :] if FAMILY[a] != FAMILY[b] and b != "dissolve"
)
CLASSES = EFFECTS + PAIRS + (STILL,)
# Variants of effects have adapters of their own: what they carry out, and how far.
GENTLE = 0.45
VARIANTS = {f"{effect}_gently": effect for effect in ("right", "grow", "night")}
BANK = EFFECTS + tuple(VARIANTS)


def clip(split, index, effect, variant_index=None, level=1.0):
    """Pixels [F,H,W,3] in [0,1] and coverage [F,H,W]."""
    return clips.clip(split, index, effect, FRAMES, SIZE, variant_index, level)


# What an effect may be called. `held_out` are combinations and words that training never sees.
PROMPTS = {
    "left": (
        ["slide to the left", "the object moves left", "drift leftward", "push it to the left side", "glide left across the frame",
         "it travels to the left", "move the shape left", "a slow pan of the object to the left", "shift leftward", "the shape slides left"],
        ["glide to the left side", "the object drifts left", "travel leftward", "shove the shape to the left"],
    ),
    "right": (
        ["slide to the right", "the object moves right", "drift rightward", "push it to the right side", "glide right across the frame",
         "it travels to the right", "move the shape right", "a slow pan of the object to the right", "shift rightward", "the shape slides right"],
        ["glide to the right side", "the object drifts right", "travel rightward", "shove the shape to the right"],
    ),
    "up": (
        ["float upward", "the object moves up", "rise to the top", "push it up", "glide up across the frame", "it travels upward",
         "move the shape up", "lift the object", "shift upward", "the shape rises"],
        ["the object floats up", "travel to the top", "lift the shape upward", "it climbs up"],
    ),
    "down": (
        ["sink downward", "the object moves down", "fall to the bottom", "push it down", "glide down across the frame", "it travels downward",
         "move the shape down", "drop the object", "shift downward", "the shape falls"],
        ["the object sinks down", "travel to the bottom", "drop the shape downward", "it tumbles down"],
    ),
    "up_right": (
        ["move diagonally up and to the right", "the object moves diagonally", "drift to the top right corner", "push it into the upper right corner",
         "glide diagonally across the frame", "it travels to the upper right", "move the shape diagonally", "slide to the top right",
         "shift diagonally up", "the shape moves to the corner"],
        ["glide to the upper right corner", "the object drifts diagonally", "travel diagonally to the top right", "shove it into the corner"],
    ),
    "to_red": (
        ["turn red", "the object becomes red", "paint it red", "change the colour to red", "it blushes crimson", "make the shape scarlet",
         "a red tint spreads over the object", "fade to red", "recolour the shape in crimson", "the shape glows red"],
        ["the shape becomes crimson", "turn the object scarlet", "recolour it red", "dye the object red"],
    ),
    "to_blue": (
        ["turn blue", "the object becomes blue", "paint it blue", "change the colour to blue", "it freezes into azure", "make the shape navy",
         "a blue tint spreads over the object", "fade to blue", "recolour the shape in azure", "the shape glows blue"],
        ["the shape becomes azure", "turn the object navy", "recolour it blue", "dye the object blue"],
    ),
    "to_green": (
        ["turn green", "the object becomes green", "paint it green", "change the colour to green", "it ripens into emerald", "make the shape lime",
         "a green tint spreads over the object", "fade to green", "recolour the shape in emerald", "the shape glows green"],
        ["the shape becomes emerald", "turn the object lime", "recolour it green", "dye the object green"],
    ),
    "night": (
        ["night falls", "the background becomes dark", "darken the scene", "the light goes out", "dusk settles over the background",
         "dim the background", "make the scene dark", "shadow covers the background", "fade the background to black", "the scene dims at night"],
        ["dusk falls over the scene", "the background dims", "make the background black", "the lamps go out at night"],
    ),
    "grow": (
        ["grow larger", "the object becomes bigger", "inflate the shape", "it expands", "make the object huge", "enlarge it",
         "the shape swells", "zoom the object to a larger size", "blow it up like a balloon", "the object expands in size"],
        ["the shape grows bigger", "inflate it like a balloon", "expand the object", "the thing swells to a giant"],
    ),
    "squash": (
        ["squash it flat", "the object is flattened", "press the shape", "it becomes flat and wide", "crush the object",
         "flatten it like a pancake", "the shape is pressed flat", "squeeze the object vertically", "stomp on it", "the object is crushed"],
        ["flatten the shape", "crush it flat", "the object is squashed", "a weight presses it into a pancake"],
    ),
    "dissolve": (
        ["dissolve into pieces", "the object vanishes", "it disappears bit by bit", "make the shape vanish", "break up into nothing",
         "the object crumbles away", "fade out in pieces", "the shape dissolves", "it melts into thin air", "erase the object"],
        ["the shape crumbles into pieces", "dissolve the object", "it vanishes into thin air", "the thing evaporates"],
    ),
}  # fmt: skip
GENTLY = (["{} gently", "{} a little", "slightly {}"], ["{} just a little", "gently {}"])


def prompts(name: str, held_out: bool) -> list[str]:
    """What a member of the bank is called."""
    effect = VARIANTS.get(name)
    if effect is None:
        return PROMPTS[name][held_out]
    return [words.format(prompt) for prompt in PROMPTS[effect][held_out] for words in GENTLY[held_out]]


def words() -> list[str]:
    """Every word of captions and of prompts that training sees."""
    told = [prompt for name in BANK for prompt in prompts(name, False)]
    return sorted({word for text in clips.captions() + told for word in text.split()})


def calibrate(count=40) -> measures.Classifier:
    """On clips as drawn and as degraded; the classes are the effects, the pairs and `still`."""
    samples, labels = [], []
    for label, effect in enumerate(CLASSES):
        for index in range(count):
            c, _ = clip("classifier", label * 100_000 + index, effect)
            samples += [measures.features(c), measures.features(measures.degrade(c, index))]
            labels += [label, label]
    classifier = measures.Classifier.fit(samples, labels, CLASSES)
    z = (np.array(samples) - classifier.mean) / classifier.deviation
    classifier.numbers["centres"] = np.stack([z[np.array(labels) == k].mean(0) for k in range(len(CLASSES))])
    return classifier


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    calibrate().save(a.work / "classifier.json")
    classifier = measures.Classifier.load(a.work / "classifier.json")
    for kind, classes in (("effects", EFFECTS), ("pairs", PAIRS), ("still", (STILL,))):
        videos, effects = [], []
        for k, effect in enumerate(classes):
            videos += [clip("held_out", k * 100_000 + i, effect)[0] for i in range(20)]
            effects += [effect] * 20
        for name, change in (("clean", lambda c, _: c), ("degraded", measures.degrade)):
            total, per, confusion = measures.accuracy(classifier, [change(c, i) for i, c in enumerate(videos)], effects)
            weak = {k: round(v, 2) for k, v in per.items() if v < 0.9}
            print(f"{kind}, {name}: {total:.4f} of {len(videos)}", weak, confusion if len(confusion) < 12 else len(confusion))


if __name__ == "__main__":
    main()
