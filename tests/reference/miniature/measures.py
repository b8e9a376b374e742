"""Analytic measures of a clip, and the classifier that reads the effect from them.

Everything is arithmetic on pixels, so that a port needs no library; `classifier.json` holds all its numbers.
Notation: c[f,y,x] is the colour (RGB in [0,1]) of frame f; F frames of H x W; u = (x + 0.5) / W, v = (y + 0.5) / H
in [0,1]; ring = the pixels less than H // 8 from the frame's edge.

Background of frame 0: per channel the plane a0 + a1 u + a2 v, fitted by least squares to the ring of frame 0.
Gain of frame f, per channel: g[f] = median over ring of c[f] / max(median over ring of c[0], 0.02).
Foreground: d[f,y,x] = |c[f,y,x] - g[f] * plane[y,x]| (Euclidean over RGB), m = clamp((d - 0.14) / 0.16, 0, 1).
Area     A[f] = mean of m over pixels.
Centroid X[f] = sum(m u) / (sum m + e), Y[f] with v; frame 0's centroid where A[f] < 0.1 A[0]   (e = 1e-6)
Spread   SX[f] = sqrt(sum(m (u - X)^2) / (sum m + e)) + 0.01, SY with v; frame 0's where A[f] < 0.1 A[0]
Colour   K[f] = (sum(m c) + w K0) / (sum m + w), w = 0.1 sum m[0], K0 = sum(m c) / (sum m + e) of frame 0
Ring     B[f] = mean over channels of the ring's median.
Edges    E[f] = mean over pixels and channels of |c[f,y,x+1] - c[f,y,x]| + |c[f,y+1,x] - c[f,y,x]| + 0.002.

Features: of each curve below its value at the end (mean over the last max(F // 4, 1) frames) and on average (mean
over frames 1..F-1):
   X - X[0],  Y - Y[0],  log((A + 0.05 A[0] + e) / (1.05 A[0] + e)),  log(SX / SX[0]),  log(SY / SY[0]),
   K - K[0] (three channels),  B - B[0],  log(E / E[0])
20 numbers in that order, all ends first. Classifier: z = (features - mean) / deviation; the class is the largest
entry of weight z + bias (linear discriminant analysis: shared covariance, shrunk towards its diagonal).

Run: python measures.py --work DIR [--count 60]
calibrates on the `classifier` split (DIR/classifier.json), judges on `held_out`, clean, blurred and noisy.
"""

import argparse
import json
from pathlib import Path

import numpy as np

import clips

NAMES = ("x", "y", "area", "spread_x", "spread_y", "red", "green", "blue", "ring", "edges")
FEATURES = tuple(f"{name}_{part}" for part in ("end", "mean") for name in NAMES)
EPSILON = 1e-6


def ring_mask(height, width):
    edge = height // 8
    mask = np.ones((height, width), bool)
    mask[edge : height - edge, edge : width - edge] = False
    return mask


def curves(c):
    """[F,H,W,3] -> [F,10], each curve relative to frame 0 as in the list above."""
    c = np.asarray(c, np.float64)
    frames, height, width, _ = c.shape
    v, u = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    ring = ring_mask(height, width)
    basis = np.stack([np.ones_like(u), u, v], axis=-1)
    plane = basis @ np.linalg.lstsq(basis[ring], c[0][ring], rcond=None)[0]
    border = np.median(c[:, ring], axis=1)  # [F,3]
    gain = border / np.maximum(border[0], 0.02)
    distance = np.linalg.norm(c - gain[:, None, None] * plane, axis=-1)
    m = ((distance - 0.14) / 0.16).clip(0, 1)

    total = m.sum((1, 2))
    area = total / (height * width)
    x, y = (m * u).sum((1, 2)) / (total + EPSILON), (m * v).sum((1, 2)) / (total + EPSILON)
    sx = np.sqrt((m * (u - x[:, None, None]) ** 2).sum((1, 2)) / (total + EPSILON)) + 0.01
    sy = np.sqrt((m * (v - y[:, None, None]) ** 2).sum((1, 2)) / (total + EPSILON)) + 0.01
    gone = area < 0.1 * area[0]
    x, y, sx, sy = (np.where(gone, curve[0], curve) for curve in (x, y, sx, sy))
    coloured = (m[..., None] * c).sum((1, 2))
    first = coloured[0] / (total[0] + EPSILON)
    weight = 0.1 * total[0]
    colour = (coloured + weight * first) / (total + weight + EPSILON)[:, None]
    brightness = border.mean(1)
    edges = np.abs(np.diff(c, axis=2)).mean((1, 2, 3)) + np.abs(np.diff(c, axis=1)).mean((1, 2, 3)) + 0.002
    relative_area = np.log((area + 0.05 * area[0] + EPSILON) / (1.05 * area[0] + EPSILON))
    columns = [x - x[0], y - y[0], relative_area, np.log(sx / sx[0]), np.log(sy / sy[0])]
    columns += [*(colour - colour[0]).T, brightness - brightness[0], np.log(edges / edges[0])]
    return np.stack(columns, axis=1)


