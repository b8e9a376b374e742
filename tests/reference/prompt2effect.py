"""Golden files for Prompt2Effect: tests/fixtures/prompt2effect/<case>/.

A second reading of the network's definition, in f64 and with nothing rearranged: every token is made, every attention is
PyTorch's own formula. Each case has `config.json`, the network's weights as a recipe of random_weights.py, `effect.safetensors`
(`text_hidden`, `text_attention_mask`) and `outputs.safetensors` (`<layer>.lora_A` [r, in], `<layer>.lora_B` [out, r] of some layers).
The base's weights are those of another fixture.

With --golden DIR, the same code is held against the outputs of the two public reproductions, which are too large to ship.

Run: python tests/reference/prompt2effect.py [--out DIR] [--golden DIR]
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


def attention(w, name, heads, q_in, kv_in, mask=None):
    """torch.nn.MultiheadAttention of one sequence: [s, d] to [t, d]."""
    d = q_in.shape[-1]
    q, k, v = [
        (x @ w[f"{name}.in_proj_weight"][i * d : (i + 1) * d].T + w[f"{name}.in_proj_bias"][i * d : (i + 1) * d])
        .reshape(-1, heads, d // heads)
        .transpose(0, 1)
        for i, x in enumerate((q_in, kv_in, kv_in))
    ]
    logits = q @ k.transpose(1, 2) / math.sqrt(d // heads)
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf)
    mixed = (logits.softmax(-1) @ v).transpose(0, 1).reshape(-1, d)
    return mixed @ w[f"{name}.out_proj.weight"].T + w[f"{name}.out_proj.bias"]


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w, name, x):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def feed_forward(w, prefix, x):
    return x + linear(w, f"{prefix}.ff.fc2", F.gelu(linear(w, f"{prefix}.ff.fc1", norm(w, f"{prefix}.ln2", x))))


def code(length, width):
    position = torch.arange(length, dtype=torch.float64)[:, None]
    channel = torch.arange(width)
    angle = position * torch.exp((channel // 2 * 2) * (-math.log(10000.0) / width))
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos())


def predict(c, w, layers, base, text, mask):
    """`layers`: name, group, row of the table of layers, row of the table of types, block. Gives name to (A, B)."""
    heads = c["n_heads"]
    context = linear(w, "text_proj.proj", text)
    if c["text_norm"]:
        context = norm(w, "text_proj.ln", context)
    tokens, latents = [], []
    for name, group, layer, module, _ in layers:
        weight = base[f"{name}.weight"].double()
        if c["weight_norm"] == "rms":
            weight = weight / weight.pow(2).mean().sqrt()
        suffix = "" if "row_enc.weight" in w else f".{group}"
        rows, columns = linear(w, f"row_enc{suffix}", weight), linear(w, f"col_enc{suffix}", weight.T)
        if c["pos_code"] == "sinus":
            rows, columns = rows + code(*rows.shape), columns + code(*columns.shape)
        x = torch.cat([rows, columns])
        e_layer, e_module = w["layer_emb.weight"][layer], w["module_emb.weight"][module]
        condition = e_layer + e_module if c["cond_form"] == "sum" else linear(w, "cond_proj", torch.cat([e_layer, e_module]))
        if c["cond_inject"] in ("tokens", "both"):
            x = x + condition
        z = w["latents"]
        query = norm(w, "compressor.ln1", z) if c["codec_residual"] else z
        mixed = attention(w, "compressor.attn", heads, query, x)
        z = z + mixed if c["codec_residual"] else mixed
        if c["compressor_ffn"]:
            z = feed_forward(w, "compressor", z)
        if c["cond_inject"] in ("latents", "both"):
            z = z + condition
        tokens.append(x)
        latents.append(z)
    blocks = [layer[4] for layer in layers]
    scopes = {"layer": list(range(len(layers))), "block": blocks, "global": [0] * len(layers)}[c["attn_scope"]]
    n = w["latents"].shape[0]
    for scope in sorted(set(scopes)):
        members = [i for i, s in enumerate(scopes) if s == scope]
        z = torch.cat([latents[i] for i in members])
        for b in range(c["n_layer"]):
            h = norm(w, f"proc_self.{b}.ln1", z)
            z = z + attention(w, f"proc_self.{b}.attn", heads, h, h)
            if "self" in c["ffn_after"]:
                z = feed_forward(w, f"proc_self.{b}", z)
            z = z + attention(w, f"proc_cross.{b}.attn", heads, norm(w, f"proc_cross.{b}.ln1", z), context, mask)
            if "cross" in c["ffn_after"]:
                z = feed_forward(w, f"proc_cross.{b}", z)
        for at, i in enumerate(members):
            latents[i] = z[at * n : (at + 1) * n]
    found = {}
    for (name, *_), x, z in zip(layers, tokens, latents):
        query = norm(w, "decompressor.ln1", x) if c["codec_residual"] else x
        o = attention(w, "decompressor.attn", heads, query, z)
        o = x + o if c["codec_residual"] else o
        if c["decompressor_ffn"]:
            o = feed_forward(w, "decompressor", o)
        out = base[f"{name}.weight"].shape[0]
        found[name] = (linear(w, "head_A", o[out:]).T, linear(w, "head_B", o[:out]))
    return found


def shapes(c, groups, layer_rows, module_rows, text_dim, n):
    """Every tensor of a network, by name."""
    d, r, e = c["hidden_dim"], c["rank"], c["hidden_dim"] if c["cond_form"] == "sum" else 8
    t = {"latents": [n, d], "layer_emb.weight": [layer_rows, e], "module_emb.weight": [module_rows, e]}

    def lin(name, out, inp):
        t[f"{name}.weight"], t[f"{name}.bias"] = [out, inp], [out]

    def ln(name):
        t[f"{name}.weight"], t[f"{name}.bias"] = [d], [d]

    def attn(name):
        t[f"{name}.in_proj_weight"], t[f"{name}.in_proj_bias"] = [3 * d, d], [3 * d]
        lin(f"{name}.out_proj", d, d)

    def ff(name):
        lin(f"{name}.ff.fc1", 4 * d, d)
        lin(f"{name}.ff.fc2", d, 4 * d)
        ln(f"{name}.ln2")

    lin("text_proj.proj", d, text_dim)
    if c["text_norm"]:
        ln("text_proj.ln")
    if c["cond_form"] == "concat_proj":
        lin("cond_proj", d, 2 * e)
    for group, (d_out, d_in) in groups.items():
        lin(f"row_enc.{group}" if group else "row_enc", d, d_in)
        lin(f"col_enc.{group}" if group else "col_enc", d, d_out)
    for codec in ("compressor", "decompressor"):
        attn(f"{codec}.attn")
        if c["codec_residual"]:
            ln(f"{codec}.ln1")
        if c[f"{codec}_ffn"]:
            ff(codec)
    for b in range(c["n_layer"]):
        for part, after in (("proc_self", "self"), ("proc_cross", "cross")):
            attn(f"{part}.{b}.attn")
            ln(f"{part}.{b}.ln1")
            if after in c["ffn_after"]:
                ff(f"{part}.{b}")
    lin("head_A", r, d)
    lin("head_B", r, d)
    return {name: torch.empty(shape) for name, shape in t.items()}


PAPER = dict(
    model_type="prompt2effect", profile="paper", hidden_dim=32, n_heads=4, n_layer=2, rank=4, text_len=16, text_mask=True,
    text_norm=True, ffn_after=["cross"], compressor_ffn=False, decompressor_ffn=False, cond_inject="tokens",
    cond_form="concat_proj", attn_scope="layer", codec_residual=True, pos_code="sinus", layer_index="block",
    vocab_unknown=True, weight_norm="none",
)
SQUARE = PAPER | dict(
    profile="square", text_mask=False, ffn_after=["self", "cross"], compressor_ffn=True, decompressor_ffn=True,
)
SIMPLETUNER = PAPER | dict(
    profile="simpletuner", text_norm=False, cond_inject="latents", cond_form="sum", attn_scope="global",
    codec_residual=False, pos_code="none", layer_index="flat", vocab_unknown=False,
)
WAN = {
    "self_attn.q": "attn1.to_q", "self_attn.k": "attn1.to_k", "self_attn.v": "attn1.to_v", "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q", "cross_attn.k": "attn2.to_k", "cross_attn.v": "attn2.to_v", "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
}
COG = {"to_q": "attn1.to_q", "to_v": "attn1.to_v", "ff.net.0.proj": "ff.net.0.proj", "ff.net.2": "ff.net.2"}
# name: (config, base, its types, latents, what `enc_groups` share)
CASES = {
    "paper_wan": (PAPER, "wan/transformer/t2v", WAN, 8, "type"),
    "paper_cogvideox": (PAPER, "transformer/rotary_t2v", COG, 8, "type"),
    "square": (SQUARE, "wan/transformer/flf2v", {k: v for k, v in WAN.items() if "attn" in k}, 8, "one"),
    "simpletuner": (SIMPLETUNER, "wan/transformer/t2v", {"to_k": "to_k", "ffn.net.2": "ffn.net.2"}, 4, "shape"),
    "between": (
        PAPER | dict(profile="own", attn_scope="block", weight_norm="rms", cond_inject="both", compressor_ffn=True),
        "wan/transformer/t2v", {k: v for k, v in WAN.items() if k.startswith("cross")}, 8, "shape",
    ),
}


def base_weights(folder):
    recipe = folder / "diffusion_pytorch_model.safetensors.recipe.json"
    if recipe.exists():
        return random_weights.make(json.loads(recipe.read_text()))
    return {k: v for file in sorted(folder.glob("*.safetensors")) if file.name.startswith("diffusion") for k, v in load_file(file).items()}


def block_of(name):
    return next(int(part) for part in name.split(".") if part.isdigit())


def layers_of(config, base, types):
    names = sorted(k[: -len(".weight")] for k, v in base.items() if k.endswith(".weight") and v.ndim == 2 and "blocks." in k)
    vocabulary = list(types)
    found = []
    for name in names:
        kinds = [t for t in vocabulary if name.endswith("." + types[t])]
        if config["profile"] == "square" and base[f"{name}.weight"].shape[0] != base[f"{name}.weight"].shape[1]:
            continue
        if kinds:
            found.append((name, kinds[-1]))
    return found


def make_case(out, name):
    config, base_name, types, n, shared = CASES[name]
    base = base_weights(fixtures_dir() / base_name)
    layers = layers_of(config, base, types)
    kinds = list(types)
    groups, groups_of = {}, {}
    for layer, kind in layers:
        d_out, d_in = base[f"{layer}.weight"].shape
        group = {"type": kind, "shape": f"out{d_out}_in{d_in}", "one": "default"}[shared]
        groups["" if shared == "one" else group] = (d_out, d_in)
        groups_of[kind] = dict(group=group, d_in=d_in, d_out=d_out)
    first = 1 if config["vocab_unknown"] else 0
    flat = config["layer_index"] == "flat"
    rows = [
        (layer, groups_of[kind]["group"], at if flat else block_of(layer), first + kinds.index(kind), block_of(layer))
        for at, (layer, kind) in enumerate(layers)
    ]
    text_dim = 32
    table = len(layers) if flat else 2
    tensors = shapes(config, groups, table, len(kinds) + first, text_dim, n)
    folder = out / name
    recipe = random_weights.recipe_for(f"prompt2effect/{name}", tensors)
    w = {k: v.double() for k, v in random_weights.save_recipe(folder / "model.safetensors", recipe).items()}
    text = randn(1, 7, text_dim, seed=5)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0]])
    found = predict(config, w, rows, base, text[0].double(), mask[0].bool())
    unmasked = predict(config, w, rows, base, text[0].double(), None)
    change = max((found[k][1] - unmasked[k][1]).norm() / found[k][1].norm() for k in found)
    assert change > 1e-3, "the mask must matter"
    own = {k: v for k, v in config.items()} | dict(text_dim=text_dim, num_latents=n, module_vocab=kinds, enc_groups=groups_of)
    save_json(folder / "config.json", own)
    save_file({"text_hidden": text, "text_attention_mask": mask}, folder / "effect.safetensors")
    kept = list(found)[:: max(1, len(found) // 5)]
    outputs = {f"{k}.lora_{side}": found[k][i].float().contiguous() for k in kept for i, side in enumerate("AB")}
    save_file(outputs, folder / "outputs.safetensors")


def renamed(w):
    """SimpleTuner's names in ours."""
    table = {
        "compress_queries": "latents", "compress_attn": "compressor.attn", "decode_attn": "decompressor.attn", "head_a": "head_A",
        "head_b": "head_B", "layer_embedding": "layer_emb", "module_type_embedding": "module_emb", "text_projection": "text_proj.proj",
    }
    found = {}
    for name, tensor in w.items():
        for old, new in table.items():
            if name == old or name.startswith(old + "."):
                name = new + name[len(old) :]
        parts = name.split(".")
        if parts[0] == "blocks":
            part = {
                "self_attn": "proc_self.{}.attn", "norm_1": "proc_self.{}.ln1", "cross_attn": "proc_cross.{}.attn",
                "norm_2": "proc_cross.{}.ln1", "norm_3": "proc_cross.{}.ln2", "ff": "proc_cross.{}.ff",
            }[parts[2]].format(parts[1])
            rest = parts[3:]
            if parts[2] == "ff":
                rest = [{"0": "fc1", "3": "fc2"}[rest[0]], *rest[1:]]
            name = ".".join([part, *rest])
        if parts[0] == "projections":
            name = f"{parts[2]}_enc.{parts[1]}.{parts[3]}"
        found[name] = tensor.double()
    return found


