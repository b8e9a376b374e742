"""Makes a work folder of a shipped model, to train the bank and the hypernetwork over its base.

Run: python resume.py --model ../../fixtures/miniature2 --work DIR
Leaves DIR/vae, DIR/tokenizer, DIR/classifier.json and DIR/base.pt. Then: cache.py, train_bank.py, train_hyper.py. The shipped base is in bf16,
as later stages see it anyway. The bank begins anew, but for the adapters that are shipped.
"""

import argparse
import shutil
from pathlib import Path

import world  # first: it finds the folders of the first miniature
import networks
import torch
from safetensors.torch import load_file


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    for folder in ("vae", "tokenizer"):
        shutil.copytree(a.model / folder, a.work / folder)
    shutil.copy(a.model / "classifier.json", a.work)
    words = networks.new_tokenizer(a.work / "tokenizer")
    transformer, text_encoder = networks.new_transformer(), networks.new_text_encoder(len(words))
    for module, file in ((transformer, "transformer/diffusion_pytorch_model"), (text_encoder, "text_encoder/model")):
        weights = load_file(a.model / f"{file}.safetensors")
        # Tied weights are stored once.
        missing, unexpected = module.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
        tied = {"encoder.embed_tokens.weight", "shared.weight"}
        assert not unexpected and set(missing) <= tied, (missing, unexpected)
        if missing:
            module.tie_weights()
    bank = networks.Bank(transformer)
    for file in sorted((a.model / "bank").glob("*.safetensors")):
        at, factors = world.BANK.index(file.stem), load_file(file)
        for slot, down, up in zip(bank.slots, bank.down, bank.up):
            down[at] = factors[f"transformer.{slot}.lora_A.weight"].float()
            up[at] = factors[f"transformer.{slot}.lora_B.weight"].float()
    state = {"average": transformer.state_dict(), "text_average": text_encoder.state_dict(), "bank_average": bank.state_dict()}
    torch.save(state, a.work / "base.pt")


if __name__ == "__main__":
    main()
