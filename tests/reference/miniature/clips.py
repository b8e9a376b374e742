"""Procedural clips: one object on a quiet background, one effect.

A *scene* (shape, colour, size, place, texture, background) is drawn from a seed; an *effect* moves, recolours or
deforms it. Every effect leaves frame 0 as it is, so the same first frame is possible for every effect.
Colours are RGB in [0, 1]; lengths are in units of the clip's side; x points right and y down.

Run: python clips.py --work DIR [--size 48] [--frames 9]      writes DIR/clips.png, one row per effect, to look at.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

FAMILIES = {
    "motion": ("left", "right", "up", "down"),
    "appearance": ("to_red", "to_blue", "night"),
    "deformation": ("grow", "squash", "dissolve"),
}
EFFECTS = tuple(effect for family in FAMILIES.values() for effect in family)
ZERO_SHOT = ("up_right", "to_green")  # variants that the hypernetwork never trains on (VAE and backbone know them)
STILL = "still"  # nothing happens: what a model that ignores the effect may show
CLASSES = EFFECTS + ZERO_SHOT + (STILL,)

# Seeds never overlap between splits. `classifier` calibrates the measures, `held_out` judges.
SPLITS = {"train": 0, "classifier": 10_000_000, "held_out": 20_000_000}

SHAPES = ("disc", "square", "triangle", "diamond", "cross")
# No colour is near an effect's target (red, blue, green) or near a background.
COLOURS = {
    "yellow": (0.95, 0.85, 0.20),
    "cyan": (0.25, 0.85, 0.90),
    "pink": (0.95, 0.55, 0.80),
    "white": (0.95, 0.95, 0.92),
}
BACKGROUNDS = {
    "grey": (0.42, 0.42, 0.44),
    "brown": (0.46, 0.36, 0.28),
    "slate": (0.30, 0.38, 0.46),
    "olive": (0.38, 0.40, 0.26),
    "plum": (0.42, 0.30, 0.42),
}
TEXTURES = ("plain", "striped", "dotted")
LIGHTS = ("plain", "shaded", "banded")
SIZES = {"small": 0.17, "medium": 0.20, "large": 0.23}
TARGETS = {"to_red": (0.90, 0.08, 0.08), "to_blue": (0.08, 0.12, 0.95), "to_green": (0.08, 0.75, 0.12)}
DIRECTIONS = {"right": 0.0, "down": 90.0, "left": 180.0, "up": 270.0, "up_right": 315.0}  # degrees, y down


@dataclasses.dataclass(frozen=True)
class Scene:
    shape: str
    colour: str
    rgb: tuple
    size: str
    radius: float
    centre: tuple
    texture: str
    texture_angle: float
    background: str
    background_rgb: tuple
    light: str
    light_vector: tuple


@dataclasses.dataclass(frozen=True)
class Variant:
    """How an effect is carried out: when it is complete (fraction of the clip), how far it goes (1: fully),
    degrees off its direction, and a seed for its pattern."""

    duration: float
    amount: float
    angle: float
    seed: int


def scene(split: str, index: int) -> Scene:
    rng = np.random.default_rng(SPLITS[split] + index)
    pick = lambda options: list(options)[rng.integers(len(options))]  # noqa: E731
    colour, background, size = pick(COLOURS), pick(BACKGROUNDS), pick(SIZES)
    light_angle, light = rng.uniform(0, 2 * np.pi), rng.uniform(0.04, 0.10)
    return Scene(
        shape=pick(SHAPES),
        colour=colour,
        rgb=tuple(np.clip(np.array(COLOURS[colour]) + rng.uniform(-0.05, 0.05, 3), 0, 1)),
        size=size,
        radius=SIZES[size] + rng.uniform(-0.012, 0.012),
        centre=tuple(0.5 + rng.uniform(-0.08, 0.08, 2)),
        texture=pick(TEXTURES),
        texture_angle=rng.uniform(0, np.pi),
        background=background,
        background_rgb=tuple(np.array(BACKGROUNDS[background]) + rng.uniform(-0.03, 0.03, 3)),
        light=pick(LIGHTS),
        light_vector=(light * np.cos(light_angle), light * np.sin(light_angle)),
    )


def variant(split: str, index: int) -> Variant:
    """Drawn apart from the scene: reference and target of one effect differ in both."""
    rng = np.random.default_rng([SPLITS[split] + index, 1])
    return Variant(rng.uniform(0.6, 1.0), rng.uniform(0.85, 1.15), rng.uniform(-12, 12), int(rng.integers(1 << 31)))


def caption(s: Scene) -> str:
    """Object and background, never the effect."""
    surface = "" if s.texture == "plain" else f"{s.texture} "
    ground = {"plain": "plain", "shaded": "shaded", "banded": "banded"}[s.light]
    return f"a {s.size} {surface}{s.colour} {s.shape} on a {ground} {s.background} background"


def captions() -> list[str]:
    """Every caption there is: the text encoder's vocabulary is made from them."""
    template = scene("train", 0)
    return [
        caption(dataclasses.replace(template, size=a, texture=b, colour=c, shape=d, light=e, background=f))
        for a in SIZES for b in TEXTURES for c in COLOURS for d in SHAPES for e in LIGHTS for f in BACKGROUNDS
    ]  # fmt: skip


