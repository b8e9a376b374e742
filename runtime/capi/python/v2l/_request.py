"""What a request may say. Made from runtime/src/request.rs: UPDATE_HEADER=1 cargo test -p v2l-capi --test header"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, TypedDict


class Request(TypedDict, total=False):
    """A video to make: keywords of :meth:`v2l.Pipeline.generate`."""

    #: What not to show; unused without guidance.
    negative_prompt: Optional[str]
    #: Width in pixels.
    width: Optional[int]
    #: Height in pixels.
    height: Optional[int]
    #: Pixel frames.
    num_frames: Optional[int]
    #: Length in seconds, where `num_frames` says nothing: the video gets the number of frames nearest to it that the model can make.
    seconds: Optional[float]
    #: Sampler steps.
    num_inference_steps: Optional[int]
    #: The scheduler, by the name of its sampler or of diffusers' class; the model's own if not given.
    scheduler: Optional[str]
    #: How far the scheduler moves levels of noise towards noise, for models of flow matching.
    shift: Optional[float]
    #: Guidance; 1 or less: none, and half the work.
    guidance_scale: Optional[float]
    #: Guidance of the second of two transformers; that of the first if nothing says it. Whether there is guidance at all says the first alone.
    guidance_scale_2: Optional[float]
    #: Where the second of two transformers takes over, as a part of the noise levels; the model's own if not given.
    boundary_ratio: Optional[float]
    #: Frames per second of the result.
    fps: Optional[float]
    #: Seed of every draw.
    seed: Optional[int]
    #: Standard deviation of the noise on the image; 0: none.
    noise_aug_strength: Optional[float]
    #: Numbers for the model's controls, by their names; those that are not named are off.
    controls: Optional[Mapping[str, float]]
    #: The first frame; of several frames the first counts.
    image: Any
    #: The last frame, for models that end at an image; of several frames the first counts.
    last_image: Any
    #: A latent (padding frames included) instead of noise drawn from the seed, its axes in the model's order.
    initial_noise: Any
    #: `[1, 3, 1, H, W]` (or all frames) standard normal values instead of those drawn from the seed.
    augmentation_noise: Any
    #: Embeddings `[2 or 1, tokens, width]`, negative first, instead of the text encoder's.
    prompt_embeds: Any
    #: Those of the negative prompt, `[1, tokens, width]`, if `prompt_embeds` holds one prompt alone; unused without guidance.
    negative_prompt_embeds: Any


#: Fields of a request, with what a JSON schema says of them.
FIELDS: Dict[str, Dict[str, Any]] = {
    "prompt": {"type":"string","description":"What to show."},
    "negative_prompt": {"type":"string","description":"What not to show; unused without guidance."},
    "width": {"type":"integer","minimum":1,"description":"Width in pixels."},
    "height": {"type":"integer","minimum":1,"description":"Height in pixels."},
    "num_frames": {"type":"integer","minimum":1,"description":"Pixel frames."},
    "seconds": {"type":"number","exclusiveMinimum":0,"description":"Length in seconds, where `num_frames` says nothing: the video gets the number of frames nearest to it that the model can make."},
    "num_inference_steps": {"type":"integer","minimum":1,"description":"Sampler steps."},
    "scheduler": {"type":"string","description":"The scheduler, by the name of its sampler or of diffusers' class; the model's own if not given."},
    "shift": {"type":"number","exclusiveMinimum":0,"description":"How far the scheduler moves levels of noise towards noise, for models of flow matching."},
    "guidance_scale": {"type":"number","minimum":-1000.0,"maximum":1000.0,"description":"Guidance; 1 or less: none, and half the work."},
    "guidance_scale_2": {"type":"number","minimum":-1000.0,"maximum":1000.0,"description":"Guidance of the second of two transformers; that of the first if nothing says it. Whether there is guidance at all says the first alone."},
    "boundary_ratio": {"type":"number","minimum":0.0,"maximum":1.0,"description":"Where the second of two transformers takes over, as a part of the noise levels; the model's own if not given."},
    "fps": {"type":"number","minimum":0.01,"maximum":1000.0,"description":"Frames per second of the result."},
    "seed": {"type":"integer","minimum":0,"description":"Seed of every draw."},
    "noise_aug_strength": {"type":"number","minimum":0.0,"maximum":10.0,"description":"Standard deviation of the noise on the image; 0: none."},
    "controls": {"type":"object","additionalProperties":{"type":"number"},"description":"Numbers for the model's controls, by their names; those that are not named are off."},
}
#: What stands beside them: pictures.
PICTURES = ("image", "last_image")
#: And numbers.
TENSORS = ("initial_noise", "augmentation_noise", "prompt_embeds", "negative_prompt_embeds")
