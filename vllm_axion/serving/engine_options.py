# SPDX-License-Identifier: Apache-2.0
"""An expert's `engine_args` against vLLM's own `serve` options: which are the server's, and what values mean.

The tables here are plain data; only `serve_parser()` imports vLLM, which takes seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from vllm_axion import compat
from vllm_axion.serving.config_faults import Fault, json_path, nearest, printable, show

# Options that have a field of their own in an expert: named in engine_args they are moved there.
OWN_FIELDS = {
    "dtype": "dtype",
    "kv_cache_dtype": "kv_cache_dtype",
    "kv_cache_memory_bytes": "kv_cache_memory",
    "max_model_len": "max_model_len",
    "max_num_seqs": "max_num_seqs",
    "quantization": "quantization",
}

_COMMAND_LINE = "it belongs to the server; give it on the command line"
_LOGS = "logs belong to the server; give it on the command line"
_ONE_PROCESS = "an expert runs in one process on this machine"
_SERVER_OWNED = {
    "aggregate_engine_logging": _LOGS,
    "allow_credentials": "set server.cors_origins instead",
    "allowed_headers": "set server.cors_origins instead",
    "allowed_local_media_path": "clients could read files of this machine; they can send data URLs",
    "allowed_media_domains": "set server.allowed_media_domains instead",
    "allowed_methods": "set server.cors_origins instead",
    "allowed_origins": "set server.cors_origins instead",
    "api_key": "set server.api_keys instead",
    "api_server_count": "there is one server process",
    "config": "this file is the configuration",
    "decode_context_parallel_size": _ONE_PROCESS,
    "device_ids": "experts run on the CPU",
    "disable_access_log_for_endpoints": _LOGS,
    "disable_fastapi_docs": _COMMAND_LINE,
    "disable_log_stats": "the server's /metrics and /stats need the statistics",
    "disable_uvicorn_access_log": _LOGS,
    "distributed_executor_backend": "the server chooses how its engines run",
    "enable_offline_docs": _COMMAND_LINE,
    "enable_request_id_headers": _COMMAND_LINE,
    "enable_ssl_refresh": _COMMAND_LINE,
    "gpu_memory_utilization": "set the expert's kv_cache_memory instead",
    "grpc": "the server speaks HTTP",
    "grpc_port": "the server speaks HTTP",
    "headless": "the server is the one front end of its engines",
    "hf_token": "set the environment variable HF_TOKEN, so that the token stays out of the file",
    "help": _COMMAND_LINE,
    "host": _COMMAND_LINE,
    "log_error_stack": "answers never show a stack trace",
    "logging_config": _LOGS,
    "master_addr": _ONE_PROCESS,
    "master_port": _ONE_PROCESS,
    "middleware": _COMMAND_LINE,
    "model": "set the expert's model_path instead",
    "model_tag": "set the expert's model_path instead",
    "multi_model": "this file is what --multi-model names",
    "nnodes": _ONE_PROCESS,
    "node_rank": _ONE_PROCESS,
    "numa_bind": "the server shares the cores among its experts",
    "numa_bind_cpus": "the server shares the cores among its experts",
    "numa_bind_nodes": "the server shares the cores among its experts",
    "pipeline_parallel_size": _ONE_PROCESS,
    "port": _COMMAND_LINE,
    "prefill_context_parallel_size": _ONE_PROCESS,
    "root_path": _COMMAND_LINE,
    "served_model_name": "the expert is served under its expert_id",
    "shutdown_timeout": "set lazy_loading.drain_timeout_s instead",
    "tensor_parallel_size": _ONE_PROCESS,
    "trust_remote_code": "it would run code that comes with the model",
    "uds": _COMMAND_LINE,
    "worker_cls": "the server chooses how its engines run",
}
_SERVER_OWNED_PREFIXES = {
    "data_parallel": _ONE_PROCESS,
    "log": _LOGS,
    "dp_supervisor": _ONE_PROCESS,
    "h11": _COMMAND_LINE,
    "ssl": _COMMAND_LINE,
    "uvicorn": _LOGS,
}
_ALIASES = {"device_memory_utilization": "gpu_memory_utilization"}
# A value of these that begins with ./ or ../ is taken from the configuration file's folder, as model_path is.
_PATHS = frozenset(
    {
        "chat_template",
        "download_dir",
        "generation_config",
        "hf_config_path",
        "reasoning_parser_plugin",
        "tokenizer",
        "tool_parser_plugin",
    }
)


def canonical(name: str) -> str:
    """The option's name as Python spells it: `--max-num-seqs` -> `max_num_seqs`."""
    plain = name.lstrip("-").replace("-", "_")
    return _ALIASES.get(plain, plain)


