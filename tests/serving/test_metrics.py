# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as parse_text

from vllm_axion.serving.metrics import (
    EncoderOutcome,
    HowChosen,
    LoadOutcome,
    Rejection,
    ReloadOutcome,
    RouterStage,
    ServerMetrics,
    UnloadReason,
    render,
)
from vllm_axion.serving.residency import State

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def server_metrics() -> ServerMetrics:
    return ServerMetrics({"coder": "coding", "aya": "multilingual_expert"}, domains=["general"])


def let_everything_happen(metrics: ServerMetrics) -> None:
    for state in State:
        metrics.state_changed("coder", state)
    for outcome in get_args(LoadOutcome):
        metrics.load_finished("coder", outcome, 1.5)
    for reason in get_args(UnloadReason):
        metrics.unloaded("coder", reason)
    for chosen in get_args(HowChosen):
        metrics.request_answered("coder", chosen, 200)
    for rejection in get_args(Rejection):
        metrics.request_rejected(rejection)
    metrics.requests_now("coder", in_flight=2, waiting=3)
    metrics.routed("coding", 0.001)
    metrics.routed("general", 0.001, abstained=True)
    for stage in get_args(RouterStage):
        for asked in get_args(EncoderOutcome):
            metrics.encoder_asked(stage, asked)
    metrics.router_cache_used(hits=3, misses=2, entries=2, size=2048)
    for reload in get_args(ReloadOutcome):
        metrics.router_reloaded(reload)
    metrics.request_waited("coder", 1.5)
    metrics.cores_given("coder", 2)
    metrics.memory_measured(limit=100, allowed=80, reserved=40, others=10)
    metrics.expert_memory("coder", weights=20, kv=10, process=35)


def value(metrics: ServerMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"vllm_axion:{name}", labels)


def number_of_series(metrics: ServerMetrics) -> int:
    return sum(len(metric.samples) for metric in metrics.registry.collect())


def shown(metric: Metric) -> tuple[str, str, frozenset[str]]:
    name = metric.name + ("_total" if metric.type == "counter" else "")
    labels = {label for sample in metric.samples for label in sample.labels} - {"le"}
    return name, metric.type, frozenset(labels)


def test_the_documentation_lists_exactly_the_series_there_are() -> None:
    metrics = server_metrics()
    let_everything_happen(metrics)
    rows = re.findall(
        r"^\| `(vllm_axion:\w+)` \| (\w+) \| ([\w, ]*)\|", DOCS.read_text("utf-8"), re.MULTILINE
    )
    documented = {(name, kind, frozenset(re.findall(r"\w+", labels))) for name, kind, labels in rows}
    assert documented == {shown(metric) for metric in metrics.registry.collect()}


def test_the_documentation_names_every_label_value_of_a_fixed_list() -> None:
    text = DOCS.read_text("utf-8")
    kinds = (LoadOutcome, UnloadReason, HowChosen, Rejection, RouterStage, EncoderOutcome, ReloadOutcome)
    fixed = [*State, *(value for kind in kinds for value in get_args(kind))]
    assert [value for value in fixed if f"`{value}`" not in text] == []


def test_every_series_is_fed_by_some_event() -> None:
    metrics = server_metrics()
    let_everything_happen(metrics)
    unfed = [m.name for m in metrics.registry.collect() if not any(sample.value for sample in m.samples)]
    assert unfed == []


def test_exactly_one_state_is_shown_for_each_expert() -> None:
    metrics = server_metrics()
    assert value(metrics, "expert_state", expert="aya", state="unloaded") == 1
    metrics.state_changed("coder", State.LOADING)
    metrics.state_changed("coder", State.LOADED)
    states = {s: value(metrics, "expert_state", expert="coder", state=s) for s in State}
    assert states == {"unloaded": 0, "loading": 0, "loaded": 1, "draining": 0, "failed": 0}
    assert value(metrics, "expert_state", expert="aya", state="unloaded") == 1


def test_only_successful_loads_enter_the_load_time() -> None:
    metrics = server_metrics()
    metrics.load_finished("coder", "loaded", 2.0)
    metrics.load_finished("coder", "failed", 500.0)
    metrics.load_finished("coder", "cancelled", 500.0)
    assert value(metrics, "expert_load_seconds_sum", expert="coder") == 2.0
    assert value(metrics, "expert_loads_total", expert="coder", outcome="failed") == 1


def test_an_unloaded_expert_holds_no_memory() -> None:
    metrics = server_metrics()
    metrics.expert_memory("coder", weights=20, kv=10, process=35)
    assert value(metrics, "expert_memory_bytes", expert="coder", kind="process") == 35
    metrics.unloaded("coder", "idle")
    for kind in ("weights", "kv", "process"):
        assert value(metrics, "expert_memory_bytes", expert="coder", kind=kind) == 0
    assert value(metrics, "expert_unloads_total", expert="coder", reason="idle") == 1


