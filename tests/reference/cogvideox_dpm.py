"""Golden latents of CogVideoX with diffusers' CogVideoXDPMScheduler: tests/fixtures/pipeline/t2v/dpm.safetensors.

Run: python tests/reference/cogvideox_dpm.py [--out DIR]        (after pipelines.py, whose model `t2v` it samples)

diffusers' CogVideoXPipeline from text, guidance 6, with the published scheduler_config.json of the 5b models but for the shift
of the signal-to-noise ratio, which is that of the model. Initial noise and the noise of each step are v2l's own of seed 7
(noise.py). The file holds `output.<steps>`: the final latents [1,T,16,h,w] after so many steps.
"""

from unittest import mock

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from diffusers.schedulers import scheduling_dpm_cogvideox
from transformers import T5EncoderModel, T5Tokenizer

import random_weights
from common import fixtures_dir, output_dir, report, save_case
from noise import INITIAL_LATENT, SOLVER_STEP, standard_normal
from pipelines import GUIDANCE, NEGATIVE, PROMPT
from schedulers import COGVIDEOX

SEED, STEPS = 7, (1, 2, 5, 12)
FRAMES, HEIGHT, WIDTH = 1, 32, 48
SHAPE = (1, (FRAMES - 1) // 4 + 1, 16, HEIGHT // 8, WIDTH // 8)


def pipeline(folder) -> CogVideoXPipeline:
    """The stored pipeline, weights widened to f32, with the other scheduler."""
    made = CogVideoXPipeline(
        tokenizer=T5Tokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=T5EncoderModel.from_pretrained(folder / "text_encoder").float().eval(),
        vae=AutoencoderKLCogVideoX.from_pretrained(folder / "vae").float().eval(),
        transformer=CogVideoXTransformer3DModel.from_pretrained(folder / "transformer").float().eval(),
        scheduler=CogVideoXDPMScheduler(**COGVIDEOX, snr_shift_scale=3.0),
    )
    made.set_progress_bar_config(disable=True)
    return made


def sample(pipe: CogVideoXPipeline, steps: int) -> torch.Tensor:
    """Final latents. The step's number is that of the predictions so far."""
    done = 0

    def noise(*_, **__):
        return torch.from_numpy(standard_normal(SEED, SOLVER_STEP, SHAPE, done))

    def count(_, step, timestep, state):
        nonlocal done
        done = step + 1
        return state

    with mock.patch.object(scheduling_dpm_cogvideox, "randn_tensor", noise):
        return pipe(
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            height=HEIGHT,
            width=WIDTH,
            num_frames=FRAMES,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            latents=torch.from_numpy(standard_normal(SEED, INITIAL_LATENT, SHAPE)),
            output_type="latent",
            callback_on_step_end=count,
        ).frames


def main() -> None:
    directory = output_dir(__doc__, "pipeline") / "t2v"
    with random_weights.made(fixtures_dir() / "pipeline/t2v") as folder:
        pipe = pipeline(folder)
        outputs = {str(steps): sample(pipe, steps) for steps in STEPS}
    facts = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_frames": FRAMES, "height": HEIGHT, "width": WIDTH}
    save_case(directory / "dpm.safetensors", {}, outputs, facts | {"guidance_scale": GUIDANCE, "seed": SEED})
    for steps, latents in outputs.items():
        print(steps, "steps: latents", tuple(latents.shape), f"std {latents.std():.2f}")
    report(directory)


if __name__ == "__main__":
    main()
