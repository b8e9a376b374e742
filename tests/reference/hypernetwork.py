"""Golden files of the Video2LoRA hypernetwork and of LightLoRA (our own PyTorch transcription).

Run: python tests/reference/hypernetwork.py [--out DIR]

Writes hypernetwork/<model>/ with `hypernetwork.safetensors`, `checkpoint-checkpoint-100.safetensors`
(the auxiliary matrices, official key names) and `transformer/` (diffusers layout, 33 input channels), all three as
recipes of random_weights.py, and
- `case_predict_*`: input.latents [B,16,T,h,w] -> output.pred_weights [B,N,a+b] and, for a few slots,
  output.delta.<module path> [out,in], batch element 0, strength 1; iterations in the metadata;
- `case_transformer`: input.latents and one set of forward arguments -> output.sample_base,
  output.sample_fused (strength 1), output.sample_fused_half (0.5).
The metadata's `slots` lists the target modules in token order.

`attention_only`: the four attention projections of 2 blocks, D 66, three decoder blocks, bf16. `all_linear_wide`: every
linear of 12 narrow blocks (blocks 10 and 11 must not sort before 2), D 90, one decoder block, bf16.
`subset`: value and feed-forward of blocks 0 and 2 of 3, D 68, one decoder block, f32.

Before writing, the transcription is checked against the official outputs in fixtures/official/open_d*.
"""

import hashlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import nn

import random_weights
from common import _sorted_metadata as sorted_metadata
from common import fixtures_dir, noise_floor, output_dir, randn, randomize_, report, save_case

LIGHT_LORA_FILE = "checkpoint-checkpoint-100.safetensors"
ATTENTION = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")


def head_count(dim: int) -> int:
    """Twice the heads while a head is wider than 64, then one step back."""
    heads = 1
    while dim % heads == 0 and dim // heads > 64:
        heads *= 2
    return heads // 2


def sinusoids(positions: int, dim: int) -> torch.Tensor:
    """[1, positions, dim]; even channels are sines, odd ones cosines of the same angle."""
    channel = torch.arange(dim, dtype=torch.float64)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()[None]


class Attention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.heads = head_count(dim)
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.out = nn.Linear(dim, dim)

    def forward(self, x, context):
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.q(x), self.k(context), self.v(context))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.net = nn.Sequential(nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU()), nn.Linear(4 * dim, dim))

    def forward(self, x):
        return self.net(x)


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.attn1, self.attn2 = Attention(dim), Attention(dim)
        self.ff = FeedForward(dim)

    def forward(self, x, context):
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class WeightDecoder(nn.Module):
    def __init__(self, dim, count, blocks):
        super().__init__()
        self.register_buffer("block_pos_emb", sinusoids(2 * count, dim))
        self.pos_emb_proj = nn.Linear(dim, dim, bias=False)
        self.decoder_model = nn.ModuleList(Block(dim) for _ in range(blocks))
        self.delta_proj = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim, bias=False))

    def forward(self, weights, context):
        hidden = weights + self.pos_emb_proj(self.block_pos_emb[:, : weights.shape[1]])
        for block in self.decoder_model:
            hidden = block(hidden, context)
        return weights + self.delta_proj(hidden)


class Generator(nn.Module):
    def __init__(self, channels, dim, count, blocks):
        super().__init__()
        self.register_buffer("block_pos_emb", sinusoids(2 * count, dim))  # stored, never read
        self.feature_proj = nn.Linear(channels, dim, bias=False)
        self.decoder_model = WeightDecoder(dim, count, blocks)


