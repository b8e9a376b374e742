"""Golden file of GGUF's types: tests/fixtures/gguf/.

blocks.gguf         a tensor [2, 512] of each type, named by it; `folded` [2, 3, 4, 5, 6] as ComfyUI-GGUF stores it, [24, 30] and its shape
blocks.safetensors  the same by the package's own `dequantize`, f32

Types that the package can write hold quantised normal numbers. The others (`_K`) are random bits, and their scales small halves.

Run: python tests/reference/gguf_blocks.py [--out DIR]
"""

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

from common import output_dir

SHAPE = (2, 512)
# Where the halves stand in a block.
HALVES = {Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208]}
PLAIN = [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q5_0, Type.Q5_1, Type.Q4_0, Type.Q4_1]


def quantised(kind, rng):
    if kind in PLAIN:
        return gguf.quants.quantize(rng.standard_normal(SHAPE).astype(np.float32), kind)
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (SHAPE[0], SHAPE[1] // values, size), dtype=np.uint8)
    for at in HALVES[kind]:
        scales = (rng.standard_normal(blocks.shape[:2]) * 0.01).astype(np.float16)
        blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(SHAPE[0], -1)


def main():
    folder = output_dir(__doc__.splitlines()[0], "gguf")
    rng = np.random.default_rng(19)
    writer = gguf.GGUFWriter(folder / "blocks.gguf", "wan")
    writer.add_array("tokens", ["a", "bc"])
    expected = {}
    for kind in [*PLAIN, *HALVES]:
        data = quantised(kind, rng)
        raw = None if kind in (Type.F32, Type.F16) else kind
        writer.add_tensor(kind.name, data, raw_dtype=raw)
        expected[kind.name] = gguf.quants.dequantize(data, kind).astype(np.float32).reshape(SHAPE)
    folded = rng.standard_normal((2, 3, 4, 5, 6)).astype(np.float32)
    writer.add_array("comfy.gguf.orig_shape.folded", [int(n) for n in folded.shape])
    writer.add_tensor("folded", folded.reshape(24, 30))
    expected["folded"] = folded
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, folder / "blocks.safetensors")


if __name__ == "__main__":
    main()
