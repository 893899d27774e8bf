# SPDX-License-Identifier: Apache-2.0
"""vLLM's real loggers, fed with its real statistics; only the engine that would feed them is missing."""

import copy
import json
import logging
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from vllm_axion.serving.engine_metrics import ExpertSeries, ProcessSeries
from vllm_axion.serving.metrics import render

Config = Callable[..., Any]

TINY_QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    from vllm.engine.arg_utils import AsyncEngineArgs

    model = tmp_path_factory.mktemp("tiny_qwen2")
    (model / "config.json").write_text(json.dumps(TINY_QWEN2))

    made = AsyncEngineArgs(
        model=str(model),
        skip_tokenizer_init=True,
        enforce_eager=True,
        kv_cache_memory_bytes=1 << 26,
        enable_mfu_metrics=True,
        kv_cache_metrics=True,
        enable_lora=True,
        speculative_config={"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2},
    ).create_engine_config()

    def config_of(expert_id: str, max_model_len: int = 128) -> Any:
        mine = copy.deepcopy(made)
        mine.model_config.served_model_name = expert_id
        mine.model_config.max_model_len = max_model_len
        return mine

    return config_of


def load(series: ExpertSeries, vllm_config: Any, *, log: bool = False) -> Any:
    """What AsyncLLM does with `stat_loggers` and `disable_log_stats=True` when an engine is up."""
    from vllm.v1.metrics.loggers import StatLoggerManager

    manager = StatLoggerManager(
        vllm_config, custom_stat_loggers=series.stat_loggers(log=log), enable_default_loggers=False
    )
    manager.log_engine_initialized()
    return manager


def work(manager: Any, tokens: int) -> None:
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats

    iteration = IterationStats()
    iteration.num_generation_tokens = tokens
    iteration.time_to_first_tokens_iter = [0.01]
    manager.record(
        SchedulerStats(
            num_running_reqs=2,
            num_waiting_reqs=1,
            kv_cache_usage=0.5,
            running_lora_adapters={"adapter": 1},
        ),
        iteration,
    )


def value(series: Collector, name: str, **labels: str) -> float | None:
    found = [
        sample.value
        for metric in series.collect()
        for sample in metric.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return sum(found) if found else None


def page(collectors: Iterable[Collector]) -> list[Metric]:
    text = render(collectors, "application/openmetrics-text; version=1.0.0")[0].decode()
    # This parser refuses a family or a sample that stands twice.
    return list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


def test_two_experts_keep_their_series_side_by_side(config: Config) -> None:
    a, b = ExpertSeries("a"), ExpertSeries("b")
    engine_a, engine_b = load(a, config("a")), load(b, config("b"))
    work(engine_a, tokens=7)
    work(engine_b, tokens=11)
    assert value(a, "vllm:generation_tokens_total", model_name="a") == 7
    assert value(b, "vllm:generation_tokens_total", model_name="b") == 11
    tokens = next(family for family in page([a, b]) if family.name == "vllm:generation_tokens")
    totals = {s.labels["model_name"]: s.value for s in tokens.samples if s.name.endswith("_total")}
    assert totals == {"a": 7, "b": 11}


def test_every_series_of_an_expert_says_which_expert(config: Config) -> None:
    series = ExpertSeries("a")
    work(load(series, config("a")), tokens=1)
    samples = [sample for metric in series.collect() for sample in metric.samples]
    assert {sample.labels["model_name"] for sample in samples} == {"a"}
    assert {"vllm:cache_config_info", "vllm:lora_requests_info"} <= {sample.name for sample in samples}


def test_experts_of_equal_settings_make_a_valid_page(config: Config) -> None:
    both = [ExpertSeries("a"), ExpertSeries("b")]
    for series in both:
        work(load(series, config(series.expert_id)), tokens=1)
    infos = next(family for family in page(both) if family.name == "vllm:cache_config_info")
    assert len(infos.samples) == 2


def test_a_reload_keeps_the_counters(config: Config) -> None:
    series = ExpertSeries("a")
    work(load(series, config("a")), tokens=7)
    series.engine_stopped()
    assert value(series, "vllm:generation_tokens_total") == 7
    engine = load(series, config("a"))
    assert value(series, "vllm:generation_tokens_total") == 7
    work(engine, tokens=3)
    assert value(series, "vllm:generation_tokens_total") == 10
    assert value(series, "vllm:time_to_first_token_seconds_count") == 2
    assert value(series, "vllm:cache_config_info") == 1


def test_the_levels_of_an_unloaded_expert_are_zero(config: Config) -> None:
    series = ExpertSeries("a")
    work(load(series, config("a")), tokens=7)
    assert value(series, "vllm:num_requests_running") == 2
    assert value(series, "vllm:engine_sleep_state", sleep_state="awake") == 1
    series.engine_stopped()
    levels = [sample for metric in series.collect() if metric.type == "gauge" for sample in metric.samples]
    names = {sample.name for sample in levels}
    assert {"vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"} <= names
    assert {sample.value for sample in levels} == {0}
    assert not [name for name in names if name.endswith("_info")]


def test_last_words_of_a_stopped_engine_are_ignored(config: Config) -> None:
    series = ExpertSeries("a")
    engine = load(series, config("a"))
    series.engine_stopped()
    work(engine, tokens=7)
    engine.record_sleep_state(0, 0)
    assert value(series, "vllm:num_requests_running") == 0
    assert value(series, "vllm:engine_sleep_state") == 0


def test_stopping_an_expert_that_never_ran_does_nothing() -> None:
    series = ExpertSeries("a")
    series.engine_stopped()
    assert list(series.collect()) == []


def test_a_reload_with_another_length_gets_its_buckets(config: Config) -> None:
    series = ExpertSeries("a")
    work(load(series, config("a", max_model_len=128)), tokens=7)
    series.engine_stopped()
    work(load(series, config("a", max_model_len=4096)), tokens=1)
    assert value(series, "vllm:request_prompt_tokens_bucket", le="2000.0") == 0
    assert value(series, "vllm:generation_tokens_total") == 8


def test_nothing_of_an_expert_lands_in_the_global_registry(config: Config) -> None:
    before = set(REGISTRY._names_to_collectors)
    work(load(ExpertSeries("a"), config("a")), tokens=1)
    assert set(REGISTRY._names_to_collectors) == before


def test_no_part_of_vllms_logger_is_left_with_the_global_registry() -> None:
    def parts(cls: type) -> Iterable[object]:
        for name in dir(cls):
            if name.endswith("_cls"):
                part = getattr(cls, name)
                yield part
                if isinstance(part, type):
                    yield from parts(part)

    found = list(parts(ExpertSeries("a").stat_loggers(log=False)[0]))
    assert len(found) >= 7
    assert not {Counter, Gauge, Histogram} & set(found)


def test_process_wide_vllm_series_survive_the_load_of_an_expert(config: Config) -> None:
    other = Counter("vllm:of_the_whole_process", "Registered once, at import.")
    try:
        load(ExpertSeries("a"), config("a"))
        other.inc()
        assert value(ProcessSeries(), "vllm:of_the_whole_process_total") == 1
    finally:
        REGISTRY.unregister(other)


def test_log_lines_name_the_expert(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    engine = load(ExpertSeries("coder"), config("coder"), log=True)
    work(engine, tokens=7)
    logger = logging.getLogger("vllm.v1.metrics.loggers")
    logger.addHandler(caplog.handler)  # vLLM's loggers don't propagate to the root
    try:
        with caplog.at_level(logging.INFO, logger.name):
            engine.log()
    finally:
        logger.removeHandler(caplog.handler)
    assert any(message.startswith("Expert coder: ") for message in caplog.messages)


def test_tool_calls_are_shown_as_the_sum_over_experts() -> None:
    registry = CollectorRegistry()
    calls = Counter("vllm:tool_call_parser_invocations", "Calls.", ["model_name", "mode"], registry=registry)
    calls.labels("a", "streaming").inc(2)
    calls.labels("b", "streaming").inc(3)
    calls.labels("b", "non_streaming").inc(4)
    shown = [s for m in ProcessSeries(registry).collect() for s in m.samples if s.name.endswith("_total")]
    assert [(s.labels, s.value) for s in shown] == [
        ({"mode": "streaming"}, 5),
        ({"mode": "non_streaming"}, 4),
    ]
    assert page([ProcessSeries(registry)])


def test_the_name_of_the_tool_call_series_is_still_vllms() -> None:
    from vllm.parser import metrics

    assert metrics._TOOL_CALL_PARSER_INVOCATIONS_TOTAL == "vllm:tool_call_parser_invocations_total"


def test_http_series_of_a_single_experts_app_are_left_out() -> None:
    registry = CollectorRegistry()
    Counter("http_requests", "Requests of one app.", registry=registry).inc()
    Counter("other", "Something else.", registry=registry).inc()
    assert [metric.name for metric in ProcessSeries(registry).collect()] == ["other"]