def owned_by_server(name: str) -> str | None:
    """Why an expert may not set the option, or None when it may."""
    plain = canonical(name)
    for candidate in (plain, plain.removeprefix("no_")):
        if reason := _SERVER_OWNED.get(candidate):
            return reason
        for prefix, reason in _SERVER_OWNED_PREFIXES.items():
            if candidate == prefix or candidate.startswith(prefix + "_"):
                return reason
    return None


def whole_number(engine_args: Mapping[str, Any], name: str) -> int | None:
    """The value of an option by its Python name, whatever its spelling in the file; None unless a number.

    `whole_number({"--block-size": 64}, "block_size")` is 64.
    """
    for spelled, value in engine_args.items():
        if canonical(spelled) == name and type(value) is int:
            return value
    return None


def static_faults(
    engine_args: Mapping[str, Any], expert: Mapping[str, Any], loc: tuple[int | str, ...]
) -> list[Fault]:
    """Faults of `engine_args` that can be told without vLLM; `loc` is where the object stands in the file."""
    faults: list[Fault] = []
    first: dict[str, str] = {}
    for name in engine_args:
        plain = canonical(name)
        path = json_path((*loc, name))
        if plain in first:
            faults.append(Fault(path, f"is the same option as {show(first[plain])}; keep one"))
            continue
        first[plain] = name
        own = OWN_FIELDS.get(plain)
        if own is not None and expert.get(own) is not None:
            faults.append(Fault(path, f'is the same setting as the field "{own}"; keep the field'))
        elif (reason := owned_by_server(name)) is not None:
            faults.append(Fault(path, f"an expert cannot set it: {reason}"))
    return faults + _batch_faults(
        {canonical(name): value for name, value in engine_args.items()}, expert, loc
    )


def _batch_faults(
    options: Mapping[str, Any], expert: Mapping[str, Any], loc: tuple[int | str, ...]
) -> list[Fault]:
    """What vLLM's scheduler refuses at load: a step must hold one token per request, or a whole prompt."""
    tokens = options.get("max_num_batched_tokens")
    if type(tokens) is not int:
        return []
    faults = []
    requests, length = expert.get("max_num_seqs"), expert.get("max_model_len")
    path = json_path((*loc, "max_num_batched_tokens"))
    if type(requests) is int and tokens < requests:
        faults.append(Fault(path, f"{tokens} is less than max_num_seqs, {requests}; use at least that"))
    chunked = options.get("enable_chunked_prefill")
    if chunked is False and type(length) is int and tokens < length:
        message = f"{tokens} is less than max_model_len, {length}; without chunked prefill use at least that"
        faults.append(Fault(path, message))
    return faults


# ---------------------------------------------------------------- with vLLM


def serve_parser() -> argparse.ArgumentParser:
    """vLLM's own parser of `vllm serve`. Takes seconds the first time.

    Raises ImportError when this environment has no vLLM that can be imported.
    """
    try:
        parser: argparse.ArgumentParser = compat.make_serve_parser(prog="vllm serve", usage="vllm serve")
    except ImportError:
        raise
    except Exception as error:  # a half-installed torch or vLLM fails in many ways
        raise ImportError(f"{type(error).__name__}: {_plain(str(error))}") from error
    return parser


def engine_options(
    engine_args: Mapping[str, Any],
    parser: argparse.ArgumentParser,
    base: Path,
    loc: tuple[int | str, ...] = ("engine_args",),
) -> tuple[dict[str, Any], list[Fault]]:
    """What `engine_args` set on the namespace of vLLM's serve parser: (values by dest, faults).

    `base` is the folder that relative paths start from, `loc` where the object stands in the file. A null
    leaves the option at its default. Options that belong to the server are left to `static_faults`.
    """
    options = _options(parser)
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    for name, value in engine_args.items():
        if owned_by_server(name) is not None or canonical(name) in OWN_FIELDS or value is None:
            continue
        path = json_path((*loc, name))
        found = options.get(canonical(name))
        if found is None:
            near = nearest(canonical(name), [option for option in options if owned_by_server(option) is None])
            hint = f'did you mean "{near}"?' if near else "`vllm serve --help=all` lists them"
            faults.append(Fault(path, f"vLLM has no such option; {hint}"))
            continue
        action, negated = found
        try:
            values[action.dest] = _convert(action, value, negated, base)
        except ValueError as error:
            faults.append(Fault(path, str(error)))
    if values and not faults:
        defaults = {a.dest: a.default for a in parser._actions if a.default is not argparse.SUPPRESS}
        try:
            compat.validate_serve_args(argparse.Namespace(**{**defaults, **values}))
        except Exception as error:  # of vLLM's own kinds too
            faults.append(Fault(json_path(loc), _plain(str(error))))
    return values, faults


