"""v2l's random numbers, as runtime/src/noise.rs documents them, so that references can be sampled with a seed of v2l's.

A stream is ChaCha with 20 rounds: key = the seed as 8 little-endian bytes and zeros, stream = purpose | draw << 32, 64-bit
counter from 0. Values are standard normal by the ziggurat of 256 layers (Marsaglia and Tsang, 2000), in f64, rounded to f32.
"""

import math
import struct

import numpy as np

INITIAL_LATENT, SOLVER_STEP = 1, 5
MASK = 0xFFFFFFFF
# Where the tail begins, and the area of each layer.
R, V = 3.654152885361008796, 0.00492867323399


def _density(x: float) -> float:
    return math.exp(-x * x / 2)


def _edges() -> list:
    edges = [V / _density(R), R]
    while len(edges) < 256:
        edges.append(math.sqrt(-2 * math.log(V / edges[-1] + _density(edges[-1]))))
    return [*edges, 0.0]


EDGES = _edges()
HEIGHTS = [_density(x) for x in EDGES]


def _quarter(s: list, a: int, b: int, c: int, d: int) -> None:
    for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        s[x] = (s[x] + s[y]) & MASK
        mixed = s[z] ^ s[x]
        s[z] = ((mixed << turn) | (mixed >> (32 - turn))) & MASK


def _words(seed: int, stream: int):
    """64-bit words of a stream."""
    key = struct.unpack("<8I", seed.to_bytes(8, "little") + bytes(24))
    counter = 0
    while True:
        halves = (counter & MASK, counter >> 32, stream & MASK, stream >> 32)
        start = [*struct.unpack("<4I", b"expand 32-byte k"), *key, *halves]
        state = list(start)
        for _ in range(10):
            for at in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)):
                _quarter(state, *at)
            for at in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
                _quarter(state, *at)
        block = [(a + b) & MASK for a, b in zip(state, start)]
        for low, high in zip(block[::2], block[1::2]):
            yield low | high << 32
        counter += 1


def _normal(words) -> float:
    while True:
        bits = next(words)
        layer, u = bits & 0xFF, (bits >> 12) * 2.0**-51 - 1.0
        x = u * EDGES[layer]
        if abs(x) < EDGES[layer + 1]:
            return x
        if layer == 0:
            while True:
                tail, y = (math.log((next(words) >> 12) * 2.0**-52 + 2.0**-53) for _ in range(2))
                tail /= R
                if -2 * y >= tail * tail:
                    return tail - R if u < 0 else R - tail
        height = HEIGHTS[layer + 1] + (HEIGHTS[layer] - HEIGHTS[layer + 1]) * ((next(words) >> 11) * 2.0**-53)
        if height < _density(x):
            return x


def standard_normal(seed: int, purpose: int, shape, draw: int = 0) -> np.ndarray:
    """The f32 values of draw number `draw` for a purpose, in row-major order."""
    words = _words(seed, purpose | draw << 32)
    count = int(np.prod(shape))
    return np.array([_normal(words) for _ in range(count)], dtype=np.float32).reshape(shape)
