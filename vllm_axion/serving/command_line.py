# SPDX-License-Identifier: Apache-2.0
"""The arguments of the multi-model server, the same behind each of its three launchers.

`vllm serve --multi-model FILE`, `vllm-axion serve FILE` and `entrypoints/multi_model_server.py --config FILE`
all take the flags of `vllm serve`: those of the server (host, port, TLS, keys, logs) are the server's, those
of the engine are defaults for every expert. What makes no sense for several models is refused here, one line
a fault.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from vllm_axion import compat
from vllm_axion.serving.profiles import PROFILES

HOST = "127.0.0.1"
PORT = 8082
GROUP = "vllm-axion"
DEFAULT_PRESET = "config.five_models_all_working.json"

_LOG_FILE_HELP = "Append the output of the server and its engines to this file, rotated at 50 MB."
_LOG_FORMAT_HELP = "Log lines as text or as one JSON object a line."
_LOG_FORMATS = ("text", "json")
_PROFILE_HELP = "What the server does ahead of being asked, instead of what the file says (docs/serving.md)."
_USAGE_ERROR = 2


class _DefaultPort(int):
    """vLLM's default port as an object of its own: tells "not given" from the same number typed by hand."""

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


# --- vllm serve --multi-model ---------------------------------------------------------------------


def add_multi_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the group "vllm-axion" to the parser of `vllm serve`, which stays stock without `--multi-model`."""
    group = parser.add_argument_group(
        title=GROUP,
        description="--multi-model CONFIG serves several models behind one server, loaded on demand.",
    )
    group.add_argument(
        "--multi-model",
        metavar="CONFIG",
        action=_MultiModel,
        help=f"Serve the experts of this JSON file instead of one model, on {HOST}:{PORT} unless --host or "
        "--port say otherwise. Engine options given here are defaults for every expert. "
        "Check a file with: vllm-axion config check CONFIG",
    )
    group.add_argument(
        "--log-file",
        metavar="FILE",
        action=_WithMultiModel,
        help=f"With --multi-model: {_LOG_FILE_HELP[0].lower()}{_LOG_FILE_HELP[1:]}",
    )
    group.add_argument(
        "--log-format",
        choices=_LOG_FORMATS,
        action=_WithMultiModel,
        help=f"With --multi-model: {_LOG_FORMAT_HELP[0].lower()}{_LOG_FORMAT_HELP[1:]}",
    )
    group.add_argument(
        "--profile",
        choices=PROFILES,
        action=_WithMultiModel,
        help=f"With --multi-model: {_PROFILE_HELP[0].lower()}{_PROFILE_HELP[1:]}",
    )
    port = parser.get_default("port")
    if isinstance(port, int):
        parser.set_defaults(port=_DefaultPort(port))


class _MultiModel(argparse.Action):
    """Takes the command over: vLLM's main calls `dispatch_function` from the parsed arguments."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        namespace.multi_model = values
        namespace.dispatch_function = partial(_serve_from_vllm, parser)
        compat.leave_serve_validation(namespace)


