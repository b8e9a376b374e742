"""Graphs written by PyTorch's two exporters, with the map from parameter to initializer: tests/fixtures/corpus.

Per model, `corpus/<model>/`:
    checkpoint.safetensors   the parameters under their own names, as `save_pretrained` would store them
    adapter.safetensors      LoRA factors in PEFT's form for some of its linear layers, alpha = rank
Per export of it, `corpus/<model>/<export>/`:
    model.onnx (model.onnx.data)   the exporter's file; of node metadata, only the name scopes are kept
    io.safetensors                 input.*, output.* (ONNX Runtime on this very file, where it can run it), torch.* (the
                                   model in f32 over its weights as stored), lora.* (the same with the adapter merged)
    map.json                       `names`: parameter names survive in the file; `slots`: per linear layer its initializer
                                   `tensor`, `transposed` ([in, out] as the node takes it), and where they apply `rows`
                                   of it, `aliases` (modules with the same parameter), `shared` (several parameters of
                                   equal content are one initializer), `cut` (the graph cuts these rows out of it)

The map is made from the model, not from names: the export is repeated with weights that are all different, and each linear
layer's weight is looked for among the initializers' values. Products come in the same order whatever the values.
"""

import copy
import io
import json
import warnings

import numpy
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from common import generator, output_dir, randn, randomize_, report, save_json

warnings.filterwarnings("ignore")
onnxruntime.set_default_logger_severity(3)
RANK = 2
KEPT_METADATA = ("pkg.torch.onnx.name_scopes",)


def rms_norm(x, shape, weight=None, eps=None):
    """`F.rms_norm` in operators that the TorchScript exporter knows."""
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return x if weight is None else x * weight


class Call(nn.Module):
    """A wrapper that calls its model by keyword, as scripts that export often do."""

    def __init__(self, model, call):
        super().__init__()
        self.model = model
        self.call = call

    def forward(self, *args):
        return self.call(self.model, *args)


class Attention(nn.Module):
    """Self-attention over one linear layer `qkv`, cut into three after it."""

    def __init__(self, width):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(torch.softmax(q @ k.transpose(-1, -2) / x.shape[-1] ** 0.5, dim=-1) @ v)


class Block(nn.Module):
    """Fused Q, K and V; two layers over one parameter; equal layers with and without biases."""

    def __init__(self, width=16):
        super().__init__()
        self.attention = Attention(width)
        self.up = nn.Linear(width, width, bias=False)
        self.again = nn.Linear(width, width, bias=False)
        self.again.weight = self.up.weight
        self.left = nn.Linear(width, width)
        self.right = nn.Linear(width, width)
        self.zero = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(2)])

    def forward(self, x):
        x = x + self.attention(x)
        x = x + self.again(torch.tanh(self.up(x)))
        x = x + F.gelu(self.left(x)) * torch.sigmoid(self.right(torch.sin(x)))
        for zero in self.zero:
            x = x + torch.sin(x) + zero(torch.cos(x))
        return x


class Sliced(nn.Module):
    """One parameter `qkv` whose rows are used apart."""

    def __init__(self, width=16):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.width = width

    def forward(self, x):
        q, k, v = (F.linear(x, w) for w in self.qkv.weight.split(self.width))
        return self.out(torch.softmax(q @ k.transpose(-1, -2) / self.width**0.5, dim=-1) @ v)


def block(seed=1):
    model = randomize_(Block(), seed)
    model.right.weight.data.copy_(model.left.weight.data)
    for zero in model.zero:
        zero.weight.data.zero_()
    return model


def cogvideox():
    from diffusers import CogVideoXTransformer3DModel

    return CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=16,
        text_embed_dim=12, num_layers=1, sample_width=4, sample_height=4, sample_frames=5, patch_size=2,
        max_text_seq_length=4, use_rotary_positional_embeddings=True,
    )


def wan():
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=16, freq_dim=16, ffn_dim=32, num_layers=1, cross_attn_norm=True, rope_max_seq_len=32,
    )


def fused_wan(model):
    model = copy.deepcopy(model)
    for block in model.blocks:
        block.attn1.fuse_projections()
        block.attn2.fuse_projections()
    return model


