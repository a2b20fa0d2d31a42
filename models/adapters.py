"""Adapters: a store of LoRA folders named by the hash of what they do.

A version's name is the sha256 over its canonical configuration and its weights, so the same training gives the same
name on any machine, writing it twice changes nothing, and a name that is announced can be checked by whoever loads it.
The card and the manifest are not in the name: they may say where and when.

Reading trusts nothing. A folder of the store may come from another machine, so before a byte reaches a model: the name
is checked before it becomes a path, links and unexpected files are refused, every file is hashed again, the
configuration may hold only the keys below (PEFT imports a module that its configuration names, and takes a regular
expression as a target), and the safetensors header is parsed here. Safetensors itself: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.folders import (
    MANIFEST,
    canonical_json,
    content_sha256,
    fresh,
    locked,
    no_crash,
    publish,
    sha256_file,
    write_file,
)

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
WEIGHTS_BYTES_MAX = 1 << 30  # rank 64 on a 7-billion model is 640 MB
HEADER_BYTES_MAX = 1 << 20  # 420 tensors of SmolLM2 need 60 kB
TEXT_BYTES_MAX = 1 << 18  # configuration, card and manifest, each
RANK_MAX = 256
ALPHA_MAX = 4 * RANK_MAX

_NAME = re.compile(r"[0-9a-f]{64}")
_MODULE = re.compile(r"[A-Za-z0-9_]{1,64}")
_TENSOR = re.compile(r"base_model\.model\.[A-Za-z0-9_.]{1,200}\.lora_([AB])\.weight")
# dtype -> (numpy type to look through, mask of the exponent, all of whose bits are set in NaN and infinity)
_DTYPES = {"F32": (np.uint32, 0x7F800000), "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80)}
# LoRA variants that change what the weights mean. None is used here; keeping the key off would change the model.
_VARIANTS = (
    "use_dora", "use_rslora", "use_qalora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern",
    "modules_to_save", "layer_replication", "layers_to_transform", "target_parameters", "trainable_token_indices",
)  # fmt: skip


class AdapterRefused(ValueError):
    """An adapter that may not be loaded, with the reason."""


def write(
    store: Path,
    save: Callable[[Path], None],
    card: Mapping[str, object],
    crash_point: Callable[[str], None] = no_crash,
) -> str:
    """Publish what `save` puts into a folder (PEFT's `save_pretrained`) and return its name.

    `card` must have `base_model`, the id of the base; the rest of it is written into README.md. Killed anywhere, the
    store holds the whole version or none. Raises AdapterRefused for what could not be opened again, NaN included.
    """
    with locked(store / ".lock"):
        temp = fresh(store / ".writing")  # the lock is ours: whatever lay here is dead
        crash_point("before_save")
        save(temp)
        crash_point("half_written")
        for path in temp.iterdir():
            if path.name not in (CONFIG, WEIGHTS):
                path.unlink()
        config = canonical_json(_canonical_config(json.loads((temp / CONFIG).read_bytes()), str(card["base_model"])))
        (temp / CONFIG).unlink()
        write_file(temp / CONFIG, config)
        name = content_sha256({part: sha256_file(temp / part) for part in (CONFIG, WEIGHTS)})
        write_file(temp / CARD, _card(name, card))
        hashes = {part: sha256_file(temp / part) for part in (CONFIG, WEIGHTS, CARD)}
        write_file(temp / MANIFEST, canonical_json({"sha256": name, "files": hashes}))
        _check(temp, name)
        if (store / name).exists():
            try:
                open_verified(store, name)
                shutil.rmtree(temp)
                return name
            except AdapterRefused:
                # Damaged on disk, and here is the same version whole: put the damaged one aside and heal.
                (store / name).rename(fresh(store / f".damaged-{name}") / name)
        publish(temp, store / name, crash_point)
        return name


def open_verified(store: Path, sha256: str) -> Path:
    """The folder of a version, after every check above. Raises AdapterRefused, and nothing else, for a bad one."""
    if not _NAME.fullmatch(sha256):
        raise AdapterRefused("an adapter's name is 64 hexadecimal digits")
    folder = store / sha256
    if folder.is_symlink() or not folder.is_dir():
        raise AdapterRefused("there is no such adapter")
    try:
        _check(folder, sha256)
    except OSError as error:
        raise AdapterRefused(f"cannot be read: {error.strerror}") from error
    return folder


def stored(store: Path) -> list[str]:
    """Names of the published versions, unverified, sorted."""
    return sorted(entry.name for entry in store.iterdir() if _NAME.fullmatch(entry.name)) if store.is_dir() else []


def clean(store: Path) -> None:
    """Remove what a killed writer left. `write` does it too; a start does it so that the disk is not kept full."""
    with locked(store / ".lock"):
        shutil.rmtree(fresh(store / ".writing"))


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a folder that `open_verified` returned."""
    return json.loads((folder / CONFIG).read_bytes())


def _check(folder: Path, sha256: str) -> None:
    limits = {CONFIG: TEXT_BYTES_MAX, CARD: TEXT_BYTES_MAX, MANIFEST: TEXT_BYTES_MAX, WEIGHTS: WEIGHTS_BYTES_MAX}
    found = {entry.name: entry for entry in folder.iterdir()}
    if set(found) != set(limits):
        raise AdapterRefused(f"holds other files than it should: {sorted(set(found) ^ set(limits))[:4]}")
    for name, path in found.items():
        if path.is_symlink() or not path.is_file():
            raise AdapterRefused(f"{name} is not a regular file")
        if path.stat().st_size > limits[name]:
            raise AdapterRefused(f"{name} is over {limits[name]} bytes")
    manifest = _json_object(found[MANIFEST].read_bytes(), MANIFEST)
    hashes = {name: sha256_file(path) for name, path in found.items() if name != MANIFEST}
    if manifest.get("sha256") != sha256 or manifest.get("files") != hashes:
        raise AdapterRefused("a file's hash is not the one in the manifest")
    if content_sha256({CONFIG: hashes[CONFIG], WEIGHTS: hashes[WEIGHTS]}) != sha256:
        raise AdapterRefused("the content's hash is not its name")
    config = _json_object(found[CONFIG].read_bytes(), CONFIG)
    if config != _canonical_config(config, str(config.get("base_model_name_or_path"))):
        raise AdapterRefused(f"{CONFIG} is not in canonical form")
    _check_weights(found[WEIGHTS], config["r"])


def _canonical_config(config: Mapping[str, Any], base_model: str) -> dict[str, Any]:
    """What PEFT needs to apply plain LoRA, and nothing that names this machine. Raises AdapterRefused."""
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise AdapterRefused("only LoRA without bias is known here")
    if variant := next((key for key in _VARIANTS if config.get(key)), None):
        raise AdapterRefused(f"the LoRA variant {variant} is not known here")
    rank, alpha, modules = (config.get(key) for key in ("r", "lora_alpha", "target_modules"))
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= RANK_MAX:
        raise AdapterRefused(f"the rank is not between 1 and {RANK_MAX}")
    if (
        not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not 0 < alpha <= ALPHA_MAX
    ):  # NaN fails this too
        raise AdapterRefused(f"lora_alpha is not a number between 0 and {ALPHA_MAX}")
    if not isinstance(modules, list) or not all(isinstance(m, str) and _MODULE.fullmatch(m) for m in modules):
        raise AdapterRefused("target_modules is not a list of plain names")
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(set(modules)),
        "inference_mode": True,
    }


