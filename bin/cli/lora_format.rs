use clap::ValueEnum;
use v2l_runtime::lora::adapter::AdapterFormat;

/// How an adapter is saved, as `--lora-format` says.
#[derive(Clone, Copy, Default, ValueEnum)]
pub enum LoraFormat {
    /// PEFT: `base_model.model.….lora_A.weight`; a folder unless the name ends in `.safetensors`.
    #[default]
    Peft,
    /// diffusers: `transformer.….lora_A.weight`.
    Diffusers,
    /// kohya: `lora_unet_….lora_down.weight`.
    Kohya,
    /// VideoX-Fun: `lora_unet__….lora_down.weight`.
    VideoxFun,
    /// ComfyUI: `diffusion_model.….lora_A.weight`.
    Comfy,
    /// The predicted tokens alone, for the same hypernetwork.
    Light,
    /// The predicted tokens with the auxiliary factors of the hypernetwork.
    LightFull,
}

impl From<LoraFormat> for AdapterFormat {
    fn from(format: LoraFormat) -> Self {
        match format {
            LoraFormat::Peft => Self::Peft,
            LoraFormat::Diffusers => Self::Diffusers,
            LoraFormat::Kohya => Self::Kohya,
            LoraFormat::VideoxFun => Self::VideoxFun,
            LoraFormat::Comfy => Self::Comfy,
            LoraFormat::Light => Self::Light,
            LoraFormat::LightFull => Self::LightFull,
        }
    }
}