def _distance(shape, x, y):
    """Signed distance (roughly) to a shape of radius 1, negative inside; areas are alike."""
    if shape == "disc":
        return np.hypot(x, y) - 1
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.89
    if shape == "triangle":
        return np.maximum(0.89 * abs(x) - 0.45 * y, y) - 0.62
    if shape == "diamond":
        return (abs(x) + abs(y) - 1.25) * 0.707
    return np.minimum(np.maximum(abs(x) - 0.42, abs(y) - 1.1), np.maximum(abs(x) - 1.1, abs(y) - 0.42))


def _smooth(p):
    return p * p * (3 - 2 * p)


def render(s: Scene, effect: str, v: Variant, frames: int = 9, size: int = 48, level: float = 1.0):
    """Pixels [F,H,W,3] in [0,1], float32, and the object's coverage [F,H,W] in [0,1].

    `effect` may be several of different families, joined by "+"; `level` is their strength, 1 as they are meant.
    """
    effects = effect.split("+")
    progress = _smooth(np.clip(np.arange(frames) / (frames - 1) / v.duration, 0, 1)) * v.amount * level
    p = progress[:, None, None]
    grid = (np.arange(size) + 0.5) / size
    gx, gy = grid[None, None, :], grid[None, :, None]

    cx, cy, wide, high = s.centre[0] + 0 * p, s.centre[1] + 0 * p, 1 + 0 * p, 1 + 0 * p
    for direction in set(effects) & set(DIRECTIONS):
        angle = np.deg2rad(DIRECTIONS[direction] + v.angle)
        cx, cy = cx + 0.28 * np.cos(angle) * p, cy + 0.28 * np.sin(angle) * p
    if "grow" in effects:
        wide = high = 1 + 0.65 * p
    elif "squash" in effects:
        wide, high = 1 + 0.5 * p, 1 - 0.5 * p

    x, y = (gx - cx) / (s.radius * wide), (gy - cy) / (s.radius * high)
    edge = s.radius * np.minimum(wide, high) * size  # pixels per unit of distance
    alpha = np.clip(0.5 - _distance(s.shape, x, y) * edge, 0, 1)
    if "dissolve" in effects:  # coarse cells of the object vanish one after the other
        cell = np.random.default_rng(v.seed).permutation(16).reshape(4, 4) / 16
        column, row = (np.clip(((c + 1.2) / 0.6).astype(int), 0, 3) for c in (x, y))
        column, row = np.broadcast_arrays(column, row)
        alpha = alpha * np.clip(1 + 3 * cell[row, column] - 4 * p / v.amount, 0, 1)

    rgb = np.array(s.rgb) * np.ones((frames, size, size, 1))
    along = x * np.cos(s.texture_angle) + y * np.sin(s.texture_angle)
    if s.texture == "striped":
        rgb = rgb * (1 - 0.16 * (np.sin(4.5 * along) > 0))[..., None]
    elif s.texture == "dotted":
        rgb = rgb * (1 - 0.22 * (np.hypot(x, y) < 0.4))[..., None]
    for target in set(effects) & set(TARGETS):
        mix = np.clip(p, 0, 1)[..., None]
        shade = rgb / np.array(s.rgb)
        rgb = rgb * (1 - mix) + np.array(TARGETS[target]) * shade * mix

    slope = s.light_vector[0] * (gx - 0.5) + s.light_vector[1] * (gy - 0.5)
    bands = 0.025 * np.sin(16 * slope / np.hypot(*s.light_vector))
    light = {"plain": 0 * slope, "shaded": 2 * slope, "banded": bands}[s.light]
    ground = (np.array(s.background_rgb) + light[..., None]) * np.ones((frames, 1, 1, 1))
    if "night" in effects:
        ground = ground * (1 - 0.72 * np.minimum(p, 1.1)[..., None])
    image = ground * (1 - alpha[..., None]) + rgb * alpha[..., None]
    return image.clip(0, 1).astype(np.float32), alpha.astype(np.float32)


def clip(
    split: str, index: int, effect: str, frames: int = 9, size: int = 48, variant_index: int | None = None, level: float = 1.0
):
    """Clip number `index` of a split, with that number's variant unless told: (pixels, coverage)."""
    how = variant(split, index if variant_index is None else variant_index)
    return render(scene(split, index), effect, how, frames, size, level)


def sheet(rows, path: Path, zoom: int = 2):
    """Rows of clips [F,H,W,3] as one picture."""
    from PIL import Image

    picture = np.concatenate([np.concatenate(list(np.pad(r, ((0, 0), (1, 1), (1, 1), (0, 0)))), axis=1) for r in rows])
    image = Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--frames", type=int, default=9)
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    sheet([clip("train", i, e, a.frames, a.size)[0] for i, e in enumerate(CLASSES)], a.work / "clips.png")
    first = [clip("train", 3, e, a.frames, a.size)[0][0] for e in CLASSES]
    assert all(np.array_equal(first[0], f) for f in first), "the first frame depends on the effect"
    print(len(captions()), "captions, for example:", caption(scene("train", 0)))


if __name__ == "__main__":
    main()