def sd3():
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4, pos_embed_max_size=8,
    )


def flux():
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
    )


def ltx():
    from diffusers import LTXVideoTransformer3DModel

    return LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=1, caption_channels=8,
    )


def t5():
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
    )


def vae():
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(4, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )
    del model.encoder, model.quant_conv
    return model


class Model:
    """A model, its inputs by name, the axes that stay free, and the layers that the adapter changes."""

    def __init__(self, build, inputs, axes, targets, call=None, fuse=None, seed=11, output="sample"):
        self.build, self.inputs, self.axes, self.targets = build, inputs, axes, targets
        self.call, self.fuse, self.seed, self.output = call, fuse, seed, output

    def make(self, distinct=False):
        model = self.build()
        if distinct or not isinstance(model, Block):
            randomize_(model, self.seed + 100 * distinct)
        return model.eval()

    def runnable(self, model):
        if self.fuse:
            model = self.fuse(model)
        return Call(model, self.call).eval() if self.call else model


def tokens(*shape):
    return torch.randint(0, 40, shape, generator=generator(5))


MODELS = {
    "cogvideox": Model(
        cogvideox,
        {
            "hidden_states": randn(2, 2, 4, 4, 4, seed=1), "encoder_hidden_states": randn(2, 4, 12, seed=2),
            "timestep": torch.tensor([500, 20]), "rotary_cos": randn(8, 8, seed=3), "rotary_sin": randn(8, 8, seed=4),
        },
        {"hidden_states": {0: "batch"}, "encoder_hidden_states": {0: "batch"}, "timestep": {0: "batch"}},
        ["transformer_blocks.0.attn1.to_q", "transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0.norm1.linear"],
        call=lambda m, h, e, t, cos, sin: m(h, e, t, image_rotary_emb=(cos, sin), return_dict=False)[0],
    ),
    "wan": Model(
        wan,
        {
            "hidden_states": randn(1, 4, 2, 4, 4, seed=1), "timestep": torch.tensor([500]),
            "encoder_hidden_states": randn(1, 5, 16, seed=2),
        },
        {"hidden_states": {2: "frames"}, "encoder_hidden_states": {1: "text"}},
        ["blocks.0.attn1.to_q", "blocks.0.attn2.to_v", "blocks.0.ffn.net.2", "proj_out"],
    ),
    "wan_fused": Model(
        wan,
        {
            "hidden_states": randn(2, 4, 2, 4, 4, seed=1), "timestep": torch.tensor([500, 20]),
            "encoder_hidden_states": randn(2, 5, 16, seed=2),
        },
        {"hidden_states": {0: "batch"}, "timestep": {0: "batch"}, "encoder_hidden_states": {0: "batch"}},
        ["blocks.0.attn1.to_k", "blocks.0.attn1.to_v", "blocks.0.attn2.to_v", "blocks.0.ffn.net.0.proj"],
        fuse=fused_wan, seed=12,
    ),
    "sd3": Model(
        sd3,
        {
            "hidden_states": randn(2, 4, 4, 4, seed=1), "encoder_hidden_states": randn(2, 5, 12, seed=2),
            "pooled_projections": randn(2, 8, seed=3), "timestep": torch.tensor([500.0, 20.0]),
        },
        {k: {0: "batch"} for k in ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")},
        ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_v", "transformer_blocks.0.ff.net.2"],
    ),
    "flux": Model(
        flux,
        {
            "hidden_states": randn(1, 4, 4, seed=1), "encoder_hidden_states": randn(1, 3, 12, seed=2),
            "pooled_projections": randn(1, 8, seed=3), "timestep": torch.tensor([0.5]),
            "img_ids": torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]), "txt_ids": torch.zeros(3, 3),
        },
        {"hidden_states": {1: "image"}, "encoder_hidden_states": {1: "text"}, "img_ids": {0: "image"}, "txt_ids": {0: "text"}},
        ["transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp", "single_transformer_blocks.0.norm.linear"],
    ),
    "ltx": Model(
        ltx,
        {
            "hidden_states": randn(2, 8, 4, seed=1), "encoder_hidden_states": randn(2, 5, 8, seed=2),
            "timestep": torch.tensor([500, 20]), "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]),
        },
        {k: {0: "batch"} for k in ("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask")},
        ["transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn2.to_out.0", "transformer_blocks.0.ff.net.2"],
        call=lambda m, h, e, t, mask: m(h, e, t, mask, num_frames=2, height=2, width=2, return_dict=False)[0],
    ),
    "t5": Model(
        t5,
        {"input_ids": tokens(2, 6), "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]])},
        {"input_ids": {0: "batch", 1: "text"}, "attention_mask": {0: "batch", 1: "text"}},
        ["encoder.block.0.layer.0.SelfAttention.q", "encoder.block.1.layer.1.DenseReluDense.wo"],
        output="last_hidden_state",
    ),
    "vae": Model(
        vae,
        {"latents": randn(2, 4, 4, 4, seed=1)},
        {"latents": {0: "batch", 2: "height", 3: "width"}},
        ["decoder.mid_block.attentions.0.to_q", "decoder.mid_block.attentions.0.to_out.0"],
        call=lambda m, z: m.decode(z, return_dict=False)[0],
    ),
    "block": Model(
        block,
        {"x": randn(2, 5, 16, seed=1)},
        {"x": {0: "batch", 1: "tokens"}},
        ["attention.qkv", "up", "right", "zero.1"],
    ),
    "sliced": Model(Sliced, {"x": randn(2, 5, 16, seed=1)}, {"x": {1: "tokens"}}, ["qkv", "out"]),
}

