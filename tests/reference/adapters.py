"""Golden files for LoRA adapters of small transformers: one adapter in every file form, and what PEFT fuses.

Run: python tests/reference/adapters.py [--out DIR]

Writes adapter/ with
- `transformer/`: 2 blocks, 16 channels, f32;
- `peft/`: adapter_config.json and adapter_model.safetensors as PEFT saves them (rank 4, alpha 6, the
  attention projections and the feed-forward; keys base_model.model.<module>.lora_A.weight);
- `diffusers/pytorch_lora_weights.safetensors`: as CogVideoXPipeline.save_lora_weights does, keys
  transformer.<module>.lora_A.weight, alpha only in the file's lora_adapter_metadata;
- `kohya.safetensors`: lora_unet_<module with underscores>.{lora_down.weight, lora_up.weight, alpha};
- `comfy.safetensors`: diffusion_model.<module>.{lora_A.weight, lora_B.weight, alpha};
  `comfy_no_alpha.safetensors`: no alpha, so a factor of 1, and B already times alpha / rank;
- `case.safetensors`: forward arguments -> output.sample_base, output.sample_strength_1,
  output.sample_strength_minus_half (PEFT's own forward), and output.fused.<module>.weight for
  two modules at strength 1: W + alpha / rank * B A;
- `golden/`: `transformer/` of 16 channels, bf16; five adapters, each in up to four forms (`peft/`,
  `diffusers.safetensors`, `kohya.safetensors`, `comfy.safetensors`): ranks 1, 4 and 16 with odd alphas,
  `mixed` (rank_pattern, alpha_pattern) and `rslora` (alpha / sqrt(rank)); and `fused.safetensors`, the weights
  that PEFT fuses in f64, as `<adapter>[+<adapter>]@<strength>[,<strength>].<module>`;
- `wan/`: one block of a Wan transformer: `comfy.safetensors` and `kohya.safetensors` with Wan's own names, and
  `diffusers.safetensors`, what diffusers' converter makes of the first (alpha folded into A).
"""

import copy
import json
import shutil

import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from diffusers.loaders.lora_conversion_utils import _convert_musubi_wan_lora_to_diffusers as convert_musubi
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_wan_lora_to_diffusers as convert_wan
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from common import _sorted_metadata as sorted_metadata
from common import output_dir, randn, report, save_case, save_json
from hypernetwork import make_transformer

RANK, ALPHA = 4, 6
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
GOLDEN_TARGETS = [f"transformer_blocks.0.attn1.{name}" for name in ("to_q", "to_k", "to_v")] + [
    "transformer_blocks.1.attn1.to_out.0",
    "transformer_blocks.1.ff.net.2",
]
GOLDEN_FUSED = ["transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_v", "transformer_blocks.1.ff.net.2"]
GOLDEN_ADAPTERS = {
    "rank_1": {"r": 1, "lora_alpha": 3},
    "rank_4": {"r": 4, "lora_alpha": 7},
    "rank_16": {"r": 16, "lora_alpha": 5},
    "mixed": {
        "r": 4,
        "lora_alpha": 7,
        "rank_pattern": {"to_v": 1, "transformer_blocks.1.ff.net.2": 16},
        "alpha_pattern": {"to_v": 3, "ff.net.2": 5.5},
    },
    "rslora": {"r": 4, "lora_alpha": 7, "use_rslora": True},
}
STRENGTHS = [-1, 0, 0.5, 1, 2]
PAIRS = [(0.5, 0.5), (0.7, -0.3)]
WAN_RANK, WAN_ALPHA = 2, 3
FUSED = ["transformer_blocks.0.attn1.to_q", "transformer_blocks.1.ff.net.2"]
PEFT_PREFIX = "base_model.model."


def arguments():
    cos, sin = get_3d_rotary_pos_embed(16, ((0, 0), (2, 3)), (2, 3), 2)
    return {
        "hidden_states": randn(1, 2, 16, 4, 6, seed=700),
        "encoder_hidden_states": randn(1, 10, 32, seed=701),
        "timestep": torch.tensor([499]),
        "image_rotary_emb_cos": cos,
        "image_rotary_emb_sin": sin,
    }


def forward(model, inputs):
    rope = (inputs["image_rotary_emb_cos"], inputs["image_rotary_emb_sin"])
    rest = {k: v for k, v in inputs.items() if not k.startswith("image_rotary")}
    return model(**rest, image_rotary_emb=rope).sample


