# SPDX-License-Identifier: Apache-2.0
"""One expert's engine, and every reach into vLLM that it takes: each fails here when vLLM changes."""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import multiprocessing
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.serving.expert_stand import chat, expert_stand
from vllm_axion.serving import expert_engine
from vllm_axion.serving.config import ExpertConfig
from vllm_axion.serving.engine_metrics import ExpertSeries
from vllm_axion.serving.engine_options import serve_parser
from vllm_axion.serving.engine_process import ADDITIONAL_CONFIG_KEY
from vllm_axion.serving.errors import ServingError
from vllm_axion.serving.expert_engine import (
    NO_REMOTE_MEDIA,
    EngineFactory,
    EngineStartError,
    _one_line,
    build_catalog_app,
    engine_process,
    forget_tokenizers,
    import_architecture,
    use_fork_server,
)
from vllm_axion.serving.expert_spec import ExpertSpec
from vllm_axion.serving.residency import State
from vllm_axion.serving.route_catalog import RouteCatalog

QWEN, PHI = "qwen_coder", "phi4_fast"


@pytest.fixture(scope="module")
def parser() -> Any:
    return serve_parser()


def make_factory(parser: Any, tmp_path: Path, *flags: str, **options: Any) -> EngineFactory:
    return EngineFactory(
        parser, parser.parse_args(list(flags)), tmp_path, threads=3, run_directory=tmp_path, **options
    )


def config(**fields: Any) -> ExpertConfig:
    return ExpertConfig(expert_id="one", model_path="org/model", **fields)


# Options of an expert


def test_the_file_overrides_the_command_line_and_the_command_line_vllms_defaults(
    parser: Any, tmp_path: Path
) -> None:
    factory = make_factory(parser, tmp_path, "--max-num-seqs", "7", "--dtype", "float32")
    assert factory.options(config()).max_num_seqs == 7
    assert factory.options(config()).dtype == "float32"
    mine = factory.options(config(max_num_seqs=3, dtype="bfloat16", engine_args={"--block-size": 64}))
    assert (mine.max_num_seqs, mine.dtype, mine.block_size) == (3, "bfloat16", 64)
    assert factory.options(config()).max_num_seqs == 7, "one expert's options are not the next one's"


def test_engines_start_eagerly_unless_the_file_says_otherwise(parser: Any, tmp_path: Path) -> None:
    factory = make_factory(parser, tmp_path)
    assert factory.options(config()).enforce_eager is True
    assert factory.options(config(engine_args={"enforce_eager": False})).enforce_eager is False


def test_options_vllm_does_not_have_are_named(parser: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match=r"one: .*max_num_seq_s"):
        make_factory(parser, tmp_path).options(config(engine_args={"max_num_seq_s": 1}))


def test_what_belongs_to_the_server_never_reaches_an_engine(parser: Any, tmp_path: Path) -> None:
    flags = ("--api-key", "secret", "--root-path", "/x", "--allowed-local-media-path", "/")
    args = make_factory(parser, tmp_path, *flags).expert_args(
        ExpertSpec(config(), "org/model", 1234), tmp_path
    )
    assert (args.api_key, args.root_path, args.allowed_local_media_path) == (None, None, "")
    assert args.trust_remote_code is False
    assert args.allowed_media_domains == NO_REMOTE_MEDIA
    assert args.served_model_name == ["one"] and args.model == "org/model"
    assert args.kv_cache_memory_bytes == 1234
    settings = args.additional_config[ADDITIONAL_CONFIG_KEY]
    assert (settings["executor"], settings["threads"]) == ("uni", 3)


def test_media_hosts_are_those_of_the_configuration(parser: Any, tmp_path: Path) -> None:
    factory = make_factory(parser, tmp_path, allowed_media_domains=["images.example.org"])
    args = factory.expert_args(ExpertSpec(config(), "org/model", 1), tmp_path)
    assert args.allowed_media_domains == ["images.example.org"]


