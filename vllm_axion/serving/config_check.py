# SPDX-License-Identifier: Apache-2.0
"""`vllm-axion config check FILE`: its faults, what may surprise, what is not in this build."""

from __future__ import annotations

import argparse
import importlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vllm_axion.serving.config import (
    ConfigError,
    ExpertConfig,
    Fault,
    MultiModelConfig,
    examine,
    not_in_this_build,
    read_data,
)
from vllm_axion.serving.config_faults import json_path, nearest, printable, show
from vllm_axion.serving.engine_options import engine_options, serve_parser

_SHORT_KEY = 16  # characters; below this a key can be guessed


@dataclass(frozen=True)
class Report:
    """What `check` found. With `faults` the server does not start; the others do not stop it."""

    source: str
    faults: tuple[Fault, ...] = ()
    warnings: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    experts: int = 0

    @property
    def ok(self) -> bool:
        """Whether the server would start."""
        return not self.faults

    @property
    def exit_status(self) -> int:
        """Exit status for the command line: 1 with faults, else 0."""
        return 1 if self.faults else 0


def render(report: Report) -> str:
    """The report as plain text, one line each and a summary last. Not markup: `[0]` stands for itself."""
    source = printable(report.source)
    lines = [f"{source}: {fault}" for fault in report.faults]
    lines += [f"{source}: warning: {printable(text)}" for text in report.warnings]
    lines += [f"{source}: note: {printable(text)}" for text in report.notices]
    counts = [
        f"{len(found)} {word}{'' if len(found) == 1 else 's'}"
        for found, word in ((report.faults, "fault"), (report.warnings, "warning"), (report.notices, "note"))
        if found
    ]
    if not report.faults:
        counts.insert(0, f"{report.experts} expert{'' if report.experts == 1 else 's'}")
    verdict = "cannot be used" if report.faults else "good"
    return "\n".join([*lines, f"{source}: {verdict}: {', '.join(counts)}"])


def check(path: str | os.PathLike[str]) -> Report:
    """Check a configuration file, or a preset by its bare name. Never raises for what stands in the file."""
    source = os.fspath(path)
    data, base, faults = read_data(path)
    if data is None and faults:
        return Report(source, tuple(faults))
    config, more = examine(data, base)
    engine_faults, notices = check_engine_args(data, base)
    faults = list(dict.fromkeys([*faults, *more, *engine_faults]))  # some are seen from two sides
    if config is None:
        return Report(source, tuple(faults), notices=tuple(notices))
    return Report(
        source,
        tuple(faults),
        tuple(_warnings(config)),
        (*_model_notices(config), *notices, *not_in_this_build(config)),
        len(config.experts),
    )


# ---------------------------------------------------------------- what only vLLM can tell


def check_engine_args(
    data: object, base: Path, parser: argparse.ArgumentParser | None = None
) -> tuple[list[Fault], list[str]]:
    """Faults of what the experts hand to vLLM, by vLLM's own `serve` parser: (faults, notices).

    `data` is the file's JSON value, whatever its shape. vLLM is imported only when there is something to ask
    it; without vLLM a notice says that this was not checked.
    """
    experts = data.get("experts") if isinstance(data, dict) else None
    asking = [
        (index, expert)
        for index, expert in enumerate(experts if isinstance(experts, list) else [])
        if isinstance(expert, dict) and (expert.get("engine_args") or _asks(expert))
    ]
    if not asking:
        return [], []
    if parser is None:
        try:
            parser = serve_parser()
        except ImportError as error:
            reason = str(error).splitlines()[0] if str(error) else "no reason given"
            return [], [
                f"engine_args were not held against vLLM's options, because it is not here: {reason}."
            ]
    faults: list[Fault] = []
    for index, expert in asking:
        args = expert.get("engine_args")
        if isinstance(args, dict):
            faults += engine_options(args, parser, base, ("experts", index, "engine_args"))[1]
        faults += _choice_faults(expert, parser, index)
    return faults, []


def _asks(expert: dict[str, Any]) -> bool:
    return any(isinstance(expert.get(name), str) and expert[name] != "auto" for name in _CHOSEN)


_CHOSEN = ("quantization", "kv_cache_dtype")


def _choice_faults(expert: dict[str, Any], parser: argparse.ArgumentParser, index: int) -> Iterator[Fault]:
    """Faults of the fields whose values only vLLM knows: the names change from version to version."""
    for name in _CHOSEN:
        value = expert.get(name)
        if not isinstance(value, str) or (name == "quantization" and value.startswith("axion")):
            continue
        choices = _choices(name, parser)
        if choices and value not in choices:
            near = nearest(value, choices)
            right = f'did you mean "{near}"?' if near else f"it has {', '.join(choices)}"
            yield Fault(json_path(("experts", index, name)), f"vLLM has no {show(value)}; {right}")


def _choices(name: str, parser: argparse.ArgumentParser) -> list[str]:
    if name == "quantization":
        module = importlib.import_module("vllm.model_executor.layers.quantization")
        return [str(method) for method in getattr(module, "QUANTIZATION_METHODS", [])]
    for action in parser._actions:
        if action.dest == name and action.choices is not None:
            return [str(choice) for choice in action.choices]
    return []


