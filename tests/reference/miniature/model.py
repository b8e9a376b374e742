"""The miniature's text side, backbone, steering and sampling; all of it as the runtime does it."""

import io
import json
from pathlib import Path

import lab  # first: it finds the folder above
import numpy as np
import sentencepiece
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel, DDIMScheduler
from torch import nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

import clips
from hypernetwork import Hypernetwork, light_lora_name, linear_modules
from rope import fun_tables
from sample import SCHEDULER, tokenizer

TEXT = 16  # tokens of a caption, end included
PIECES = 200
LATENT_FRAMES, LATENT_SIZE = (lab.FRAMES - 1) // 4 + 1, lab.SIZE // 8
A, B = 88, 44  # LightLoRA: D = 132, two heads of 66
ITERATIONS = 4  # k; not stored in a checkpoint, and the runtime's default

torch.set_grad_enabled(True)


# Text


def new_tokenizer(directory: Path) -> T5Tokenizer:
    """SentencePiece over the captions, with single letters, digits and punctuation for everything else."""
    if (directory / "spiece.model").exists():
        return T5Tokenizer.from_pretrained(directory)
    model = io.BytesIO()
    # A word becomes one piece only if it is part of at least two different words.
    whole = [f"{word}, {word}. {word}s" for word in sorted({w for text in clips.captions() for w in text.split()})]
    letters = " ".join("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'-()")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(clips.captions() + whole * 20 + [letters] * 20),
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES,
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