# Errors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("/srv/secret/qwen: bad"), "one: bad"),
        (ValueError("cannot read /srv/secret/else/tokenizer.json today"), "cannot read tokenizer.json today"),
        (
            ValueError("1 validation error for ModelConfig\n  Value error, too long [type=value_error, x=1]"),
            "too long",
        ),
        (
            RuntimeError("Engine core initialization failed. See root cause above."),
            "ended while it was starting",
        ),
        (KeyError(), "KeyError"),
    ],
    ids=str,
)
def test_what_vllm_says_becomes_one_line_without_a_path(error: Exception, line: str) -> None:
    told = _one_line(error, ExpertSpec(config(), "/srv/secret/qwen", 1))
    assert told.startswith("one could not be loaded: ") and line in told
    assert "secret" not in told and "\n" not in told and len(told) < 400


def test_a_hub_model_leaves_the_rest_of_the_line_alone() -> None:
    told = _one_line(
        ValueError("version 1.2.3 of gpt2 is and/or was. Use 2.0."), ExpertSpec(config(), "gpt2", 1)
    )
    assert told == "one could not be loaded: version 1.2.3 of one is and/or was. Use 2.0."


# Reaches into vLLM


def test_vllm_forks_engines_from_our_fork_server_even_after_its_platform_asks_for_spawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import vllm.envs
    from vllm.utils.system_utils import get_mp_context

    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    use_fork_server()
    assert vllm.envs.VLLM_WORKER_MULTIPROC_METHOD == "forkserver"
    assert get_mp_context().get_start_method() == "forkserver"


