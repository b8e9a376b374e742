"""Transformers and UNets of diffusers that v2l has no exporter for: exported by PyTorch, compiled, run, adapted.

Run: python tests/checks/peers/diffusers_classes.py [CLASS …] [--work DIR] [--tools DIR] [--jobs 2] [--torchscript]
     [--no-weights] [--json]
In a virtual environment of tests/reference/requirements.txt. Builds the debug binaries with cargo, or takes those in
`--tools`. Exports lie in `--work` (default: target/diffusers-classes) and are used again; none is committed.

Every model is tiny and random, its norms and biases, too, so that a swapped scale or a forgotten bias shows. Two rows with
timesteps of their own go through PyTorch, and through the engine that v2l-compile makes of torch.onnx's graph with
`--weights`. Then a LoRA on every linear layer of the module, fused by v2l-run, against PyTorch with the update added to the weights.

Prints a table: output error (relative L2, the worst output), linear layers of the module, slots that v2l found, error with the LoRA,
how far the LoRA moves the output, so that one without effect cannot pass, and the layers without a slot: the exporter leaves out what
nothing reads. Ends with 1 unless every class is right to `LIMIT` with and without the LoRA. On two cores about 20 minutes, most of it
the exporter's.
"""

import argparse
import concurrent.futures
import contextlib
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import traceback
import zlib
from pathlib import Path
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import numpy as np
import onnx
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro
from onnxscript import opset20
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests/reference"))
from common import randomize_  # noqa: E402

LIMIT = 3e-5
# A LoRA that moves the output less than this proves nothing.
EFFECT = 1e-2
RANK, BATCH = 2, 2
HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}


def randn(*shape):
    return torch.randn(*shape)


def ones(*shape, dtype=torch.int64):
    return torch.ones(*shape, dtype=dtype)


def mask(length, valid):
    """`[BATCH, length]`; the first row's text is `valid` tokens long, the second fills it."""
    rows = ones(BATCH, length)
    rows[0, valid:] = 0
    return rows


TIMES = torch.tensor([999.0, 250.5])
FRACTIONS = torch.tensor([0.75, 0.3125])


def positions(rows, columns, axes=3):
    """Position of each token, `[rows * columns, axes]`, row and column last."""
    ids = torch.zeros(rows, columns, axes)
    ids[..., -2] = torch.arange(rows)[:, None]
    ids[..., -1] = torch.arange(columns)[None, :]
    return ids.reshape(rows * columns, axes)


def flux2_positions(rows, columns):
    ids = torch.zeros(BATCH, rows * columns, 4)
    ids[..., 1] = torch.arange(rows).repeat_interleave(columns)
    ids[..., 2] = torch.arange(columns).repeat(rows)
    return ids


class Lists(torch.nn.Module):
    """Z-Image takes and gives lists of images; a graph has tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, t, cap_feats):
        return torch.stack(self.model(list(x), t, list(cap_feats), return_dict=False)[0])


class AddedConditions(torch.nn.Module):
    """Conditions in a dictionary, as SDXL's UNet takes them, as inputs of their own."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, sample, timestep, encoder_hidden_states, text_embeds, time_ids):
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.model(sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False)[0]


class NoTiming(torch.nn.Module):
    """PixArt wants a dictionary of conditions though it has none."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, hidden_states, encoder_hidden_states, timestep, encoder_attention_mask):
        conditions = {"resolution": None, "aspect_ratio": None}
        return self.model(
            hidden_states,
            encoder_hidden_states,
            timestep,
            conditions,
            encoder_attention_mask=encoder_attention_mask,
            return_dict=False,
        )[0]


class Pair:
    """Complex numbers as `[…, 2]`: the exporter has no complex tensors."""

    def __init__(self, parts):
        self.parts = parts

    def __mul__(self, other):
        (a, b), (c, d) = self.parts.unbind(-1), other.unbind(-1)
        return Pair(torch.stack([a * c - b * d, a * d + b * c], dim=-1))


def as_real(value, original=torch.view_as_real):
    return value.parts if isinstance(value, Pair) else original(value)


class Baked(torch.nn.Module):
    """Gives what a module gave once, complex tables as `[…, 2]`: for tables that depend on extents alone."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = tuple(torch.view_as_real(o) if torch.is_complex(o) else o for o in outputs)

    def forward(self, *_arguments, **_named):
        return self.outputs


