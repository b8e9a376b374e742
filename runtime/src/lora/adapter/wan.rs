//! Wan's own layer names, which ComfyUI and kohya's trainer use, and those of diffusers, which slots have.

/// Layers of a block: Wan's own name, diffusers' name.
const BLOCK: [(&str, &str); 12] = [
    ("self_attn.q", "attn1.to_q"),
    ("self_attn.k", "attn1.to_k"),
    ("self_attn.v", "attn1.to_v"),
    ("self_attn.o", "attn1.to_out.0"),
    ("cross_attn.q", "attn2.to_q"),
    ("cross_attn.k", "attn2.to_k"),
    ("cross_attn.v", "attn2.to_v"),
    ("cross_attn.o", "attn2.to_out.0"),
    ("cross_attn.k_img", "attn2.add_k_proj"),
    ("cross_attn.v_img", "attn2.add_v_proj"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
];

/// Layers around the blocks.
const AROUND: [(&str, &str); 8] = [
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
    ("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
    ("head.head", "proj_out"),
];

/// True if layers of these names are a Wan transformer's: one of them is a layer of its blocks.
pub(super) fn is_wan<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    names.any(|name| block_layer(name).is_some())
}

/// True if a name can only be of a Wan transformer: of a layer, norm or table of its blocks, or of its own modules around them.
pub(super) fn is_own(name: &str) -> bool {
    let in_block = name.starts_with("blocks.") && native_parameter(name).is_some();
    let around =
        name.starts_with("condition_embedder.") && (native(name).is_some() || native_parameter(name).is_some());
    block_layer(name).is_some() || in_block || around || name == "scale_shift_table"
}

/// Wan's own name of a layer of a Wan transformer, given diffusers' name.
pub(super) fn native(name: &str) -> Option<String> {
    if let Some((block, layer)) = block_layer(name) {
        return Some(format!("blocks.{block}.{layer}"));
    }
    AROUND.iter().find(|(_, diffusers)| *diffusers == name).map(|&(own, _)| own.to_owned())
}

/// Norms of a block: Wan's own name, diffusers' name.
const BLOCK_NORMS: [(&str, &str); 6] = [
    ("self_attn.norm_q", "attn1.norm_q"),
    ("self_attn.norm_k", "attn1.norm_k"),
    ("cross_attn.norm_q", "attn2.norm_q"),
    ("cross_attn.norm_k", "attn2.norm_k"),
    ("cross_attn.norm_k_img", "attn2.norm_added_k"),
    ("norm3", "norm2"),
];

/// What is no linear layer around the blocks.
const AROUND_OTHERS: [(&str, &str); 3] = [
    ("patch_embedding", "patch_embedding"),
    ("img_emb.proj.0", "condition_embedder.image_embedder.norm1"),
    ("img_emb.proj.4", "condition_embedder.image_embedder.norm2"),
];

/// Parameters without a module of their own.
const BARE: [(&str, &str); 2] =
    [("head.modulation", "scale_shift_table"), ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed")];

/// Wan's own name of a parameter of a Wan transformer that is no linear layer's matrix, given diffusers' name.
pub(super) fn native_parameter(name: &str) -> Option<String> {
    if let Some((own, _)) = BARE.iter().find(|(_, diffusers)| *diffusers == name) {
        return Some((*own).to_owned());
    }
    if let Some(block) = name.strip_suffix(".scale_shift_table") {
        return Some(format!("{block}.modulation"));
    }
    let (module, end) = name.rsplit_once('.')?;
    let norm = || {
        let (block, norm) = module.strip_prefix("blocks.")?.split_once('.')?;
        let (own, _) = BLOCK_NORMS.iter().find(|(_, diffusers)| *diffusers == norm)?;
        Some(format!("blocks.{block}.{own}"))
    };
    let other = || Some(AROUND_OTHERS.iter().find(|(_, diffusers)| *diffusers == module)?.0.to_owned());
    let own = native(module).or_else(norm).or_else(other)?;
    Some(format!("{own}.{end}"))
}

/// Number of a block, as written, and Wan's own name of the layer in it.
fn block_layer(name: &str) -> Option<(&str, &'static str)> {
    let (block, layer) = name.strip_prefix("blocks.")?.split_once('.')?;
    let number = !block.is_empty() && block.bytes().all(|b| b.is_ascii_digit());
    let &(own, _) = BLOCK.iter().find(|(_, diffusers)| number && *diffusers == layer)?;
    Some((block, own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn native_translates_the_layers_of_wan_and_no_others() {
        assert_eq!(native("blocks.12.attn1.to_out.0").unwrap(), "blocks.12.self_attn.o");
        assert_eq!(native("blocks.0.attn2.add_k_proj").unwrap(), "blocks.0.cross_attn.k_img");
        assert_eq!(native("proj_out").unwrap(), "head.head");
        for name in
            ["transformer_blocks.0.attn1.to_q", "blocks.x.attn1.to_q", "blocks.0.attn1.to_qkv", "norm_out.linear"]
        {
            assert_eq!(native(name), None, "{name}");
        }
        for (name, own) in [
            ("blocks.3.attn1.to_out.0.bias", "blocks.3.self_attn.o.bias"),
            ("blocks.3.attn2.norm_added_k.weight", "blocks.3.cross_attn.norm_k_img.weight"),
            ("blocks.3.norm2.bias", "blocks.3.norm3.bias"),
            ("blocks.3.scale_shift_table", "blocks.3.modulation"),
            ("scale_shift_table", "head.modulation"),
            ("condition_embedder.image_embedder.norm2.weight", "img_emb.proj.4.weight"),
            ("proj_out.bias", "head.head.bias"),
        ] {
            assert_eq!(native_parameter(name).as_deref(), Some(own));
        }
        assert_eq!(native_parameter("patch_embedding.weight").as_deref(), Some("patch_embedding.weight"));
        assert_eq!(native_parameter("transformer_blocks.0.norm1.weight"), None);
        assert!(is_wan(["proj_out", "blocks.3.ffn.net.2"].into_iter()));
        assert!(!is_wan(["proj_out", "transformer_blocks.0.ff.net.2"].into_iter()));
    }
}
