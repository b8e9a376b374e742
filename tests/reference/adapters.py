"""Golden files for LoRA adapters of a small CogVideoX transformer: one adapter in every file form.

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
  two modules at strength 1: W + alpha / rank * B A.
"""

import copy
import json
import shutil

import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from common import _sorted_metadata as sorted_metadata
from common import output_dir, randn, report, save_case, save_json
from hypernetwork import make_transformer

RANK, ALPHA = 4, 6
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
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


def write_forms(out, factors):
    """`factors` maps `<module>.lora_A.weight` and `<module>.lora_B.weight` to tensors."""
    modules = [key.removesuffix(".lora_A.weight") for key in factors if key.endswith("lora_A.weight")]
    kohya, comfy, folded = {}, {}, {}
    for module in modules:
        down, up = factors[f"{module}.lora_A.weight"], factors[f"{module}.lora_B.weight"]
        alpha = torch.tensor(float(ALPHA))
        name = "lora_unet_" + module.replace(".", "_")
        kohya |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": alpha}
        name = "diffusion_model." + module
        comfy |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, f"{name}.alpha": alpha}
        folded |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up * (ALPHA / RANK)}
    for name, tensors in (("kohya", kohya), ("comfy", comfy), ("comfy_no_alpha", folded)):
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
    model.save_pretrained(out / "peft")
    (out / "peft" / "README.md").unlink(missing_ok=True)
    config_file = out / "peft" / "adapter_config.json"
    written = json.loads(config_file.read_text())
    save_json(config_file, written | {"target_modules": sorted(written["target_modules"])})  # a set: any order
    outputs["sample_strength_1"] = forward(model, inputs)
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    for module in layers:
        module.set_scale("default", -0.5)
    outputs["sample_strength_minus_half"] = forward(model, inputs)

    factors = {k.removeprefix(PEFT_PREFIX): v for k, v in get_peft_model_state_dict(model).items()}
    metadata = {k: (sorted(v) if isinstance(v, set) else v) for k, v in config.to_dict().items()}
    CogVideoXPipeline.save_lora_weights(
        out / "diffusers", transformer_lora_layers=factors, transformer_lora_adapter_metadata=metadata
    )
    written = out / "diffusers" / "pytorch_lora_weights.safetensors"
    written.write_bytes(sorted_metadata(written.read_bytes()))
    write_forms(out, factors)
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
    report(out)


if __name__ == "__main__":
    main()
