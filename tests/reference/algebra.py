"""Golden numbers of the algebra of low-rank updates: tests/fixtures/adapter/algebra.json.

Two updates of each shape, with numpy's singular values of ΔW itself, formed in float64: canonical factors (Prompt2Effect,
equation 7, the largest element of each left vector positive), overlaps of the two (scipy's principal angles, written out),
and the second without what lies in the first's outputs.

Run: python tests/reference/algebra.py [--out DIR]
"""

import json

import numpy as np

import random_weights
from common import output_dir

# (out, in, rank of the first, rank of the second, alpha of the second)
SHAPES = [(12, 9, 3, 4, 2.0), (6, 20, 4, 2, 2.0), (5, 4, 7, 3, 6.0)]


def values(name, *shape):
    return random_weights.values("algebra", name, shape, 1.0, 0.0)


def canonical(delta, rank):
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    sign = np.sign(u[np.abs(u).argmax(axis=0), np.arange(u.shape[1])])
    u, vt = u * sign, vt * sign[:, None]
    rank = min(rank, len(s))
    root = np.sqrt(s[:rank])
    return s[:rank], u[:, :rank] * root, root[:, None] * vt[:rank]


def basis(delta):
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    keep = s > 1e-6 * s[0]
    return u[:, keep], vt[keep].T


def overlap(a, b):
    cosines = np.linalg.svd(a.T @ b, compute_uv=False)
    return float((cosines**2).sum() / min(a.shape[1], b.shape[1]))


def rows(array):
    return np.asarray(array, dtype=np.float64).tolist()


def main():
    cases = []
    for index, (out, inputs, first, second, alpha) in enumerate(SHAPES):
        factors = [
            (values(f"{index}/up{n}", out, rank), values(f"{index}/down{n}", rank, inputs))
            for n, rank in enumerate((first, second))
        ]
        scales = 1.0, alpha / second
        deltas = [s * up.astype(np.float64) @ down.astype(np.float64) for s, (up, down) in zip(scales, factors)]
        s, up, down = canonical(deltas[1], second)
        (ua, va), (ub, vb) = map(basis, deltas)
        rest = deltas[1] - ua @ (ua.T @ deltas[1])
        cases.append(
            {
                "factors": [{"up": rows(up), "down": rows(down)} for up, down in factors],
                "alpha": [float(first), alpha],
                "values": rows(s),
                "canonical_up": rows(up),
                "canonical_down": rows(down),
                "output": overlap(ua, ub),
                "input": overlap(va, vb),
                "cosine": float((deltas[0] * deltas[1]).sum() / np.linalg.norm(deltas[0]) / np.linalg.norm(deltas[1])),
                "norms": [float(np.linalg.norm(delta)) for delta in deltas],
                "rest": rows(rest),
                "sum": rows(0.5 * deltas[0] - 2.0 * deltas[1]),
            }
        )
    lines = ",\n".join(json.dumps(case) for case in cases)
    (output_dir(__doc__, "adapter") / "algebra.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
