"""Golden files for LoFA: tests/fixtures/lofa/<case>/.

A second reading of the network's definition, in f64 and one layer at a time. Each case has `config.json`, the network's weights as a
recipe of random_weights.py, `effect.safetensors` (`text_hidden`, zeros behind the prompt left out) and `outputs.safetensors`
(`<layer>.lora_A` [r, w], `<layer>.lora_B` [w, r] times the layer's scale). The base's weights are those of another fixture.

With --golden DIR, the same code is held against the outputs of LoFA's official code, which are too large to ship.

Run: python tests/reference/lofa.py [--out DIR] [--golden DIR]
"""

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import random_weights
from common import fixtures_dir, output_dir, randn, report, save_json

F = torch.nn.functional
TYPES = [f"{module}.{layer}" for module in ("self_attn", "cross_attn") for layer in "qkvo"]
# name: base, patch, width of tokens, heads, blocks, rank, where the first stage's features come in
CASES = {
    "wan": ("wan/transformer/t2v", 18, 24, 3, 3, 4, [0, 2]),
    "two_by_two": ("wan/transformer/i2v_2_2", 16, 16, 2, 2, 3, [1]),
}
TEXT = 512


class Stage:
    def __init__(self, w, prefix, heads):
        self.w, self.prefix, self.heads = w, prefix, heads

    def __getitem__(self, name):
        return self.w[f"{self.prefix}.{name}"]

    def linear(self, name, x):
        return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]

    def norm(self, name, x, eps):
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], eps)

    def split(self, x):
        return x.reshape(x.shape[0], self.heads, -1).transpose(0, 1)

    def attention(self, name, q, k, v):
        q, k, v = self.split(q), self.split(k), self.split(v)
        q, k = self.norm(f"{name}.q_norm", q, 1e-5), self.norm(f"{name}.k_norm", k, 1e-5)
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.linear(f"{name}.proj", (weights @ v).transpose(0, 1).reshape(q.shape[1], -1))

    def to_itself(self, name, x):
        return self.attention(name, *self.linear(f"{name}.qkv", x).chunk(3, -1))

    def to_others(self, name, x, others):
        return self.attention(name, self.linear(f"{name}.q", x), *self.linear(f"{name}.kv", others).chunk(2, -1))

    def mlp(self, name, x):
        return self.linear(f"{name}.fc2", F.gelu(self.linear(f"{name}.fc1", x)))

    def tokens(self, weight, depth, kind):
        kernel = self["patch_embed.proj.weight"]
        normal = weight / (weight.square().mean(0, keepdim=True) + 1e-6).sqrt()
        x = F.conv2d(normal[None, None], kernel, self["patch_embed.proj.bias"], stride=kernel.shape[-1])[0]
        grid = x.shape[-1]
        x = x.reshape(x.shape[0], -1).T
        x = x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt() * self["patch_embed.norm.weight"]
        for k in range(grid * grid):
            x[k] += self["pos.row"][0, k // grid, 0] + self["pos.col"][0, 0, k % grid]
        x = x + self["depth_embed.weight"][depth] + self["type_embed.weight"][kind]
        return torch.cat([self["cls_token"][0], x])

    def run(self, x, text, response, inject, blocks):
        text = self.linear("text_proj", text)
        for b in range(blocks):
            name = f"blocks.{b}"
            x = x + self[f"{name}.ls1.gamma"] * self.to_itself(f"{name}.self_attn", self.norm(f"{name}.norm1", x, 1e-6))
            x = x + self[f"{name}.ls2.gamma"] * self.mlp(f"{name}.mlp_sa", self.norm(f"{name}.norm2", x, 1e-6))
            x = x + self[f"{name}.ls3.gamma"] * self.to_others(f"{name}.cross_attn", self.norm(f"{name}.norm3", x, 1e-6), text)
            x = x + self[f"{name}.ls4.gamma"] * self.mlp(f"{name}.mlp_ca", self.norm(f"{name}.norm4", x, 1e-6))
            if response is not None and b in inject:
                name = f"cross_attn_blocks.{b}"
                x = x + self[f"{name}.ls1.gamma"] * self.to_others(f"{name}.cross_attn", x, response)
                x = x + self[f"{name}.ls2.gamma"] * self.mlp(f"{name}.mlp", self.norm(f"{name}.norm2", x, 1e-6))
        return self.norm("norm", x, 1e-5)


def predict(w, config, weight, depth, kind, text):
    """A, B and alpha of one layer."""
    one, two = Stage(w, "stage1", config["heads"]), Stage(w, "stage2", config["heads"])
    text = torch.cat([text, text.new_zeros(TEXT - len(text), text.shape[1])])
    response = one.run(one.tokens(weight, depth, kind), text, None, [], config["blocks"])
    mean = two.run(two.tokens(weight, depth, kind), text, response, config["inject"], config["blocks"]).mean(0)
    a, b = two.linear("head_A", mean), two.linear("head_B", mean)
    return a.reshape(config["rank"], -1), b.reshape(-1, config["rank"]), F.softplus(two.linear("head_alpha", mean))


def shapes(config, width, depths, context):
    d, h, p, r = config["d"], config["d"] // config["heads"], config["p"], config["rank"]
    found = {}

    def linear(name, out, inputs):
        found[f"{name}.weight"], found[f"{name}.bias"] = (out, inputs), (out,)

    def norm(name, n):
        found[f"{name}.weight"], found[f"{name}.bias"] = (n,), (n,)

    def attention(name, parts):
        for part, out in parts:
            linear(f"{name}.{part}", out, d)
        norm(f"{name}.q_norm", h)
        norm(f"{name}.k_norm", h)
        linear(f"{name}.proj", d, d)

    def mlp(name):
        linear(f"{name}.fc1", 4 * d, d)
        linear(f"{name}.fc2", d, 4 * d)

    for stage in ("stage1", "stage2"):
        found[f"{stage}.cls_token"] = (1, 1, d)
        found[f"{stage}.patch_embed.proj.weight"], found[f"{stage}.patch_embed.proj.bias"] = (d, 1, p, p), (d,)
        found[f"{stage}.patch_embed.norm.weight"] = (d,)
        found[f"{stage}.pos.row"], found[f"{stage}.pos.col"] = (1, width // p, 1, d), (1, 1, width // p, d)
        found[f"{stage}.depth_embed.weight"], found[f"{stage}.type_embed.weight"] = (depths, d), (len(TYPES), d)
        linear(f"{stage}.text_proj", d, context)
        for b in range(config["blocks"]):
            name = f"{stage}.blocks.{b}"
            attention(f"{name}.self_attn", [("qkv", 3 * d)])
            attention(f"{name}.cross_attn", [("q", d), ("kv", 2 * d)])
            mlp(f"{name}.mlp_sa")
            mlp(f"{name}.mlp_ca")
            for i in range(1, 5):
                norm(f"{name}.norm{i}", d)
                found[f"{name}.ls{i}.gamma"] = (d,)
        norm(f"{stage}.norm", d)
        linear(f"{stage}.head_A", r * width, d)
        linear(f"{stage}.head_B", width * r, d)
    linear("stage2.head_alpha", 1, d)
    for b in config["inject"]:
        name = f"stage2.cross_attn_blocks.{b}"
        attention(f"{name}.cross_attn", [("q", d), ("kv", 2 * d)])
        mlp(f"{name}.mlp")
        norm(f"{name}.norm2", d)
        found[f"{name}.ls1.gamma"], found[f"{name}.ls2.gamma"] = (d,), (d,)
    return {name: torch.empty(shape) for name, shape in found.items()}


def slot(depth, kind):
    module, layer = TYPES[kind].split(".")
    module = {"self_attn": "attn1", "cross_attn": "attn2"}[module]
    return f"blocks.{depth}.{module}.{ {'q': 'to_q', 'k': 'to_k', 'v': 'to_v', 'o': 'to_out.0'}[layer] }"


def make_case(out, name):
    base_name, p, d, heads, blocks, rank, inject = CASES[name]
    base = random_weights.load(fixtures_dir() / base_name / "diffusion_pytorch_model.safetensors")
    depths = 1 + max(int(key.split(".")[1]) for key in base if key.startswith("blocks."))
    width = base[f"{slot(0, 0)}.weight"].shape[0]
    context = base["condition_embedder.text_embedder.linear_1.weight"].shape[1]
    config = {
        "model_type": "lofa", "p": p, "d": d, "heads": heads, "blocks": blocks, "rank": rank, "inject": inject, "types": TYPES,
        "depths": depths, "tau": 0.02, "temperature": 0.1,
    }
    folder = out / name
    recipe = random_weights.recipe_for(f"lofa/{name}", shapes(config, width, depths, context))
    w = {k: v.double() for k, v in random_weights.save_recipe(folder / "model.safetensors", recipe).items()}
    text = randn(1, 7, context, seed=19)
    save_file({"text_hidden": text}, folder / "effect.safetensors")
    save_json(folder / "config.json", config)
    outputs = {}
    for depth in range(depths):
        for kind in range(len(TYPES)):
            key = slot(depth, kind)
            a, b, alpha = predict(w, config, base[f"{key}.weight"].double(), depth, kind, text[0].double())
            outputs[f"{key}.lora_A"], outputs[f"{key}.lora_B"] = a.float().contiguous(), (alpha * b).float().contiguous()
    save_file(outputs, folder / "outputs.safetensors")


def check_golden(folder):
    w = {k: v.double() for k, v in load_file(folder / "predictor/model.safetensors").items()}
    config = json.loads((folder / "predictor/config.json").read_text())
    base = load_file(folder / "transformer/diffusion_pytorch_model.safetensors")
    given, expected = load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")
    worst = 0.0
    for sample in range(0, 240, 7):
        depth, kind = divmod(sample, len(TYPES))
        found = predict(w, config, base[f"{slot(depth, kind)}.weight"].double(), depth, kind, given["text"][0].double())
        for name, ours in zip(("A", "B", "alpha"), found):
            theirs = expected[f"text0.{name}"][sample]
            worst = max(worst, ((ours - theirs).norm() / theirs.norm()).item())
    print(f"against the official code: {worst:.1e}")
    assert worst < 1e-5


def main():
    if "--golden" in sys.argv:
        at = sys.argv.index("--golden")
        check_golden(Path(sys.argv[at + 1]) / "lofa_a")
        del sys.argv[at : at + 2]
    out = output_dir(__doc__, "lofa")
    for name in CASES:
        make_case(out, name)
    report(out)


if __name__ == "__main__":
    main()
