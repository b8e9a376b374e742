"""Files of PyTorch: tests/fixtures/pickle/.

state.pth           a state dict below `state_dict`: f32, bf16 and i64, a transposed tensor, two in one storage, one of no dimension
state.safetensors   the same by safetensors' own writer
code.pth            a pickle that names `os.system`, as a hostile file would

Run: python tests/reference/pickles.py [--out DIR]
"""

import os

import torch
from safetensors.torch import save_file

from common import output_dir, randn


class Code:
    def __reduce__(self):
        return os.system, ("true",)


def main():
    folder = output_dir(__doc__.splitlines()[0], "pickle")
    whole = randn(6, 4, seed=1)
    state = {
        "plain": randn(3, 5, seed=2), "half": randn(2, 2, 3, seed=3).bfloat16(), "turned": randn(4, 3, seed=4).t(),
        "top": whole[:2], "rest": whole[2:], "number": torch.tensor(7), "none": torch.zeros(0, 3),
    }
    torch.save({"state_dict": state}, folder / "state.pth")
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, folder / "state.safetensors")
    torch.save({"state_dict": Code()}, folder / "code.pth")


if __name__ == "__main__":
    main()
