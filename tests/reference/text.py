"""Golden files for the text side.

- tests/fixtures/t5/{gated_gelu,relu,umt5}/: a small T5EncoderModel or UMT5EncoderModel in transformers' layout and
  `case_*.safetensors`: `input.input_ids` [B,S] i64, sometimes `input.attention_mask` [B,S] i64,
  `output.last_hidden_state` [B,S,D]; the metadata's `noise_floor` compares with f64.
- tests/fixtures/tokenizer/: `spiece.model`, a SentencePiece unigram model in T5's conventions (pad 0,
  eos 1, unk 2, no bos, nmt_nfkc), `tokenizer.json` and `tokenizer_config.json` as transformers
  saves them, and `cases.json`. `byte_fallback/` (identity normalisation, bytes for unknown
  characters) and `verbatim/` (identity, spaces left as they are, no dummy prefix) hold further
  `spiece.model` + `cases.json`.

`cases.json` is a list of {text, ids}: ids from the sentencepiece library plus eos. Where the
tokenizer of transformers answers differently, `hf_ids` holds its answer and `comment` the reason.
Text that spells a special token ("</s>", "<extra_id_0>") is ordinary text to sentencepiece
(`ids`) and the token to transformers (`hf_ids`).

Run: python tests/reference/text.py [--out DIR]
"""

import copy
import io
import random
import shutil

import sentencepiece
import torch
from transformers import T5Config, T5EncoderModel, T5Tokenizer, UMT5Config, UMT5EncoderModel
from transformers.utils import logging

from common import generator, noise_floor, output_dir, randomize_, report, save_case, save_json

VOCABULARY = 100
NEGATIVE_PROMPT = (
    "The video is not of a high quality, it has a low resolution. Watermark present in each frame. "
    "The background is solid. Strange body and strange trajectory. Distortion."
)
EOS = 1


# T5 encoder


def t5(kind, config_kind, feed_forward: str, seed: int):
    config = config_kind(
        vocab_size=VOCABULARY,
        d_model=24,
        d_kv=8,
        d_ff=40,
        num_layers=2,
        num_heads=3,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        feed_forward_proj=feed_forward,
    )
    model = randomize_(kind._from_config(config, attn_implementation="eager"), seed)
    # Small activations, so that a wrong RMSNorm epsilon shows; queries small enough for soft attention.
    model.shared.weight.mul_(0.02)
    for block in model.encoder.block:
        block.layer[0].SelfAttention.q.weight.mul_(0.4)
    return model


