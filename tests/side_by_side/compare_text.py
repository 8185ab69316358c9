"""The tokenizer and the text encoder of adanat against those of the transformers package, on the same files.

Vocabulary and weights are made here (tests/golden/data/README.md has the rule), so nothing is downloaded but the package.
Ids must be equal; the encoder's outputs agree to 1e-5.
With --golden FILE it writes what tests/text/clip_test.cpp compares with instead.
"""
import argparse
import collections
import ctypes
import glob
import gzip
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import time
import unicodedata
import warnings

parser = argparse.ArgumentParser()
parser.add_argument("--program", help="text_probe")
parser.add_argument("--folder", required=True)
parser.add_argument("--site", required=True, help="where torch lies")
parser.add_argument("--golden", help="only write this file")
options = parser.parse_args()

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_OFFLINE"] = "1"
for library in glob.glob(os.path.join(options.folder, "empty", "*")):
    ctypes.CDLL(library, mode=os.RTLD_LAZY | os.RTLD_GLOBAL)
sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_GLOBAL)
sys.path.append(options.site)
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
from procedural import uniform  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizerFast  # noqa: E402

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
torch.set_grad_enabled(False)
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
START, END = "<|startoftext|>", "<|endoftext|>"


def fill(model):
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        v = 2 * uniform(name, value.numel()) - 1
        if value.dim() >= 2:
            v = v * np.sqrt(3 / (value.numel() / value.shape[0]))
        else:
            v = 1 + 0.1 * v if name.endswith(".weight") else 0.1 * v
        value.copy_(torch.from_numpy(v.astype(np.float32).reshape(tuple(value.shape))))
    return model.eval()


def encoder(activation, width=48, layers=3, heads=4, hidden=96, tokens=600, projected=40):
    return fill(CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=tokens, hidden_size=width, intermediate_size=hidden, projection_dim=projected, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=77, hidden_act=activation, bos_token_id=tokens - 2, eos_token_id=tokens - 1)))


if options.golden:
    ids = torch.from_numpy(np.floor(uniform("input:clip.ids", 3 * 77) * 512).astype(np.int64)).reshape(3, 77)
    ids[:, 0] = 598
    for row, end in enumerate((5, 20, 76)):
        ids[row, end:] = 599
    golden = {"ids": ids}
    for activation in ("quick_gelu", "gelu"):
        out = encoder(activation)(input_ids=ids)
        torch.set_default_dtype(torch.float64)
        exact = encoder(activation).double()(input_ids=ids)
        torch.set_default_dtype(torch.float32)
        for name, value, truth in (("states", out.last_hidden_state, exact.last_hidden_state), ("pooled", out.text_embeds, exact.text_embeds)):
            golden[f"{activation}.{name}"] = value.contiguous()
            print(f"{activation}.{name}: float32 against float64 {(value - truth).abs().max():.2g}, rms {truth.pow(2).mean().sqrt():.3g}")
    save_file(golden, options.golden)
    sys.exit(0)

CORPUS = """a photo of the cat and another photograph of that dog with the other thing, the naive facade of the café in the evening;
the cat's whiskers, they'll say, weren't there: 2024 photos, 1999 others. привет мир, фотография кота. 中文字 的 照片 猫 日本語の写真 한국어 사진
φωτογραφία της γάτας الصورة قطة תמונה של חתול बिल्ली की तस्वीर ภาพถ่ายแมว""" * 3
TEXTS = [
    "", " ", "a photo of a cat", "A Photo Of A Cat.", "a  photo\tof\na\r\ncat ", "the cat's, they'll, I'd, WE'VE, you're, I'm, don't, 'salt '' '",
    "2024 and 3.14159, 12½ ²³ ⅷ Ⅷ ٣٤٥ ௧௨ 𝟘𝟙 〇一", "snake_case kebab-case CamelCase path/to/file.txt https://example.org/?q=1&r=2#x",
    "naïve façade CAFÉ cafe\u0301 CAFE\u0301", "İstanbul IĞDIR ıI", "ΣΊΣΥΦΟΣ ΑΣ. ΟΔΟΣ", "STRASSE straße STRAẞE ǅ Ǆ ﬁ ﬀ", "Å Ω K Ω̈",
    "привет мир, Привет Мир!", "中文字的照片。日本語の写真、カタカナ ひらがな", "한국어 사진 \u1112\u1161\u11ab \u1100\u1161\u11a8", "الصورة قِطَّة", "תמונה שֶׁל חתול",
    "बिल्ली की तस्वीर क्षि", "ภาพถ่ายแมวน้ำ", "မြန်မာ ខ្មែរ ລາວ བོད", "ქართული ᲥᲐᲠᲗᲣᲚᲘ ᏣᎳᎩ ꭓ", "Ա ա ﬓ", "𐐀𐐨 𝐀𝒜 𓀀𓁐",
    "🐱🐶 👩‍👩‍👧‍👦 🇩🇪🇫🇷 👍🏽 ❤️ ☕︎", "emoji🐱inside", "a\u0300\u0301\u0302b z\u0323\u0302 q\u0307\u0323", "\u0344 \u0958 \u2126 \u1e9b\u0323 \ufb1d",
    "zero\u200bwidth\u200djoin\u2060er\ufeff soft\u00adhyphen", "nbsp\u00a0thin\u2009ideographic\u3000line\u2028para\u2029nel\u0085ogham\u1680vt\x0bff\x0cend",
    "control\x00\x01\x1b[0m\x1c\x1d\x1e\x1f\x7f\x80\x9f", "…—–“”‘’«»‹›¿¡§¶†‡•", "©®™℠ €£¥₹ ±×÷≠≤≥∞ ∑∏√∫", "a" * 300, "ab" * 200, "!" * 100, "é" * 100,
    "word " * 120, f"{START} cat {END}", f"cat{END}dog{START}", f"{END.upper()} x {START.title()}", "<|endoftext|", "|>", "<|start of text|>",
    "private \ue000 \U000f0000 unassigned \u0378 nonchar \ufffe \U0010ffff", "ﷺ ﷽ ㎏ ㍿ № ℡", "𝕙𝕖𝕝𝕝𝕠 ｈｅｌｌｏ ＨＥＬＬＯ １２３",
]