# model, export, exporter, opset, options
EXPORTS = [
    ("cogvideox", "ts17", "ts", 17, {}),
    ("cogvideox", "dynamo18_external", "dynamo", 18, {"external": True}),
    ("wan", "ts18_unfolded", "ts", 18, {"fold": False}),
    ("wan", "dynamo20", "dynamo", 20, {}),
    ("wan_fused", "ts17", "ts", 17, {}),
    ("wan_fused", "dynamo18", "dynamo", 18, {}),
    ("sd3", "ts19_external", "ts", 19, {"external": True}),
    ("flux", "dynamo21", "dynamo", 21, {}),
    ("ltx", "dynamo19", "dynamo", 19, {"dynamic": False}),
    ("t5", "ts17", "ts", 17, {}),
    ("t5", "dynamo18", "dynamo", 18, {"dynamic": False}),
    ("vae", "ts18", "ts", 18, {}),
    ("vae", "dynamo18", "dynamo", 18, {"dynamic": False}),
    ("block", "ts17", "ts", 17, {}),
    ("block", "ts17_unfolded", "ts", 17, {"fold": False}),
    ("block", "dynamo18", "dynamo", 18, {}),
    ("block", "dynamo20_plain", "dynamo", 20, {"optimize": False}),
    ("block", "ts17_f16", "ts", 17, {"dtype": torch.float16}),
    ("block", "dynamo18_bf16", "dynamo", 18, {"dtype": torch.bfloat16}),
    ("sliced", "ts17", "ts", 17, {}),
]


def as_type(value, dtype):
    return value.to(dtype) if value.is_floating_point() else value


def export(spec, model, exporter, opset, options) -> onnx.ModelProto:
    dtype = options.get("dtype", torch.float32)
    model = spec.runnable(copy.deepcopy(model).to(dtype))
    inputs = {k: as_type(v, dtype) for k, v in spec.inputs.items()}
    dynamic = spec.axes if options.get("dynamic", True) else {}
    names = {"input_names": list(inputs), "output_names": [spec.output], "opset_version": opset}
    given = {"args": tuple(inputs.values())} if spec.call else {"args": (), "kwargs": dict(inputs)}
    if not spec.call and spec.output == "sample" and "hidden_states" in inputs:
        given["kwargs"]["return_dict"] = False
    if exporter == "ts":
        file = io.BytesIO()
        fold = options.get("fold", True)
        known, F.rms_norm = F.rms_norm, rms_norm
        torch.onnx.export(
            model, f=file, dynamo=False, do_constant_folding=fold, dynamic_axes=dynamic or None,
            keep_initializers_as_inputs=not fold, **given, **names
        )
        F.rms_norm = known
        return onnx.load_from_string(file.getvalue())
    shapes = None
    if dynamic:
        sizes = {n: torch.export.Dim(n, max=64) for axes in dynamic.values() for n in axes.values()}
        per_input = {k: {a: sizes[n] for a, n in dynamic.get(k, {}).items()} for k in inputs}
        rest = {key: None for key in given.get("kwargs", {}) if key not in per_input}
        shapes = [tuple(per_input.values())] if spec.call else per_input | rest
    program = torch.onnx.export(
        model, dynamo=True, dynamic_shapes=shapes, optimize=options.get("optimize", True), verbose=False, **given, **names
    )
    return program.model_proto