def output_of(model, name, given):
    """What a submodule gives while the whole model runs."""
    seen = []
    hook = model.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    outputs_of(model, given)
    hook.remove()
    return seen[0]


def bake_qwen(model, given):
    model.pos_embed = Baked(output_of(model, "pos_embed", given))


def bake_omnigen(model, given):
    model.rope = Baked(output_of(model, "rope", given))


def bake_lumina(model, given):
    """The lengths of the prompts are read from the mask; here they are all the same."""
    original = model.rope_embedder
    _, *tables, lengths, totals = output_of(model, "rope_embedder", given)
    tables = [torch.view_as_real(table) for table in tables]

    class Fixed(torch.nn.Module):
        def forward(self, hidden_states, _mask):
            batch, channels, height, width = hidden_states.shape
            size = original.patch_size
            patches = hidden_states.reshape(batch, channels, height // size, size, width // size, size)
            return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2), *tables, lengths, totals

    model.rope_embedder = Fixed()


def bake_z_image(model, _given):
    embedder = model.rope_embedder
    tables = embedder.precompute_freqs_cis(embedder.axes_dims, embedder.axes_lens, theta=embedder.theta)
    tables = [torch.view_as_real(table) for table in tables]
    model.rope_embedder = lambda ids: torch.cat([table[ids[:, i]] for i, table in enumerate(tables)], dim=-2)


def dense_experts(model, _given):
    """Every expert sees every token, those that a token does not go to with weight 0: what goes where is known only while it runs."""

    def infer(self, x, indices, weights):
        chosen = self.num_activated_experts
        shares = torch.zeros(x.shape[0], len(self.experts)).scatter(1, indices.view(-1, chosen), weights.view(-1, chosen))
        return sum(expert(x) * shares[:, i : i + 1] for i, expert in enumerate(self.experts))

    for module in model.modules():
        if hasattr(module, "moe_infer"):
            module.moe_infer = infer.__get__(module)


# The exporter would compute some of their layers beforehand, those that see constants only, and no adapter could reach these.
UNFOLDED = {"UNetSpatioTemporalConditionModel"}
# What has to be put differently for the exporter, and computes the same.
PREPARED = {
    "HiDreamImageTransformer2DModel": dense_experts,
    "Lumina2Transformer2DModel": bake_lumina,
    "OmniGenTransformer2DModel": bake_omnigen,
    "QwenImageTransformer2DModel": bake_qwen,
    "ZImageTransformer2DModel": bake_z_image,
}


def allegro_tables(frames, rows, columns, dim):
    """As the pipeline makes them: tables per axis, and each token's place in them."""
    freqs_t, freqs_h, freqs_w, grid_t, grid_h, grid_w = get_3d_rotary_pos_embed_allegro(
        dim, ((0, 0), (rows, columns)), (rows, columns), frames, (2.2, 2.0, 2.0)
    )
    places = torch.cartesian_prod(grid_t.long(), grid_h.long(), grid_w.long()).T.reshape(3, 1, -1).contiguous()
    return (freqs_t, freqs_h, freqs_w), tuple(places)


def unet(kind):
    """Two levels, the lower one with attention."""
    return {
        "down_block_types": (f"CrossAttnDownBlock{kind}", f"DownBlock{kind}"),
        "up_block_types": (f"UpBlock{kind}", f"CrossAttnUpBlock{kind}"),
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 32,
    }


