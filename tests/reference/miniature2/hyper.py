"""Prompt2Effect in the profile `paper`, batched over layers and prompts; the names of its weights are those of its safetensors form.

tests/reference/prompt2effect.py is the plain definition. `python hyper.py` holds this module against it.
"""

import math

import world  # first: it finds the folders of the first miniature
import networks
import torch
from torch import nn

import prompt2effect

F = nn.functional

WIDTH, HEADS, BLOCKS, LATENTS, EMBEDDING = 96, 12, 2, 8, 16
# At the start: of the decompressor's attention, so that rows look at different latents; of what the text adds to latents.
SHARPNESS, LOUDNESS = 3.0, 2.0
TYPES = {kind: prompt2effect.WAN[kind] for kind in prompt2effect.WAN}  # the type's name: the end of a layer's path
CONFIG = prompt2effect.PAPER | dict(
    hidden_dim=WIDTH, n_heads=HEADS, n_layer=BLOCKS, num_latents=LATENTS, rank=networks.RANK, text_dim=networks.TEXT_WIDTH,
    text_len=networks.TOKENS, weight_norm="rms", include_emb=True, layer_embed_dim=EMBEDDING, module_embed_dim=EMBEDDING,
    module_vocab=list(TYPES),
)  # fmt: skip


def dotless(kind):
    """A name that nn.ModuleDict takes."""
    return kind.replace(".", "-")


class Attention(nn.MultiheadAttention):
    """The weights of nn.MultiheadAttention; queries [..., s, d] and keys [..., t, d] may be broadcast."""

    def __init__(self):
        super().__init__(WIDTH, HEADS, batch_first=True)

    def forward(self, query, key, mask=None):
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (HEADS, -1)).transpose(-3, -2)
            for x, w, b in zip((query, key, key), weights, biases)
        )
        lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2])
        q, k, v = (x.expand(*lead, *x.shape[-2:]).flatten(0, -4) for x in (q, k, v))
        if mask is not None:
            mask = mask[..., None, None, :].expand(*lead[:-1], 1, 1, -1).flatten(0, -4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(mixed.transpose(-3, -2).flatten(-2).unflatten(0, lead[:-1]))


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Part(nn.Module):
    """Attention over its normalised input, added to it; with a feed-forward layer behind it if asked."""

    def __init__(self, forward=False):
        super().__init__()
        self.ln1, self.attn = nn.LayerNorm(WIDTH), Attention()
        if forward:
            self.ln2, self.ff = nn.LayerNorm(WIDTH), FeedForward()


class Network(nn.Module):
    def __init__(self, shapes: dict):
        """`shapes`: {slot: (out, in)}."""
        super().__init__()
        self.shapes = shapes
        of_type = {kind: sorted(s for s in shapes if s.endswith("." + end)) for kind, end in TYPES.items()}
        self.of_type = {kind: slots for kind, slots in of_type.items() if slots}
        blocks = 1 + max(prompt2effect.block_of(slot) for slot in shapes)
        self.latents = nn.Parameter(torch.randn(LATENTS, WIDTH) * 0.5)
        self.text_proj = nn.ModuleDict({"proj": nn.Linear(networks.TEXT_WIDTH, WIDTH), "ln": nn.LayerNorm(WIDTH)})
        self.layer_emb, self.module_emb = nn.Embedding(blocks, EMBEDDING), nn.Embedding(len(TYPES) + 1, EMBEDDING)
        self.cond_proj = nn.Linear(2 * EMBEDDING, WIDTH)
        first = {kind: shapes[slots[0]] for kind, slots in self.of_type.items()}
        self.row_enc = nn.ModuleDict({dotless(kind): nn.Linear(wide, WIDTH) for kind, (_, wide) in first.items()})
        self.col_enc = nn.ModuleDict({dotless(kind): nn.Linear(out, WIDTH) for kind, (out, _) in first.items()})
        self.compressor, self.decompressor = Part(), Part()
        self.proc_self = nn.ModuleList(Part() for _ in range(BLOCKS))
        self.proc_cross = nn.ModuleList(Part(forward=True) for _ in range(BLOCKS))
        self.head_A, self.head_B = nn.Linear(WIDTH, networks.RANK), nn.Linear(WIDTH, networks.RANK)
        nn.init.normal_(self.head_B.weight, std=0.001)
        nn.init.zeros_(self.head_B.bias)
        with torch.no_grad():
            self.decompressor.attn.in_proj_weight[: 2 * WIDTH] *= SHARPNESS
            for cross in self.proc_cross:
                cross.attn.out_proj.weight *= LOUDNESS

    def tokens(self, kind, weights):
        """Rows, then columns, of all layers of a type: [layers, out + in, WIDTH]."""
        slots = self.of_type[kind]
        w = torch.stack([weights[slot] for slot in slots])
        w = w / w.square().mean((1, 2), keepdim=True).sqrt()
        rows, columns = self.row_enc[dotless(kind)](w), self.col_enc[dotless(kind)](w.mT)
        code = torch.cat([prompt2effect.code(x.shape[1], WIDTH) for x in (rows, columns)]).float()
        layer = torch.tensor([prompt2effect.block_of(slot) for slot in slots])
        module = torch.full_like(layer, 1 + list(TYPES).index(kind))
        told = self.cond_proj(torch.cat([self.layer_emb(layer), self.module_emb(module)], dim=1))
        return torch.cat([rows, columns], dim=1) + code + told[:, None]

    def forward(self, weights, text, mask):
        """{slot: W [out,in]}, text [P,n,w], mask [P,n] -> {slot: (A [P,r,in], B [P,out,r])}."""
        context = self.text_proj["ln"](self.text_proj["proj"](text))[:, None]
        seen = mask.bool()[:, None]
        lots = {}
        for kind, slots in self.of_type.items():
            lots.setdefault(sum(self.shapes[slots[0]]), []).append(kind)
        found = {}
        for kinds in lots.values():
            slots = [slot for kind in kinds for slot in self.of_type[kind]]
            x = torch.cat([self.tokens(kind, weights) for kind in kinds])
            z = self.latents + self.compressor.attn(self.compressor.ln1(self.latents), x)
            z = z.expand(len(text), *z.shape)
            for alone, cross in zip(self.proc_self, self.proc_cross):
                h = alone.ln1(z)
                z = z + alone.attn(h, h)
                z = z + cross.attn(cross.ln1(z), context, seen)
                z = z + cross.ff(cross.ln2(z))
            both = self.decompress(x, z)
            for at, slot in enumerate(slots):
                out = self.shapes[slot][0]
                found[slot] = (both[:, at, out:, : networks.RANK].mT, both[:, at, :out, networks.RANK :])
        return found

    def decompress(self, x, z):
        """Tokens [L,t,d] and latents [P,L,n,d] -> both heads of x + attention, [P,L,t,2r].

        The heads are multiplied into the attention's output projection, so that nothing of the tokens' width is made for each prompt.
        """
        attn, heads = self.decompressor.attn, torch.cat([self.head_A.weight, self.head_B.weight])
        weights, biases = attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3)
        q = F.linear(self.decompressor.ln1(x), weights[0], biases[0]).unflatten(-1, (HEADS, -1))
        k, v = (F.linear(z, w, b).unflatten(-1, (HEADS, -1)) for w, b in zip(weights[1:], biases[1:]))
        prompts, layers, n = z.shape[:3]
        k = k.permute(1, 3, 4, 0, 2).reshape(layers * HEADS, -1, prompts * n)
        logits = torch.bmm(q.permute(0, 2, 1, 3).reshape(layers * HEADS, x.shape[1], -1) / q.shape[-1] ** 0.5, k)
        # The softmax of few small numbers.
        p = logits.view(layers, HEADS, -1, prompts, n)
        p = (p - p.detach().amax(-1, keepdim=True)).exp()
        p = (p / p.sum(-1, keepdim=True)).permute(3, 0, 2, 1, 4).flatten(3)
        taken = (heads @ attn.out_proj.weight).unflatten(-1, (HEADS, -1))
        mixed = torch.einsum("plnhd,rhd->plhnr", v, taken).flatten(2, 3)
        return p @ mixed + F.linear(x + attn.out_proj.bias, heads, torch.cat([self.head_A.bias, self.head_B.bias]))

    def groups(self, lr):
        """For an optimizer. A step of the heads moves all rows of all layers, so theirs are small."""
        heads = [*self.head_A.parameters(), *self.head_B.parameters()]
        known = {id(p) for p in heads}
        return [{"params": [p for p in self.parameters() if id(p) not in known], "lr": lr}, {"params": heads, "lr": lr / 20}]

    def config(self):
        """config.json."""
        groups = {
            kind: dict(group=kind, d_in=self.shapes[slots[0]][1], d_out=self.shapes[slots[0]][0])
            for kind, slots in self.of_type.items()
        }
        return CONFIG | dict(max_layers=self.layer_emb.num_embeddings, enc_groups=groups)


