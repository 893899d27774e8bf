# SPDX-License-Identifier: Apache-2.0
"""Five tiny random-weight experts, complete enough to be served: weights, tokenizer, chat template, defaults.

They exist so that the whole server can be tried and tested in seconds and without a download. Their answers
are word salad, the same on every machine with the same torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
"""Raised whenever the files change; models of another version are made anew."""

EXPERT_IDS = ("phi4_fast", "mistral_balanced", "qwen_coder", "gemma3_multimodal", "aya_expanse_multilingual")
CONFIG_NAME = "config.demo.json"
STAMP_NAME = "demo-model.json"
CONFIG_STAMP_NAME = ".config.demo.json.sha256"


class DemoModelsError(RuntimeError):
    """The demo models cannot be made here; the message says why and what to do."""


def make_demo_models(
    directory: Path,
    *,
    progress: Callable[[str], None] | None = None,
    force: bool = False,
    vocab_size: int | None = None,
) -> list[Path]:
    """Make the demo experts under `directory`, each in a directory named after its expert id.

    Complete ones are kept unless `force`. Each is written aside and renamed into place, so an interrupted run
    leaves nothing half-made; two runs at once wait for each other. Also writes `config.demo.json`, ready to
    be served, unless its user has changed it. `progress` is given one line per model. `vocab_size` makes
    vocabularies of another size (real models have 32,000 entries and more); complete models are kept whatever
    theirs, so give each size a directory of its own. Returns the five directories.

    Raises DemoModelsError if torch or transformers is missing, if `directory` cannot be made, or if something
    of an expert's name is there that this function did not make.
    """
    tell = progress or (lambda line: None)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoModelsError(
            f"demo models: cannot make the directory {directory}: {error.strerror}"
        ) from None
    paths = [directory / expert_id for expert_id in EXPERT_IDS]
    with _locked(directory):
        for leftover in directory.glob(".*.partial"):
            shutil.rmtree(leftover)
        missing = []
        for path in paths:
            if path.exists() and _stamp(path) is None and (not path.is_dir() or any(path.iterdir())):
                raise DemoModelsError(
                    f"demo models: {path} is there but was not made by this command: "
                    "move it away or choose another directory"
                )
            if force or not is_complete(path):
                missing.append(path)
            else:
                tell(f"{path.name}: already there")
        if missing:
            write_checkpoint = _checkpoint_writer(vocab_size)
            for path in missing:
                with _published(path) as aside:
                    architecture = write_checkpoint(path.name, aside)
                    _write_stamp(aside)
                megabytes = sum(file.stat().st_size for file in path.iterdir()) / 1e6
                tell(f"{path.name}: made ({architecture}, {megabytes:.1f} MB)")
        _write_config(directory, force)
    return paths


def is_complete(model: Path) -> bool:
    """Whether `model` is a demo model of this format version with every file at its full size."""
    stamp = _stamp(model)
    if stamp is None or stamp.get("format") != FORMAT_VERSION:
        return False
    files: dict[str, int] = stamp["files"]
    return all(
        (model / name).is_file() and (model / name).stat().st_size == size for name, size in files.items()
    )


def _checkpoint_writer(vocab_size: int | None) -> Callable[[str, Path], str]:
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise DemoModelsError(
            f"demo models: the package {error.name} is missing: "
            "install torch and transformers (both come with vLLM)"
        ) from None
    from .demo_checkpoints import CheckpointWriter
    from .demo_tokenizer import VOCAB_SIZE

    return CheckpointWriter(vocab_size or VOCAB_SIZE).write


def _demo_config() -> str:
    """The packaged demo preset with its model paths pointing beside the file."""
    preset: dict[str, Any] = json.loads(
        (resources.files(__package__) / "configs" / CONFIG_NAME).read_text(encoding="utf-8")
    )
    preset.pop("$schema", None)  # relative to the package
    for expert in preset["experts"]:
        expert["model_path"] = f"./{expert['expert_id']}"
    return json.dumps(preset, indent=2, ensure_ascii=False) + "\n"


def _write_config(directory: Path, force: bool) -> None:
    """Write the configuration, but leave one alone that its user has changed since it was written."""
    config, made = directory / CONFIG_NAME, directory / CONFIG_STAMP_NAME
    text = _demo_config()
    there = config.read_text(encoding="utf-8") if config.exists() else None
    written = made.read_text(encoding="utf-8") if made.exists() else None
    if there is None or force or (there != text and _digest(there) == written):
        _write_text(config, text)
        _write_text(made, _digest(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _stamp(model: Path) -> dict[str, Any] | None:
    try:
        stamp = json.loads((model / STAMP_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and isinstance(stamp.get("files"), dict) else None


def _write_stamp(model: Path) -> None:
    files = {}
    for file in sorted(model.iterdir()):
        file.chmod(0o644)  # safetensors writes 0600, and the server may run as another user
        files[file.name] = file.stat().st_size
    _write_text(model / STAMP_NAME, json.dumps({"format": FORMAT_VERSION, "files": files}, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold `directory` against other runs; the lock ends with the process, however it ends."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _published(path: Path) -> Iterator[Path]:
    """A directory to fill, which takes `path`'s place when the block ends well and vanishes otherwise."""
    aside = path.with_name(f".{path.name}.partial")
    old = path.with_name(f".{path.name}.old.partial")
    aside.mkdir()
    try:
        yield aside
        if path.exists():
            path.rename(old)
        aside.rename(path)
    finally:
        for leftover in (aside, old):
            shutil.rmtree(leftover, ignore_errors=True)
