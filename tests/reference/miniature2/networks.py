"""The second miniature's networks, all of them classes of diffusers and transformers but the predictor's; sampling as the runtime does it."""

import io
import json
import math
import time
from pathlib import Path

import world  # first: it finds the folders of the first miniature
import lab
import numpy as np
import sentencepiece
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.models.transformers import transformer_wan
from torch import nn
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from sample import tokenizer

torch.set_grad_enabled(True)
lab.CLOCK = time.process_time  # a stage takes as many steps on a machine that does other work, too

LATENT = 8  # channels
LATENT_FRAMES, LATENT_SIZE = (world.FRAMES - 1) // 4 + 1, world.SIZE // 4
TEXT = 512  # rows of text that Wan's transformer sees; those after a caption's own are zeros
TOKENS = 24  # of a caption or a prompt, at most
TEXT_WIDTH = 64
SHIFT = 3.0
STEPS = 12
RANK = 4


# The autoencoder


def new_vae(mean=(0.0,) * LATENT, std=(1.0,) * LATENT):
    """Wan 2.1's form with three levels: 4 pixels in space and 4 frames in time to a latent."""
    return AutoencoderKLWan(
        base_dim=16, z_dim=LATENT, dim_mult=[1, 2, 3], num_res_blocks=1, attn_scales=[], temperal_downsample=[True, True],
        latents_mean=list(mean), latents_std=list(std), scale_factor_temporal=4, scale_factor_spatial=4,
    )  # fmt: skip


def condition(pixels):
    """Wan's image condition: the first frame, and grey (0 of [-1, 1]) after it."""
    grey = torch.zeros_like(pixels)
    grey[:, :, 0] = pixels[:, :, 0]
    return grey


def statistics(vae):
    """Mean and standard deviation of latents, to broadcast."""
    return (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))


@torch.no_grad()
def encode(vae, pixels, batch=32):
    """Normalised means [B,LATENT,T,h,w], f32."""
    mean, std = statistics(vae)
    return torch.cat([(vae.encode(part).latent_dist.mean.float() - mean) / std for part in pixels.split(batch)])


@torch.no_grad()
def decode(vae, latents, batch=32):
    """[B,LATENT,T,h,w], normalised -> [B,3,F,H,W]."""
    mean, std = statistics(vae)
    return torch.cat([vae.decode(part * std + mean).sample.float() for part in latents.split(batch)])


# Text


def new_tokenizer(directory: Path) -> T5Tokenizer:
    """SentencePiece over captions and prompts, with single letters, digits and punctuation for everything else."""
    if (directory / "spiece.model").exists():
        return T5Tokenizer.from_pretrained(directory)
    model = io.BytesIO()
    # A word becomes one piece only if it is part of at least two different words.
    whole = [f"{word}, {word}. {word}s" for word in world.words()]
    letters = " ".join("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'-()")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(whole * 20 + [letters] * 20),
        model_writer=model,
        model_type="unigram",
        vocab_size=640,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return tokenizer(directory, model.getvalue())


