"""Files of PyTorch: tests/fixtures/pickle/.

state.pth           a state dict below `state_dict`: f32, bf16 and i64, a transposed tensor, two in one storage, one of no dimension
state.safetensors   the same by safetensors' own writer
code.pth            a pickle that names `os.system`, as a hostile file would

and a LoFA preview of few tensors, tests/fixtures/lofa_preview/: `stage1_preview.pth`, `stage2_preview.pth`, `config.yaml` in the form of the
official repository, and `expected.safetensors`, both under their prefixes.

Run: python tests/reference/pickles.py [--out DIR]
"""

import os

import torch
from safetensors.torch import save_file

from common import output_dir, randn


class Code:
    def __reduce__(self):
        return os.system, ("true",)


def preview(folder):
    folder.mkdir(exist_ok=True)
    shared = {
        "patch_embed.proj.weight": (4, 1, 2, 2), "pos.row": (1, 3, 1, 4), "blocks.0.self_attn.q_norm.weight": (2,),
        "blocks.1.self_attn.q_norm.weight": (2,), "depth_embed.weight": (2, 4),
    }
    stages = {
        "stage1": {name: randn(*shape, seed=i) for i, (name, shape) in enumerate(shared.items())},
        "stage2": {"head_A.bias": randn(12, seed=30), "cross_attn_blocks.1.ls1.gamma": randn(4, seed=31)},
    }
    for stage, tensors in stages.items():
        torch.save(tensors, folder / f"{stage}_preview.pth")
    save_file({f"{stage}.{name}": t for stage, tensors in stages.items() for name, t in tensors.items()}, folder / "expected.safetensors")
    types = [f"{module}_{layer}" for module in ("self_attn", "cross_attn") for layer in "qkvo"]
    lines = ["mixed_precision: bf16", "max_num_layers: 2", "target_modules:", *(f"- {name}" for name in types)]
    lines += ["stage1:", "  _target_: lofa.hyper_modulator_mask.TransformerV2", "  tau: 0.03", "  temperature: 0.1"]
    (folder / "config.yaml").write_text("\n".join(lines) + "\n")


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
    preview(folder.parent / "lofa_preview")


if __name__ == "__main__":
    main()