def features(c):
    """[F,H,W,3] -> the 20 features."""
    k = curves(c)
    return np.concatenate([k[-max(len(k) // 4, 1) :].mean(0), k[1:].mean(0)])


class Classifier:
    def __init__(self, numbers):
        self.numbers = numbers
        self.classes = numbers["classes"]
        self.mean, self.deviation, self.weight, self.bias = (
            np.array(numbers[key]) for key in ("mean", "deviation", "weight", "bias")
        )

    @classmethod
    def fit(cls, samples, labels, classes, shrinkage=0.1):
        samples, labels = np.asarray(samples), np.asarray(labels)
        mean, deviation = samples.mean(0), samples.std(0) + 1e-9
        z = (samples - mean) / deviation
        centres = np.stack([z[labels == i].mean(0) for i in range(len(classes))])
        within = z - centres[labels]
        covariance = within.T @ within / len(z)
        covariance = (1 - shrinkage) * covariance + shrinkage * np.diag(np.diag(covariance)) + 1e-3 * np.eye(len(mean))
        weight = np.linalg.solve(covariance, centres.T).T
        bias = -0.5 * (weight * centres).sum(1)
        numbers = {"features": FEATURES, "classes": classes, "mean": mean, "deviation": deviation}
        return cls(numbers | {"weight": weight, "bias": bias})

    @classmethod
    def load(cls, path: Path):
        return cls(json.loads(path.read_text()))

    def save(self, path: Path):
        plain = lambda v: v.tolist() if isinstance(v, np.ndarray) else list(v)  # noqa: E731
        path.write_text("{\n" + ",\n".join(f'"{k}": {json.dumps(plain(v))}' for k, v in self.numbers.items()) + "\n}\n")

    def scores(self, c, allowed=None):
        z = (features(c) - self.mean) / self.deviation
        scores = self.weight @ z + self.bias
        if allowed is not None:
            scores[[name not in allowed for name in self.classes]] = -np.inf
        return scores

    def __call__(self, c, allowed=None):
        """Name of the class of one clip [F,H,W,3]; `allowed` limits the choice."""
        return self.classes[int(np.argmax(self.scores(c, allowed)))]


def blur(c, times=1):
    """Spatial [1 2 1] / 4, `times` times."""
    for _ in range(times):
        p = np.pad(c, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        p = (p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]) / 4
        c = (p[:, :, :-2] + 2 * p[:, :, 1:-1] + p[:, :, 2:]) / 4
    return c


def degrade(c, seed):
    """What a codec may do: a little blur, noise and a colour shift."""
    rng = np.random.default_rng(seed)
    c = blur(c, int(rng.integers(0, 3))) + rng.normal(0, 0.02, c.shape) + rng.normal(0, 0.015, (1, 1, 1, 3))
    return c.clip(0, 1)


def calibrate(count, frames, size):
    """On clips as drawn and as degraded, half and half."""
    samples, labels = [], []
    for label, effect in enumerate(clips.CLASSES):
        for index in range(count):
            c, _ = clips.clip("classifier", label * 100_000 + index, effect, frames, size)
            samples += [features(c), features(degrade(c, index))]
            labels += [label, label]
    return Classifier.fit(samples, labels, clips.CLASSES)


def accuracy(classifier, videos, effects, allowed=None):
    """(overall, {effect: share right}, {(effect, taken for): count})"""
    answers = [classifier(video, allowed) for video in videos]
    per = {e: float(np.mean([a == e for a, t in zip(answers, effects) if t == e])) for e in dict.fromkeys(effects)}
    confusion = {}
    for answer, effect in zip(answers, effects):
        if answer != effect:
            confusion[f"{effect}->{answer}"] = confusion.get(f"{effect}->{answer}", 0) + 1
    return float(np.mean([a == t for a, t in zip(answers, effects)])), per, confusion


def held_out(count, frames=9, size=48, classes=clips.CLASSES):
    """(videos, coverage, effects): `count` clips per class, scenes of their own."""
    numbered = [(k * 100_000 + i, e) for k, e in enumerate(classes) for i in range(count)]
    pairs = [(clips.clip("held_out", i, e, frames, size), e) for i, e in numbered]
    return [c for (c, _), _ in pairs], [a for (_, a), _ in pairs], [e for _, e in pairs]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--count", type=int, default=60, help="clips per class")
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--frames", type=int, default=9)
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    calibrate(a.count, a.frames, a.size).save(a.work / "classifier.json")
    classifier = Classifier.load(a.work / "classifier.json")
    videos, _, effects = held_out(a.count, a.frames, a.size)
    print(len(videos), "held-out clips")
    for name, change in (
        ("clean", lambda c, i: c),
        ("blurred twice", lambda c, i: blur(c, 2)),
        ("blurred 6 times", lambda c, i: blur(c, 6)),
        ("degraded", degrade),
        ("contrast 0.7", lambda c, i: 0.5 + 0.7 * (c - 0.5)),
    ):
        total, per, confusion = accuracy(classifier, [change(c, i) for i, c in enumerate(videos)], effects)
        print(f"{name}: {total:.4f}", {k: round(v, 3) for k, v in per.items() if v < 1}, confusion)


if __name__ == "__main__":
    main()
