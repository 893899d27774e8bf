# SPDX-License-Identifier: Apache-2.0
"""`engine_args` of an expert against vLLM's own `serve` options: which belong to the server, and what values mean.

The tables here are plain data; only `serve_parser()` imports vLLM, which takes seconds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vllm_axion.serving.config_faults import Fault, did_you_mean, json_path, nearest, printable, show

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
    "host": _COMMAND_LINE,
    "log_config_file": _LOGS,
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


def static_faults(engine_args: Mapping[str, Any], expert: Mapping[str, Any], where: str) -> list[Fault]:
    """Faults of `engine_args` that can be told without vLLM; `where` is the JSON path of the object."""
    faults: list[Fault] = []
    first: dict[str, str] = {}
    for name in engine_args:
        plain = canonical(name)
        path = f"{where}{_step(name)}"
        if plain in first:
            faults.append(Fault(path, f"is the same option as {show(first[plain])}; keep one"))
            continue
        first[plain] = name
        own = OWN_FIELDS.get(plain)
        if own is not None and expert.get(own) is not None:
            faults.append(Fault(path, f'is the same setting as the field "{own}"; keep the field'))
        elif (reason := owned_by_server(name)) is not None:
            faults.append(Fault(path, f"an expert cannot set it: {reason}"))
    return faults


def _step(name: str) -> str:
    step = json_path(("", name))
    return step if step.startswith(("[", ".")) else f".{step}"


# ---------------------------------------------------------------- with vLLM


def serve_parser() -> argparse.ArgumentParser:
    """vLLM's own parser of `vllm serve`. Takes seconds the first time.

    Raises ImportError when this environment has no vLLM that can be imported.
    """
    try:
        importlib.import_module(
            "vllm.platforms"
        )  # activates the platform plug-in, which repairs what vLLM lacks
        # vLLM 0.32 has it under launchers, 0.33 under common.
        try:
            cli_args = importlib.import_module("vllm.entrypoints.launchers.cli_args")
        except ModuleNotFoundError:
            cli_args = importlib.import_module("vllm.entrypoints.common.cli_args")
        argparse_utils = importlib.import_module("vllm.utils.argparse_utils")
        parser = argparse_utils.FlexibleArgumentParser(prog="vllm serve", add_help=False)
        made: argparse.ArgumentParser = cli_args.make_arg_parser(parser)
    except ImportError:
        raise
    except Exception as error:  # a half-installed torch or vLLM fails in many ways
        raise ImportError(
            f"vLLM cannot be imported: {type(error).__name__}: {printable(str(error))}"
        ) from error
    return made


def engine_options(
    engine_args: Mapping[str, Any], parser: argparse.ArgumentParser, base: Path, where: str = "engine_args"
) -> tuple[dict[str, Any], list[Fault]]:
    """What `engine_args` set on the namespace of vLLM's serve parser: (values by dest, faults).

    `base` is the folder that relative paths start from, `where` the JSON path of the object. A null leaves the option
    at its default. Options that belong to the server are left to `static_faults`.
    """
    options = _options(parser)
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    for name, value in engine_args.items():
        if owned_by_server(name) is not None or canonical(name) in OWN_FIELDS or value is None:
            continue
        path = f"{where}{_step(name)}"
        found = options.get(canonical(name))
        if found is None:
            free = [option for option in options if owned_by_server(option) is None]
            near = nearest(canonical(name), free)
            hint = f'; did you mean "{near}"?' if near else "; `vllm serve --help=all` lists them"
            faults.append(Fault(path, f"vLLM has no such option{hint}"))
            continue
        action, negated = found
        try:
            values[action.dest] = _convert(action, value, negated, base)
        except ValueError as error:
            faults.append(Fault(path, str(error)))
    if not faults:
        faults += [Fault(where, reason) for reason in _disagreements(values, parser)]
    return values, faults


def _options(parser: argparse.ArgumentParser) -> dict[str, tuple[argparse.Action, bool]]:
    """Every long option by canonical name, with whether that spelling is the negative one (`no_...`)."""
    found: dict[str, tuple[argparse.Action, bool]] = {}
    for action in parser._actions:
        for flag in action.option_strings:
            if flag.startswith("--"):
                plain = flag[2:].replace("-", "_")
                negated = isinstance(action, argparse.BooleanOptionalAction) and flag.startswith("--no-")
                found[plain] = (action, negated)
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
        read = [_convert_one(action, item) for item in items]
        return _through_action(action, [_as_text(item) for item in items]) if _is_special(action) else read
    if isinstance(value, str) and action.dest in _PATHS and value.startswith(("./", "../")):
        value = os.path.normpath(base / value)
    read_one = _convert_one(action, value)
    return [read_one] if type(action).__name__ == "_AppendAction" else read_one


def _is_special(action: argparse.Action) -> bool:
    return not type(action).__module__.startswith("argparse")


def _through_action(action: argparse.Action, texts: list[str]) -> Any:
    namespace = argparse.Namespace()
    quiet = argparse.ArgumentParser(add_help=False, exit_on_error=False)

    def refuse(message: str) -> None:
        raise ValueError(_plain(message))

    quiet.error = refuse  # type: ignore[method-assign,assignment]
    try:
        action(quiet, namespace, texts)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(_plain(str(error))) from None
    return getattr(namespace, action.dest)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _convert_one(action: argparse.Action, value: Any) -> Any:
    shown = "this" if re.search("token|key|secret|password", action.dest) else show(value)
    if isinstance(value, bool) and not (action.nargs == "?" and action.const is True):
        raise ValueError(f"{shown} is not a value for it; it takes {_takes(action)}")
    if isinstance(value, bool):
        return value
    reader: Any = action.type or str
    try:
        read = reader(_as_text(value))
    except Exception as error:  # argparse types raise whatever they like
        raise ValueError(
            f"{shown} is not a value for it; it takes {_takes(action)}{_reason(error)}"
        ) from None
    if isinstance(value, (dict, list)) and isinstance(read, str):
        raise ValueError(f"{shown} is not a value for it; it takes text")
    if action.choices is not None and read not in action.choices:
        choices = [str(choice) for choice in action.choices if choice is not None]
        raise ValueError(f"{shown} is not one of its values{did_you_mean(str(value), choices)}")
    return read


def _takes(action: argparse.Action) -> str:
    """What the option takes, in words, found out by trying."""
    if action.choices is not None:
        return "one of " + ", ".join(str(choice) for choice in action.choices if choice is not None)
    reader: Any = action.type or str
    for sample, words in (("any text", "text"), ("1.5", "a number"), ("1", "a whole number")):
        try:
            if not isinstance(reader(sample), bool):
                return words
        except Exception:
            continue
    return "an object {...}"


def _reason(error: Exception) -> str:
    """The useful line of an error from vLLM's own types, which may hold a whole pydantic report."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if "http" not in line and "validation error" not in line]
    if len(lines) < 3 or len(useful) < 2:
        return ""
    return f" ({printable(useful[0])}: {printable(useful[1].split(' [type=')[0])})"


def _plain(message: str) -> str:
    return printable(" ".join(message.split()).removeprefix("Error: "))


def _disagreements(values: Mapping[str, Any], parser: argparse.ArgumentParser) -> Iterable[str]:
    """What vLLM's own check of the parsed options says, such as a tool choice without a tool parser."""
    defaults = {action.dest: action.default for action in parser._actions if action.dest != argparse.SUPPRESS}
    module = importlib.import_module(parser_module())
    check = getattr(module, "validate_parsed_serve_args", None)
    if check is None or not values:
        return []
    try:
        check(argparse.Namespace(**{**defaults, **values}))
    except (ValueError, TypeError, OSError) as error:
        return [_plain(str(error))]
    return []


def parser_module() -> str:
    """Name of the vLLM module that makes the serve parser: it moved between 0.32 and 0.33."""
    for name in ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.common.cli_args"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        return name
    raise ImportError("this vLLM has no serve parser where 0.32 and 0.33 have it")
