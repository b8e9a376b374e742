"""Golden files for resizing images: Pillow's bicubic (VideoX-Fun, Video2LoRA) and Lanczos (diffusers).

Run: python tests/reference/preprocess.py [--out DIR]

Writes preprocess/resize_<from>_<to>.safetensors (sizes as width x height): input.image [H,W,3] u8,
output.bicubic and output.lanczos [h,w,3] u8. Pillow widens the filter when it shrinks, and rounds to u8
after each of its two passes; a pass that changes nothing is left out. The goldens are horizontal first,
as Pillow did everything before version 13; 13 goes vertically first when the height shrinks by more
than twice the number of pixels that the width does.
"""

import numpy as np
import torch
from PIL import Image

from common import generator, output_dir, report, save_case
from sample import draw_scene

# (width, height) from -> to
CASES = [
    ((72, 56), (48, 32)),  # both down, aspect ratio changes
    ((30, 20), (64, 48)),  # both up
    ((40, 64), (48, 32)),  # one up, one down: the order of the passes shows
    ((97, 61), (24, 16)),  # far down, odd sizes
    ((48, 32), (48, 16)),  # height only
    ((33, 48), (16, 48)),  # width only
    ((32, 16), (32, 16)),  # nothing to do
    ((3, 2), (16, 8)),  # source smaller than the filter
    ((64, 48), (1, 1)),
]


def picture(width, height, seed):
    """A drawn scene with hard random blocks on it, so that overshoot has to be clipped."""
    image = np.array(draw_scene(seed, 9, seed % 2, (width, height)))
    noise = torch.randint(0, 2, (height // 2, width // 3, 3), generator=generator(seed)).numpy() * 255
    image[: noise.shape[0], : noise.shape[1]] = noise
    return Image.fromarray(image)


def main():
    out = output_dir(__doc__, "preprocess")
    for seed, (source, target) in enumerate(CASES):
        image = picture(*source, seed)
        wide = (target[0], source[1])  # one axis at a time: the same in every version
        outputs = {
            "bicubic": image.resize(wide, Image.Resampling.BICUBIC).resize(target, Image.Resampling.BICUBIC),
            "lanczos": image.resize(wide, Image.Resampling.LANCZOS).resize(target, Image.Resampling.LANCZOS),
        }
        name = "resize_{}x{}_{}x{}.safetensors".format(*source, *target)
        tensors = {key: torch.from_numpy(np.array(value)) for key, value in outputs.items()}
        save_case(out / name, {"image": torch.from_numpy(np.array(image))}, tensors)
    report(out)


if __name__ == "__main__":
    main()
