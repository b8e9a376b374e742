#!/usr/bin/env python3
"""Turns the checkpoint of a predictor, a file of PyTorch, into a package for `v2l-export --predictor`.

    python export/convert/predictor.py FILE_OR_FOLDER -o FOLDER

writes FOLDER/model.safetensors and FOLDER/config.json. It takes
  - the folder of LoFA's preview: `stage1_preview.pth`, `stage2_preview.pth`, and `config.yaml`, where there is one,
  - SimpleTuner's `prompt2effect_hypernetwork.pt` and `checkpoint-N.pt`,
  - the checkpoint of Prompt2Effect's reproduction for square weights (`config` and `state_dict`).

PyTorch is not needed, and no code of the file is run (see torch_file.py). Paths of the trainer's machine are left out.
"""

import argparse
import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path

from torch_file import Refused, read_archive, tensors_of, write_safetensors

def need(value, kind, name):
    if not isinstance(value, kind) or isinstance(value, bool) and kind is int:
        raise Refused(f"`{name}` is {type(value).__name__}, expected {kind.__name__}")
    return value


def shapes_match(tensors, expected):
    """Refuses a state dict that is not exactly what its configuration says."""
    missing, surplus = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or surplus:
        raise Refused(f"the state dict lacks {missing[:3]} and has {surplus[:3]} besides what its configuration says")
    for name, shape in expected.items():
        if tensors[name].shape != list(shape):
            raise Refused(f"`{name}` has shape {tensors[name].shape}, expected {list(shape)}")


def linear(shapes, name, out, inputs):
    shapes[f"{name}.weight"], shapes[f"{name}.bias"] = [out, inputs], [out]


def attention(shapes, name, d):
    shapes[f"{name}.in_proj_weight"], shapes[f"{name}.in_proj_bias"] = [3 * d, d], [3 * d]
    linear(shapes, f"{name}.out_proj", d, d)


def norm(shapes, name, d):
    shapes[f"{name}.weight"], shapes[f"{name}.bias"] = [d], [d]


SIMPLETUNER = "simpletuner-prompt2effect-hypernetwork"
# SimpleTuner's names, and those of the documented layout.
RENAMED = {
    "compress_queries": "latents", "compress_attn": "compressor.attn", "decode_attn": "decompressor.attn", "head_a": "head_A",
    "head_b": "head_B", "layer_embedding": "layer_emb", "module_type_embedding": "module_emb",
    "text_projection": "text_proj.proj",
}
IN_BLOCK = {
    "self_attn": "proc_self.{}.attn", "norm_1": "proc_self.{}.ln1", "cross_attn": "proc_cross.{}.attn",
    "norm_2": "proc_cross.{}.ln1", "norm_3": "proc_cross.{}.ln2", "ff.0": "proc_cross.{}.ff.fc1", "ff.3": "proc_cross.{}.ff.fc2",
}


def simpletuner_shapes(model, layers):
    d, n, heads = (need(model[k], int, k) for k in ("hidden_dim", "compressed_tokens", "num_heads"))
    if heads < 1 or d % heads:
        raise Refused(f"hidden_dim {d} is no multiple of num_heads {heads}")
    shapes = {"compress_queries": [n, d]}
    linear(shapes, "text_projection", d, need(model["text_hidden_dim"], int, "text_hidden_dim"))
    shapes["layer_embedding.weight"] = [len(layers), d]
    shapes["module_type_embedding.weight"] = [len(model["module_types"]), d]
    attention(shapes, "compress_attn", d)
    attention(shapes, "decode_attn", d)
    for i in range(need(model["num_layers"], int, "num_layers")):
        attention(shapes, f"blocks.{i}.self_attn", d)
        attention(shapes, f"blocks.{i}.cross_attn", d)
        for k in (1, 2, 3):
            norm(shapes, f"blocks.{i}.norm_{k}", d)
        linear(shapes, f"blocks.{i}.ff.0", 4 * d, d)
        linear(shapes, f"blocks.{i}.ff.3", d, 4 * d)
    for out, inputs in {(layer["out_dim"], layer["in_dim"]) for layer in layers}:
        linear(shapes, f"projections.out{out}_in{inputs}.row", d, inputs)
        linear(shapes, f"projections.out{out}_in{inputs}.col", d, out)
    rank = need(model["rank"], int, "rank")
    linear(shapes, "head_a", rank, d)
    linear(shapes, "head_b", rank, d)
    return shapes


