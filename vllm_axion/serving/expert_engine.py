# SPDX-License-Identifier: Apache-2.0
"""One loaded expert: a vLLM engine in its own process, and vLLM's own OpenAI app in this one.

This file (with `compat.py` and `engine_metrics.py`) is where the server reaches into vLLM beyond its
documented hooks. Every reach is a function below whose docstring says why, since which version, and when it
may go.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import copy
import ctypes
import gc
import importlib
import logging
import multiprocessing
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from starlette.types import ASGIApp

from vllm_axion.serving.config import ExpertConfig
from vllm_axion.serving.content_faults import refuse_odd_content
from vllm_axion.serving.engine_metrics import ExpertSeries
from vllm_axion.serving.engine_options import engine_options
from vllm_axion.serving.engine_output import OUTPUT_PIPE, EngineOutput
from vllm_axion.serving.engine_process import ADDITIONAL_CONFIG_KEY, revive_fork_server
from vllm_axion.serving.expert_spec import ExpertSpec
from vllm_axion.serving.route_catalog import RouteCatalog

logger = logging.getLogger("vllm_axion.engine")

_T = TypeVar("_T")
_LOOK_EVERY_S = 0.2

NO_REMOTE_MEDIA = ["remote-media.invalid"]
"""vLLM takes an empty list of allowed media hosts for "any host"; a name that can never exist stands for
"none".
"""

_ABSOLUTE_PATH = re.compile(r"(?<![\w.~/:-])/(?:[^\s/'\"`,:;()\[\]]+/)*([^\s/'\"`,:;()\[\]]+)")
"""What clients see of a path is its last part."""

_KILL_TAKES_S = 10.0  # at most: the kernel has gigabytes to take back


class EngineStartError(RuntimeError):
    """An engine did not start. The message is one line for the client; details are in the server's log."""


class EngineCancelledError(EngineStartError):
    """The start was cancelled on purpose."""


class ExpertEngine:
    """A started engine. Made by `EngineFactory.start`; all methods belong to the server's event loop."""

    def __init__(
        self,
        spec: ExpertSpec,
        llm: Any,
        app: ASGIApp,
        process: BaseProcess,
        series: ExpertSeries,
        folder: Path,
        output: EngineOutput,
    ) -> None:
        self._output = output
        self.spec = spec
        self.app = app
        self.routes = RouteCatalog(app, owner=spec.expert_id)
        self.process = process
        self._llm = llm
        self._series = series
        self._folder = folder
        self._watching: asyncio.AbstractEventLoop | None = None
        self._pid = process.pid or 0

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        return self._pid

    def watch(self, on_death: Callable[[], None]) -> None:
        """Call ``on_death`` once, on the event loop, when the process ends without having been stopped."""
        loop = asyncio.get_running_loop()

        def died() -> None:
            self._unwatch()
            on_death()

        loop.add_reader(self.process.sentinel, died)
        self._watching = loop

    def _unwatch(self) -> None:
        if self._watching is not None:
            self._watching.remove_reader(self.process.sentinel)
            self._watching = None

    async def set_cores(self, cores: Sequence[int]) -> None:
        """Move the engine's threads to these cores, as many threads as cores. Takes effect between two
        steps.
        """
        if self._llm is not None:
            with contextlib.suppress(Exception):  # the engine has just died, which is told elsewhere
                await self._llm.collective_rpc("set_cores", args=(list(cores),))

    async def stop(self) -> None:
        """End the engine's process and let go of its app. Harmless twice.

        The process is killed: whoever calls this has waited for its requests, it keeps nothing, and taking
        itself apart would cost it a second of both cores.
        """
        self._unwatch()
        llm, self._llm = self._llm, None
        if llm is None:
            return
        fail_requests(llm)
        await asyncio.to_thread(_shut_down, llm, self.process)
        self._series.engine_stopped()
        self._output.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        state = getattr(self.app, "state", None)
        if state is not None:
            state._state.clear()
        multimodal = bool(llm.model_config.is_multimodal_model)
        del llm
        await asyncio.to_thread(give_memory_back, multimodal=multimodal)