def new_network(transformer) -> Network:
    return Network({slot: tuple(transformer.get_submodule(slot).weight.shape) for slot in networks.slots(transformer)})


def weights(transformer):
    return {slot: transformer.get_submodule(slot).weight.detach() for slot in networks.slots(transformer)}


def published(network):
    """{name: tensor} under the names of the safetensors form."""
    return {
        ".".join(part.replace("-", ".") for part in name.split(".")): value.contiguous()
        for name, value in network.state_dict().items()
    }


@torch.no_grad()
def check():
    """This module and the plain definition, over a random transformer and a random network."""
    torch.manual_seed(0)
    transformer = networks.new_transformer()
    network = new_network(transformer).eval()
    nn.init.normal_(network.head_B.weight)
    text, mask = torch.randn(2, 7, networks.TEXT_WIDTH), torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    ours = network(weights(transformer), text, mask)
    rows = [
        (slot, kind, prompt2effect.block_of(slot), 1 + list(TYPES).index(kind), prompt2effect.block_of(slot))
        for kind, slots in network.of_type.items() for slot in slots
    ]  # fmt: skip
    own = {k: v.double() for k, v in published(network).items()}
    base = {f"{slot}.weight": w for slot, w in weights(transformer).items()}
    worst = 0.0
    for at in range(2):
        theirs = prompt2effect.predict(network.config(), own, rows, base, text[at].double(), mask[at].bool())
        for slot, pair in theirs.items():
            for mine, plain in zip(ours[slot], pair):
                worst = max(worst, ((mine[at] - plain).norm() / plain.norm()).item())
    print(f"{sum(p.numel() for p in network.parameters())} parameters; against the definition: {worst:.1e}")
    assert worst < 1e-5


if __name__ == "__main__":
    check()