def simpletuner_name(name):
    parts = name.split(".")
    if parts[0] == "blocks":
        for own, ours in IN_BLOCK.items():
            rest = ".".join(parts[2:])
            if rest.startswith(own + "."):
                return ours.format(parts[1]) + rest[len(own) :]
    if parts[0] == "projections":
        return f"{parts[2]}_enc.{parts[1]}.{parts[3]}"
    for own, ours in RENAMED.items():
        if name == own or name.startswith(own + "."):
            return ours + name[len(own) :]
    raise Refused(f"`{name}` has no place in the documented layout")


def simpletuner(file):
    model, schema = need(file.get("model_config"), dict, "model_config"), need(file.get("schema"), dict, "schema")
    layers = need(schema.get("layers"), list, "schema.layers")
    for at, layer in enumerate(layers):
        if layer["index"] != at or layer["base_key"] != layer["module_name"] + ".weight":
            raise Refused(f"schema.layers[{at}] is `{layer['module_name']}` with index {layer['index']}")
    names = [layer["module_name"] for layer in layers]
    if names != sorted(names):
        raise Refused("schema.layers are not in the order of their names as strings, in which the checkpoint numbers them")
    if model["layer_count"] != len(layers) or [list(s) for s in model["layer_shapes"]] != [
        [layer["out_dim"], layer["in_dim"]] for layer in layers
    ]:
        raise Refused("model_config and schema list different layers")
    unknown = {layer["module_type"] for layer in layers} - set(model["module_types"])
    if unknown:
        raise Refused(f"layers are of the types {sorted(unknown)}, which model_config does not list")
    tensors = tensors_of(file.get("model_state_dict"))
    shapes_match(tensors, simpletuner_shapes(model, layers))
    kept = ("index", "module_name", "module_type", "base_key", "in_dim", "out_dim")
    config = {
        "model_type": "prompt2effect", "profile": "simpletuner", "hidden_dim": model["hidden_dim"],
        "n_heads": model["num_heads"], "n_layer": model["num_layers"], "num_latents": model["compressed_tokens"],
        "rank": model["rank"], "text_dim": model["text_hidden_dim"],
        "text_len": (file.get("train_args") or {}).get("max_prompt_length", 128),
        "text_encoder": os.path.basename(str(file.get("text_encoder_model") or "").rstrip("/")) or None,
        "module_vocab": list(model["module_types"]), "layers": [{k: layer[k] for k in kept} for layer in layers],
    }
    for name in ("model_family", "model_flavour", "base_model", "base_revision", "component_prefix", "component_subfolder",
                 "target_modules"):
        value = schema.get(name)
        if value is not None and not (isinstance(value, str) and value.startswith("/")):
            config[name] = value
    return {simpletuner_name(name): tensor for name, tensor in tensors.items()}, config


def square(file):
    own = need(file.get("config"), dict, "config")
    tensors = tensors_of(file.get("state_dict"))
    d, width, rank, text = (need(own[k], int, k) for k in ("hidden_dim", "weight_dim", "rank", "text_dim"))
    types = list(need(own["module_specs"], dict, "module_specs"))
    if "latents" not in tensors:
        raise Refused("there is no tensor `latents`")
    n = tensors["latents"].shape[0]
    shapes = {"latents": [n, d]}
    linear(shapes, "text_proj.proj", d, text)
    norm(shapes, "text_proj.ln", d)
    linear(shapes, "row_enc", d, width)
    linear(shapes, "col_enc", d, width)
    if own.get("include_emb", True):
        e = [tensors[f"{k}.weight"].shape[1] if f"{k}.weight" in tensors else 32 for k in ("layer_emb", "module_emb")]
        shapes["layer_emb.weight"] = [own["max_layers"], e[0]]
        shapes["module_emb.weight"] = [len(types) + 1, e[1]]
        linear(shapes, "cond_proj", d, sum(e))
    parts = ["compressor", "decompressor"]
    parts += [f"{part}.{b}" for b in range(need(own["n_layer"], int, "n_layer")) for part in ("proc_self", "proc_cross")]
    for part in parts:
        attention(shapes, f"{part}.attn", d)
        norm(shapes, f"{part}.ln1", d)
        norm(shapes, f"{part}.ln2", d)
        linear(shapes, f"{part}.ff.fc1", 4 * d, d)
        linear(shapes, f"{part}.ff.fc2", d, 4 * d)
    linear(shapes, "head_A", rank, d)
    linear(shapes, "head_B", rank, d)
    shapes_match(tensors, shapes)
    group = {"group": "default", "d_in": width, "d_out": width}
    config = {
        "model_type": "prompt2effect", "profile": "square", "hidden_dim": d, "n_heads": own["n_heads"],
        "n_layer": own["n_layer"], "num_latents": n, "rank": rank, "text_dim": text,
        "include_emb": own.get("include_emb", True), "module_vocab": types, "enc_groups": {t: group for t in types},
    }
    return tensors, config


