"""Golden files for control tokens: tests/fixtures/control/<family>/.

No code of LiON-LoRA is public. This is v2l's own definition (docs/adapters.md) over diffusers' models: an attention
processor in the first blocks, whose keys and values have the controls' tokens behind the video's. The models are those of
tests/fixtures/transformer/sincos_t2v, …/rotary_t2v and tests/fixtures/wan/transformer/t2v. Each folder has
`control.safetensors`, as `v2l-export --control` takes it, and a case with `input.control` and `input.control_mask`.
Everything is computed in f32. The metadata's `noise_floor` is the relative L2 distance from the same network in f64.

Run: python tests/reference/control.py [--out DIR]
"""

import copy
import json
import shutil

import torch
import torch.nn.functional as F
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.utils import logging
from safetensors.torch import load_file, save_file

import random_weights
from common import fixtures_dir, noise_floor, output_dir, randn, report, save_case
from transformer import float_means_double

NAMES = ["camera", "object", "light"]


class Controls:
    """Tokens of controls, and what is added to their logits."""

    def __init__(self, tensors, control, mask):
        scale, bias = tensors["control.embed_scale"].to(control), tensors["control.embed_bias"].to(control)
        self.tokens = control[:, :, None] * scale + bias
        off = torch.full_like(control, float("-inf"))
        self.logits = torch.where(mask == 0, off, tensors["control.logit_bias"].to(control).expand_as(control))

    def added(self, queries, keys, blind=0):
        """What is added to the logits of `queries` by `keys`, the controls last; the first `blind` queries do not see them."""
        batch, count = self.logits.shape
        added = torch.zeros(batch, 1, queries, keys, dtype=self.logits.dtype)
        added[..., keys - count :] = self.logits[:, None, None, :]
        added[:, :, :blind, keys - count :] = float("-inf")
        return added


class WanControlled:
    """Self-attention of Wan with controls."""

    def __init__(self, controls):
        self.controls = controls

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        def heads(x):
            return x.unflatten(2, (attn.heads, -1)).transpose(1, 2)

        def rotated(x):
            cos, sin = (part.transpose(1, 2) for part in rotary_emb)
            x1, x2 = x.unflatten(-1, (-1, 2)).unbind(-1)
            cos, sin = cos[..., 0::2], sin[..., 1::2]
            return torch.stack([x1 * cos - x2 * sin, x1 * sin + x2 * cos], -1).flatten(-2)

        tokens = self.controls.tokens
        query = rotated(heads(attn.norm_q(attn.to_q(hidden_states))))
        key = rotated(heads(attn.norm_k(attn.to_k(hidden_states))))
        value = heads(attn.to_v(hidden_states))
        key = torch.cat([key, heads(attn.norm_k(attn.to_k(tokens)))], 2)
        value = torch.cat([value, heads(attn.to_v(tokens))], 2)
        added = self.controls.added(query.shape[2], key.shape[2])
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=added)
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2))


class CogVideoXControlled:
    """Attention of CogVideoX, of text and video together, with controls that the text does not see."""

    def __init__(self, controls):
        self.controls = controls

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, image_rotary_emb=None):
        def heads(x):
            return x.unflatten(2, (attn.heads, -1)).transpose(1, 2)

        text = encoder_hidden_states.shape[1]
        joined = torch.cat([encoder_hidden_states, hidden_states], 1)
        query = attn.norm_q(heads(attn.to_q(joined)))
        key = attn.norm_k(heads(attn.to_k(joined)))
        value = heads(attn.to_v(joined))
        if image_rotary_emb is not None:
            query = torch.cat([query[:, :, :text], apply_rotary_emb(query[:, :, text:], image_rotary_emb)], 2)
            key = torch.cat([key[:, :, :text], apply_rotary_emb(key[:, :, text:], image_rotary_emb)], 2)
        tokens = self.controls.tokens
        key = torch.cat([key, attn.norm_k(heads(attn.to_k(tokens)))], 2)
        value = torch.cat([value, heads(attn.to_v(tokens))], 2)
        added = self.controls.added(query.shape[2], key.shape[2], blind=text)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=added)
        mixed = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return mixed[:, text:], mixed[:, :text]


