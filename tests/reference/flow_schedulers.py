"""Golden files for diffusers' schedulers of flow-matching models: tests/fixtures/scheduler/flow.json.

The file holds `initial` (a latent), `slope` and `offset` (the model answers `slope * x + offset`, element by element, in
f32), `noises` (what a scheduler that adds noise draws, one for each step) and a list of cases with
- `config`: what diffusers writes to scheduler_config.json,
- `sampler`: v2l's name of the scheduler, where the case is not on the class's own grid. Such a grid is given to diffusers
  as a list: ComfyUI's "simple" one, and those of Wan's own code (wan/utils/fm_solvers_unipc.py and fm_solvers.py),
- `timesteps`,
- `samples`: [steps done, latent] pairs, halfway and at the end.

Run: python tests/reference/flow_schedulers.py [--out DIR]
"""

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import scheduling_flow_match_lcm

from common import output_dir, randn, report, save_json

STEPS = (1, 2, 3, 8, 50)
INITIAL = randn(8, seed=1)
SLOPE = 0.5 * randn(8, seed=2)
OFFSET = randn(8, seed=3)
NOISES = randn(max(STEPS), 8, seed=4)
FLOW = dict(prediction_type="flow_prediction", use_flow_sigmas=True)


def numbers(tensor: torch.Tensor) -> list:
    """The numbers of a tensor, with as many digits as f32 has."""
    return [float(f"{value:.9g}") for value in tensor.tolist()]


def even(steps: int) -> np.ndarray:
    """1 - k/n."""
    return np.linspace(1, 0, steps + 1)[:steps]


def wan_unipc(steps: int) -> np.ndarray:
    """Wan's own UniPC: even levels from the float32 number 1 - 1/1000."""
    top = np.float32(1) - np.float32(1 / 1000)
    return np.linspace(float(top), 0, steps + 1)[:steps]


def configurations():
    """Class, configuration, v2l's sampler, even levels if they are not the class's own."""
    for shift in (1.0, 3.0, 5.0, 16.0):
        yield UniPCMultistepScheduler, FLOW | dict(flow_shift=shift), None, None
    for change in (dict(solver_order=1), dict(disable_corrector=[0, 1, 4])):
        yield UniPCMultistepScheduler, FLOW | dict(flow_shift=3.0) | change, None, None
    for shift in (5.0, 12.0):
        yield UniPCMultistepScheduler, FLOW | dict(flow_shift=shift), "unipc_wan", wan_unipc
    for shift in (1.0, 3.0, 8.0):
        yield FlowMatchEulerDiscreteScheduler, dict(shift=shift), None, None
        yield FlowMatchEulerDiscreteScheduler, dict(shift=shift), "euler_simple", even
        yield FlowMatchLCMScheduler, dict(shift=shift), None, None
        yield FlowMatchLCMScheduler, dict(shift=shift), "lcm_simple", even
        yield DPMSolverMultistepScheduler, FLOW | dict(flow_shift=shift), None, None
        yield DPMSolverMultistepScheduler, FLOW | dict(flow_shift=shift), "dpmpp_2m_wan", even


def prepare(scheduler, steps: int, levels) -> None:
    """Sets the levels of noise."""
    if levels is None:
        scheduler.set_timesteps(steps)
    elif isinstance(scheduler, DPMSolverMultistepScheduler):
        # It takes no list.
        scheduler.set_timesteps(steps)
        shift, u = scheduler.config.flow_shift, levels(steps)
        sigmas = shift * u / (1 + (shift - 1) * u)
        scheduler.sigmas = torch.from_numpy(np.append(sigmas, 0).astype(np.float32))
        scheduler.timesteps = torch.from_numpy(sigmas * 1000).to(torch.int64)
    else:
        scheduler.set_timesteps(steps, sigmas=levels(steps))


def run(scheduler) -> list:
    """Samples by the linear model."""
    noises = iter(NOISES)
    scheduling_flow_match_lcm.randn_tensor = lambda *_, **__: next(noises)
    scheduler.set_begin_index(0)
    total, sample, samples = len(scheduler.timesteps), INITIAL, []
    for i, timestep in enumerate(scheduler.timesteps):
        # A leading axis: UniPC's sums name the batch.
        sample = scheduler.step((SLOPE * sample + OFFSET)[None], timestep, sample[None], return_dict=False)[0][0]
        if i + 1 in (total // 2, total):
            samples.append([i + 1, numbers(sample)])
    assert torch.isfinite(sample).all()
    return samples


def cases():
    """Every configuration at every number of steps."""
    for kind, config, sampler, levels in configurations():
        for steps in STEPS:
            scheduler = kind(**config)
            prepare(scheduler, steps, levels)
            case = {"config": {"_class_name": kind.__name__} | config, "steps": steps}
            if sampler is not None:
                case["sampler"] = sampler
            case["timesteps"] = numbers(scheduler.timesteps)
            yield case | {"samples": run(scheduler)}


def main() -> None:
    """Writes the file."""
    directory = output_dir(__doc__, "scheduler")
    save_json(
        directory / "flow.json",
        {
            "initial": numbers(INITIAL),
            "slope": numbers(SLOPE),
            "offset": numbers(OFFSET),
            "noises": [numbers(noise) for noise in NOISES],
            "cases": list(cases()),
        },
        indent=None,
    )
    report(directory)


if __name__ == "__main__":
    main()
