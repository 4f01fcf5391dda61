"""Generates the golden data of tokenizers: small tokenizers of every kind, folders that declare tokens in every way, and
what Hugging Face transformers makes of them.

    pip install transformers
    python tests/parity/tokens.py

Writes tests/parity/data/tokenizers/<kind>/tokenizer.json and golden.json. The latter has
  variants  the other files of a folder, and with them: the added tokens and their flags, the named special tokens, and
            token ids of texts, with and without what the post-processor adds;
  chats     a chat template, a conversation, and the token ids of the rendered prompt;
  streams   token ids of a prompt and of an output, and the text of both, with and without special tokens.
"""

import json
import pathlib
import random
import tempfile

import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

DATA = pathlib.Path(__file__).parent / "data" / "tokenizers"
BOS, EOS = "<s>", "</s>"
START, END = "<|im_start|>", "<|im_end|>"
MERGES = 60
STREAMS = 16

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "What is the weather like in the north? It rains; then the sun comes out.",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 22))",
    "Ça va très bien, merci. Ein schöner Tag für Übungen.",
]
TEXTS = [
    "",
    "a",
    "the fox",
    " the  fox\n",
    f"{START}user\nthe weather?{END}\n{START}assistant\n",
    f"x {START} y  {END}  z",
    f"{START}{START} \n{END}the",
    "the<tool>fox <tool> dog<tool>",
    "tool thetool the tool.",
    # Composed and decomposed characters, and some that no vocabulary here has.
    "e\u0301 \u00e9 \u212b \u20ac \U0001f600",
    f"{BOS}the{EOS}",
    "<|IM_START|> <|im_start |>",
]

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def bpe(byte_level, **kwargs):
    """A BPE model trained on the corpus, with bytes as <0x00> if it falls back to them."""
    tokenizer = Tokenizer(models.BPE(**kwargs))
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=256 + MERGES, initial_alphabet=alphabet, show_progress=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
        start = ["<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=len(start) + 80 + MERGES, special_tokens=start, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())
    # Only the model is kept: tokens that training called special are ordinary pieces here.
    merges = [tuple(merge) for merge in state["model"]["merges"]]
    return Tokenizer(models.BPE(vocab=state["model"]["vocab"], merges=merges, **kwargs))


def with_specials(tokenizer, post):
    tokenizer.add_special_tokens([BOS, EOS])
    if post:
        bos = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A $B:1", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), bos])
    return tokenizer


def byte_level():
    """The kind of GPT-2."""
    tokenizer = bpe(True)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return with_specials(tokenizer, post=False)


def byte_level_nfc():
    """The kind of Qwen: text is composed first."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT.replace("{1,3}", "")), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    return tokenizer


def byte_level_bos():
    """The kind of Llama 3: the post-processor adds a begin-of-text token."""
    tokenizer = bpe(True, ignore_merges=True)
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return with_specials(tokenizer, post=True)


def byte_fallback_prepend():
    """The kind of Llama 2 and Mistral: a space before the text, spelled in the tokens; unknown characters as bytes."""
    tokenizer = bpe(False, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return with_specials(tokenizer, post=True)


def byte_fallback():
    """The kind of Gemma: no space before the text."""
    tokenizer = bpe(False, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return with_specials(tokenizer, post=True)


def metaspace():
    """A SentencePiece unigram model as it is converted."""
    # Not trained, since training gives another result each time: the letters, words, and ends of words.
    letters = sorted({letter for line in CORPUS for letter in line} - {" "})
    words = sorted({word for line in CORPUS for word in line.split() if len(word) > 1})
    pieces = [("▁", -4.0)] + [(letter, -6.0 - at / 100) for at, letter in enumerate(letters)]
    for at, word in enumerate(words):
        pieces += [("▁" + word, -7.0 - at / 100), (word[-2:], -9.0 - at / 100)]
    unique = dict(reversed(pieces))
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *sorted(unique.items())], unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return with_specials(tokenizer, post=True)


KINDS = {
    "byte-level": byte_level,
    "byte-level-nfc": byte_level_nfc,
    "byte-level-bos": byte_level_bos,
    "byte-fallback-prepend": byte_fallback_prepend,
    "byte-fallback": byte_fallback,
    "metaspace": metaspace,
}


def token(content, **flags):
    default = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": content, **default, **flags}


def variants(size, bos_id):
    """Name, and the files beside tokenizer.json, of which config.json is the same everywhere. `size` is the first id that
    is free."""
    config, map_, added = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
    decoder = {
        str(bos_id): token(BOS),
        str(bos_id + 1): token(EOS),
        str(size): token(START),
        str(size + 1): token(END),
        str(size + 2): token("<tool>", special=False, normalized=True),
    }
    flags = {
        str(size): token(START, rstrip=True),
        str(size + 1): token(END, lstrip=True, rstrip=True),
        str(size + 2): token("tool", single_word=True, special=False, normalized=True),
        str(size + 3): token("<tool>", lstrip=True, special=False),
    }
    return {
        "alone": {},
        "decoder": {config: {"added_tokens_decoder": decoder, "bos_token": BOS, "eos_token": END}},
        "decoder-out-of-order": {config: {"added_tokens_decoder": dict(reversed(decoder.items()))}},
        "decoder-flags": {config: {"added_tokens_decoder": flags}},
        "decoder-and-older-files": {
            config: {"added_tokens_decoder": decoder},
            map_: {"eos_token": END, "pad_token": "<pad>"},
            added: {"<late>": size},
        },
        "decoder-other-flags": {
            config: {"added_tokens_decoder": {str(bos_id): token(BOS, rstrip=True), str(bos_id + 1): token(EOS)}}
        },
        "decoder-not-special-but-named": {
            config: {"added_tokens_decoder": {str(size): token(END, special=False)}, "eos_token": END}
        },
        "named": {config: {"bos_token": BOS, "eos_token": END, "pad_token": None, "add_bos_token": False}},
        "named-with-flags": {
            config: {"eos_token": {"__type": "AddedToken", **token(END, lstrip=True)}, "unk_token": "<tool>"}
        },
        "named-by-any-name": {config: {"tool_token": "<tool>", "eos_token": END, "image_token": START}},
        "additional": {config: {"additional_special_tokens": [START, END], "eos_token": END}},
        "extra": {config: {"extra_special_tokens": [END, START], "pad_token": "<tool>"}},
        "extra-and-additional": {
            config: {"extra_special_tokens": [START], "additional_special_tokens": [END, "<tool>"]}
        },
        "extra-by-name": {config: {"extra_special_tokens": {"turn_token": START, "a_token": END}}},
        "map": {
            config: {"eos_token": EOS, "bos_token": BOS},
            map_: {"eos_token": token(END), "pad_token": "<tool>", "additional_special_tokens": [START, END]},
        },
        "added": {added: {"<tool>": size + 1, START: size}},
        "added-special": {
            config: {"additional_special_tokens": [START], "eos_token": END},
            added: {END: size, "<tool>": size + 1, START: size + 2},
        },
        "token-of-the-vocabulary": {config: {"extra_special_tokens": ["a", "e"]}},
        "split": {config: {"split_special_tokens": True, "eos_token": END}},
        "no-begin-of-text": {config: {"add_bos_token": False, "bos_token": BOS, "eos_token": EOS}},
    }


CHATS = [
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}",
    "{% for m in messages %}<tool>{{ m.content }} {% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}",
]
MESSAGES = [
    {"role": "system", "content": "the fox"},
    {"role": "user", "content": "What is <|im_end|> like?"},
]


def folder(base, files, template=None):
    path = pathlib.Path(tempfile.mkdtemp())
    (path / "tokenizer.json").write_text(base)
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    files = {name: dict(content) for name, content in files.items()}
    # No tokenizer class is named, so that only the files count.
    files.setdefault("tokenizer_config.json", {})["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return path, files


def ids(values):
    return " ".join(map(str, values))


def variant(base, name, files):
    path, files = folder(base, files)
    tokenizer = AutoTokenizer.from_pretrained(path)
    flags = ["single_word", "lstrip", "rstrip", "normalized", "special"]
    return {
        "name": name,
        "files": files,
        "added": {
            str(id): [token.content] + [flag for flag in flags if getattr(token, flag)]
            for id, token in tokenizer.added_tokens_decoder.items()
        },
        "named": tokenizer.special_tokens_map,
        "texts": [
            [text, ids(tokenizer(text).input_ids), ids(tokenizer(text, add_special_tokens=False).input_ids)]
            for text in TEXTS
        ],
    }


def chat(base, template, files):
    path, files = folder(base, files, template)
    tokenizer = AutoTokenizer.from_pretrained(path)
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=True, return_dict=False)
    return {"files": files | {"chat_template.jinja": template}, "messages": MESSAGES, "ids": ids(prompt)}


def draw(tokenizer, generator, specials):
    """A few random tokens: ones that are text by themselves, characters that take several tokens, special tokens."""
    drawn = []
    for _ in range(generator.randrange(1, 12)):
        match generator.randrange(5):
            case 0:
                drawn.append(generator.choice(specials))
            case 1:
                drawn += tokenizer.encode(generator.choice("€é😀中ß"), add_special_tokens=False).ids
            case _:
                drawn.append(generator.randrange(tokenizer.get_vocab_size()))
    # A single byte token of SentencePiece is not text by itself; any run that contains one is spoiled as a whole.
    return drawn


def is_text(tokenizer, drawn):
    """Whether every byte is part of a complete character: text of a run of bytes that was sent cannot be taken back."""
    return "\ufffd" not in tokenizer.decode(drawn, skip_special_tokens=False)


def streams(base, kind, generator):
    path, _ = folder(base, {})
    ours = Tokenizer.from_str(base)
    reference = AutoTokenizer.from_pretrained(path)
    specials = [ours.token_to_id(text) for text in (BOS, EOS)]
    words = ours.encode(" the fox the dog", add_special_tokens=False).ids
    long = specials * 40
    cases = [([], words), (words, words), (specials * 5, words), (words + long, words), (words, words + long + words)]
    while len(cases) < STREAMS:
        prompt, output = draw(ours, generator, specials), draw(ours, generator, specials)
        if is_text(ours, prompt) and (kind.startswith("byte-level") or is_text(ours, output)):
            cases.append((prompt, output))
    made = []
    for prompt, output in cases:
        texts = []
        for skip in (True, False):
            decode = lambda ids: reference.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            before, whole = decode(prompt), decode(prompt + output)
            assert whole.startswith(before), (prompt, output)
            texts.append(whole[len(before) :])
        made.append({"prompt": ids(prompt), "output": ids(output), "skipped": texts[0], "shown": texts[1]})
    return made


def lines(items):
    return "[\n" + ",\n".join("  " + json.dumps(item, ensure_ascii=False) for item in items) + "\n ]"


def main():
    for number, (kind, make) in enumerate(KINDS.items()):
        tokenizer = make()
        base = tokenizer.to_str()
        target = DATA / kind
        target.mkdir(parents=True, exist_ok=True)
        (target / "tokenizer.json").write_text(base + "\n")
        cases = variants(tokenizer.get_vocab_size(), tokenizer.token_to_id(BOS))
        chats = [cases["decoder"], cases["no-begin-of-text"]]
        parts = {
            "variants": [variant(base, name, files) for name, files in cases.items()],
            "chats": [chat(base, template, files) for template in CHATS for files in chats],
            "streams": streams(base, kind, random.Random(number)),
        }
        head = {"made_by": "tests/parity/tokens.py", "transformers": transformers.__version__}
        body = json.dumps(head)[1:-1] + "".join(f',\n "{name}": {lines(items)}' for name, items in parts.items())
        (target / "golden.json").write_text("{" + body + "\n}\n")
        print(kind, tokenizer.get_vocab_size(), "tokens")


if __name__ == "__main__":
    main()