def write_forms(out, factors, rank, alpha, forms=("kohya", "comfy", "comfy_no_alpha")):
    """`factors` maps `<module>.lora_A.weight` and `<module>.lora_B.weight` to tensors."""
    modules = [key.removesuffix(".lora_A.weight") for key in factors if key.endswith("lora_A.weight")]
    scale, alpha = alpha / rank, torch.tensor(float(alpha))
    kohya, comfy, folded = {}, {}, {}
    for module in modules:
        down, up = factors[f"{module}.lora_A.weight"], factors[f"{module}.lora_B.weight"]
        name = "lora_unet_" + module.replace(".", "_")
        kohya |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": alpha}
        name = "diffusion_model." + module
        comfy |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, f"{name}.alpha": alpha}
        folded |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up * scale}
    for name, tensors in zip(("kohya", "comfy", "comfy_no_alpha"), (kohya, comfy, folded)):
        if name in forms:
            save_file({k: v.clone().contiguous() for k, v in tensors.items()}, out / f"{name}.safetensors")


def save_peft(model, folder):
    """As PEFT saves, but for the model card and the order of a set."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config_file = folder / "adapter_config.json"
    written = json.loads(config_file.read_text())
    save_json(config_file, written | {"target_modules": sorted(written["target_modules"])})


def save_diffusers(folder, weight_name, factors, config):
    """As CogVideoXPipeline.save_lora_weights does, with the header in key order."""
    metadata = {k: (sorted(v) if isinstance(v, set) else v) for k, v in config.to_dict().items()}
    CogVideoXPipeline.save_lora_weights(
        folder, transformer_lora_layers=factors, transformer_lora_adapter_metadata=metadata, weight_name=weight_name
    )
    written = folder / weight_name
    written.write_bytes(sorted_metadata(written.read_bytes()))


def peft_factors(model):
    return {k.removeprefix(PEFT_PREFIX): v for k, v in get_peft_model_state_dict(model).items()}


def golden_configuration(name):
    return LoraConfig(target_modules=GOLDEN_TARGETS, **copy.deepcopy(GOLDEN_ADAPTERS[name]))


def fused_by_peft(base, names, factors, strengths):
    """Weights of `GOLDEN_FUSED` with adapters merged by PEFT in f64."""
    first, *rest = names
    model = get_peft_model(copy.deepcopy(base).double(), golden_configuration(first), adapter_name=first)
    for name in rest:
        model.add_adapter(name, golden_configuration(name))
    parameters = dict(model.named_parameters())
    for name in names:
        for key, value in factors[name].items():
            parameters[f"{PEFT_PREFIX}{key.removesuffix('.weight')}.{name}.weight"].data = value.double()
    for module in model.modules():
        if hasattr(module, "lora_A"):
            for name, strength in zip(names, strengths):
                module.set_scale(name, strength)
    model.base_model.set_adapter(names)
    model.merge_adapter(names)
    return {path: model.get_submodule(PEFT_PREFIX + path).base_layer.weight for path in GOLDEN_FUSED}


def fused_by_diffusers(folder, out, names, strengths):
    """The same by diffusers, from the files that it is given to load."""
    model = CogVideoXTransformer3DModel.from_pretrained(folder, torch_dtype=torch.float64)
    for name in names:
        state = {k.removeprefix("transformer."): v for k, v in load_file(out / name / "diffusers.safetensors").items()}
        metadata = {k.removeprefix("transformer."): v for k, v in header(out / name / "diffusers.safetensors").items()}
        model.load_lora_adapter(state, prefix=None, adapter_name=name, metadata=metadata)
    model.set_adapters(names, list(strengths))
    model.fuse_lora(adapter_names=names)
    return {path: model.get_submodule(path).base_layer.weight for path in GOLDEN_FUSED}


def header(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["lora_adapter_metadata"])


def write_golden(out):
    """Every rank, strength and form of a transformer whose weights are bf16, so that all storage types start equal."""
    narrow = {"text_dim": 8, "time_embed_dim": 8, "out_channels": 4, "max_text_seq_length": 4}
    base = make_transformer(740, layers=2, heads=1, in_channels=4, **narrow).bfloat16()
    base.save_pretrained(out / "transformer")
    base = base.float()
    factors = {}
    for index, name in enumerate(GOLDEN_ADAPTERS):
        config = golden_configuration(name)
        model = get_peft_model(copy.deepcopy(base), config).eval()
        for seed, (key, parameter) in enumerate(sorted(model.named_parameters()), start=1000 * (index + 1)):
            if "lora_" in key:
                parameter.data = randn(*parameter.shape, seed=seed, scale=0.5 / parameter.shape[1] ** 0.5)
        save_peft(model, out / name / "peft")
        factors[name] = peft_factors(model)
        save_diffusers(out / name, "diffusers.safetensors", factors[name], config)
        if name.startswith("rank_"):
            write_forms(out / name, factors[name], config.r, config.lora_alpha, ("kohya", "comfy"))
    cases = [((name,), (strength,)) for name in factors for strength in STRENGTHS if name.startswith("rank_")]
    cases += [(("mixed",), (1,)), (("rslora",), (0.5,))]
    cases += [(("rank_1", "rank_16"), pair) for pair in PAIRS]
    fused = {}
    for names, strengths in cases:
        case = f"{'+'.join(names)}@{','.join(map(str, strengths))}"
        by_peft = fused_by_peft(base, list(names), factors, strengths)
        by_diffusers = fused_by_diffusers(out / "transformer", out, list(names), strengths)
        for path, weight in by_peft.items():
            torch.testing.assert_close(by_diffusers[path], weight, atol=1e-6, rtol=0)
            fused[f"{case}.{path}"] = weight.detach().clone().contiguous()
    save_file(fused, out / "fused.safetensors")


def write_wan(out):
    """A LoRA of one Wan block and of the layers around the blocks, under Wan's own names and under diffusers'."""
    width, hidden = 8, 16
    block = {f"{a}_attn.{p}": (width, width) for a in ("self", "cross") for p in "qkvo"}
    block |= {"cross_attn.k_img": (width, width), "cross_attn.v_img": (width, width)}
    block |= {"ffn.0": (width, hidden), "ffn.2": (hidden, width)}
    around = {"text_embedding.0": (12, width), "text_embedding.2": (width, width), "time_projection.1": (width, 6 * width)}
    around |= {"time_embedding.0": (4, width), "time_embedding.2": (width, width), "head.head": (width, 4)}
    around |= {"img_emb.proj.1": (10, 10), "img_emb.proj.3": (10, width)}
    comfy, kohya = {}, {}
    shapes = {f"blocks.0.{name}": shape for name, shape in block.items()} | around
    for seed, (name, (inner, outer)) in enumerate(shapes.items(), start=800):
        down, up = randn(WAN_RANK, inner, seed=seed), randn(outer, WAN_RANK, seed=seed + 100)
        comfy |= {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up}
        if name.startswith("blocks."):
            alpha = torch.tensor(float(WAN_ALPHA))
            comfy[f"diffusion_model.{name}.alpha"] = alpha
            stem = "lora_unet_" + name.replace(".", "_")
            kohya |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": alpha}
    out.mkdir()
    # The converters change tensors in place.
    converted = convert_wan({k: v.clone() for k, v in comfy.items()})
    musubi = convert_musubi({k: v.clone() for k, v in kohya.items()})
    assert all(torch.equal(converted[key], value) for key, value in musubi.items())
    for name, tensors in (("comfy", comfy), ("kohya", kohya), ("diffusers", converted)):
        save_file({k: v.clone().contiguous() for k, v in tensors.items()}, out / f"{name}.safetensors")


def main():
    out = output_dir(__doc__, "adapter")
    shutil.rmtree(out)
    base = make_transformer(710, layers=2, in_channels=16)
    base.save_pretrained(out / "transformer")
    inputs = arguments()
    outputs = {"sample_base": forward(base, inputs)}

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
    model = get_peft_model(copy.deepcopy(base), config).eval()
    for seed, (name, parameter) in enumerate(sorted(model.named_parameters()), start=720):
        if "lora_" in name:
            parameter.data = randn(*parameter.shape, seed=seed, scale=0.5 / parameter.shape[1] ** 0.5)
    save_peft(model, out / "peft")
    outputs["sample_strength_1"] = forward(model, inputs)
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    for module in layers:
        module.set_scale("default", -0.5)
    outputs["sample_strength_minus_half"] = forward(model, inputs)

    factors = peft_factors(model)
    save_diffusers(out / "diffusers", "pytorch_lora_weights.safetensors", factors, config)
    write_forms(out, factors, RANK, ALPHA)
    for path in FUSED:
        change = (ALPHA / RANK) * factors[f"{path}.lora_B.weight"] @ factors[f"{path}.lora_A.weight"]
        outputs[f"fused.{path}.weight"] = base.get_submodule(path).weight + change
    save_case(out / "case.safetensors", inputs, outputs, {"rank": RANK, "alpha": ALPHA})

    # The written files mean the same adapter to those who read them.
    loaded = CogVideoXTransformer3DModel.from_pretrained(out / "transformer").eval()
    loaded.load_lora_adapter(str(out / "diffusers"), weight_name="pytorch_lora_weights.safetensors", use_safetensors=True)
    torch.testing.assert_close(forward(loaded, inputs), outputs["sample_strength_1"], atol=1e-5, rtol=0)
    folded = load_file(out / "comfy_no_alpha.safetensors")
    for name, module in base.named_modules():
        key = f"diffusion_model.{name}.lora_B.weight"
        if key in folded:
            module.weight.data += folded[key] @ folded[key.replace("lora_B", "lora_A")]
    torch.testing.assert_close(forward(base, inputs), outputs["sample_strength_1"], atol=1e-5, rtol=0)

    for name in ("sample_strength_1", "sample_strength_minus_half"):
        print(name, "differs from base by", (outputs[name] - outputs["sample_base"]).std().item())
    write_golden(out / "golden")
    write_wan(out / "wan")
    report(out)


if __name__ == "__main__":
    main()