LOFA_STAGES = ("stage1", "stage2")
LOFA_TYPES = [f"{module}.{layer}" for module in ("self_attn", "cross_attn") for layer in "qkvo"]
# What the official code takes where config.yaml does not say.
LOFA_DEFAULTS = {"tau": 0.02, "temperature": 0.1}


def lofa_settings(path):
    """`tau`, `temperature` and the list of types of a config.yaml of LoFA; of YAML, what it is written in."""
    found, types, inside = dict(LOFA_DEFAULTS), [], False
    for line in path.read_text().splitlines() if path.is_file() else []:
        key, _, value = line.strip().partition(":")
        if inside and line.strip().startswith("- "):
            types.append(line.strip()[2:].strip().strip("'\""))
            continue
        inside = key == "target_modules" and not line.startswith(" ")
        if key in LOFA_DEFAULTS:
            found[key] = float(value)
    return found, [name.replace("attn_", "attn.") for name in types] or LOFA_TYPES


def lofa(folder):
    stages = {}
    for stage in LOFA_STAGES:
        files = sorted(folder.glob(f"{stage}*.pth"))
        if len(files) != 1:
            raise Refused(f"expected one file {stage}*.pth, as `{stage}_preview.pth`; found {len(files)}")
        stages[stage] = tensors_of(read_archive(files[0]))
    one, two = (stages[stage] for stage in LOFA_STAGES)

    def shape(tensors, name, axes):
        found = tensors.get(name)
        if found is None or len(found.shape) != axes:
            raise Refused(f"`{name}` is {found.shape if found else 'not there'}; expected {axes} axes")
        return found.shape

    d, _, p, _ = shape(one, "patch_embed.proj.weight", 4)
    width = p * shape(one, "pos.row", 4)[1]
    numbers = lambda tensors, before: sorted({int(k[len(before) :].split(".")[0]) for k in tensors if k.startswith(before)})
    settings, types = lofa_settings(folder / "config.yaml")
    config = {
        "model_type": "lofa", "p": p, "d": d, "heads": d // shape(one, "blocks.0.self_attn.q_norm.weight", 1)[0],
        "blocks": len(numbers(one, "blocks.")), "rank": shape(two, "head_A.bias", 1)[0] // width,
        "inject": numbers(two, "cross_attn_blocks."), "types": types, "depths": shape(one, "depth_embed.weight", 2)[0], **settings,
    }
    return {f"{stage}.{name}": tensor for stage in LOFA_STAGES for name, tensor in stages[stage].items()}, config


def predictor(source):
    """The tensors and the configuration of a checkpoint."""
    if source.is_dir():
        return lofa(source)
    file = need(read_archive(source), dict, "the file")
    if file.get("format") == SIMPLETUNER:
        return simpletuner(file)
    if isinstance(file.get("config"), dict) and "module_specs" in file["config"]:
        return square(file)
    raise Refused(
        "no predictor that this script knows: expected SimpleTuner's `format`, or `config` with `module_specs`; LoFA is a folder of two files"
    )


def convert(source, folder):
    tensors, config = predictor(source)
    if folder.exists() and any(folder.iterdir()):
        raise Refused(f"{folder} is not empty; name another folder with -o")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        write_safetensors(made / "model.safetensors", tensors)
        (made / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    return len(tensors), config.get("profile", config["model_type"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="FILE_OR_FOLDER")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args()
    try:
        count, profile = convert(args.checkpoint, args.output)
    except (Refused, OSError, zipfile.BadZipFile, KeyError, TypeError) as error:
        missing = f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else str(error)
        print(f"error: {args.checkpoint}: {missing}", file=sys.stderr)
        return 3
    print(f"{args.output}: {count} tensors, {profile}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