def _check_weights(path: Path, rank: int) -> None:
    """The header by hand: length, keys, dtypes, shapes, and offsets that cover the data once, without hole or overlap;
    then the values. Every lora_A is [rank, in] and has a lora_B [out, rank]."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > min(HEADER_BYTES_MAX, size - 8):
            raise AdapterRefused("the safetensors header is longer than it may be")
        header = _json_object(file.read(length), "the safetensors header")
    header.pop("__metadata__", None)
    spans = []
    for name, tensor in header.items():
        match = _TENSOR.fullmatch(name)
        if not match:
            raise AdapterRefused(f"{name[:80]!r} is not a LoRA weight")
        dtype, shape, (begin, end) = _tensor_fields(name, tensor)
        if shape[0 if match[1] == "A" else 1] != rank:
            raise AdapterRefused(f"{name} does not have the rank {rank}")
        if end - begin != shape[0] * shape[1] * np.dtype(_DTYPES[dtype][0]).itemsize:
            raise AdapterRefused(f"{name}: its shape does not fill its bytes")
        spans.append((begin, end, dtype, name))
    if {n.replace(".lora_A.", ".lora_B.") for n in header} != {n for n in header if ".lora_B." in n} or not header:
        raise AdapterRefused("a lora_A without its lora_B, or the reverse, or none at all")
    at = 0
    for begin, end, dtype, name in sorted(spans):
        if begin != at:
            raise AdapterRefused(f"{name}: its bytes overlap others, or leave a hole")
        at = end
        bits, exponent = _DTYPES[dtype]
        if np.any((np.fromfile(path, bits, (end - begin) // np.dtype(bits).itemsize, offset=8 + length + begin)
                   & exponent) == exponent):  # fmt: skip
            raise AdapterRefused(f"{name} holds a value that is not finite")
    if 8 + length + at != size:
        raise AdapterRefused("the tensors do not fill the file")


def _tensor_fields(name: str, tensor: object) -> tuple[str, tuple[int, int], tuple[int, int]]:
    if isinstance(tensor, dict) and set(tensor) == {"dtype", "shape", "data_offsets"}:
        dtype, shape, offsets = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
        pairs = all(isinstance(p, list) and len(p) == 2 and all(type(n) is int and n >= 0 for n in p)
                    for p in (shape, offsets))  # fmt: skip
        if pairs and isinstance(dtype, str) and dtype in _DTYPES:
            return dtype, (shape[0], shape[1]), (offsets[0], offsets[1])
    raise AdapterRefused(f"{name}: not a matrix of {sorted(_DTYPES)}")


def _json_object(data: bytes, what: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise AdapterRefused(f"{what} has a key twice")
        return dict(pairs)

    try:
        value = json.loads(data, object_pairs_hook=unique)
    except AdapterRefused:
        raise
    except (ValueError, RecursionError) as error:
        raise AdapterRefused(f"{what} is not JSON") from error
    if not isinstance(value, dict):
        raise AdapterRefused(f"{what} is not a JSON object")
    return value


def _card(name: str, card: Mapping[str, object]) -> bytes:
    # JSON is YAML, and a backtick is escaped so that no value can close the block.
    facts = json.dumps(card, indent=2, sort_keys=True, ensure_ascii=True).replace("`", "\\u0060")
    return (
        "---\n"
        f"base_model: {json.dumps(str(card['base_model']))}\n"
        "library_name: peft\npipeline_tag: text-generation\ntags: [lora, dpo, trl]\n"
        f"---\n# Adapter {name[:12]}\n\nLearned from preference pairs by DPO (arXiv:2305.18290) with LoRA "
        f"(arXiv:2106.09685).\nIts name is the hash of its configuration and weights.\n\n```json\n{facts}\n```\n"
    ).encode()