def masks(length: int) -> dict:
    """No mask, padding at the end, holes (never at position 0)."""
    ends = torch.ones(2, length, dtype=torch.int64)
    ends[0, (2 * length + 2) // 3 :] = 0
    ends[1, length - 1 :] = 0
    holes = (torch.rand(2, length, generator=generator(length)) > 0.3).long()
    holes[:, 0] = 1
    return {"nomask": None, "padded": ends, "holes": holes}


def write_t5(root) -> None:
    variants = {
        "gated_gelu": (T5EncoderModel, T5Config, "gated-gelu", (7, 33, 226)),
        "relu": (T5EncoderModel, T5Config, "relu", (7, 33)),
        "umt5": (UMT5EncoderModel, UMT5Config, "gated-gelu", (7, 130)),
    }
    for number, (name, (kind, config_kind, feed_forward, lengths)) in enumerate(variants.items()):
        directory = root / name
        shutil.rmtree(directory, ignore_errors=True)
        model = t5(kind, config_kind, feed_forward, seed=7 + number)
        model.save_pretrained(directory)
        double = copy.deepcopy(model).double()
        for length in lengths:
            ids = torch.randint(0, VOCABULARY, (2, length), generator=generator(100 + length))
            for label, mask in masks(length).items():
                inputs = {"input_ids": ids} | ({} if mask is None else {"attention_mask": mask})
                state = model(**inputs).last_hidden_state
                floor = noise_floor(state, double(**inputs).last_hidden_state)
                rms = state.square().mean().sqrt()
                print(f"{name} s{length} {label}: noise floor {floor:.1e}, rms {rms:.2f}")
                path = directory / f"case_s{length}_{label}.safetensors"
                save_case(path, inputs, {"last_hidden_state": state}, {"noise_floor": f"{floor:.2e}"})
    report(root)


# Tokenizer


def corpus() -> list[str]:
    """A few thousand captions, plus lines that bring in other scripts, digits and punctuation."""
    rng = random.Random(0)
    words = {
        "subject": "cat dog man woman robot dragon balloon boat bridge castle dancer engine flower forest ghost giraffe"
        " horse island jacket kitten lantern machine mountain necklace octopus painter penguin pianist rabbit sailor"
        " statue sunflower teapot tiger umbrella violin waterfall wizard astronaut bicycle butterfly",
        "quality": "red blue golden tiny enormous wooden shiny ancient transparent frozen burning colourful mechanical"
        " quiet sleepy elegant broken fluffy glowing invisible metallic paper plastic rusty striped velvet",
        "verb": "runs jumps walks dances melts explodes dissolves inflates rotates floats crumbles blossoms vanishes"
        " stretches squeezes shatters sparkles wanders whispers transforms unfolds collapses spinning growing drifting",
        "place": "beach kitchen city street river desert garden library market museum ocean palace railway rooftop"
        " school stadium station temple theatre tunnel village workshop harbour hillside",
        "style": "cinematic detailed slowly suddenly gently smoothly dramatic lighting background foreground camera"
        " resolution quality sunset morning midnight summer winter shadow reflection watermark distortion",
    }
    pick = {kind: lambda kind=kind: rng.choice(words[kind].split()) for kind in words}
    lines = [
        f"{rng.choice(['A', 'The', 'One', 'Two'])} {pick['quality']()} {pick['subject']()} {pick['verb']()} "
        f"{rng.choice(['on the', 'in a', 'near the', 'through a'])} {pick['quality']()} {pick['place']()}, "
        f"{pick['style']()} {rng.choice(['and', 'with', 'of'])} {pick['style']()}."
        for _ in range(4000)
    ]
    extras = [
        "The camera pans left; the camera zooms in (close-up)!",
        "Is it 24 fps or 30 fps? 1920x1080, 49 frames: 8 seconds.",
        "Café, naïve, façade, Zürich, señor, Ærø, Łódź.",
        "Don't \"quote\" the artist's work & style #1 @ 100% – or $5/£4…",
        "В лесу бежит собака.",
        "猫が走る。 一只猫在跑。",
        "Low resolution. Watermark in the frame. Strange body. Distortion of the background.",
    ]
    return lines + extras * 20


def train(**options) -> bytes:
    """A SentencePiece model; everything is passed in memory, so that no path enters the file."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


TEXTS = [
    "",
    " ",
    "   ",
    "\t",
    "\n",
    "a",
    "A",
    "a cat",
    " a cat",
    "a cat ",
    "  a   cat  ",
    "a\tcat",
    "a\ncat",
    "a\r\n\r\ncat\n",
    "a \t \n cat",
    "A cat runs on the beach, at sunset.",
    "A CAT RUNS ON THE BEACH",
    "Two dogs explodes inside a kitchen, cinematic, 4k.",
    "The camera pans left; the camera zooms in (close-up)!",
    "Is it 24 fps or 30 fps? 1920x1080, 49 frames: 8 seconds.",
    "Don't \"quote\" the artist's work & style #1 @ 100%",
    "artist’s “quoted” – dash — em … dots",
    "café",
    "cafe\u0301",  # combining acute
    "naïve façade Zürich señor Ærø Łódź",
    "A\u030angstro\u0308m",
    "Ａ ｃａｔ　ｒｕｎｓ",  # fullwidth, ideographic space
    "ﬁre and ﬂame, eﬃcient",  # ligatures
    "① ② Ⅳ ½ x² H₂O ™ ㎏ ﷺ",
    "ｶﾞｷﾞ ﾊﾟ",  # halfwidth kana with voicing marks
    "한국어 텍스트",
    "\u1112\u1161\u11ab",  # conjoining jamo
    "В лесу бежит собака.",
    "猫が走る。 一只猫在跑。",
    "猫",
    "𠮷野家",  # outside the BMP
    "😀",
    "a 😀 cat 😀😀",
    "👩‍🚀 👍🏽 🇩🇪",  # joiners, modifiers, flags
    "a\u00a0cat",  # no-break space
    "a\u2003cat\u2009runs",  # em space, thin space
    "a\u200bcat",  # zero width space
    "a\u200dcat \ufeffruns",  # joiner, byte-order mark
    "a\u00adcat",  # soft hyphen
    "a\u0000cat",
    "a\u0007cat\u001b[0m",
    "a\u0085cat\u2028runs\u2029on",
    "ca\u0327\u0301t",  # two marks on one letter
    "\u0301cat",  # mark at the start
    "½\u0301 ﬁ\u0301re ▁\u0301t",  # marks on characters that the normalisation replaces
    "العربية עברית",
    "हिन्दी ไทย",
    "ǅ ß ẞ İ ı ſ",
    "▁",
    "a▁cat ▁runs",
    "▁▁ a",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "zzzzqqqqxxxx",
    "......!!!!????",
    "a-b_c/d\\e|f~g^h`i",
    "x" * 100,
    "☃ ☃☃ a☃cat",
    "ααα βββ",
    "1234567890 3.14159 -1 1e-5 100%",
    "https://example.org/a?b=c&d=e",
    "{\"key\": [1, 2]}",
    NEGATIVE_PROMPT,
    " ".join(["The old man slowly turns near the river, in the rain."] * 40),
    "日本" * 150,
]
SPECIAL = [
    "a</s>cat",
    "</s>",
    "a cat </s> runs",
    "<pad> a <unk> cat",
    "<extra_id_0>",
    "a <extra_id_0> cat <extra_id_99>.",
    "a<extra_id_1>cat",
    "<extra_id_100>",
]


def cases(model: bytes, tokenizer=None) -> list[dict]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    result = []
    for text in TEXTS + SPECIAL:
        case = {"text": text, "ids": processor.encode(text) + [EOS]}
        hf_ids = tokenizer(text).input_ids if tokenizer else case["ids"]
        if hf_ids != case["ids"]:
            if text in SPECIAL:
                comment = "spells a special token: ordinary text to sentencepiece"
            elif "\u0085" in text:
                comment = "transformers also splits at Unicode white space that the normalisation keeps"
            else:
                comment = "transformers normalises whole grapheme clusters and loses the mark"
            case |= {"hf_ids": hf_ids, "comment": comment}
        result.append(case)
    return result


def write_tokenizers(root) -> None:
    variants = {
        ".": dict(vocab_size=300, normalization_rule_name="nmt_nfkc"),
        "byte_fallback": dict(vocab_size=520, normalization_rule_name="identity", byte_fallback=True),
        "verbatim": dict(
            vocab_size=280,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
        ),
    }
    shutil.rmtree(root)
    for name, options in variants.items():
        directory = root / name
        directory.mkdir()
        model = train(**options)
        (directory / "spiece.model").write_bytes(model)
        tokenizer = None
        if name == ".":
            tokenizer = T5Tokenizer.from_pretrained(directory)
            tokenizer.save_pretrained(directory)
        save_json(directory / "cases.json", cases(model, tokenizer))
    report(root)


def main() -> None:
    root = output_dir(__doc__, ".")
    logging.disable_progress_bar()
    for name in ("t5", "tokenizer"):
        (root / name).mkdir(exist_ok=True)
    write_t5(root / "t5")
    write_tokenizers(root / "tokenizer")


if __name__ == "__main__":
    main()