class EngineFactory:
    """Starts engines, one at a time: building a vLLM configuration writes to the process environment.

    Args:
        parser: vLLM's serve parser, which gives ``engine_args`` of the file their types.
        base_args: its namespace for this server's command line: the defaults of every expert.
        base_dir: folder of the configuration file, where relative paths in ``engine_args`` start.
        allowed_media_domains: hosts images may be fetched from.
        threads: OpenMP threads per engine.
        run_directory: private folder for the sockets to the engines.
        prefix_caching: what experts do that do not say; ``None`` leaves it to vLLM.
    """

    def __init__(
        self,
        parser: argparse.ArgumentParser,
        base_args: argparse.Namespace,
        base_dir: Path,
        *,
        allowed_media_domains: Sequence[str] = (),
        threads: int,
        run_directory: Path,
        prefix_caching: bool | None = None,
    ) -> None:
        self._prefix_caching = prefix_caching
        self._run_directory = run_directory
        self._parser = parser
        self._base_args = base_args
        self._base_dir = base_dir
        self._allowed_media_domains = list(allowed_media_domains)
        self._threads = threads
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="expert-loader")
        self._start_lock = threading.Lock()
        self._children_before: set[int] = set()
        self._starting: str | None = None
        self._cancelled = False

    def close(self) -> None:
        """Let the loader thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def start(
        self, spec: ExpertSpec, series: ExpertSeries, on_stage: Callable[[str], None]
    ) -> ExpertEngine:
        """Start an engine for ``spec``; ``on_stage`` hears the name of each stage, on the event loop.

        Raises:
            EngineCancelledError: `cancel` was called meanwhile.
            EngineStartError: vLLM refused the model or its process died.
        """
        loop = asyncio.get_running_loop()
        # Here and not in the loader's thread: the kernel ends the fork server, and every engine with it, when
        # the thread that started it ends.
        revive_fork_server()

        def stage(name: str) -> None:
            loop.call_soon_threadsafe(on_stage, name)

        # vLLM leaves the names of its sockets behind: one folder a load, removed with the engine. With a full
        # disk or no descriptor left the load ends here, before anything has begun.
        folder = Path(tempfile.mkdtemp(dir=self._run_directory))
        try:
            output = EngineOutput(folder, spec.expert_id)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._start_lock:
            self._cancelled = False
            self._starting = spec.expert_id
            self._children_before = {p.pid or 0 for p in multiprocessing.active_children()}
        llm: Any = None
        try:
            args, llm, process = await loop.run_in_executor(
                self._thread, self._start_llm, spec, series, folder, stage
            )
            tasks = await _while_alive(llm.get_supported_tasks(), process)
            stage("app")
            app = await loop.run_in_executor(self._thread, _build_inner_app, args, llm, tasks)
            refuse_odd_content(app, spec.expert_id, lambda: bool(llm.errored))
            if self._cancelled:
                raise EngineCancelledError(spec.expert_id)
        except BaseException as error:
            if llm is not None:
                await asyncio.to_thread(llm.shutdown, 0)
            series.engine_stopped()
            output.close()
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, Exception):
                if self._cancelled:
                    raise EngineCancelledError(f"loading {spec.expert_id} was cancelled") from None
                logger.debug("start of %s failed", spec.expert_id, exc_info=True)
                raise EngineStartError(_one_line(error, spec)) from error
            raise
        finally:
            with self._start_lock:
                self._starting = None
        return ExpertEngine(spec, llm, app, process, series, folder, output)

    def starting_pid(self) -> int | None:
        """Process id of the engine being started, once it exists."""
        return next((p.pid for p in self._new_children()), None)

    def cancel(self) -> None:
        """End the start under way, if there is one: it then raises EngineCancelledError."""
        with self._start_lock:
            if self._starting is None:
                return
            self._cancelled = True
            for process in self._new_children():
                process.kill()

    def _new_children(self) -> list[BaseProcess]:
        if self._starting is None:
            return []
        return [p for p in multiprocessing.active_children() if p.pid not in self._children_before]

    def options(self, config: ExpertConfig) -> argparse.Namespace:
        """What vLLM's serve parser would have got for this expert, its model and memory aside: the options of
        this server's command line, overridden by the file.

        Raises EngineStartError where ``engine_args`` do not fit the installed vLLM.
        """
        args = copy.deepcopy(self._base_args)
        values, faults = engine_options(config.engine_args, self._parser, self._base_dir)
        if faults:
            raise EngineStartError(f"{config.expert_id}: {faults[0]}")
        for name in ("quantization", "max_model_len", "max_num_seqs"):
            if (value := getattr(config, name)) is not None:
                values[name] = value
        for name in ("dtype", "kv_cache_dtype"):
            if name in config.model_fields_set:
                values[name] = getattr(config, name)
        # Without inductor a load takes a second instead of a minute; `"enforce_eager": false` asks for it.
        values.setdefault("enforce_eager", True)
        if self._prefix_caching is not None:
            values.setdefault("enable_prefix_caching", self._prefix_caching)
        vars(args).update(values)
        return args

    def expert_args(self, spec: ExpertSpec, folder: Path) -> argparse.Namespace:
        """`options`, completed for one load that keeps its temporary files in ``folder``."""
        config = spec.config
        args = self.options(config)
        additional = dict(getattr(args, "additional_config", None) or {})
        additional[ADDITIONAL_CONFIG_KEY] = {
            "executor": "uni",
            "threads": self._threads,
            "title": f"vllm-axion: {config.expert_id}",
            "folder": str(folder),
            "output": str(folder / OUTPUT_PIPE),
        }
        vars(args).update(
            model=spec.model,
            model_tag=spec.model,
            served_model_name=[config.expert_id],
            kv_cache_memory_bytes=spec.kv_bytes,
            allowed_media_domains=self._allowed_media_domains or NO_REMOTE_MEDIA,
            allowed_local_media_path="",
            additional_config=additional,
            worker_cls="vllm_axion.serving.engine_worker.ExpertWorker",
            # What the outer server does for all experts at once.
            api_key=None,
            middleware=[],
            allowed_origins=[],
            root_path=None,
            disable_fastapi_docs=True,
            enable_request_id_headers=False,
        )
        return args

    def _start_llm(
        self, spec: ExpertSpec, series: ExpertSeries, folder: Path, stage: Callable[[str], None]
    ) -> tuple[argparse.Namespace, Any, BaseProcess]:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        stage("config")
        use_fork_server()
        os.environ["VLLM_RPC_BASE_PATH"] = str(folder)
        args = self.expert_args(spec, folder)
        import_architecture(() if spec.facts is None else (spec.facts.architecture,))
        engine_args = AsyncEngineArgs.from_cli_args(args)
        vllm_config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
        if self._cancelled:
            raise EngineCancelledError(spec.expert_id)
        stage("weights")
        llm = AsyncLLM.from_vllm_config(
            vllm_config=vllm_config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            enable_log_requests=engine_args.enable_log_requests,
            stat_loggers=series.stat_loggers(),
            disable_log_stats=True,
        )
        try:
            return args, llm, engine_process(llm)
        except EngineStartError:
            llm.shutdown(timeout=0)
            raise


def use_fork_server() -> None:
    """Have vLLM fork engines from our fork server.

    Why: vLLM's CPU platform sets VLLM_WORKER_MULTIPROC_METHOD to "spawn" in every configuration, and its
    check of that variable refuses "forkserver"; each load would import vLLM anew (12 s instead of 1 s). The
    table of variables is read at every use, so its entry can answer for us.
    Since: vLLM 0.32. May go when the CPU platform leaves the variable alone and it accepts "forkserver".
    """
    envs = importlib.import_module("vllm.envs")
    envs.environment_variables["VLLM_WORKER_MULTIPROC_METHOD"] = lambda: "forkserver"


def import_architecture(architectures: Sequence[str]) -> list[str]:
    """Import the model classes in this process; returns the names of those vLLM does not know or cannot
    import.

    Why: to know what an architecture can do, vLLM imports its class in a subprocess that first imports all
    of vLLM (10 to 35 s, cached on disk per vLLM build), so that the caller never initialises CUDA. There is
    none here: a class that is registered as itself is simply looked at.
    Since: vLLM 0.32 (`ModelRegistry.models` and `load_model_cls` are not documented, `register_model` is).
    May go when inspection can be told to happen in the calling process.
    """
    registry = importlib.import_module("vllm.model_executor.models").ModelRegistry
    lazy = importlib.import_module("vllm.model_executor.models.registry")._LazyRegisteredModel
    unknown = []
    for architecture in architectures:
        registered = registry.models.get(architecture)
        if registered is None:
            unknown.append(architecture)
        elif isinstance(registered, lazy):
            try:
                registry.register_model(architecture, registered.load_model_cls())
            except Exception as error:
                logger.debug("import of %s failed", architecture, exc_info=error)
                unknown.append(architecture)
    return unknown


def engine_process(llm: Any) -> BaseProcess:
    """The one process of an engine.

    Why: to notice its death at once, to read its memory and to be sure that it is gone; vLLM offers only
    `errored`. Since: vLLM 0.32. May go when AsyncLLM tells its process.
    """
    processes: list[BaseProcess] = llm.engine_core.resources.engine_manager.processes
    if len(processes) != 1:
        raise EngineStartError(f"an expert has one engine process, vLLM started {len(processes)}")
    return processes[0]


def fail_requests(llm: Any) -> None:
    """End every request the engine still has with vLLM's "engine is dead", and refuse those that come yet.

    Why: `AsyncLLM.shutdown` cancels the task that fills the requests' queues without telling anybody, and
    whoever reads from one waits for ever. vLLM's own notice of a death may come after that.
    Since: vLLM 0.32. May go when `shutdown` ends the requests itself.
    """
    dead = importlib.import_module("vllm.v1.engine.exceptions").EngineDeadError
    llm.engine_core.resources.engine_dead = True
    llm.output_processor.propagate_error(dead())
    if (handler := getattr(llm, "output_handler", None)) is not None:
        handler.cancel()  # before the process goes: it would log a wanted end as an error, with a traceback


class _DeathNotice:
    """Stands where vLLM's error handler expects uvicorn's server, to set ``should_exit`` when the engine is
    dead.

    Why: `serve_http` would put the server there; the end of one engine must not end this one. The manager
    hears of the death from the process itself. Since: vLLM 0.32. May go when the handler copes without a
    server.
    """

    should_exit = False


def _build_inner_app(args: argparse.Namespace, llm: Any, tasks: Any) -> ASGIApp:
    """vLLM's own FastAPI app for one engine. Runs in the loader thread: it takes longer than an event loop
    may block.

    Why not `run_server`: it installs signal handlers and a watchdog that belong to a server with one engine.
    Since: vLLM 0.32 (module names; 0.33 moved them). May go when vLLM offers an app for a given engine.
    """
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    app = build_app(args, tasks, llm.model_config)
    asyncio.run(init_app_state(llm, app.state, args, tasks))
    app.state.server = _DeathNotice()
    return app  # type: ignore[no-any-return]


def build_catalog_app(args: argparse.Namespace) -> Any:
    """vLLM's app with the routes of every task and no engine: only its list of routes and its OpenAPI are
    used.

    Why: a path vLLM does not have must be answered 404 without loading a model, and `/docs` must show the
    routes before one is loaded. Since: vLLM 0.32. May go when vLLM lists its routes.
    """
    from vllm.entrypoints.launchers.app import build_app

    class AnyTask:
        """Answers what route registration asks of a model's configuration, for a model that could do
        anything.
        """

        io_processor_plugin = None

        def get_pooling_task(self, tasks: Any) -> str:
            return "embed"

    tasks = ("generate", "embed", "classify", "transcription", "realtime")
    return build_app(args, tasks, AnyTask())


_KEPT_BY: tuple[tuple[str, str], ...] = (("vllm.utils.func_utils", "_supports_kw"),)
_KEPT_BY_MULTIMODAL: tuple[tuple[str, str], ...] = (
    ("vllm.multimodal.processing.processor", "cached_encode"),
    ("vllm.transformers_utils.processor", "cached_get_processor"),
    ("vllm.transformers_utils.processor", "get_processor_kwargs_type"),
)


def forget_tokenizers(*, multimodal: bool) -> None:
    """Empty those of vLLM's caches whose keys are tokenizers, or hold them.

    Why: `lru_cache`s of 128 and more entries, which keep every tokenizer that was ever loaded: five copies a
    load, 30 MB with a vocabulary of 32,000. Other experts pay for it once: microseconds, and after the end of
    a ``multimodal`` one others of its kind read their processor's files again.
    Since: vLLM 0.32. May go when these caches hold names only, or their entries weakly.
    """
    for module, name in _KEPT_BY + (_KEPT_BY_MULTIMODAL if multimodal else ()):
        kept = getattr(importlib.import_module(module), name, None)
        if kept is not None:
            kept.cache_clear()


def give_memory_back(*, multimodal: bool) -> None:
    """Let go of what an engine that ended, or a start that failed, still holds in this process: tokenizers,
    and with the collection its sockets and threads. Takes some tenths of a second; call it in a thread.
    """
    forget_tokenizers(multimodal=multimodal)
    # The app and the engine client refer to each other: without a collection they would stay until the
    # next one that happens to look at old objects, with the tokenizer.
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc only; others return memory by themselves
        ctypes.CDLL(None).malloc_trim(0)


async def _while_alive(answer: Awaitable[_T], process: BaseProcess) -> _T:
    """The engine's answer. Raises EngineStartError if its process ends first: vLLM's client would wait for
    ever for an engine that ended between its greeting and its first answer.
    """
    asking = asyncio.ensure_future(answer)
    while not (await asyncio.wait({asking}, timeout=_LOOK_EVERY_S))[0]:
        if not process.is_alive():
            asking.cancel()
            raise EngineStartError("its engine process ended while it was starting")
    return asking.result()


def _shut_down(llm: Any, process: BaseProcess) -> None:
    llm.shutdown(timeout=0)
    process.join(_KILL_TAKES_S)


def _one_line(error: BaseException, spec: ExpertSpec) -> str:
    """The useful line of an error from vLLM, without any path of the machine."""
    lines = [line.strip() for line in str(error).splitlines()]
    useful = [line for line in lines if line and "validation error" not in line and "://" not in line]
    text = (useful[0] if useful else type(error).__name__).removeprefix("Value error, ").split(" [type=")[0]
    if "Engine core initialization failed" in text:
        text = "its engine process ended while it was starting"
    text = _ABSOLUTE_PATH.sub(r"\1", text.replace(spec.model, spec.expert_id))
    return f"{spec.expert_id} could not be loaded: {text[:300]}"