@pytest.mark.parametrize(
    ("status", "shown_as"), [(200, "2xx"), (404, "4xx"), (499, "4xx"), (503, "5xx"), (0, "1xx"), (999, "5xx")]
)
def test_requests_are_counted_by_class_of_status(status: int, shown_as: str) -> None:
    metrics = server_metrics()
    metrics.request_answered("coder", "routed", status)
    labels = {"expert": "coder", "domain": "coding", "status": shown_as, "chosen": "routed"}
    assert value(metrics, "requests_total", **labels) == 1


def test_a_domain_that_the_configuration_gained_has_a_series_of_its_own() -> None:
    metrics = server_metrics()
    metrics.configured({"coder": "law", "stranger": "law"}, domains=["general", "law"])
    assert value(metrics, "routes_total", domain="law") == 0
    metrics.routed("law", 0.001)
    metrics.request_answered("coder", "routed", 200)
    assert value(metrics, "routes_total", domain="law") == 1
    labels = {"expert": "coder", "domain": "law", "status": "2xx", "chosen": "routed"}
    assert value(metrics, "requests_total", **labels) == 1
    assert value(metrics, "expert_state", expert="stranger", state="unloaded") is None


def test_names_made_up_by_clients_add_no_series() -> None:
    metrics = server_metrics()
    let_everything_happen(metrics)
    metrics.request_answered(None, "explicit", 404)
    metrics.routed("no such domain", 0.001)
    before = number_of_series(metrics)
    for n in range(50):
        metrics.request_answered(f"gpt-{n}", "explicit", 404)
        metrics.routed(f"domain-{n}", 0.001)
    assert number_of_series(metrics) == before
    labels = {"expert": "none", "domain": "none", "status": "4xx", "chosen": "explicit"}
    assert value(metrics, "requests_total", **labels) == 51


def test_series_begin_at_zero_so_that_the_first_event_shows_in_a_rate() -> None:
    metrics = server_metrics()
    assert value(metrics, "expert_loads_total", expert="aya", outcome="loaded") == 0
    assert value(metrics, "expert_load_seconds_count", expert="aya") == 0
    assert value(metrics, "expert_unloads_total", expert="aya", reason="evicted") == 0
    assert value(metrics, "rejections_total", reason="queue_full") == 0
    assert value(metrics, "routes_total", domain="general") == 0


# The page


def parse_openmetrics(page: str) -> list[Metric]:
    return list(openmetrics_families(page))  # type: ignore[no-untyped-call]


def two_registries() -> tuple[CollectorRegistry, CollectorRegistry]:
    first, second = CollectorRegistry(), CollectorRegistry()
    for registry, model in ((first, "a"), (second, "b")):
        Counter("vllm:tokens", "Tokens.", ["model"], registry=registry).labels(model).inc(5)
        Gauge("vllm:running", "Running.", ["model"], registry=registry).labels(model).set(1)
        Histogram("vllm:seconds", "Time.", ["model"], registry=registry).labels(model).observe(2)
    return first, second


def test_a_family_in_two_registries_stands_once_with_the_samples_of_both() -> None:
    page, content_type = render(two_registries())
    text = page.decode()
    assert content_type.startswith("text/plain")
    assert text.count("# TYPE vllm:tokens_total counter") == 1
    assert text.count("# HELP vllm:seconds ") == 1
    families = {family.name: family for family in parse_text(text)}
    models = [s.labels["model"] for s in families["vllm:tokens"].samples if s.name == "vllm:tokens_total"]
    assert models == ["a", "b"]
    counts = [s.value for s in families["vllm:seconds"].samples if s.name == "vllm:seconds_count"]
    assert counts == [1, 1]


@pytest.mark.parametrize("escaping", ["", "; escaping=underscores", "; escaping=allow-utf-8"])
def test_openmetrics_keeps_the_colon_in_every_name(escaping: str) -> None:
    page, content_type = render(two_registries(), OPENMETRICS + escaping)
    assert content_type.startswith("application/openmetrics-text")
    families = {family.name: family for family in parse_openmetrics(page.decode())}
    assert set(families) == {"vllm:tokens", "vllm:running", "vllm:seconds"}
    assert len(families["vllm:running"].samples) == 2


def test_the_accept_header_of_prometheus_gets_openmetrics() -> None:
    accept = (
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
        "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
        "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
    )
    page, content_type = render(two_registries(), accept)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert len(parse_openmetrics(page.decode())) == 3


def test_the_own_series_are_valid_in_both_formats() -> None:
    metrics = server_metrics()
    let_everything_happen(metrics)
    expected = {metric.name for metric in metrics.registry.collect()}
    assert {
        family.name for family in parse_openmetrics(render([metrics.registry], OPENMETRICS)[0].decode())
    } == expected
    text = render([metrics.registry])[0].decode()
    assert expected <= {family.name for family in parse_text(text)}


def test_one_name_with_two_types_shows_the_first_instead_of_failing() -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    Gauge("vllm:x", "A level.", registry=first).set(1)
    Histogram("vllm:x", "A spread.", registry=second).observe(1)
    families = list(parse_text(render([first, second])[0].decode()))
    assert [(family.name, family.type) for family in families] == [("vllm:x", "gauge")]