def tidy(graph):
    """Leaves out what takes space, and names the machine's folders."""
    for node in graph.node:
        kept = [p for p in node.metadata_props if p.key in KEPT_METADATA]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
        node.doc_string = ""
        for attribute in node.attribute:
            if attribute.HasField("g"):
                tidy(attribute.g)


def constants(graph):
    """Initializers and constant nodes by name."""
    found = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def linear_uses(graph):
    """Per matrix product by a constant, in order: its initializer, seen through what copies, turns or cuts it; true if
    that is [in, out]; true if the node takes [in, out]; the rows that are cut out."""
    values = constants(graph)
    producer = {o: n for n in graph.node for o in n.output}
    uses = []
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        name, cut = node.input[1], None
        turned = taken = not (node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute))
        while name in producer and producer[name].op_type in ("Transpose", "Cast", "Identity", "Split"):
            source = producer[name]
            turned ^= source.op_type == "Transpose"
            if source.op_type == "Split" and source.input[0] not in values:
                break
            if source.op_type == "Split":
                sizes = values[source.input[1]]
                at = list(source.output).index(name)
                cut = (int(sizes[:at].sum()), int(sizes[: at + 1].sum()))
            name = source.input[0]
        if name in values and values[name].ndim == 2:
            uses.append((name, turned, taken, cut))
    return uses


def linear_map(spec, exporter, opset, options, exported):
    """Per linear layer: where its weight is in the exported graph."""
    model = spec.make(distinct=True)
    twin = export(spec, model, exporter, opset, options).graph
    values, uses = constants(twin), linear_uses(twin)
    # Equal tensors may be one in the file; the products and their order are the same.
    actual = linear_uses(exported.graph)
    assert len(uses) == len(actual)
    slots, seen, dtype = {}, {}, options.get("dtype", torch.float32)
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.Linear):
            continue
        if id(module.weight) in seen:
            slots[seen[id(module.weight)]].setdefault("aliases", []).append(name)
            continue
        weight = module.weight.to(dtype).float().numpy()
        for (tensor, turned, taken, cut), now in zip(uses, actual):
            stored = numpy.asarray(values[tensor], dtype=numpy.float32)
            rows = stored.T if turned else stored
            entry = {"tensor": now[0], "transposed": taken}
            if cut and numpy.array_equal(rows, weight):
                slots[f"{name}[{cut[0]}..{cut[1]}]"] = entry | {"cut": cut}
                continue
            if rows.shape[1] != weight.shape[1]:
                continue
            for start in range(len(rows) - len(weight) + 1):
                if numpy.array_equal(rows[start : start + len(weight)], weight):
                    slots[name] = entry
                    if len(rows) > len(weight):
                        entry["rows"] = [start, start + len(weight)]
                    break
        if name in slots:
            seen[id(module.weight)] = name
    tensors = [s["tensor"] for s in slots.values() if "rows" not in s and "cut" not in s]
    for slot in slots.values():
        if tensors.count(slot["tensor"]) > 1:
            slot["shared"] = True
    return slots


def adapter(spec, model, seed):
    factors = {}
    modules = dict(model.named_modules())
    for at, name in enumerate(spec.targets):
        out, into = modules[name].weight.shape
        factors[f"base_model.model.{name}.lora_A.weight"] = randn(RANK, into, seed=seed + 2 * at, scale=into**-0.5)
        factors[f"base_model.model.{name}.lora_B.weight"] = randn(out, RANK, seed=seed + 2 * at + 1, scale=0.5)
    return factors