def new_text_encoder(vocabulary: int) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=-(-vocabulary // 64) * 64, d_model=TEXT_WIDTH, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
        dropout_rate=0.0, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return UMT5EncoderModel(config)


def tokens(words: T5Tokenizer, texts: list[str]):
    """Ids and mask [B,TOKENS]."""
    found = words(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    return found.input_ids, found.attention_mask


def hidden(text_encoder, ids, mask):
    """[B,TOKENS,TEXT_WIDTH], zeros where the mask is 0."""
    return text_encoder(ids, mask).last_hidden_state * mask[..., None]


# The transformer


class Padded(transformer_wan.WanAttnProcessor):
    """Attention to a text of TEXT rows that is given as TOKENS + 1: the last one, of zeros, stands for all that follow."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        if encoder_hidden_states is not None and encoder_hidden_states.shape[1] == TOKENS + 1:
            attention_mask = torch.zeros(1, 1, 1, TOKENS + 1)
            attention_mask[..., -1] = math.log(TEXT - TOKENS)
            if torch.is_autocast_enabled("cpu"):
                attention_mask = attention_mask.bfloat16()
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)


def new_transformer() -> WanTransformer3DModel:
    """The image-to-video form without an image encoder: noise, a mask of four channels, the latent of the condition."""
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=4, attention_head_dim=32, in_channels=2 * LATENT + 4, out_channels=LATENT,
        text_dim=TEXT_WIDTH, freq_dim=64, ffn_dim=256, num_layers=4, cross_attn_norm=True, rope_max_seq_len=64,
    )  # fmt: skip
    for block in transformer.blocks:
        block.attn2.set_processor(Padded())
    return transformer


def text_rows(text):
    """[B,TOKENS,w] -> [B,TOKENS+1,w], what `Padded` takes for TEXT rows."""
    return torch.cat([text, torch.zeros_like(text[:, :1])], dim=1)


def conditioned(conditions):
    """Normalised latents of conditions [B,LATENT,T,h,w] -> [B,4+LATENT,T,h,w], with Wan's mask before them."""
    mask = torch.zeros_like(conditions[:, :4])
    mask[:, :, 0] = 1
    return torch.cat([mask, conditions], dim=1)


def flow_loss(transformer, latents, conditions, text, generator):
    """Mean square error of the predicted velocity."""
    u = torch.rand(len(latents), generator=generator)
    sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
    noise = torch.randn(latents.shape, generator=generator)
    s = sigma.view(-1, 1, 1, 1, 1)
    x = torch.cat([(1 - s) * latents + s * noise, conditioned(conditions)], dim=1)
    v = transformer(x, sigma * 1000, text_rows(text), return_dict=False)[0]
    return (v - (noise - latents)).square().mean()


def new_scheduler():
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT, num_train_timesteps=1000, solver_order=2,
        solver_type="bh2", predict_x0=True, final_sigmas_type="zero",
    )  # fmt: skip


@torch.no_grad()
def sample(transformer, conditions, text, noise, steps=STEPS):
    """UniPC without guidance: normalised latents [B,LATENT,T,h,w]."""
    scheduler = new_scheduler()
    scheduler.set_timesteps(steps)
    x, given, rows = noise, conditioned(conditions), text_rows(text)
    for t in scheduler.timesteps:
        v = transformer(torch.cat([x, given], dim=1), t.expand(len(x)), rows, return_dict=False)[0]
        x = scheduler.step(v.float(), t, x).prev_sample
    return x


# Adapters


def slots(transformer) -> list[str]:
    """Linear layers of the blocks, in the order of strings."""
    named = transformer.named_modules()
    return sorted(name for name, module in named if name.startswith("blocks.") and isinstance(module, nn.Linear))


class Branches:
    """Low-rank branches of every slot, one adapter for each sample of a batch: `factors` is {slot: (A [B,r,in], B [B,out,r])} or None."""

    def __init__(self, transformer):
        self.slots, self.factors = slots(transformer), None
        for name in self.slots:
            transformer.get_submodule(name).register_forward_hook(self._branch(name))

    def _branch(self, name):
        def hook(_, inputs, output):
            if self.factors is None:
                return output
            down, up = self.factors[name]
            return output + torch.bmm(torch.bmm(inputs[0].to(down.dtype), down.mT), up.mT).to(output.dtype)

        return hook


class Bank(nn.Module):
    """An adapter of rank RANK for each member of world.BANK, trained together."""

    def __init__(self, transformer):
        super().__init__()
        self.slots = slots(transformer)
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for name in self.slots:
            out, wide = transformer.get_submodule(name).weight.shape
            self.down.append(nn.Parameter(torch.randn(len(world.BANK), RANK, wide) / wide**0.5))
            self.up.append(nn.Parameter(torch.zeros(len(world.BANK), out, RANK)))

    def forward(self):
        """{slot: (A [members,r,in], B [members,out,r])}."""
        return {name: (down, up) for name, down, up in zip(self.slots, self.down, self.up)}


def blend(factors, members, strengths):
    """Sums of adapters: `members` and `strengths` [B,k] choose k of those that `factors` holds for each sample."""
    count, k = members.shape
    blended = {}
    for name, (down, up) in factors.items():
        scaled = up[members] * strengths[:, :, None, None]
        blended[name] = (down[members].reshape(count, -1, down.shape[2]), scaled.transpose(1, 2).reshape(count, up.shape[1], -1))
    return blended


def canonical(down, up):
    """The same update as U S^1/2 and S^1/2 V^T; the largest entry of each column of U is positive. f64 inside."""
    q_up, r_up = torch.linalg.qr(up.double())
    q_down, r_down = torch.linalg.qr(down.double().mT)
    u, s, v = torch.linalg.svd(r_up @ r_down.mT)
    u, v = q_up @ u, q_down @ v.mT
    largest = u.gather(-2, u.abs().argmax(-2, keepdim=True))
    sign, root = torch.where(largest < 0, -1.0, 1.0), s.clamp(min=0).sqrt()[..., None, :]
    return (v * sign * root).mT.float().contiguous(), (u * sign * root).float().contiguous()
