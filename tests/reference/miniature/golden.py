"""What the shipped miniature does in PyTorch, for the tests of the port.

Run: python golden.py --model FOLDER        (FOLDER: what export.py wrote)
Writes FOLDER/golden/
- case_<effect>.safetensors, one per family: a whole request, steered, through diffusers' modules and our transcription of
  CogVideoX-Fun's inpainting pipeline (../pipelines.py): the first trial's image and caption, the adapter of its reference
  fused into the weights, 20 steps without guidance, f32. input.latents [1,T,16,h,w]; output.pred_weights [1,N,D],
  output.latents_final, output.frames [F,H,W,3] u8.
- features.json: per effect, measures.py's 20 features of the first trial's reference, and the classifier's answer.
"""

import argparse
from pathlib import Path

import lab  # first: it finds the folder above
import numpy as np
import torch
from PIL import Image

import clips
import measures
import model
from common import levels, randn, report, save_case, save_json
from hypernetwork import deltas, linear_modules
from pipelines import FunModel, run_fun

STEPS = 20


def first_trial(folder: Path, effect):
    """(first frame, reference frames, caption), as PIL images."""
    index = model.read_json(folder / "trials" / "trials.json")
    size = index["size"]
    row = np.array(Image.open(folder / "trials" / f"{effect}.png").convert("RGB"))[:size]
    frames = [Image.fromarray(row[:, x : x + size]) for x in range(0, row.shape[1], size)]
    return frames[0], frames[1:], index["captions"][effect][0]


@torch.no_grad()
def case(folder: Path, mini: FunModel, effect, seed):
    image, reference, caption = first_trial(folder, effect)
    latents = randn(1, model.LATENT_FRAMES, 16, model.LATENT_SIZE, model.LATENT_SIZE, seed=seed)
    _, _, tokens = mini.predict(reference, image.size, signed=True)
    changes = deltas(tokens[0], mini.aux, linear_modules(mini.transformer))
    final, frames = run_fun(mini, image, len(reference), latents, changes=changes, texts=(caption,), steps=STEPS)
    base, _ = run_fun(mini, image, len(reference), latents, texts=(caption,), steps=STEPS)
    outputs = {"pred_weights": tokens, "latents_final": final, "frames": levels(frames)}
    metadata = {"effect": effect, "prompt": caption, "num_inference_steps": STEPS, "num_frames": len(reference)}
    save_case(folder / "golden" / f"case_{effect}.safetensors", {"latents": latents}, outputs, metadata)
    moved = (final - base).norm() / base.norm()
    shown = measures.Classifier.load(folder / "classifier.json")(frames.numpy())
    print(f"{effect}: shows {shown}; steering moves the final latents by {moved:.3f} of their norm")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    folder = parser.parse_args().model
    torch.set_num_threads(2)
    mini = FunModel(folder, text=model.TEXT)
    for seed, members in enumerate(clips.FAMILIES.values()):
        case(folder, mini, members[0], 700 + seed)
    classifier, rows = measures.Classifier.load(folder / "classifier.json"), {}
    for effect in clips.EFFECTS + clips.ZERO_SHOT:
        reference = np.stack([np.array(frame) for frame in first_trial(folder, effect)[1]]) / 255
        rows[effect] = {"features": measures.features(reference).tolist(), "class": classifier(reference)}
    save_json(folder / "golden" / "features.json", rows, indent=None)
    report(folder / "golden")


if __name__ == "__main__":
    main()