def wan():
    """The model, a case of its own, and the blocks that see controls."""
    folder = fixtures_dir() / "wan/transformer/t2v"
    config = json.loads((folder / "config.json").read_text())
    model = WanTransformer3DModel.from_config(config)
    model.load_state_dict(random_weights.load(folder / "diffusion_pytorch_model.safetensors"))
    return model, model.blocks, folder / "case_b2_t3_6x10_s9.safetensors", WanControlled, None


def cogvideox(name, case, blocks):
    """As wan, of a model in diffusers' layout."""
    folder = fixtures_dir() / "transformer" / name
    if (folder / "diffusion_pytorch_model.safetensors.recipe.json").is_file():
        model = CogVideoXTransformer3DModel.from_config(json.loads((folder / "config.json").read_text()))
        model.load_state_dict(random_weights.load(folder / "diffusion_pytorch_model.safetensors"))
    else:
        model = CogVideoXTransformer3DModel.from_pretrained(folder)
    return model, model.transformer_blocks, folder / case, CogVideoXControlled, blocks


def forward(model, inputs):
    inputs = dict(inputs)
    cos, sin = (inputs.pop(f"image_rotary_emb_{part}", None) for part in ("cos", "sin"))
    if cos is not None:
        inputs["image_rotary_emb"] = (cos, sin)
    return model(**inputs, return_dict=False)[0]


def main() -> None:
    """Writes every case."""
    root = output_dir(__doc__, "control")
    logging.set_verbosity_error()
    cases = {
        "wan": wan(),
        "rotary": cogvideox("rotary_t2v", "case_b1_t3_12x8_s10.safetensors", None),
        "sincos": cogvideox("sincos_t2v", "case_b2_t1_6x10_s10.safetensors", [0]),
    }
    for number, (name, (model, layers, path, processor, blocks)) in enumerate(cases.items()):
        directory = root / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        inputs = {key[6:]: value for key, value in load_file(path).items() if key.startswith("input.")}
        width = layers[0].attn1.to_k.in_features
        tensors = {
            "control.embed_scale": randn(len(NAMES), width, seed=9000 + number),
            "control.embed_bias": randn(len(NAMES), width, seed=9100 + number),
            "control.logit_bias": torch.tensor([0.0, 1.5, -0.75]),
        }
        metadata = {"control.names": json.dumps(NAMES)} | ({} if blocks is None else {"control_blocks": json.dumps(blocks)})
        save_file(tensors, directory / "control.safetensors", metadata)
        seen = blocks if blocks is not None else range((len(layers) + 2) // 3)
        batch = inputs["hidden_states"].shape[0]
        control, mask = torch.tensor([[0.5, 2.0, -1.0], [1.0, 0.25, 0.75]])[:batch], torch.tensor([[1.0, 0, 1], [1, 1, 0]])[:batch]

        def controlled(model, layers, kind):
            controls = Controls({key: value.to(kind) for key, value in tensors.items()}, control.to(kind), mask)
            for block in seen:
                layers[block].attn1.set_processor(processor(controls))
            return forward(model, {key: value.to(kind) if value.is_floating_point() else value for key, value in inputs.items()})

        plain = forward(model, inputs)
        double = copy.deepcopy(model).double()
        with torch.no_grad():
            sample = controlled(model, layers, torch.float32)
            with float_means_double():
                exact = controlled(double, double.blocks if name == "wan" else double.transformer_blocks, torch.float64)
        moved = ((sample - plain).norm() / plain.norm()).item()
        assert moved > 0.01, moved
        given = inputs | {"control": control, "control_mask": mask}
        save_case(directory / "case.safetensors", given, {"sample": sample}, {"noise_floor": noise_floor(sample, exact), "moved": moved})
    report(root)


if __name__ == "__main__":
    main()