def new_text_encoder(vocabulary: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=-(-vocabulary // 64) * 64,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def ids(words: T5Tokenizer, texts: list[str]) -> torch.Tensor:
    """[B, TEXT], padded; the encoder runs without a mask."""
    return words(texts, padding="max_length", max_length=TEXT, truncation=True, return_tensors="pt").input_ids


# Backbone


def new_transformer() -> CogVideoXTransformer3DModel:
    """CogVideoX-Fun InP in small: 16 noisy channels, 1 of mask, 16 of the masked video."""
    return CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        num_layers=4,
        in_channels=33,
        out_channels=16,
        time_embed_dim=64,
        text_embed_dim=64,
        sample_width=LATENT_SIZE,
        sample_height=LATENT_SIZE,
        sample_frames=lab.FRAMES,
        max_text_seq_length=TEXT,
        use_rotary_positional_embeddings=True,
    )


def rotary(transformer):
    """The runtime's rule: positions span the training grid, sample size // patch."""
    return fun_tables(transformer.config, lab.SIZE, lab.SIZE, LATENT_FRAMES)


def inpaint(masked_latents, scaling_factor):
    """Scaled latents of the condition [B,16,T,h,w] -> [B,T,17,h,w]; the mask is scaled as well."""
    mask = torch.zeros_like(masked_latents[:, :1])
    mask[:, :, 0] = scaling_factor
    return torch.cat([mask, masked_latents], dim=1).transpose(1, 2)


def new_scheduler():
    return DDIMScheduler.from_config({k: v for k, v in SCHEDULER.items() if k not in ("_class_name", "snr_shift_scale")})


def diffusion_loss(transformer, scheduler, latents, conditions, text, rope, t, noise):
    """Mean square error of the predicted velocity; latents and conditions [B,T,c,h,w]."""
    noisy = scheduler.add_noise(latents, noise, t)
    target = scheduler.get_velocity(latents, noise, t)
    with lab.fast():
        v = transformer(torch.cat([noisy, conditions], dim=2), text, t, image_rotary_emb=rope, return_dict=False)[0]
    return (v.float() - target).square().mean()


@torch.no_grad()
def sample(transformer, scheduler, conditions, text, noise, steps=20):
    """DDIM without guidance: scaled latents [B,16,T,h,w]."""
    rope = rotary(transformer)
    scheduler.set_timesteps(steps)
    x = noise
    for t in scheduler.timesteps:
        v = transformer(
            torch.cat([x, conditions], dim=2), text, t.expand(len(x)), image_rotary_emb=rope, return_dict=False
        )[0]
        x = scheduler.step(v.float(), t, x).prev_sample
    return x.transpose(1, 2)


# Steering


class Steering(nn.Module):
    """Auxiliary matrices of every linear of a transformer, and the low-rank branch they span.

    `tokens` [B,N,a+b] holds one row per sample of the batch, or is None: no steering. Equal to fusing
    hypernetwork.delta(token, down_aux, up_aux) into the weights, sample by sample.
    """

    def __init__(self, transformer):
        super().__init__()
        self.slots = linear_modules(transformer)
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for index, path in enumerate(self.slots):
            linear = transformer.get_submodule(path)
            self.down.append(nn.Parameter(nn.init.orthogonal_(torch.empty(A, linear.in_features))))
            self.up.append(nn.Parameter(nn.init.orthogonal_(torch.empty(linear.out_features, B))))
            linear.register_forward_hook(self._branch(index))
        self.tokens = None

    def _branch(self, index):
        def hook(_, inputs, output):
            if self.tokens is None:
                return output
            token = self.tokens[:, index]
            down, up = token[:, :A] @ self.down[index], token[:, A:] @ self.up[index].T
            if inputs[0].ndim == 3:
                down, up = down[:, None], up[:, None]
            return output + ((inputs[0] * down).sum(-1, keepdim=True) * up).to(output.dtype)

        return hook

    def named(self):
        """{official key: matrix}."""
        keyed = zip(self.slots, self.down, self.up)
        return {
            f"{light_lora_name(p)}.{part}": m.data for p, d, u in keyed for part, m in (("down_aux", d), ("up_aux", u))
        }


def new_hypernetwork(slots: int) -> Hypernetwork:
    """Initialised as the official training does (Xavier, zero biases), the last projection a little wider."""
    model = Hypernetwork(A + B, slots)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(model.img_weight_generator.decoder_model.delta_proj[1].weight, std=2e-3)
    return model


# Everything together


class Miniature:
    """The trained parts in a work folder, f32: `parts` of vae, dit, hyper."""

    def __init__(self, work: Path, parts=("vae", "dit", "hyper")):
        self.vae = AutoencoderKLCogVideoX.from_pretrained(work / "vae").float().eval()
        self.scale = self.vae.config.scaling_factor
        self.scheduler = new_scheduler()
        self.words = new_tokenizer(work / "tokenizer")
        self.text_encoder = new_text_encoder(len(self.words))
        self.transformer = new_transformer()
        if "dit" in parts:
            state = torch.load(work / "dit.pt", weights_only=False)
            self.transformer.load_state_dict(state["average"])
            self.text_encoder.load_state_dict(state["text_average"])
        self.transformer.eval().requires_grad_(False)
        self.text_encoder.eval().requires_grad_(False)
        self.steering = Steering(self.transformer)
        self.hypernetwork = new_hypernetwork(len(self.steering.slots))
        if "hyper" in parts:
            state = torch.load(work / "hyper.pt", weights_only=False)
            self.steering.load_state_dict(state["steering_average"])
            self.hypernetwork.load_state_dict(state["average"])

    def round_(self):
        """Values as stored: bf16."""
        for module in (self.transformer, self.text_encoder, self.steering, self.hypernetwork):
            module.to(torch.bfloat16).float()
        return self

    @torch.no_grad()
    def encode(self, videos):
        """[B][F,H,W,3] in [0,1] -> scaled latents [B,16,T,h,w]."""
        return lab.encode_all(self.vae, lab.to_pixels(videos)) * self.scale

    @torch.no_grad()
    def generate(self, images, texts, references=None, seed=0, steps=20, strength=1.0, batch=40):
        """First frames [B][H,W,3], captions and, to steer, reference clips [B][F,H,W,3] -> videos [B,F,H,W,3]."""
        noise = torch.randn(
            len(images), LATENT_FRAMES, 16, LATENT_SIZE, LATENT_SIZE, generator=torch.Generator().manual_seed(seed)
        )
        videos = []
        for start in range(0, len(images), batch):
            part = slice(start, start + batch)
            stills = lab.to_pixels([np.repeat(i[None], lab.FRAMES, 0) for i in images[part]])
            masked = lab.encode_all(self.vae, lab.condition(stills)) * self.scale
            text = self.text_encoder(ids(self.words, texts[part])).last_hidden_state
            if references is not None:
                tokens = self.hypernetwork(self.encode(references[part]), ITERATIONS)
                tokens[..., :A] *= strength  # ΔW is linear in either half
                self.steering.tokens = tokens
            latents = sample(self.transformer, self.scheduler, inpaint(masked, self.scale), text, noise[part], steps)
            self.steering.tokens = None
            videos.append(lab.to_videos(lab.decode_all(self.vae, latents / self.scale)))
        return np.concatenate(videos)


def quantised(video):
    """As an 8-bit file would hold it."""
    return (np.floor(video * 255 + 0.5) / 255).astype(np.float32)


def trial(effect: str, index: int, image_index: int | None = None):
    """A held-out test: (reference clip, first frame, caption); reference and image come from different scenes."""
    number = clips.CLASSES.index(effect) * 10_000 + index
    reference, _ = clips.clip("held_out", 4_000_000 + number, effect, lab.FRAMES, lab.SIZE)
    scene = 5_000_000 + (number if image_index is None else image_index)
    image, _ = clips.clip("held_out", scene, clips.STILL, lab.FRAMES, lab.SIZE)
    return quantised(reference), quantised(image[0]), clips.caption(clips.scene("held_out", scene))


def read_json(path: Path):
    return json.loads(path.read_text())