# ---------------------------------------------------------------- what may surprise


def _warnings(config: MultiModelConfig) -> Iterator[str]:
    for index, expert in enumerate(config.experts):
        yield from _expert_warnings(expert, f"experts[{index}]", config.base_dir)
    yield from _loading_warnings(config)
    yield from _server_warnings(config)
    yield from _router_warnings(config)
    for name in config.domains:
        if all(expert.domain != name for expert in config.experts):
            yield f"{json_path(('domains', name))}: no expert answers for this domain."


def _expert_warnings(expert: ExpertConfig, where: str, base: Path) -> Iterator[str]:
    if expert.is_local:
        folder = Path(expert.resolved_model(base))
        if not os.path.isdir(folder):  # noqa: PTH112 - False, not OSError, for a path that is too long
            hint = " (`vllm-axion demo-models` makes the demo models)" if folder.parent.name == "demo" else ""
            yield f"{where}.model_path: there is no folder {folder}; the expert fails to load{hint}."
        elif not os.path.isfile(folder / "config.json"):  # noqa: PTH113
            yield f"{where}.model_path: {folder} holds no config.json, so it is not a model."
    elif os.path.isdir(base / expert.model_path):  # noqa: PTH112
        yield (
            f'{where}.model_path: "{expert.model_path}" is taken for a hub id, although there is a folder of '
            f'that name; if you mean the folder, write "./{expert.model_path}".'
        )
    if re.search("8|turboquant|nvfp4", expert.kv_cache_dtype):
        yield f"{where}.kv_cache_dtype: {show(expert.kv_cache_dtype)} does not run on ARM CPUs."
    if re.search("awq|gptq", expert.quantization or ""):
        yield f"{where}.quantization: {show(expert.quantization)} does not run on ARM CPUs."


def _loading_warnings(config: MultiModelConfig) -> Iterator[str]:
    lazy, experts = config.lazy_loading, config.experts
    if "warmup_pool_size" in lazy.model_fields_set and lazy.warmup_pool_size > len(experts):
        warm = lazy.warmup_pool_size
        yield f"lazy_loading.warmup_pool_size: {warm} is more than the number of experts, {len(experts)}."
    pinned = sum(expert.pinned for expert in experts)
    if pinned == lazy.max_loaded_experts and pinned < len(experts):
        yield (
            f"lazy_loading.max_loaded_experts: the {pinned} pinned experts take every place; "
            "the others can never be loaded."
        )
    if 0 < lazy.auto_unload_after_s < lazy.min_residency_s:
        yield (
            f"lazy_loading.auto_unload_after_s: {lazy.auto_unload_after_s:g} is less than min_residency_s, "
            f"{lazy.min_residency_s:g}; an idle expert stays that long."
        )


def _router_warnings(config: MultiModelConfig) -> Iterator[str]:
    router = config.router
    for name, encoder in router.encoders().items():
        url = urlsplit(encoder.url or "")
        has_key = encoder.key_env is not None or encoder.key_file is not None
        if has_key and url.scheme == "http" and url.hostname not in ("localhost", "127.0.0.1", "::1"):
            yield f"router.{name}.url: the key travels unencrypted to {url.hostname}; use https."
    if router.second_stage is not None and router.second_stage.type == router.encoder.type == "ngram":
        yield 'router.second_stage: "ngram" is asked first already; it says the same the second time.'


def _server_warnings(config: MultiModelConfig) -> Iterator[str]:
    server = config.server
    for index, entry in enumerate(server.api_keys):
        where = f"server.api_keys[{index}]"
        if entry.key is not None:
            yield f"{where}: the key stands in the file; key_env or key_file keeps it out."
        try:
            key = entry.read(config.base_dir)
        except ValueError:
            continue  # a fault already
        if len(key.get_secret_value()) < _SHORT_KEY:
            yield f"{where}: the key has less than {_SHORT_KEY} characters and can be guessed."
        if entry.key_file is not None and (config.base_dir / entry.key_file).stat().st_mode & 0o004:
            yield f"{where}.key_file: every user of this machine may read it; take that away: chmod o-r."
    if server.api_keys and not any("admin" in entry.scopes for entry in server.api_keys):
        yield 'server.api_keys: no key has the scope "admin", so nobody can use /models/load and the like.'
    if "*" in server.cors_origins and not server.api_keys:
        yield "server.cors_origins: any web page may use this server, which asks for no key."


def _model_notices(config: MultiModelConfig) -> Iterator[str]:
    cache = _hub_cache()
    for index, expert in enumerate(config.experts):
        if expert.is_local or expert.model_path.count("/") > 1:
            continue
        snapshots = cache / f"models--{expert.model_path.replace('/', '--')}" / "snapshots"
        if not any(_names(snapshots)):
            yield (
                f"experts[{index}].model_path: {expert.model_path} is not in the local Hugging Face cache; "
                "its first load downloads it."
            )


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except OSError:
        return []


def _hub_cache() -> Path:
    """Where Hugging Face's libraries keep downloads: their own environment variables, in their own order."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser() / "hub"


__all__ = ["ConfigError", "Report", "check", "check_engine_args", "render"]