# Class, or class and variant: configuration, inputs, and what stands between the graph's inputs and `forward`.
CASES = {
    "LTXVideoTransformer3DModel": (
        {**HEADS, "in_channels": 8, "out_channels": 8, "cross_attention_dim": 32, "num_layers": 2, "caption_channels": 24},
        lambda: {
            "hidden_states": randn(BATCH, 2 * 4 * 4, 8),
            "encoder_hidden_states": randn(BATCH, 7, 24),
            "timestep": TIMES,
            "encoder_attention_mask": mask(7, 4),
            "num_frames": 2,
            "height": 4,
            "width": 4,
        },
    ),
    "LTX2VideoTransformer3DModel": (
        {
            **HEADS,
            "in_channels": 8,
            "out_channels": 8,
            "cross_attention_dim": 32,
            "audio_in_channels": 8,
            "audio_out_channels": 8,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 8,
            "audio_cross_attention_dim": 16,
            "num_layers": 2,
            "caption_channels": 24,
            "rope_double_precision": False,
        },
        lambda: {
            "hidden_states": randn(BATCH, 2 * 4 * 4, 8),
            "audio_hidden_states": randn(BATCH, 6, 8),
            "encoder_hidden_states": randn(BATCH, 7, 24),
            "audio_encoder_hidden_states": randn(BATCH, 7, 24),
            "timestep": TIMES,
            "encoder_attention_mask": mask(7, 4),
            "audio_encoder_attention_mask": mask(7, 4),
            "num_frames": 2,
            "height": 4,
            "width": 4,
            "fps": 25.0,
            "audio_num_frames": 6,
        },
    ),
    "FluxTransformer2DModel": (
        {
            **HEADS,
            "in_channels": 8,
            "num_layers": 1,
            "num_single_layers": 1,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 24,
            "guidance_embeds": True,
            "axes_dims_rope": (4, 4, 8),
        },
        lambda: {
            "hidden_states": randn(BATCH, 16, 8),
            "encoder_hidden_states": randn(BATCH, 6, 32),
            "pooled_projections": randn(BATCH, 24),
            "timestep": FRACTIONS,
            "img_ids": positions(4, 4),
            "txt_ids": torch.zeros(6, 3),
            "guidance": torch.tensor([3.5, 1.0]),
        },
    ),
    "Flux2Transformer2DModel": (
        {
            **HEADS,
            "in_channels": 8,
            "num_layers": 1,
            "num_single_layers": 2,
            "joint_attention_dim": 24,
            "timestep_guidance_channels": 32,
            "axes_dims_rope": (4, 4, 4, 4),
        },
        lambda: {
            "hidden_states": randn(BATCH, 16, 8),
            "encoder_hidden_states": randn(BATCH, 6, 24),
            "timestep": FRACTIONS,
            "img_ids": flux2_positions(4, 4),
            "txt_ids": flux2_positions(1, 6),
            "guidance": torch.tensor([3.5, 1.0]),
        },
    ),
    "SanaTransformer2DModel": (
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 24,
            "sample_size": 8,
        },
        lambda: {
            "hidden_states": randn(BATCH, 4, 8, 8),
            "encoder_hidden_states": randn(BATCH, 7, 24),
            "timestep": TIMES,
            "encoder_attention_mask": mask(7, 4),
        },
    ),
    "AuraFlowTransformer2DModel": (
        {
            **HEADS,
            "sample_size": 8,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 2,
            "joint_attention_dim": 24,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 16,
        },
        lambda: {
            "hidden_states": randn(BATCH, 4, 8, 8),
            "encoder_hidden_states": randn(BATCH, 6, 24),
            "timestep": FRACTIONS,
        },
    ),
    "CogView3PlusTransformer2DModel": (
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "text_embed_dim": 24,
            "time_embed_dim": 16,
            "condition_dim": 8,
            "pos_embed_max_size": 8,
            "sample_size": 8,
        },
        lambda: {
            "hidden_states": randn(BATCH, 4, 8, 8),
            "encoder_hidden_states": randn(BATCH, 6, 24),
            "timestep": TIMES,
            "original_size": torch.tensor([[64.0, 48.0], [32.0, 32.0]]),
            "target_size": torch.tensor([[64.0, 64.0], [64.0, 64.0]]),
            "crop_coords": torch.tensor([[0.0, 0.0], [4.0, 8.0]]),
        },
    ),
    "CogView4Transformer2DModel": (
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "text_embed_dim": 24,
            "time_embed_dim": 16,
            "condition_dim": 8,
            "pos_embed_max_size": 8,
            "sample_size": 8,
            "rope_axes_dim": (8, 8),
        },
        lambda: {
            "hidden_states": randn(BATCH, 4, 8, 8),
            "encoder_hidden_states": randn(BATCH, 6, 24),
            "timestep": TIMES,
            "original_size": torch.tensor([[64.0, 48.0], [32.0, 32.0]]),
            "target_size": torch.tensor([[64.0, 64.0], [64.0, 64.0]]),
            "crop_coords": torch.tensor([[0.0, 0.0], [4.0, 8.0]]),
        },
    ),
    "HunyuanVideoTransformer3DModel": (
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": 24,
            "pooled_projection_dim": 16,
            "rope_axes_dim": (4, 4, 8),
        },
        lambda: {
            "hidden_states": randn(BATCH, 4, 2, 8, 8),
            "timestep": TIMES,
            "encoder_hidden_states": randn(BATCH, 7, 24),
            "encoder_attention_mask": mask(7, 4),
            "pooled_projections": randn(BATCH, 16),
            "guidance": torch.tensor([6000.0, 1000.0]),
        },
    ),
    "MochiTransformer3DModel": (
        {
            **HEADS,
            "num_layers": 2,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "text_embed_dim": 24,
            "time_embed_dim": 8,
            "max_sequence_length": 8,
        },
        lambda: {
            "hidden_states": randn(BATCH, 4, 2, 8, 8),
            "encoder_hidden_states": randn(BATCH, 8, 24),
            "timestep": TIMES,
            "encoder_attention_mask": mask(8, 5).bool(),
        },
    ),
    "ZImageTransformer2DModel": (
        {
            "in_channels": 4,
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 24,
            "axes_dims": [4, 4, 8],
            "axes_lens": [64, 32, 32],
        },
        lambda: {"x": randn(BATCH, 4, 1, 8, 8), "t": FRACTIONS, "cap_feats": randn(BATCH, 6, 24)},
        Lists,
    ),
    "WanTransformer3DModel": (
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 24,
            "freq_dim": 32,
            "ffn_dim": 48,
            "num_layers": 2,
            "rope_max_seq_len": 32,
        },
        lambda: {
            "hidden_states": randn(BATCH, 4, 2, 8, 8),
            "timestep": TIMES,
            "encoder_hidden_states": randn(BATCH, 7, 24),
        },
    ),
    "SkyReelsV2Transformer3DModel": (
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 24,
            "freq_dim": 32,
            "ffn_dim": 48,
            "num_layers": 2,
            "rope_max_seq_len": 32,
        },
        lambda: {
            "hidden_states": randn(BATCH, 4, 2, 8, 8),
            "timestep": TIMES,
            "encoder_hidden_states": randn(BATCH, 7, 24),
        },
    ),
    "SD3Transformer2DModel": (
        {
            **HEADS,
            "sample_size": 8,
            "in_channels": 4,
            "num_layers": 2,
            "joint_attention_dim": 24,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 16,
            "out_channels": 4,
            "pos_embed_max_size": 8,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
        lambda: {
            "hidden_states": randn(BATCH, 4, 8, 8),
            "encoder_hidden_states": randn(BATCH, 6, 24),
            "pooled_projections": randn(BATCH, 16),
            "timestep": TIMES,
        },
    ),
    "PixArtTransformer2DModel": (
        {
            **HEADS,
            "num_layers": 2,
            "cross_attention_dim": 32,
            "sample_size": 8,
            "caption_channels": 24,
            "use_additional_conditions": False,
        },
        lambda: {
            "hidden_states": randn(BATCH, 4, 8, 8),
            "encoder_hidden_states": randn(BATCH, 7, 24),
            "timestep": TIMES,
            "encoder_attention_mask": mask(7, 4),
        },
        NoTiming,
    ),
    "DiTTransformer2DModel": (
        {**HEADS, "num_layers": 2, "sample_size": 8, "num_embeds_ada_norm": 10},
        lambda: {
            "hidden_states": randn(BATCH, 4, 8, 8),
            "timestep": torch.tensor([999, 250]),
            "class_labels": torch.tensor([3, 7]),
        },
    ),
    "AllegroTransformer3DModel": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "num_layers": 2,
            "cross_attention_dim": 48,
            "sample_height": 8,
            "sample_width": 8,
            "sample_frames": 2,
            "caption_channels": 24,
        },
        lambda: {
            "hidden_states": randn(BATCH, 4, 2, 8, 8),
            "encoder_hidden_states": randn(BATCH, 7, 24),
            "timestep": TIMES,
            "attention_mask": ones(BATCH, 2, 8, 8),
            "encoder_attention_mask": mask(7, 4),
            "image_rotary_emb": allegro_tables(2, 4, 4, 24),
        },
    ),
    "Lumina2Transformer2DModel": (
        {
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 32,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "multiple_of": 16,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (64, 32, 32),
            "cap_feat_dim": 24,
        },
        lambda: {
            "hidden_states": randn(BATCH, 4, 8, 8),
            "timestep": FRACTIONS,
            "encoder_hidden_states": randn(BATCH, 6, 24),
            "encoder_attention_mask": ones(BATCH, 6).bool(),
        },
    ),
    "OmniGenTransformer2DModel": (
        {
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "num_layers": 2,
            "pad_token_id": 0,
            "vocab_size": 100,
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 64,
            "pos_embed_max_size": 8,
            "time_step_dim": 16,
            "rope_scaling": {
                "long_factor": [1.0 + i for i in range(8)],
                "short_factor": [1.0 + i / 8 for i in range(8)],
                "type": "su",
            },
        },
        lambda: {
            "hidden_states": randn(BATCH, 4, 8, 8),
            "timestep": FRACTIONS,
            "input_ids": torch.randint(0, 100, (BATCH, 6)),
            "input_img_latents": [],
            "input_image_sizes": {},
            "attention_mask": ones(BATCH, 6 + 1 + 16, 6 + 1 + 16),
            "position_ids": torch.arange(6 + 1 + 16)[None].repeat(BATCH, 1),
        },
    ),
    "ChromaTransformer2DModel": (
        {
            **HEADS,
            "in_channels": 8,
            "num_layers": 1,
            "num_single_layers": 1,
            "joint_attention_dim": 32,
            "axes_dims_rope": (4, 4, 8),
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        lambda: {
            "hidden_states": randn(BATCH, 16, 8),
            "encoder_hidden_states": randn(BATCH, 6, 32),
            "timestep": FRACTIONS,
            "img_ids": positions(4, 4),
            "txt_ids": torch.zeros(6, 3),
        },
    ),
    "Kandinsky5Transformer3DModel": (
        {
            "in_text_dim": 24,
            "in_text_dim2": 16,
            "time_dim": 32,
            "model_dim": 32,
            "ff_dim": 48,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (4, 4, 8),
        },
        lambda: {
            "hidden_states": randn(1, 2, 8, 8, 4),
            "encoder_hidden_states": randn(1, 6, 24),
            "timestep": TIMES[:1],
            "pooled_projections": randn(1, 16),
            "visual_rope_pos": [torch.arange(2), torch.arange(4), torch.arange(4)],
            "text_rope_pos": torch.arange(6),
        },
    ),
    "QwenImageTransformer2DModel": (
        {
            **HEADS,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "joint_attention_dim": 24,
            "axes_dims_rope": (4, 4, 8),
        },
        lambda: {
            "hidden_states": randn(BATCH, 16, 16),
            "encoder_hidden_states": randn(BATCH, 7, 24),
            "encoder_hidden_states_mask": mask(7, 4),
            "timestep": FRACTIONS,
            "img_shapes": [[(1, 4, 4)], [(1, 4, 4)]],
        },
    ),
    "HiDreamImageTransformer2DModel": (
        {
            **HEADS,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "caption_channels": [24, 16],
            "text_emb_dim": 16,
            "axes_dims_rope": (4, 4, 8),
            "max_resolution": (8, 8),
            "llama_layers": (0, 1),
            "force_inference_output": True,
        },
        lambda: {
            "hidden_states": randn(BATCH, 4, 8, 8),
            "encoder_hidden_states_t5": randn(BATCH, 6, 24),
            "encoder_hidden_states_llama3": randn(2, BATCH, 6, 16),
            "pooled_embeds": randn(BATCH, 16),
            "timesteps": TIMES,
        },
    ),
    "CosmosTransformer3DModel": (
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "text_embed_dim": 24,
            "adaln_lora_dim": 4,
            "max_size": (4, 16, 16),
            # With a mask the model wants torchvision.
            "concat_padding_mask": False,
        },
        lambda: {
            "hidden_states": randn(BATCH, 4, 2, 8, 8),
            "timestep": TIMES,
            "encoder_hidden_states": randn(BATCH, 6, 24),
            "fps": 24,
        },
    ),
    "UNet2DConditionModel": (
        {**unet("2D"), "attention_head_dim": 4, "sample_size": 8, "use_linear_projection": True},
        lambda: {
            "sample": randn(BATCH, 4, 8, 8),
            "timestep": TIMES,
            "encoder_hidden_states": randn(BATCH, 6, 32),
        },
    ),
    "UNet2DConditionModel, as in SDXL": (
        {
            **unet("2D"),
            "attention_head_dim": 4,
            "sample_size": 8,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 16,
        },
        lambda: {
            "sample": randn(BATCH, 4, 8, 8),
            "timestep": TIMES,
            "encoder_hidden_states": randn(BATCH, 6, 32),
            "text_embeds": randn(BATCH, 16),
            "time_ids": torch.randint(0, 1024, (BATCH, 6)).float(),
        },
        AddedConditions,
    ),
    "UNet3DConditionModel": (
        {**unet("3D"), "attention_head_dim": 4, "sample_size": 8},
        lambda: {
            "sample": randn(BATCH, 4, 3, 8, 8),
            "timestep": TIMES,
            "encoder_hidden_states": randn(BATCH, 6, 32),
        },
    ),
    "UNetMotionModel": (
        {
            **unet("Motion"),
            "num_attention_heads": 2,
            "motion_num_attention_heads": 2,
            "motion_max_seq_length": 8,
            "sample_size": 8,
        },
        lambda: {
            "sample": randn(BATCH, 4, 3, 8, 8),
            "timestep": TIMES,
            "encoder_hidden_states": randn(BATCH * 3, 6, 32),
        },
    ),
    "UNetSpatioTemporalConditionModel": (
        {
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "num_attention_heads": (2, 4),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24,
            "sample_size": 8,
        },
        lambda: {
            "sample": randn(BATCH, 3, 8, 8, 8),
            "timestep": TIMES,
            "encoder_hidden_states": randn(BATCH, 1, 32),
            "added_time_ids": torch.tensor([[6.0, 127.0, 0.02], [7.0, 30.0, 0.1]]),
        },
    ),
    "LatteTransformer3DModel": (
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "cross_attention_dim": 32,
            "attention_bias": True,
            "sample_size": 8,
            "patch_size": 2,
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "caption_channels": 24,
            "video_length": 3,
        },
        lambda: {
            "hidden_states": randn(BATCH, 4, 3, 8, 8),
            "timestep": TIMES,
            "encoder_hidden_states": randn(BATCH, 6, 24),
        },
    ),
    "CogVideoXTransformer3DModel": (
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 24,
            "num_layers": 2,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 6,
        },
        lambda: {
            "hidden_states": randn(BATCH, 2, 4, 8, 8),
            "encoder_hidden_states": randn(BATCH, 6, 24),
            "timestep": TIMES,
        },
    ),
    "EasyAnimateTransformer3DModel": (
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 2,
            "sample_width": 8,
            "sample_height": 8,
            "num_layers": 2,
            "mmdit_layers": 2,
            "time_embed_dim": 8,
            "text_embed_dim": 24,
        },
        lambda: {
            "hidden_states": randn(BATCH, 4, 2, 8, 8),
            "timestep": TIMES,
            "encoder_hidden_states": randn(BATCH, 6, 24),
        },
    ),
}


