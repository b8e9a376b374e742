"""What the three training stages share: command line, clock, log, checkpoints, the VAE as the runtime drives it."""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from diffusers import AutoencoderKLCogVideoX  # noqa: E402

import clips  # noqa: E402
from vae import fun_decode_chunks  # noqa: E402  (its `common` switches gradients off)

torch.set_grad_enabled(True)

FRAMES, SIZE = 9, 48
CLOCK = time.monotonic  # what minutes are counted by, in seconds
VAE_CHANNELS, VAE_GROUPS = (16, 32, 48, 64), 8


def arguments(description: str, minutes: float, *more) -> argparse.Namespace:
    """Common options; `more` are (flags, keywords) of a stage's own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, caches, logs and pictures")
    parser.add_argument("--minutes", type=float, default=minutes, help="time of the whole stage, resumed runs together")
    parser.add_argument("--resume", action="store_true", help="continue from the stage's checkpoint in --work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    for flags, keywords in more:
        parser.add_argument(flags, **keywords)
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    return a


class Run:
    """Clock, learning rate, log and checkpoint of one stage: `while run.on(): ... run.step(loss)`.

    The learning rate warms up over 50 steps and falls as a cosine of the time used, so a stage that is resumed with
    the same --minutes continues its schedule. Checkpoints (<stage>.pt) are replaced atomically every two minutes and at
    the end; the log (<stage>.jsonl) gets one line per `log_every` steps: mean loss, learning rate, minutes.
    Draws depend on (seed, step) only: use `run.rng()`.
    """

    def __init__(self, stage, a, modules: dict, groups, log_every=20):
        self.stage, self.a, self.modules, self.log_every = stage, a, modules, log_every
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=1e-3)
        self.base = [g["lr"] for g in self.optimizer.param_groups]
        self.at, self.used, self.losses, self.extra = 0, 0.0, [], {}
        self.path = a.work / f"{stage}.pt"
        if a.resume and self.path.exists():
            state = torch.load(self.path, weights_only=False)
            for name, module in modules.items():
                module.load_state_dict(state[name])
            self.optimizer.load_state_dict(state["optimizer"])
            self.at, self.used, self.extra = state["step"], state["used"], state["extra"]
            print(f"resumed {stage} at step {self.at}, {self.used:.1f} min")
        self.last, self.saved = CLOCK(), time.monotonic()

    def rng(self, salt=0):
        return np.random.default_rng([self.a.seed, self.at, salt])

    def fraction(self):
        """Of the stage's time that is used, 0 to 1."""
        return min(self.used / self.a.minutes, 1.0) if self.a.minutes else 1.0

    def on(self):
        for group, base in zip(self.optimizer.param_groups, self.base):
            fall = 0.02 + 0.49 * (1 + math.cos(math.pi * self.fraction()))
            group["lr"] = base * min(1, (self.at + 1) / 50) * fall
        return self.used < self.a.minutes

    def step(self, loss, parts=None, clip=1.0):
        """Backward, clipped update, log, checkpoint now and then."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.losses.append(loss.item())
        self.at += 1
        self.tick()
        if self.at % self.log_every == 0:
            self.log(loss=float(np.mean(self.losses)), norm=float(norm), **(parts or {}))
            self.losses = []
        if time.monotonic() - self.saved > 120:
            self.save()

    def tick(self, count=True):
        """Adds the time since the last call to the stage's time (`count=False`: does not, for evaluations)."""
        now = CLOCK()
        self.used += (now - self.last) / 60 * count
        self.last = now

    def log(self, **values):
        line = {"stage": self.stage, "step": self.at, "minutes": round(self.used, 3)}
        line["lr"] = self.optimizer.param_groups[0]["lr"]
        line |= values
        line = {k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}
        with (self.a.work / f"{self.stage}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def save(self):
        state = {name: module.state_dict() for name, module in self.modules.items()}
        state |= {"optimizer": self.optimizer.state_dict(), "step": self.at, "used": self.used, "extra": self.extra}
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)
        self.saved = time.monotonic()


class Average:
    """Exponential moving average of a module's parameters, in a module of its own."""

    def __init__(self, module, shadow, decay):
        self.module, self.shadow, self.decay = module, shadow.requires_grad_(False), decay
        shadow.load_state_dict(module.state_dict())

    def update(self, step):
        decay = min(self.decay, (step + 1) / (step + 10))
        with torch.no_grad():
            for mine, theirs in zip(self.shadow.parameters(), self.module.parameters()):
                mine.lerp_(theirs, 1 - decay)


def fast():
    """bf16 arithmetic: 1.8 times faster on processors that have it."""
    return torch.autocast("cpu", torch.bfloat16)


# The VAE


def new_vae(scaling_factor=1.0):
    return AutoencoderKLCogVideoX(
        block_out_channels=VAE_CHANNELS,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        layers_per_block=1,
        norm_num_groups=VAE_GROUPS,
        sample_height=SIZE,
        sample_width=SIZE,
        scaling_factor=scaling_factor,
    )


def to_pixels(videos):
    """[B][F,H,W,3] in [0,1] -> [B,3,F,H,W] in [-1,1]."""
    return torch.from_numpy(np.stack(videos)).float().permute(0, 4, 1, 2, 3) * 2 - 1


def to_videos(pixels):
    """[B,3,F,H,W] in [-1,1] -> [B,F,H,W,3] in [0,1], numpy."""
    return (pixels.detach().float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1).numpy()


def decode(vae, latents):
    """Unscaled latents [B,16,T,h,w] -> [B,3,4T-3,H,W] in the runtime's chunks [1,2,2,...]."""
    return torch.cat([frames for frames, _ in fun_decode_chunks(vae, latents)], dim=2)


def condition(pixels):
    """The inpainting input: the first frame, every later one -1."""
    masked = torch.full_like(pixels, -1.0)
    masked[:, :, 0] = pixels[:, :, 0]
    return masked


@torch.no_grad()
def encode_all(vae, pixels, batch=16):
    """Means of the latent distribution, unscaled, f32."""
    return torch.cat([vae.encode(part).latent_dist.mean.float() for part in pixels.split(batch)])


@torch.no_grad()
def decode_all(vae, latents, batch=16):
    return torch.cat([decode(vae, part).float() for part in latents.split(batch)])
