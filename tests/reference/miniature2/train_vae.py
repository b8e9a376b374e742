"""Stage 1: the autoencoder (AutoencoderKLWan).

Run: python train_vae.py --work DIR [--minutes 25] [--resume]
Leaves DIR/vae.pt, DIR/vae.jsonl, DIR/vae/ (diffusers layout, bf16, measured mean and deviation of each channel), DIR/vae.png and
DIR/vae_eval.json: how many held-out clips still show their effects after the stored autoencoder.

Loss: w (L1 + 2 MSE) with w = 1 + 3 where the object is or was in frame 0, plus 1e-4 KL per latent value. One clip in eight is a
condition: the first frame, then grey. --decoder-only continues DIR/vae.pt as a stage of its own (vae_decoder.pt) with the encoder
frozen, and shows recoloured objects more often: latents, cache and all later stages stay valid.
"""

import json

import networks
import lab
import numpy as np
import torch
from diffusers import AutoencoderKLWan

import clips
import measures
import world


def psnr(error):
    return -10 * error.square().mean().log10().item()


SINGLE = 0.15  # share of the time on single frames
MASKED = 0.125
COLOURS = tuple(name for name in world.EFFECTS + world.PAIRS if "to_red" in name or "to_blue" in name)


def batch(rng, count, frames=world.FRAMES, recoloured=0.0):
    """Pixels [B,3,F,H,W] and weights [B,1,F,H,W]; `recoloured` is the share of clips that are of COLOURS, beside their own."""
    videos, weights = [], []
    for _ in range(count):
        names = world.EFFECTS if rng.random() < 0.6 else world.PAIRS
        if rng.random() < recoloured:
            names = COLOURS
        effect, (index, how) = names[rng.integers(len(names))], (int(n) for n in rng.integers(1_000_000, size=2))
        video, alpha = world.clip("train", index, effect, how, rng.uniform(0.1, 1.3))
        weight = 1 + 3 * np.maximum(alpha, alpha[:1])
        if frames == 1:
            chosen = int(rng.integers(world.FRAMES))
            video, weight = video[chosen : chosen + 1], weight[chosen : chosen + 1]
        elif rng.random() < MASKED:
            video, weight = np.concatenate([video[:1], 0 * video[1:] + 0.5]), np.concatenate([weight[:1], 0 * weight[1:] + 0.2])
        videos.append(video)
        weights.append(weight)
    return lab.to_pixels(videos), torch.from_numpy(np.stack(weights)).float()[:, None]


def loss_of(vae, pixels, weights, generator):
    with lab.fast():
        moments = vae.encode(pixels).latent_dist
        latents = moments.mean.float() + moments.std.float() * torch.randn(moments.mean.shape, generator=generator)
        decoded = vae.decode(latents).sample.float()
    error = decoded - pixels
    reconstruction = (weights * (error.abs() + 2 * error.square())).sum() / (weights.sum() * 3)
    kl = 0.5 * (moments.mean.float().square() + moments.var.float() - 1 - moments.logvar.float()).mean()
    return reconstruction + 1e-4 * kl, {"psnr": psnr(error.detach() / 2), "kl": kl.item()}


def evaluate(vae, classifier, count, picture=None):
    """Shares of held-out clips, `count` of each class, that are read as before."""
    result = {}
    vae.eval()
    for kind, classes in (("effects", world.EFFECTS), ("pairs", world.PAIRS), ("still", (world.STILL,))):
        named = [(k * 100_000 + i, e) for k, e in enumerate(classes) for i in range(count)]
        videos = [world.clip("held_out", i, e)[0] for i, e in named]
        back = lab.to_videos(networks.decode(vae, networks.encode(vae, lab.to_pixels(videos))))
        total, per, _ = measures.accuracy(classifier, list(back), [e for _, e in named])
        result[kind] = {"accuracy": total, "psnr": psnr(torch.from_numpy(back - np.stack(videos)))}
        result[kind]["clean"] = measures.accuracy(classifier, videos, [e for _, e in named])[0]
        result[kind]["weak"] = {e: round(share, 3) for e, share in per.items() if share < 0.9}
        if picture and kind == "effects":
            clips.sheet([row for k in range(len(classes)) for row in (videos[k * count], back[k * count])], picture)
    vae.train()
    return result


def main():
    a = lab.arguments(
        __doc__, 25, ("--lr", {"type": float, "default": 3e-3}), ("--batch", {"type": int, "default": 4}),
        ("--decoder-only", {"action": "store_true"}),
    )  # fmt: skip
    if not (a.work / "classifier.json").exists():
        world.calibrate().save(a.work / "classifier.json")
    classifier = measures.Classifier.load(a.work / "classifier.json")
    vae = networks.new_vae().train()
    if a.decoder_only:
        vae.load_state_dict(torch.load(a.work / "vae.pt", weights_only=False)["vae"])
        # Latents as the stored encoder gives them.
        for part in (vae.encoder, vae.quant_conv):
            part.to(torch.bfloat16).float().requires_grad_(False)
    trained = [p for p in vae.parameters() if p.requires_grad]
    run = lab.Run("vae_decoder" if a.decoder_only else "vae", a, {"vae": vae}, [{"params": trained, "lr": a.lr}])
    next_evaluation = run.used + 4
    while run.on():
        frames = 1 if run.fraction() < SINGLE and not a.decoder_only else world.FRAMES
        pixels, weights = batch(run.rng(), a.batch * (4 if frames == 1 else 1), frames, 0.3 if a.decoder_only else 0)
        loss, parts = loss_of(vae, pixels, weights, torch.Generator().manual_seed(run.at))
        run.step(loss, parts | {"frames": frames})
        if run.used > next_evaluation and frames > 1:
            result = evaluate(vae, classifier, 4, a.work / "vae.png")
            run.tick(count=False)
            run.log(evaluation={kind: {k: round(v, 3) for k, v in r.items() if k != "weak"} for kind, r in result.items()})
            next_evaluation = run.used + 4
    run.save()

    # Latents of zero mean and unit deviation in each channel, measured on training clips.
    pixels, _ = batch(np.random.default_rng(a.seed), 256)
    vae.to(torch.bfloat16).float().eval()
    latents = networks.encode(vae, pixels)
    mean, std = ([round(v, 4) for v in stat((0, 2, 3, 4)).tolist()] for stat in (latents.mean, latents.std))
    if a.decoder_only:
        mean, std = (AutoencoderKLWan.load_config(a.work / "vae")[key] for key in ("latents_mean", "latents_std"))
    vae.register_to_config(latents_mean=mean, latents_std=std)
    vae.to(torch.bfloat16).save_pretrained(a.work / "vae")
    stored = AutoencoderKLWan.from_pretrained(a.work / "vae").float()
    result = {"steps": run.at, "minutes": run.used, "latents_mean": mean, "latents_std": std}
    result |= evaluate(stored, classifier, 10, a.work / "vae.png")
    (a.work / "vae_eval.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