def check_golden(golden):
    worst = 0.0
    folder = golden / "p2e_simpletuner_default"
    file = json.loads((folder / "hypernetwork.json").read_text())
    w = renamed(load_file(folder / "hypernetwork.safetensors"))
    model, expected, given = file["model_config"], load_file(folder / "outputs.safetensors"), load_file(folder / "inputs.safetensors")
    base = load_file(folder / "transformer/diffusion_pytorch_model.safetensors")
    rows = [
        (l["module_name"], f"out{l['out_dim']}_in{l['in_dim']}", l["index"], model["module_types"].index(l["module_type"]), 0)
        for l in file["schema"]["layers"]
    ]
    config = SIMPLETUNER | dict(n_heads=model["num_heads"], n_layer=model["num_layers"])
    for prompt in range(2):
        found = predict(config, w, rows, base, given["text_hidden"][prompt].double(), given["text_attention_mask"][prompt].bool())
        for name, pair in found.items():
            for side, ours in zip("AB", pair):
                theirs = expected[f"{name}.lora_{side}"][prompt]
                worst = max(worst, ((ours - theirs).norm() / theirs.norm()).item())
    folder = golden / "p2e_square_i2v"
    own = json.loads((folder / "hypernetwork.json").read_text())["config"]
    case = json.loads((folder / "case.json").read_text())
    w = {k: v.double() for k, v in load_file(folder / "hypernetwork.safetensors").items()}
    expected, given = load_file(folder / "outputs.safetensors"), load_file(folder / "inputs.safetensors")
    base = load_file(folder / "transformer/diffusion_pytorch_model.safetensors")
    kinds = list(own["module_specs"])
    rows = [(t["name"], "", t["layer_index"], 1 + kinds.index(t["module_type"]), 0) for t in case["targets"]]
    config = SQUARE | dict(n_heads=own["n_heads"], n_layer=own["n_layer"])
    for prompt in range(2):
        found = predict(config, w, rows, base, given["text"][prompt].double(), None)
        for name, (a, b) in found.items():
            for ours, theirs in ((a.T, expected[f"{name}.Lora_A"][prompt]), (b.T, expected[f"{name}.Lora_B"][prompt])):
                worst = max(worst, ((ours - theirs).norm() / theirs.norm()).item())
    print(f"against the two reproductions: {worst:.1e}")
    assert worst < 1e-5


def main():
    if "--golden" in sys.argv:
        at = sys.argv.index("--golden")
        check_golden(Path(sys.argv[at + 1]))
        del sys.argv[at : at + 2]
    out = output_dir(__doc__, "prompt2effect")
    for name in CASES:
        make_case(out, name)
    report(out)


if __name__ == "__main__":
    main()