class Hypernetwork(nn.Module):
    """Reference latents [B,16,T,h,w] -> one token of D = a + b values per slot, [B,N,D]."""

    def __init__(self, dim, count, blocks=4, channels=16):
        super().__init__()
        self.dim, self.count = dim, count
        self.img_weight_generator = Generator(channels, dim, count, blocks)

    @classmethod
    def load(cls, path: Path):
        """Sizes come from the file; its values, the rounded tables included, are widened to f32."""
        tensors = {k: v.float() for k, v in random_weights.load(path).items()}
        prefix = "img_weight_generator.decoder_model."
        _, positions, dim = tensors[f"{prefix}block_pos_emb"].shape
        blocks = len({k.split(".")[3] for k in tensors if k.startswith(f"{prefix}decoder_model.")})
        model = cls(dim, positions // 2, blocks)
        model.load_state_dict(tensors)
        return model.eval()

    def forward(self, latents, iterations=4):
        generator = self.img_weight_generator
        context = generator.feature_proj(latents.flatten(2).transpose(1, 2))
        weights = context.new_zeros(latents.shape[0], self.count, self.dim)
        for _ in range(iterations):
            weights = generator.decoder_model(weights, context)
        return weights


def linear_modules(transformer) -> list[str]:
    """Paths of all linear layers in registration order: the order of the tokens."""
    return [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]


def light_lora_name(path: str) -> str:
    return "lora_unet__" + path.replace(".", "_")


def delta(token, down_aux, up_aux, strength=1.0):
    """ΔW [out,in] of one slot: the token's first a values act on the input side, the other b on the output."""
    a, b = down_aux.shape[0], up_aux.shape[1]
    down = token[:a].reshape(1, a) @ down_aux
    up = up_aux @ token[a:].reshape(b, 1)
    return strength * (up @ down)


def deltas(weights, aux: dict, slots: list[str], strength=1.0) -> dict:
    """ΔW per module path, for one reference: `weights` is [N,D]."""
    aux = {k: v.to(weights.dtype) for k, v in aux.items()}
    return {
        path: delta(token, aux[f"{light_lora_name(path)}.down_aux"], aux[f"{light_lora_name(path)}.up_aux"], strength)
        for token, path in zip(weights, slots, strict=True)
    }


class fused:
    """Context manager: adds ΔW to the transformer's weights, and puts the saved weights back."""

    def __init__(self, transformer, changes: dict):
        self.transformer, self.changes = transformer, changes

    def __enter__(self):
        self.pristine = {}
        for path, change in self.changes.items():
            weight = self.transformer.get_submodule(path).weight
            self.pristine[path] = weight.data
            weight.data = weight.data + change
        return self.transformer

    def __exit__(self, *_):
        for path, weight in self.pristine.items():
            self.transformer.get_submodule(path).weight.data = weight


def make_transformer(seed, layers, heads=2, head_dim=16, text_dim=32, **overrides):
    """Tiny rotary transformer with 33 input channels, as CogVideoX-Fun's inpainting models have."""
    config = {
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "num_layers": layers,
        "in_channels": 33,
        "out_channels": 16,
        "time_embed_dim": 32,
        "text_embed_dim": text_dim,
        "sample_width": 12,
        "sample_height": 8,
        "max_text_seq_length": 10,
        "use_rotary_positional_embeddings": True,
    }
    return randomize_(CogVideoXTransformer3DModel(**(config | overrides)), seed)


def make_aux(seed, transformer, slots, a, b):
    tensors = {}
    for index, path in enumerate(slots):
        linear = transformer.get_submodule(path)
        tensors[f"{light_lora_name(path)}.down_aux"] = randn(a, linear.in_features, seed=seed + 2 * index) / a**0.5
        tensors[f"{light_lora_name(path)}.up_aux"] = randn(linear.out_features, b, seed=seed + 2 * index + 1) / b**0.5
    return tensors


def store_predictor(directory: Path, hypernetwork, aux, dtype):
    """Writes both checkpoint files as the official training does; returns what a reader gets, in f32."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {k: v.to(dtype).contiguous() for k, v in hypernetwork.state_dict().items()}
    save_file(state, directory / "hypernetwork.safetensors")
    aux = {k: v.to(dtype).contiguous() for k, v in aux.items()}
    blob = save(aux)
    data = blob[8 + int.from_bytes(blob[:8], "little") :]
    hashes = {
        "sshs_model_hash": hashlib.sha256(data).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(blob[0x100000:0x110000]).hexdigest()[:8],
    }
    (directory / LIGHT_LORA_FILE).write_bytes(sorted_metadata(save(aux, hashes)))
    widened = {k: v.float() for k, v in aux.items()}
    return Hypernetwork.load(directory / "hypernetwork.safetensors"), widened


def give_predictor(directory: Path, name, transformer, slots, sizes, delta=0.07, context=2.0, blocks=4, dtype="F32"):
    """Writes recipes of both checkpoint files; returns (hypernetwork, auxiliary matrices) as they are stored, in f32.

    Its prediction is moderate (`delta`) and depends on the reference (`context`). `sizes` are a and b.
    """
    dim, generator = sum(sizes), "img_weight_generator"
    model = Hypernetwork(dim, len(slots), blocks)
    scales = {key: 1.0 for key in model.state_dict() if key.endswith("block_pos_emb")}
    scales[f"{generator}.feature_proj.weight"] = context * (3 / 16) ** 0.5
    scales[f"{generator}.decoder_model.delta_proj.1.weight"] = delta * (3 / dim) ** 0.5
    random_weights.give(model, directory / "hypernetwork.safetensors", f"{name}/hypernetwork", dtype, scales)
    aux = make_aux(0, transformer, slots, *sizes)
    scales = {key: (3 / sizes[0]) ** 0.5 for key in aux if key.endswith("down_aux")}
    recipe = random_weights.recipe_for(f"{name}/lilora", aux, dtype, scales)
    return model, {key: value.float() for key, value in random_weights.save_recipe(directory / LIGHT_LORA_FILE, recipe).items()}


def forward_arguments(transformer, seed, frames=2, height=4, width=6):
    """One set of arguments of the (Fun) transformer's forward, sizes in latent units."""
    config = transformer.config
    cos, sin = get_3d_rotary_pos_embed(
        config.attention_head_dim, ((0, 0), (height // 2, width // 2)), (height // 2, width // 2), frames
    )
    return {
        "hidden_states": randn(2, frames, 16, height, width, seed=seed),
        "inpaint_latents": randn(2, frames, 17, height, width, seed=seed + 1, scale=0.7),
        "encoder_hidden_states": randn(2, 10, config.text_embed_dim, seed=seed + 2),
        "timestep": torch.tensor([749, 749]),
        "image_rotary_emb_cos": cos,
        "image_rotary_emb_sin": sin,
    }


def run_transformer(transformer, arguments):
    return transformer(
        hidden_states=torch.cat([arguments["hidden_states"], arguments["inpaint_latents"]], dim=2),
        encoder_hidden_states=arguments["encoder_hidden_states"],
        timestep=arguments["timestep"],
        image_rotary_emb=(arguments["image_rotary_emb_cos"], arguments["image_rotary_emb_sin"]),
    ).sample


def check_against_official():
    """Token order, prediction, ΔW and the fused forward agree with the official implementation."""
    for directory in sorted((fixtures_dir() / "official").glob("open_d*")):
        inputs, expected = (load_file(directory / f"{n}.safetensors") for n in ("inputs", "outputs"))
        with safe_open(directory / "outputs.safetensors", "pt") as file:
            case = file.metadata()
        config = CogVideoXTransformer3DModel.load_config(directory / "transformer")
        transformer = CogVideoXTransformer3DModel.from_config(config).eval()
        weights = random_weights.load(directory / "transformer" / "diffusion_pytorch_model.safetensors")
        transformer.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        slots = linear_modules(transformer)
        assert [light_lora_name(path) for path in slots] == json.loads(case["layers"])
        model = Hypernetwork.load(directory / "hypernetwork.safetensors")
        weights = model(inputs["latents"])
        torch.testing.assert_close(weights, expected["pred_weights"], atol=2e-6, rtol=0)
        aux = random_weights.load(directory / "lora_diffusion_pytorch_model.safetensors")
        changes = deltas(weights[0], aux, slots, float(case["strength"]))
        for name, value in expected.items():
            if name.startswith("dW::"):
                path = next(p for p in slots if light_lora_name(p) == name.removeprefix("dW::"))
                torch.testing.assert_close(changes[path], value, atol=2e-6, rtol=0)
        rope = (inputs["rope_cos"], inputs["rope_sin"])
        arguments = inputs["hidden_states"], inputs["encoder_hidden_states"], inputs["timestep"]
        with fused(transformer, changes):
            sample = transformer(*arguments, image_rotary_emb=rope).sample
        expected = expected["sample_lora"]
        # f32 products of two CPUs differ by 3e-6 of the largest value.
        torch.testing.assert_close(sample, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


def write(directory, seed, transformer, dtype, slots, a, b, blocks, predictions, shown):
    name = directory.name
    file = directory / "transformer" / "diffusion_pytorch_model.safetensors"
    random_weights.give(transformer, file, f"{name}/transformer", dtype)
    transformer.save_config(directory / "transformer")
    model, aux = give_predictor(directory, name, transformer, slots, (a, b), blocks=blocks, dtype=dtype)
    metadata = {"a": a, "b": b, "heads": head_count(a + b), "decoder_blocks": blocks, "slots": json.dumps(slots)}

    for index, (name, (shape, iterations)) in enumerate(predictions.items()):
        latents = randn(*shape, seed=seed + 50 + index)
        weights = model(latents, iterations)
        changes = deltas(weights[0], aux, slots)
        outputs = {"pred_weights": weights} | {f"delta.{path}": changes[path] for path in shown}
        save_case(
            directory / f"case_predict_{name}.safetensors",
            {"latents": latents},
            outputs,
            metadata | {"iterations": iterations},
        )

    latents = randn(1, 16, 2, 4, 6, seed=seed + 60)
    weights = model(latents)[0]
    other = model(randn(1, 16, 2, 4, 6, seed=seed + 61))[0]
    arguments = forward_arguments(transformer, seed + 70)
    outputs = {"sample_base": run_transformer(transformer, arguments)}
    for name, strength in (("sample_fused", 1.0), ("sample_fused_half", 0.5)):
        with fused(transformer, deltas(weights, aux, slots, strength)):
            outputs[name] = run_transformer(transformer, arguments)
    save_case(
        directory / "case_transformer.safetensors",
        {"latents": latents} | arguments,
        outputs,
        metadata | {"iterations": 4},
    )
    floor = noise_floor(weights, model.double()(latents.double())[0])
    base, steered = outputs["sample_base"], outputs["sample_fused"]
    print(
        f"{directory.name}: N {len(slots)}, token std {weights.std():.3f}, between references"
        f" {(weights - other).std():.3f}, f32 noise {floor:.1e}, output std {base.std():.3f},"
        f" steered by {(steered - base).std():.3f}"
    )


def main():
    check_against_official()
    out = output_dir(__doc__, "hypernetwork")

    transformer = make_transformer(300, layers=2)
    slots = [path for path in linear_modules(transformer) if path.endswith(ATTENTION)]
    write(
        out / "attention_only", 310, transformer, "BF16", slots, a=44, b=22, blocks=3,
        predictions={
            "batch2": ((2, 16, 2, 4, 6), 4),
            "other_shape": ((1, 16, 3, 5, 7), 4),
            "three_iterations": ((1, 16, 2, 4, 6), 3),
        },
        shown=["transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn1.to_out.0"],
    )  # fmt: skip

    transformer = make_transformer(320, layers=12, heads=1, text_dim=24, time_embed_dim=16)
    write(
        out / "all_linear_wide", 330, transformer, "BF16", linear_modules(transformer), a=60, b=30, blocks=1,
        predictions={"one": ((1, 16, 2, 4, 6), 4)},
        shown=[
            "patch_embed.text_proj",
            "transformer_blocks.2.attn1.to_q",
            "transformer_blocks.10.norm1.linear",
            "transformer_blocks.11.ff.net.2",
            "proj_out",
        ],
    )  # fmt: skip

    transformer = make_transformer(340, layers=3, heads=1)
    wanted = ("attn1.to_v", "ff.net.0.proj", "ff.net.2")
    slots = [
        path
        for path in linear_modules(transformer)
        if path.startswith(("transformer_blocks.0.", "transformer_blocks.2.")) and path.endswith(wanted)
    ]
    write(
        out / "subset", 350, transformer, "F32", slots, a=48, b=20, blocks=1,
        predictions={"two_iterations": ((1, 16, 1, 3, 5), 2)},
        shown=["transformer_blocks.2.attn1.to_v", "transformer_blocks.0.ff.net.2"],
    )  # fmt: skip
    report(out)


if __name__ == "__main__":
    main()
