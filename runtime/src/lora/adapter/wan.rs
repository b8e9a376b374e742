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

/// Wan's own name of a layer of a Wan transformer, given diffusers' name.
pub(super) fn native(name: &str) -> Option<String> {
    if let Some((block, layer)) = block_layer(name) {
        return Some(format!("blocks.{block}.{layer}"));
    }
    AROUND.iter().find(|(_, diffusers)| *diffusers == name).map(|&(own, _)| own.to_owned())
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
        assert!(is_wan(["proj_out", "blocks.3.ffn.net.2"].into_iter()));
        assert!(!is_wan(["proj_out", "transformer_blocks.0.ff.net.2"].into_iter()));
    }
}
