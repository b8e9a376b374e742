"""Stage 1: the VAE (AutoencoderKLCogVideoX), single frames first, then clips.

Run: python train_vae.py --work DIR [--minutes 40] [--resume]
Leaves DIR/vae.pt, DIR/vae.jsonl, DIR/vae/ (diffusers layout, bf16, measured scaling factor), DIR/vae.png and
DIR/vae_eval.json: accuracy of the analytic classifier on held-out clips, clean and through the stored VAE.

Loss: w (L1 + 2 MSE) with w = 1 + 3 where the object is or was in frame 0, plus 1e-4 KL per latent value. The decoder
runs in the runtime's chunks [1,2]. Some clips are inpainting inputs (first frame, then -1), which the backbone's
condition needs. Every class is shown, the zero-shot variants too: what is held out there is the effect's transfer.

--init FILE starts from stored weights (the vae/ folder's safetensors) with clips at once; with --minutes 0 it only
evaluates them. --decoder-only continues DIR/vae.pt as a stage of its own (vae_decoder.pt) with the encoder frozen:
latents, cache, backbone and hypernetwork stay valid, and the scaling factor stays as it is.
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import load_file

import clips
import lab
import measures

MASKED = 0.1  # share of inpainting inputs
SHOWN = clips.CLASSES + tuple(clips.TARGETS)  # recoloured objects are the hardest to keep: shown twice as often


def batch(rng, count, frames):
    """Pixels [B,3,F,H,W] and weights [B,1,F,H,W]. A single frame is a random one of its clip."""
    videos, weights = [], []
    for _ in range(count):
        effect = SHOWN[rng.integers(len(SHOWN))]
        scene, variant = (int(n) for n in rng.integers(1_000_000, size=2))
        video, alpha = clips.clip("train", scene, effect, lab.FRAMES, lab.SIZE, variant)
        weight = 1 + 3 * np.maximum(alpha, alpha[:1])
        if frames == 1:
            chosen = int(rng.integers(lab.FRAMES))
            video, weight = video[chosen : chosen + 1], weight[chosen : chosen + 1]
        elif rng.random() < MASKED:
            video, weight = np.concatenate([video[:1], 0 * video[1:]]), np.concatenate([weight[:1], 0 * weight[1:] + 0.2])
        videos.append(video)
        weights.append(weight)
    return lab.to_pixels(videos), torch.from_numpy(np.stack(weights)).float()[:, None]


def loss_of(vae, pixels, weights, generator):
    with lab.fast():
        moments = vae.encode(pixels).latent_dist
        latents = moments.mean.float() + moments.std.float() * torch.randn(moments.mean.shape, generator=generator)
        decoded = lab.decode(vae, latents).float()
    error = decoded - pixels
    reconstruction = (weights * (error.abs() + 2 * error.square())).sum() / (weights.sum() * 3)
    kl = 0.5 * (moments.mean.float().square() + moments.var.float() - 1 - moments.logvar.float()).mean()
    return reconstruction + 1e-4 * kl, {"psnr": psnr(error.detach() / 2), "kl": kl.item()}


def psnr(error):
    return -10 * error.square().mean().log10().item()


def evaluate(vae, classifier, count, picture=None, precise=False):
    """Accuracy over `count` held-out clips per effect, after encoding (mean) and decoding."""
    videos, _, effects = measures.held_out(count, lab.FRAMES, lab.SIZE)
    vae.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=not precise), torch.no_grad():
        pixels = lab.to_pixels(videos)
        latents = lab.encode_all(vae, pixels)
        back = lab.to_videos(lab.decode_all(vae, latents))
    vae.train()
    total, per, confusion = measures.accuracy(classifier, back, effects)
    if picture:
        rows = [row for k in range(len(clips.CLASSES)) for row in (videos[k * count], back[k * count])]
        clips.sheet(rows, picture)
    chosen = [i for i, e in enumerate(effects) if e in clips.EFFECTS]
    return {
        "accuracy": total,
        "accuracy_effects": measures.accuracy(classifier, [back[i] for i in chosen], [effects[i] for i in chosen])[0],
        "psnr": psnr(torch.from_numpy(back - np.stack(videos))),
        "latent_std": latents.std().item(),
        "per_class": per,
        "confusion": confusion,
        "clips": len(videos),
    }


def main():
    a = lab.arguments(
        __doc__, 40,
        ("--lr", {"type": float, "default": 2e-3}),
        ("--single", {"type": float, "default": 0.15, "help": "share of the time on single frames"}),
        ("--batch", {"type": int, "default": 4}),
        ("--init", {"type": Path}),
        ("--decoder-only", {"action": "store_true"}),
    )  # fmt: skip
    if not (a.work / "classifier.json").exists():
        measures.calibrate(60, lab.FRAMES, lab.SIZE).save(a.work / "classifier.json")
    classifier = measures.Classifier.load(a.work / "classifier.json")
    vae = lab.new_vae().train()
    if a.init:
        vae.load_state_dict({k: v.float() for k, v in load_file(a.init).items()})
    if a.decoder_only:
        vae.load_state_dict(torch.load(a.work / "vae.pt", weights_only=False)["vae"])
        vae.encoder.requires_grad_(False)
    if a.init or a.decoder_only:
        a.single = 0.0
    trained = [p for p in vae.parameters() if p.requires_grad]
    run = lab.Run("vae_decoder" if a.decoder_only else "vae", a, {"vae": vae}, [{"params": trained, "lr": a.lr}])
    next_evaluation = run.used + 4
    while run.on():
        frames = 1 if run.fraction() < a.single else lab.FRAMES
        pixels, weights = batch(run.rng(), a.batch * (4 if frames == 1 else 1), frames)
        loss, parts = loss_of(vae, pixels, weights, torch.Generator().manual_seed(run.at))
        run.step(loss, parts | {"frames": frames})
        if run.used > next_evaluation and frames > 1:
            result = evaluate(vae, classifier, 4, a.work / "vae.png")
            run.tick(count=False)
            run.log(evaluation={k: round(result[k], 4) for k in ("accuracy", "accuracy_effects", "psnr", "latent_std")})
            next_evaluation = run.used + 4
    run.save()

    # Scaling factor: latents of unit standard deviation, measured on training clips.
    pixels, _ = batch(np.random.default_rng(a.seed), 64, lab.FRAMES)
    with lab.fast():
        scale = round(1 / lab.encode_all(vae.eval(), pixels).std().item(), 3)
    if a.decoder_only:
        scale = AutoencoderKLCogVideoX.load_config(a.work / "vae")["scaling_factor"]
    vae.register_to_config(scaling_factor=scale)
    vae.to(torch.bfloat16).save_pretrained(a.work / "vae")
    stored = AutoencoderKLCogVideoX.from_pretrained(a.work / "vae").float()
    videos, _, effects = measures.held_out(20, lab.FRAMES, lab.SIZE)
    clean = measures.accuracy(classifier, videos, effects)[0]
    result = {"clean_accuracy": clean, "scaling_factor": scale, "steps": run.at, "minutes": run.used}
    result |= evaluate(stored, classifier, 20, a.work / "vae.png", precise=True)
    (a.work / "vae_eval.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