def build(case):
    """The module and what is given to its `forward`, always the same."""
    name, (config, inputs, *wrapper) = case, CASES[case]
    torch.manual_seed(zlib.crc32(name.encode()))
    model = getattr(diffusers, name.split(",")[0])(**config)
    randomize_(model, 1)
    given = inputs()
    wrapped = wrapper[0](model).eval() if wrapper else model
    if not wrapper and "return_dict" in wrapped.forward.__code__.co_varnames:
        given["return_dict"] = False
    return model, wrapped, given


def outputs_of(wrapped, given):
    with torch.no_grad():
        result = wrapped(**given)
    found = []

    def collect(value):
        if isinstance(value, torch.Tensor):
            found.append(value.float().numpy())
        elif isinstance(value, (list, tuple)):
            for each in value:
                collect(each)
        elif isinstance(value, dict):
            collect(list(value.values()))

    collect(result)
    return found


def graph_inputs(given):
    """The tensors among the arguments, in order; lists and tuples flattened."""
    found = []

    def collect(value):
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            for each in value:
                collect(each)

    for value in given.values():
        collect(value)
    return found


def squeeze(self, dim):
    """PyTorch's squeeze of an axis that is not 1 long does nothing; the exporter's own translation writes an invalid node (LTX2)."""
    if self.shape is not None and self.shape[dim] != 1:
        return opset20.Identity(self)
    return opset20.Squeeze(self, opset20.Constant(value_ints=[dim]))