def test_an_imported_architecture_is_looked_at_without_a_subprocess(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.models import ModelRegistry, registry

    assert import_architecture(["Qwen2ForCausalLM", "NoSuchForCausalLM"]) == ["NoSuchForCausalLM"]

    def no_subprocess(*_: Any) -> None:
        raise AssertionError("vLLM inspects a model in a subprocess")

    assert hasattr(registry, "_run_in_subprocess"), "vLLM's name for it has changed: look again"
    monkeypatch.setattr(registry, "_run_in_subprocess", no_subprocess)
    assert ModelRegistry.models["Qwen2ForCausalLM"].inspect_model_cls().is_text_generation_model


def test_the_catalog_has_the_routes_of_every_task_without_an_engine(parser: Any) -> None:
    catalog = RouteCatalog(build_catalog_app(parser.parse_args([])))
    for path in (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/audio/transcriptions",
        "/classify",
        "/tokenize",
    ):
        catalog.match({"type": "http", "method": "POST", "path": path, "headers": []})
    for method, path in (("POST", "/v1/nothing"), ("GET", "/v1/chat/completions")):
        with pytest.raises(ServingError):
            catalog.match({"type": "http", "method": method, "path": path, "headers": []})


def test_an_engine_of_several_processes_is_refused() -> None:
    manager = SimpleNamespace(processes=[object(), object()])
    llm = SimpleNamespace(engine_core=SimpleNamespace(resources=SimpleNamespace(engine_manager=manager)))
    with pytest.raises(EngineStartError, match="started 2"):
        engine_process(llm)


async def test_a_real_engine_has_one_process_routes_and_a_notice_in_place_of_a_server(
    demo_models: Path, tmp_path: Path
) -> None:
    async with expert_stand(demo_models, tmp_path, only=[QWEN]) as stand:
        engine = await stand.load(QWEN)
        assert engine_process(engine._llm) is engine.process and engine.process.is_alive()
        engine.routes.match({"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []})
        with pytest.raises(ServingError):
            engine.routes.match({"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": []})
        state = engine.app.state  # type: ignore[attr-defined]
        assert state.server.should_exit is False

        # vLLM's handler of a dead engine asks the server to exit: ours is told nothing.
        async with stand.manager.lease(QWEN) as lease:
            asking = asyncio.create_task(chat(lease, max_tokens=900, ignore_eos=True))
            await asyncio.sleep(0.3)
            engine.process.kill()
            answer = await asyncio.wait_for(asking, 10)
        assert answer.status_code >= 500
        assert (await stand.load(QWEN)).process.is_alive()


async def test_stopping_twice_is_harmless(demo_models: Path, tmp_path: Path) -> None:
    async with expert_stand(demo_models, tmp_path, only=[QWEN]) as stand:
        engine = await stand.load(QWEN)
        await engine.stop()
        await engine.stop()
        assert not engine.process.is_alive()


def test_every_reach_into_vllm_says_why_since_when_and_until_when() -> None:
    source = inspect.getsource(expert_engine)
    assert source.count("Why") >= 5
    for name in (
        "use_fork_server",
        "import_architecture",
        "engine_process",
        "_DeathNotice",
        "_build_inner_app",
    ):
        told = inspect.getdoc(getattr(expert_engine, name)) or ""
        assert all(word in told for word in ("Why", "Since: vLLM", "May go")), name


@pytest.mark.parametrize("multimodal", [False, True])
def test_vllm_no_longer_holds_a_tokenizer_it_was_asked_about(multimodal: bool) -> None:
    from vllm.multimodal.processing.processor import cached_encode
    from vllm.utils.func_utils import supports_kw

    class Tokenizer:
        def __call__(self, text: str, *, truncation: bool = False) -> None: ...

        def encode(self, text: str, **options: Any) -> list[int]:
            return []

    tokenizer = Tokenizer()
    assert supports_kw(tokenizer, "truncation")
    if multimodal:
        cached_encode(tokenizer, "text")
    held = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert held() is not None, "vLLM forgets by itself: forget_tokenizers may go"
    forget_tokenizers(multimodal=multimodal)
    gc.collect()
    assert held() is None


def test_every_cache_that_is_emptied_is_still_one_of_vllms() -> None:
    for module, name in (*expert_engine._KEPT_BY, *expert_engine._KEPT_BY_MULTIMODAL):
        assert hasattr(getattr(importlib.import_module(module), name), "cache_clear"), (module, name)


async def test_a_load_that_finds_no_room_on_the_disk_leaves_no_start_under_way(
    parser: Any, tmp_path: Path
) -> None:
    run_directory = tmp_path / "gone"
    maker = EngineFactory(parser, parser.parse_args([]), tmp_path, threads=1, run_directory=run_directory)
    series = ExpertSeries("one")
    with pytest.raises(OSError, match="No such file"):
        await maker.start(ExpertSpec(config(), "org/model", 0), series, lambda stage: None)
    # Any other child of the server would pass for the engine of a start that is still under way.
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(30,))
    child.start()
    try:
        assert maker.starting_pid() is None
        maker.cancel()
        assert child.is_alive()
    finally:
        child.kill()
        child.join()
        maker.close()


async def test_a_start_that_was_cancelled_leaves_no_descriptor_and_no_thread(
    demo_models: Path, tmp_path: Path
) -> None:
    this = psutil.Process()
    async with expert_stand(demo_models, tmp_path, only=[QWEN]) as stand:
        await stand.load(QWEN)
        stand.manager.request_unload(QWEN)
        await stand.until_state(QWEN, State.UNLOADED)
        before = this.num_fds(), this.num_threads()
        for stage in ("weights", "app"):
            stand.manager.request_load(QWEN)
            await stand.until(lambda stage=stage: stand.slot(QWEN).stage == stage, stage)  # type: ignore[misc]
            stand.manager.request_unload(QWEN)
            await stand.until_state(QWEN, State.UNLOADED)
            after = this.num_fds(), this.num_threads()
            assert after[0] <= before[0] and after[1] <= before[1], (stage, before, after)


async def test_an_engine_that_ends_before_its_first_answer_is_not_waited_for() -> None:
    ended = multiprocessing.get_context("spawn").Process(target=len, args=("",))
    ended.start()
    with pytest.raises(EngineStartError, match="ended while it was starting"):
        await asyncio.wait_for(expert_engine._while_alive(asyncio.Event().wait(), ended), 30)