def make_tokenizer(folder):
    """Byte pairs learned from CORPUS, as CLIP's were."""
    letters = {byte: chr(byte) for byte in PRINTABLE}
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(256 + len(letters) - len(PRINTABLE))
    counts = collections.Counter(CORPUS.lower().split())
    words = {tuple([letters[b] for b in w.encode()][:-1] + [letters[w.encode()[-1]] + "</w>"]): n for w, n in counts.items()}
    merges = []
    while len(merges) < 400:
        pairs = collections.Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        joined = {}
        for word, n in words.items():
            out = []
            for symbol in word:
                if out and (out[-1], symbol) == best:
                    out[-1] += symbol + "\0"
                else:
                    out.append(symbol)
            joined[tuple(s.rstrip("\0") for s in out)] = n
        words = joined
    tokens = [letters[b] for b in range(256)]
    tokens += [t + "</w>" for t in tokens] + list(dict.fromkeys("".join(m) for m in merges)) + [START, END]
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "vocab.json"), "w") as file:
        json.dump({token: i for i, token in enumerate(tokens)}, file, ensure_ascii=False)
    with open(os.path.join(folder, "merges.txt"), "w") as file:
        file.write("#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in merges))
    return len(tokens)


def probe(*arguments):
    done = subprocess.run([options.program, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"text_probe {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    return done


def ask(what, texts, *more, folder):
    path = os.path.join(options.folder, "texts.json")
    with open(path, "w") as file:
        json.dump(texts, file)
    return json.loads(probe(what, folder, path, *more).stdout)


failures = 0


def same_ids(what, texts, ours, theirs):
    global failures
    wrong = [i for i in range(len(texts)) if ours[i] != theirs[i]]
    failures += bool(wrong)
    print(f"{'FAIL' if wrong else 'ok  '} {what}: {len(texts) - len(wrong)} of {len(texts)} texts have equal ids")
    for i in wrong[:10]:
        print(f"     {texts[i][:80]!r}: {ours[i][:40]} against {theirs[i][:40]}")


start = time.time()
words = os.path.join(options.folder, "clip")
shutil.rmtree(words, ignore_errors=True)
count = make_tokenizer(words)


def original(**more):
    return CLIPTokenizerFast(vocab_file=os.path.join(words, "vocab.json"), merges_file=os.path.join(words, "merges.txt"), **more)


plain = original()


def theirs_of(texts, tokenizer=plain, **more):
    return [tokenizer(text, **more)["input_ids"] for text in texts]


# Ids without start and end.
same_ids("texts of many scripts", TEXTS, ask("tokens", TEXTS, folder=words), theirs_of(TEXTS, add_special_tokens=False))

# Pieces of them in any order, with marks and jamo that compose or change places.
pool = sorted(set("".join(TEXTS))) + [chr(c) for c in [*range(0x300, 0x370), *range(0x1100, 0x1113), *range(0x1161, 0x1176), *range(0x11A8, 0x11C3)]]
draw = random.Random(7)
mixed = ["".join(draw.choice(pool) for _ in range(draw.randrange(1, 60))) for _ in range(1500)]
same_ids("random texts", mixed, ask("tokens", mixed, folder=words), theirs_of(mixed, add_special_tokens=False))

# Every character that Unicode 14 assigns (this Python's; newer ones may differ by the age of the tables), between letters
# and alone. 64 to a text, one by one only where a text differs.
assigned = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
groups = [assigned[i:i + 64] for i in range(0, len(assigned), 64)]
texts = ["".join(f"a{c}b {c} " for c in group) for group in groups]
ours, theirs = ask("tokens", texts, folder=words), theirs_of(texts, add_special_tokens=False)
odd = [f"a{c}b {c}" for group, a, b in zip(groups, ours, theirs) if a != b for c in group]
same_ids(f"all {len(assigned)} characters of Unicode {unicodedata.unidata_version}", odd or [""],
         ask("tokens", odd or [""], folder=words), theirs_of(odd or [""], add_special_tokens=False))

# 77 of them, padded and cut.
fitted = dict(padding="max_length", truncation=True, max_length=77)
same_ids("padded to 77", TEXTS, ask("padded", TEXTS, "77", folder=words), theirs_of(TEXTS, **fitted))
filled = original()
filled.pad_token_id = 0  # as AdaNAT does
same_ids("padded with id 0", TEXTS, ask("padded", TEXTS, "77", "\u0100", folder=words), theirs_of(TEXTS, filled, **fitted))
marked = os.path.join(options.folder, "clip-marked")
shutil.rmtree(marked, ignore_errors=True)
special = original(pad_token="!")
special.save_pretrained(marked)
same_ids("the folder's pad token !", TEXTS, ask("padded", TEXTS, "77", folder=marked), theirs_of(TEXTS, special, **fitted))
for name in ("vocab.json", "merges.txt"):
    os.remove(os.path.join(marked, name))
same_ids("tokenizer.json alone", TEXTS, ask("padded", TEXTS, "77", folder=marked), theirs_of(TEXTS, special, **fitted))

# CLIP's own vocabulary, which open-clip-torch carries (only that file of it is used).
real = os.path.join(options.folder, "clip-real")
os.makedirs(real, exist_ok=True)
package = os.path.dirname(importlib.util.find_spec("open_clip").origin)
with gzip.open(os.path.join(package, "bpe_simple_vocab_16e6.txt.gz"), "rt", encoding="utf-8") as file:
    lines = file.read().split("\n")[1:49152 - 256 - 2 + 1]
letters = json.load(open(os.path.join(words, "vocab.json")))
letters = sorted((t for t, i in letters.items() if i < 256), key=lambda t: (letters[t] not in PRINTABLE, letters[t]))
tokens = letters + [t + "</w>" for t in letters] + ["".join(line.split()) for line in lines] + [START, END]
with open(os.path.join(real, "vocab.json"), "w") as file:
    json.dump({token: i for i, token in enumerate(tokens)}, file, ensure_ascii=False)
with open(os.path.join(real, "merges.txt"), "w") as file:
    file.write("#version: 0.2\n" + "\n".join(lines) + "\n")
clip = CLIPTokenizerFast(vocab_file=os.path.join(real, "vocab.json"), merges_file=os.path.join(real, "merges.txt"))
texts = TEXTS + mixed + ["a photo of a cat", "Hello World!"]
ours = ask("padded", texts, "77", folder=real)
same_ids("CLIP's own vocabulary", texts, ours, theirs_of(texts, clip, **fitted))
assert ours[-2][:7] == [49406, 320, 1125, 539, 320, 2368, 49407], ours[-2]
assert ours[-1][:5] == [49406, 3306, 1002, 256, 49407], ours[-1]

# The encoder: small, then two layers each of the widths of ViT-L/14 and ViT-bigG; every layout of files.
some = [text for text in TEXTS if END not in text.lower()]
for what, sizes in {"small": {}, "ViT-L/14": dict(width=768, layers=2, heads=12, hidden=3072, projected=768),
                    "ViT-bigG": dict(width=1280, layers=2, heads=20, hidden=5120, projected=1280)}.items():
    activation = "gelu" if what == "ViT-bigG" else "quick_gelu"
    model = encoder(activation, tokens=count, **sizes)
    layouts = {"safetensors": {}, "shards": dict(max_shard_size="50KB"), "bin": dict(safe_serialization=False)}
    for layout, how in layouts.items() if what == "small" else [("shards", dict(max_shard_size="20MB"))]:
        folder = os.path.join(options.folder, "clip-encoder")
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder, **how)
        plain.save_pretrained(folder)
        out = os.path.join(options.folder, "clip-states.safetensors")
        with open(os.path.join(options.folder, "texts.json"), "w") as file:
            json.dump(some, file)
        probe("states", folder, os.path.join(options.folder, "texts.json"), out)
        ours = load_file(out)
        theirs = model(input_ids=torch.tensor(theirs_of(some, **fitted)))
        for name, value in (("states", theirs.last_hidden_state), ("pooled", theirs.text_embeds)):
            off = (ours[name] - value).abs().max().item()
            good = off <= 1e-5
            failures += not good
            print(f"{'ok  ' if good else 'FAIL'} {what}, {layout}, {len(os.listdir(folder))} files: {name} off by {off:.2g} (allowed 1e-05)")
print(f"{time.time() - start:.0f} s")
sys.exit(1 if failures else 0)