def export(case, path, torchscript):
    model, wrapped, given = build(case)
    PREPARED.get(case, lambda *_: None)(model, given)
    options = {"custom_translation_table": {torch.ops.aten.squeeze.dim: squeeze}, "optimize": case not in UNFOLDED}
    if torchscript:
        options = {"opset_version": 20, "do_constant_folding": True}
    pairs = mock.patch.multiple(torch, view_as_complex=Pair, view_as_real=as_real)
    with torch.no_grad(), pairs if case in PREPARED else contextlib.nullcontext():
        torch.onnx.export(
            wrapped, (), str(path), kwargs=given, dynamo=not torchscript, external_data=False, verbose=False, **options
        )


def adapter(model):
    """Factors for every linear layer, with updates of about a tenth of the weight."""
    generator, tensors = torch.Generator().manual_seed(3), {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            down = torch.randn(RANK, module.in_features, generator=generator)
            up = torch.randn(module.out_features, RANK, generator=generator)
            scale = 0.1 * module.weight.norm() / (up @ down).norm()
            tensors[f"{name}.lora_A.weight"] = down
            tensors[f"{name}.lora_B.weight"] = up * scale
    return tensors


def add_update(model, tensors):
    done = set()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and id(module) not in done:
            done.add(id(module))
            up, down = (tensors[f"{name}.lora_{side}.weight"] for side in "BA")
            module.weight.data += up @ down


class Refused(Exception):
    """A tool ended with another code than 0: `(tool, code, words)`."""


def tool(args, name, *arguments):
    command = [str(args.tools / name), *map(str, arguments)]
    environment = {"V2L_ORT_LIB": str(ROOT / "vendor/ort/onnxruntime/capi")} | os.environ
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise Refused(name, done.returncode, done.stderr.strip())
    return done


def distance(expected, path, names):
    """Relative L2 distance of the worst output."""
    found = load_numpy(path)
    worst = 0.0
    for value, name in zip(expected, names, strict=True):
        other = found[name].astype(np.float64)
        if other.shape != value.shape:
            raise AssertionError(f"{name}: {other.shape}, expected {value.shape}")
        error = np.linalg.norm(other - value) / np.linalg.norm(value.astype(np.float64))
        worst = max(worst, float(error) if np.isfinite(error) else float("inf"))
    return worst


def relative(a, b):
    return max(float(np.linalg.norm(x - y) / np.linalg.norm(y)) for x, y in zip(a, b, strict=True))


def measure(case, args):
    """One row of the table, as a dictionary."""
    torch.set_num_threads(1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    folder = args.work / ("".join(c if c.isalnum() else "-" for c in case) + ("-torchscript" if args.torchscript else ""))
    folder.mkdir(parents=True, exist_ok=True)
    row = {"case": case}
    model, wrapped, given = build(case)
    linears = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    row["linears"] = len(linears)
    base = outputs_of(wrapped, given)
    graph = folder / "model.onnx"
    if not graph.exists():
        try:
            export(case, folder / "model.part.onnx", args.torchscript)
        except Exception as error:
            while error.__cause__:
                error = error.__cause__
            words = str(error).strip().splitlines()
            return row | {"not_exported": f"{type(error).__name__}: {' '.join(words)[:300]}"}
        os.replace(folder / "model.part.onnx", graph)
    save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, folder / "weights.safetensors")

    stored = onnx.load(graph, load_external_data=False).graph
    tensors = graph_inputs(given)
    names = [i.name for i in stored.input]
    # The exporter drops inputs that nothing reads; those that stay keep their order and, but for lists, their names.
    by_name = {k: v for k, v in given.items() if isinstance(v, torch.Tensor)}
    if all(name in by_name for name in names):
        feeds = {name: by_name[name] for name in names}
    else:
        feeds = dict(zip(names, tensors, strict=True))
    save_file({k: v.contiguous().clone() for k, v in feeds.items()}, folder / "inputs.safetensors")
    produced = [o.name for o in stored.output]

    engine = folder / "model.engine"
    compile_args = [graph, "-o", engine, *([] if args.no_weights else ["--weights", folder / "weights.safetensors"])]
    row["compile"] = tool(args, "v2l-compile", *compile_args).stderr.strip()
    events = [json.loads(event) for event in tool(args, "v2l-inspect", engine, "--json").stdout.splitlines()]
    slots = {event["name"] for event in events if event["event"] == "slot"}
    row["slots"] = len(slots)
    row["without_slot"] = sorted(set(linears) - slots)
    run = ["--engine", engine, "--inputs", folder / "inputs.safetensors", "--outputs", folder / "outputs.safetensors"]
    tool(args, "v2l-run", *run)
    row["error"] = distance(base, folder / "outputs.safetensors", produced)

    lora = adapter(model)
    save_file(lora, folder / "lora.safetensors")
    add_update(model, lora)
    adapted = outputs_of(wrapped, given)
    row["effect"] = relative(adapted, base)
    done = tool(args, "v2l-run", *run, "--lora", folder / "lora.safetensors")
    row["lora_says"] = done.stderr.strip()
    row["lora_error"] = distance(adapted, folder / "outputs.safetensors", produced)
    return row


def attempt(case, args):
    try:
        return measure(case, args)
    except Refused as refused:
        name, code, words = refused.args
        return {"case": case, "refused": f"{name} exits {code}: {words}"}
    except Exception:
        return {"case": case, "failed": traceback.format_exc()}


def line(row):
    if "error" not in row or "lora_error" not in row:
        return f"{row['case']:40} {next(row[k] for k in ('refused', 'not_exported', 'failed') if k in row)}"
    missing = row["without_slot"]
    note = f"  no slot: {', '.join(missing)}" if missing else ""
    return (
        f"{row['case']:40} {row['error']:8.1e} {row['linears']:7} {row['slots']:6} "
        f"{row['lora_error']:9.1e} {row['effect']:7.2f}{note}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CLASS", help="default: all")
    parser.add_argument("--work", type=Path, default=ROOT / "target/diffusers-classes")
    parser.add_argument("--tools", type=Path, help="folder of v2l-compile, v2l-inspect and v2l-run")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--torchscript", action="store_true", help="the older exporter")
    parser.add_argument("--no-weights", action="store_true", help="slots are named by the graph alone")
    parser.add_argument("--json", action="store_true", help="one row per line")
    args = parser.parse_args()
    unknown = [c for c in args.cases if not any(name.startswith(c) for name in CASES)]
    if unknown:
        parser.error(f"{', '.join(unknown)}: expected the beginnings of {', '.join(CASES)}")
    if args.tools is None:
        subprocess.run(["cargo", "build", "--workspace", "--quiet"], cwd=ROOT, check=True)
        args.tools = ROOT / "target/debug"
    chosen = [name for name in CASES if not args.cases or any(name.startswith(c) for c in args.cases)]
    context = multiprocessing.get_context("spawn")
    if not args.json:
        print(f"{'class':40} {'error':>8} {'linears':>7} {'slots':>6} {'with LoRA':>9} {'effect':>7}", flush=True)
    bad = 0
    with concurrent.futures.ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        for row in pool.map(attempt, chosen, [args] * len(chosen)):
            print(json.dumps(row) if args.json else line(row), flush=True)
            good = row.get("error", 1) <= LIMIT and row.get("lora_error", 1) <= LIMIT and row.get("effect", 0) >= EFFECT
            bad += not good
    print(f"{len(chosen) - bad} of {len(chosen)} right to {LIMIT:g}", file=sys.stderr)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
