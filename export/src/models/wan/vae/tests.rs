use super::*;

/// Wan 2.2's values where they differ from the defaults.
fn residual() -> Config {
    Config {
        base_dim: 160,
        decoder_base_dim: Some(256),
        z_dim: 48,
        is_residual: true,
        in_channels: 12,
        out_channels: 12,
        patch_size: Some(2),
        scale_factor_spatial: Some(16),
        latents_mean: vec![0.0; 48],
        latents_std: vec![1.0; 48],
        ..Config::default()
    }
}

#[test]
fn published_configurations_are_taken() {
    for (config, factor) in [(Config::default(), 8), (residual(), 16)] {
        config.validate().unwrap();
        assert_eq!(config.spatial_factor(), factor);
    }
    assert_eq!(Config::default().encoder_widths(), [96, 96, 192, 384, 384]);
    assert_eq!(residual().decoder_widths(), [1024, 1024, 1024, 512, 256]);
}

#[test]
fn configurations_of_no_wan_autoencoder_are_refused_by_key() {
    let base = || (Config::default(), residual());
    let cases = [
        (Config { dim_mult: vec![], ..base().0 }, "0 dim_mult"),
        (Config { temperal_downsample: vec![true], ..base().0 }, "1 temperal_downsample"),
        (Config { temperal_downsample: vec![true; 3], ..base().0 }, "temperal_downsample of a factor 8"),
        (Config { scale_factor_temporal: Some(8), ..base().0 }, "scale_factor_temporal of a factor 8"),
        (Config { scale_factor_spatial: Some(16), ..base().0 }, "scale_factor_spatial of a factor 16"),
        (Config { base_dim: 0, ..base().0 }, "base_dim 0"),
        (Config { attn_scales: vec![1.0], ..base().0 }, "attn_scales [1.0]"),
        (Config { patch_size: None, ..base().1 }, "in_channels 12"),
        (Config { z_dim: 16, ..base().1 }, "latents_mean of 48 values"),
        (Config { latents_std: vec![0.0; 16], ..base().0 }, "latents_std 0"),
        (Config { dim_mult: vec![1, 2, 3, 4], base_dim: 5, ..base().1 }, "is_residual with base_dim 5"),
    ];
    for (config, key) in cases {
        let error = config.validate().unwrap_err();
        assert!(error.is_unsupported());
        assert!(error.to_string().contains(key), "{error}");
    }
}
