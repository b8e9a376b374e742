"""Golden files for diffusers' DDIMScheduler, CogVideoXDDIMScheduler and CogVideoXDPMScheduler: tests/fixtures/scheduler/.

cases.json, of the first two, holds `initial` (a latent), `model_outputs` (what the model is taken to answer at steps 0..3
of a run) and a list of cases with
- `config`: what diffusers writes to scheduler_config.json,
- `timesteps`: for several numbers of inference steps,
- `alphas_cumprod`: [index, value] pairs, and `final_alpha_cumprod`,
- `samples`: the latent after each step of a four-step run (eta 0); absent where diffusers divides by
  zero (epsilon prediction at a timestep whose alpha is 0).

cogvideox_dpm.json, of the third, holds `initial`, `slope` and `offset` (the model answers `slope * x + offset`), `noises` (what
each step adds; diffusers draws twice from the second step on, and the second draw is the one that counts) and a list of cases
with `change` (of the file's `published` configuration), `steps`, `timesteps` and `samples`: [steps done, latent] pairs, halfway and at the end.

Run: python tests/reference/schedulers.py [--out DIR]
"""

import itertools
import json

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, DDIMScheduler
from diffusers.schedulers import scheduling_dpm_cogvideox

from common import output_dir, randn, report, save_json

COGVIDEOX = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    set_alpha_to_one=True,
    clip_sample=False,
    steps_offset=0,
    timestep_spacing="trailing",
)
STEPS = (1, 3, 4, 7, 25, 30, 48, 50)
INDICES = (0, 1, 19, 249, 250, 499, 500, 749, 750, 979, 998, 999)
INITIAL = randn(8, seed=1)
MODEL_OUTPUTS = randn(4, 8, seed=2)


def configurations():
    """The published configurations, then every spacing x rescaling x prediction with the other options rotated."""
    yield DDIMScheduler, COGVIDEOX
    yield CogVideoXDDIMScheduler, COGVIDEOX | dict(snr_shift_scale=1.0)  # 5b
    yield CogVideoXDDIMScheduler, COGVIDEOX | dict(snr_shift_scale=3.0)  # 2b
    yield DDIMScheduler, {}  # the class's own defaults
    yield CogVideoXDDIMScheduler, {}
    grid = itertools.product(
        ("trailing", "leading", "linspace"), (True, False), ("v_prediction", "epsilon", "sample")
    )
    for i, (spacing, rescale, prediction) in enumerate(grid):
        config = dict(
            timestep_spacing=spacing,
            rescale_betas_zero_snr=rescale,
            prediction_type=prediction,
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule=("scaled_linear", "linear")[i % 2],
            set_alpha_to_one=i % 4 < 2,
            steps_offset=(i // 2 + i // 6) % 2,
            clip_sample=i % 3 == i // 6,
            clip_sample_range=(1.0, 0.5)[i % 2],
        )
        yield DDIMScheduler, config
        yield CogVideoXDDIMScheduler, config | dict(snr_shift_scale=(1.0, 3.0)[i // 2 % 2])


def four_steps(scheduler) -> list | None:
    """The latent after each of four steps, or None if one is not finite."""
    scheduler.set_timesteps(4)
    sample, samples = INITIAL, []
    for output, timestep in zip(MODEL_OUTPUTS, scheduler.timesteps):
        sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
        samples.append(sample.tolist())
    return samples if torch.isfinite(torch.tensor(samples)).all() else None


def case(kind, config: dict) -> dict:
    scheduler = kind(**config)
    timesteps = {}
    for steps in STEPS:
        scheduler.set_timesteps(steps)
        timesteps[steps] = scheduler.timesteps.tolist()
    result = {
        "config": json.loads(scheduler.to_json_string()),
        "timesteps": timesteps,
        "alphas_cumprod": [[i, scheduler.alphas_cumprod[i].item()] for i in INDICES],
        "final_alpha_cumprod": scheduler.final_alpha_cumprod.item(),
    }
    samples = four_steps(scheduler)
    return result | ({} if samples is None else {"samples": samples})


# CogVideoXDPMScheduler

DPM_STEPS = (1, 2, 3, 7)
SLOPE = 0.5 * randn(3, seed=3)
OFFSET = randn(3, seed=4)
NOISES = randn(max(DPM_STEPS), 3, seed=5)
# The published configuration of the 5b models, and what others change of it.
PUBLISHED = {"_class_name": "CogVideoXDPMScheduler"} | COGVIDEOX | dict(snr_shift_scale=1.0)
CHANGES = (
    {},
    dict(snr_shift_scale=3.0),  # 2b
    dict(rescale_betas_zero_snr=False),
    dict(timestep_spacing="leading", steps_offset=1),
    dict(timestep_spacing="linspace"),
    dict(set_alpha_to_one=False),
    dict(beta_schedule="linear"),
    dict(prediction_type="sample"),
    dict(prediction_type="epsilon", rescale_betas_zero_snr=False, beta_schedule="linear"),
)


def numbers(tensor: torch.Tensor) -> list:
    """The numbers of a tensor, with as many digits as f32 has."""
    return [float(f"{value:.9g}") for value in tensor.tolist()]


def dpm_samples(scheduler) -> list:
    """Samples as diffusers' pipelines call the scheduler."""
    total, sample, samples, old = len(scheduler.timesteps), INITIAL[:3], [], None
    for i, timestep in enumerate(scheduler.timesteps):
        scheduling_dpm_cogvideox.randn_tensor = lambda *_, i=i, **__: NOISES[i]
        before = scheduler.timesteps[i - 1] if i > 0 else None
        sample, old = scheduler.step(SLOPE * sample + OFFSET, old, timestep, before, sample, return_dict=False)
        if i + 1 in (total // 2, total):
            samples.append([i + 1, numbers(sample)])
    assert torch.isfinite(sample).all()
    return samples


def dpm_cases():
    """Every configuration at every number of steps."""
    for change in CHANGES:
        for steps in DPM_STEPS:
            scheduler = CogVideoXDPMScheduler.from_config(PUBLISHED | change)
            scheduler.set_timesteps(steps)
            case = {"change": change, "steps": steps, "timesteps": scheduler.timesteps.tolist()}
            yield case | {"samples": dpm_samples(scheduler)}


def main() -> None:
    directory = output_dir(__doc__, "scheduler")
    cases = [case(kind, config) for kind, config in configurations()]
    value = {"initial": INITIAL.tolist(), "model_outputs": MODEL_OUTPUTS.tolist(), "cases": cases}
    save_json(directory / "cases.json", value, indent=None)
    print(len(cases), "cases,", sum("samples" not in c for c in cases), "without samples")
    dpm = {"initial": INITIAL[:3], "slope": SLOPE, "offset": OFFSET}
    dpm = {name: numbers(tensor) for name, tensor in dpm.items()} | {"noises": [numbers(noise) for noise in NOISES]}
    dpm |= {"published": PUBLISHED, "cases": list(dpm_cases())}
    save_json(directory / "cogvideox_dpm.json", dpm, indent=None)
    report(directory)


if __name__ == "__main__":
    main()