def _options(parser: argparse.ArgumentParser) -> dict[str, tuple[argparse.Action, bool]]:
    """Every long option by canonical name, with whether that spelling is the negative one (`no_...`)."""
    found: dict[str, tuple[argparse.Action, bool]] = {}
    for action in parser._actions:
        for flag in action.option_strings:
            if flag.startswith("--"):
                negated = isinstance(action, argparse.BooleanOptionalAction) and flag.startswith("--no-")
                found[canonical(flag)] = (action, negated)
    return found


def _convert(action: argparse.Action, value: Any, negated: bool, base: Path) -> Any:
    """One JSON value as the option's own type would read it from the command line."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"{show(value)} is not true or false")
        return value != negated
    if action.nargs in ("+", "*"):
        items = value if isinstance(value, list) else [value]
        if not items:
            raise ValueError("[] is not a value for it; give at least one")
        if type(action).__module__ != "argparse":
            return _through_action(action, items)
        return [_convert_one(action, item) for item in items]
    if isinstance(value, str) and action.dest in _PATHS and value.startswith(("./", "../")):
        value = os.path.normpath(base / value)
    return _convert_one(action, value)


def _through_action(action: argparse.Action, items: list[Any]) -> Any:
    """What an action of vLLM's own makes of the items: that of `--lora-modules` takes text or objects."""
    for item in items:
        if not isinstance(item, str | dict):
            raise ValueError(f"{show(item)} is not text or an object {{...}}")
    namespace = argparse.Namespace()
    texts = [_as_text(item) for item in items]
    try:
        action(_RaisingParser(add_help=False), namespace, texts)
    except Exception as error:
        raise ValueError(_plain(str(error))) from None
    return getattr(namespace, action.dest)


class _RaisingParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _convert_one(action: argparse.Action, value: Any) -> Any:
    takes = _takes(action)
    if isinstance(value, bool):
        raise ValueError(f"{show(value)} is not {takes}")
    reader: Any = action.type or str
    try:
        read = reader(_as_text(value))
    except Exception as error:  # argparse types raise whatever they like
        if isinstance(value, dict) and takes == _OBJECT:
            raise ValueError(f"{show(value)} cannot be used{_reason(error)}") from None
        raise ValueError(f"{show(value)} is not {takes}") from None
    if isinstance(value, dict | list) and not isinstance(read, type(value)) and takes != _OBJECT:
        raise ValueError(f"{show(value)} is not {takes}")
    if takes == _OBJECT and (not isinstance(value, dict | str) or isinstance(read, str | float | int | list)):
        raise ValueError(f"{show(value)} is not {takes}")
    if action.choices is not None and read not in action.choices:
        choices = [str(choice) for choice in action.choices if choice is not None]
        near = nearest(str(value), choices)
        hint = f'did you mean "{near}"?' if near else f"it takes {', '.join(choices)}"
        raise ValueError(f"{show(value)} is not one of its values; {hint}")
    return read


_OBJECT = "an object {...}"


def _takes(action: argparse.Action) -> str:
    """What the option takes, in words, found out by trying: its type is any function that reads a text."""
    reader: Any = action.type or str
    for sample, words in (("any text", "text"), ("1.5", "a number"), ("1", "a whole number")):
        try:
            if isinstance(reader(sample), str | float | int):
                if not _reads_objects(reader):
                    return words
                # json.loads reads numbers too, but is there to read objects.
                return f"text or {_OBJECT}" if words == "text" else _OBJECT
        except Exception:
            continue
    return _OBJECT


def _reads_objects(reader: Any) -> bool:
    try:
        return isinstance(reader("{}"), dict)
    except Exception:
        return False


def _reason(error: Exception) -> str:
    """Field and reason out of the pydantic report that vLLM's own types raise, or nothing."""
    found = re.search(r"\n(\S+)\n {2}(.+?) \[type=", str(error).replace("\\n", "\n"))
    if found is None:
        return ""
    reason = found[2].removeprefix("Value error, ").replace("Unexpected keyword argument", "unknown field")
    return f": {printable(found[1])}: {printable(reason)}"


def _plain(message: str) -> str:
    text = " ".join(message.split()).removeprefix("Error: ")
    return printable(re.sub(r" \(parameter=\w+\)$", "", text))