class _WithMultiModel(argparse.Action):
    """An option of ours that means nothing to a stock `vllm serve`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        if getattr(namespace, "multi_model", None) is None:  # replaced by --multi-model, should it follow
            namespace.dispatch_function = partial(_alone, parser, option_string or self.dest)


def _alone(parser: argparse.ArgumentParser, option: str, args: argparse.Namespace) -> NoReturn:
    _fail(parser.prog, [f"{option} goes with --multi-model only"])


def _serve_from_vllm(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    args.subparser = "serve"
    del args.dispatch_function  # holds the parser, which would go wherever the arguments go
    if isinstance(args.port, _DefaultPort):
        args.port = PORT
    if args.host is None:
        args.host = HOST
    launch(args.multi_model, args, parser)


# --- vllm-axion serve, entrypoints/multi_model_server.py ------------------------------------------


def serve(flags: Sequence[str], *, prog: str, config: str | None = None) -> None:
    """Parse `flags` as `vllm serve` would and serve the experts of a configuration file.

    Without `config` the file is the positional argument (which would be the model of `vllm serve`), by
    default the preset `DEFAULT_PRESET`. Exits with status 2 and one line a fault when something cannot be
    right.
    """
    try:
        compat.require_cpu_vllm()
    except compat.VllmNotUsable as fault:
        _fail(prog, [str(fault)])
    compat.alias_vllm_distribution()
    if "VLLM_LOGGING_LEVEL" not in os.environ:  # what it warns of while it is imported concerns nobody here
        logging.getLogger("vllm").setLevel(logging.ERROR)
    # Where vLLM skips our platform, nobody else has: importing vLLM would end before it can be said why.
    compat.define_missing_torchvision_operators()
    parser = make_parser(prog)
    try:
        args = parser.parse_args(_with_separate_config_file(flags))
    except (ValueError, OSError) as fault:  # vLLM's parser reports an unreadable --config FILE this way
        _fail(prog, [str(fault)])
    if config is None:
        config, args.model_tag = args.model_tag or DEFAULT_PRESET, None
    launch(config, args, parser)


def serve_from_config_flag(argv: Sequence[str], *, prog: str) -> None:
    """As `serve`, the file given by `--config FILE` as in `entrypoints/multi_model_server.py`."""
    own = argparse.ArgumentParser(
        prog=prog,
        allow_abbrev=False,
        description="Serve the experts of a configuration file behind one OpenAI-compatible server.",
        epilog=f"Every flag of `vllm serve` is taken as well; defaults: --host {HOST} --port {PORT}.",
    )
    own.add_argument(
        "--config",
        metavar="FILE",
        default=DEFAULT_PRESET,
        help="JSON file, or the name of a preset (%(default)s).",
    )
    known, flags = own.parse_known_args(list(argv))
    serve(flags, prog=prog, config=known.config)


def make_parser(prog: str) -> argparse.ArgumentParser:
    """vLLM's parser of `vllm serve` with this server's defaults."""
    parser: argparse.ArgumentParser = compat.make_serve_parser(prog=prog, usage=f"{prog} [CONFIG] [options]")
    group = parser.add_argument_group(title=GROUP)
    group.add_argument("--log-file", metavar="FILE", help=_LOG_FILE_HELP)
    group.add_argument("--log-format", choices=_LOG_FORMATS, help=_LOG_FORMAT_HELP)
    group.add_argument("--profile", choices=PROFILES, help=_PROFILE_HELP)
    parser.set_defaults(host=HOST, port=PORT, model=None)
    return parser


def _with_separate_config_file(flags: Sequence[str]) -> list[str]:
    """vLLM reads `--config FILE` and silently ignores `--config=FILE`: write the second as the first."""
    return [
        part for flag in flags for part in (flag.split("=", 1) if flag.startswith("--config=") else [flag])
    ]


# --- Common ---------------------------------------------------------------------------------------

# Options of vLLM's server that the outer app does not have. One that protects must not be passed over.
_NOT_TAKEN = {
    "middleware": "put a proxy in front instead",
    "allow_credentials": "set server.cors_origins instead",
    "allowed_methods": "set server.cors_origins instead",
    "allowed_headers": "set server.cors_origins instead",
    "enable_ssl_refresh": "restart to take a new certificate",
    "disable_access_log_for_endpoints": "/health, /ping, /metrics and /load are not logged anyway",
}


def refusals(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """One sentence for each given flag that makes no sense for several models."""
    faults: list[str] = []
    models = [args.model_tag, args.model if parser.get_default("model") is None else None]
    for model in dict.fromkeys(name for name in models if name is not None):
        faults.append(f"--multi-model takes its models from the config file; remove '{model}'")
    for dest, value in vars(args).items():
        if dest.startswith("data_parallel_") and value != parser.get_default(dest):
            faults.append(f"--multi-model runs one engine per expert; remove {_flag(parser, dest)}")
    if args.config is not None:  # vLLM has replaced `--config FILE`, but passes over `--config=FILE`
        faults.append(
            f"vLLM ignores --config={args.config}; use: vllm-axion serve CONFIG --config {args.config}"
        )
    if args.headless:
        faults.append("--multi-model is itself the API server; remove --headless")
    if args.grpc or getattr(args, "grpc_port", None) is not None:
        flag = "--grpc" if args.grpc else "--grpc-port"
        faults.append(f"--multi-model serves HTTP only; remove {flag}")
    if args.api_server_count not in (None, 1):
        flag = f"--api-server-count {args.api_server_count}"
        faults.append(f"--multi-model is one API server for all experts; remove {flag}")
    for dest, instead in _NOT_TAKEN.items():
        if hasattr(args, dest) and getattr(args, dest) != parser.get_default(dest):
            faults.append(f"--multi-model does not take {_flag(parser, dest)}; {instead}")
    if args.served_model_name:
        faults.append("--multi-model names each model by its expert_id; remove --served-model-name")
    return faults


def _flag(parser: argparse.ArgumentParser, dest: str) -> str:
    return next(
        (
            action.option_strings[0]
            for action in parser._actions
            if action.dest == dest and action.option_strings
        ),
        "--" + dest.replace("_", "-"),
    )


def launch(config: str, args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Check everything that can be checked before the first process starts, then serve until told to stop."""
    faults = refusals(args, parser)
    if faults:
        _fail(parser.prog, faults)
    try:
        flavour = compat.require_cpu_vllm()
        compat.require_active_platform()
    except compat.VllmNotUsable as fault:
        _fail(parser.prog, [str(fault)])
    warning = compat.version_warning(flavour)
    if warning is not None:
        print(f"{parser.prog}: warning: {warning}", file=sys.stderr)

    from vllm.logger import configure_logging_from_args

    configure_logging_from_args(args)
    try:
        compat.validate_serve_args(args)
    except (ValueError, TypeError) as fault:
        _fail(parser.prog, [str(fault).removeprefix("Error: ")])
    if args.model is None:  # every expert brings its own, but vLLM's code expects a name here
        from vllm.engine.arg_utils import EngineArgs

        args.model = EngineArgs.model

    from vllm_axion.serving.config import ConfigError, MultiModelConfig, find_config

    config = str(find_config(config))
    try:
        MultiModelConfig.load(config)
    except ConfigError as fault:
        _fail(parser.prog, str(fault).splitlines())

    if getattr(args, "log_file", None):
        _check_writable(Path(args.log_file), parser.prog)

    from vllm_axion.serving.multi_model_server import run

    run(config, args)


def _check_writable(path: Path, prog: str) -> None:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640))
    except OSError as fault:
        _fail(prog, [f"--log-file {path}: {fault.strerror}"])
    print(f"{prog}: output goes to {path}", file=sys.stderr)


def _fail(prog: str, faults: Sequence[str]) -> NoReturn:
    for fault in faults:
        print(f"{prog}: error: {fault}", file=sys.stderr)
    raise SystemExit(_USAGE_ERROR)