def merged(model, factors):
    model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    for key, down in factors.items():
        if ".lora_A." in key:
            up = factors[key.replace("lora_A", "lora_B")]
            weight = modules[key.split(".", 2)[2].removesuffix(".lora_A.weight")].weight
            weight.data = (weight.double() + up.double() @ down.double()).float()
    if isinstance(model, Block):
        model.again.weight = model.up.weight
    return model


def run(spec, model):
    model = spec.runnable(copy.deepcopy(model))
    if spec.call:
        out = model(*spec.inputs.values())
    else:
        out = model(**spec.inputs)
    if isinstance(out, torch.Tensor):
        return out
    return out[0]


def onnx_run(file, spec, dtype):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    wanted = {i.name for i in session.get_inputs()}
    feeds = {k: as_type(v, dtype).numpy() for k, v in spec.inputs.items() if k in wanted}
    return torch.from_numpy(session.run(None, feeds)[0]).float()


def main():
    directory = output_dir(__doc__, "corpus")
    for name, spec in MODELS.items():
        model = spec.make()
        factors = adapter(spec, model, 50)
        folder = directory / name
        folder.mkdir(parents=True, exist_ok=True)
        shared, state = set(), {}
        for key, value in model.state_dict(keep_vars=True).items():
            if id(value) not in shared:
                shared.add(id(value))
                state[key] = value.detach().clone().contiguous()
        save_file(state, folder / "checkpoint.safetensors")
        save_file(factors, folder / "adapter.safetensors")
        for _, case, exporter, opset, options in (e for e in EXPORTS if e[0] == name):
            proto = export(spec, model, exporter, opset, options)
            slots = linear_map(spec, exporter, opset, options, proto)
            tidy(proto.graph)
            target = folder / case
            target.mkdir(exist_ok=True)
            path = target / "model.onnx"
            (target / "model.onnx.data").unlink(missing_ok=True)
            if options.get("external"):
                onnx.save_model(
                    proto, path, save_as_external_data=True, all_tensors_to_one_file=True, location="model.onnx.data",
                    size_threshold=256,
                )
            else:
                onnx.save_model(proto, path)
            dtype = options.get("dtype", torch.float32)
            rounded = copy.deepcopy(model).to(dtype).float()
            if isinstance(rounded, Block):
                rounded.again.weight = rounded.up.weight
            rounded_inputs = {k: as_type(as_type(v, dtype), torch.float32) for k, v in spec.inputs.items()}
            exact = copy.copy(spec)
            exact.inputs = rounded_inputs
            tensors = {f"torch.{spec.output}": run(exact, rounded)}
            if dtype == torch.bfloat16:  # ONNX Runtime has no bf16 matrix product on CPUs.
                tensors[f"lora.{spec.output}"] = run(exact, merged(rounded, factors))
            else:
                tensors[f"output.{spec.output}"] = onnx_run(path, spec, dtype)
                error = (tensors[f"output.{spec.output}"] - tensors[f"torch.{spec.output}"]).norm()
                print(f"{name}/{case}: {error / tensors[f'torch.{spec.output}'].norm():.1e} from PyTorch")
                if dtype == torch.float32:
                    again = export(spec, merged(model, factors), exporter, opset, options).SerializeToString()
                    tensors[f"lora.{spec.output}"] = onnx_run(again, spec, dtype)
                else:
                    tensors[f"lora.{spec.output}"] = run(exact, merged(rounded, factors))
            tensors |= {f"input.{k}": v for k, v in rounded_inputs.items() if k in [i.name for i in proto.graph.input]}
            tensors = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
            save_file(tensors, target / "io.safetensors")
            survive = not spec.call and not spec.fuse and name != "sliced"
            save_json(target / "map.json", {"names": survive, "slots": dict(sorted(slots.items()))})
            linears = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
            whole = {s.split("[")[0] for s in slots}
            assert len(whole) == len(linears), f"{name}/{case}: {len(whole)} of {len(linears)} layers found"
    report(directory)


if __name__ == "__main__":
    main()
