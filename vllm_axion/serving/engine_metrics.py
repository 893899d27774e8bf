# SPDX-License-Identifier: Apache-2.0
"""vLLM's own series (`vllm:*`) for every expert at once, each expert's counts kept across its reloads.

This is a reach into vLLM.

Why: `PrometheusStatLogger` puts its series in prometheus_client's global registry and first removes those of
the engine before it (`v1/metrics/loggers.py`, `unregister_vllm_metrics`), so a process with several engines
shows only the newest, and a reload would start its counters at 0 again.
How: the logger and the classes it is made of name their metric types in class attributes (`_gauge_cls`,
`_counter_cls`, `_spec_decoding_cls`, …), which vLLM's Ray logger overrides for the same purpose. Here they
become functions that find or make the metric in the expert's registry.
Since: vLLM 0.32. May go when `PrometheusStatLogger` takes a registry and leaves other engines' series alone.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_MetricType = type[Counter] | type[Gauge] | type[Histogram]
_PrometheusMetric = Counter | Gauge | Histogram

_TOOL_CALLS = "vllm:tool_call_parser_invocations"


class ExpertSeries(Collector):
    """vLLM's series of one expert. Make one per configured expert when the server starts and keep it.

    Empty until the expert's first load. Never asks the engine for anything: vLLM's loop pushes.
    """

    def __init__(self, expert_id: str) -> None:
        self.expert_id = expert_id
        self._registry = CollectorRegistry()
        self._made: dict[str, tuple[object, _PrometheusMetric]] = {}
        self._lock = Lock()
        self._writer: object | None = None

    def stat_loggers(self, *, log: bool = True) -> list[type]:
        """For `AsyncLLM.from_vllm_config(…, stat_loggers=…, disable_log_stats=True)`, anew for each load.

        The flag only keeps vLLM from adding its own log lines, which don't say which engine they are about;
        `log` adds the same lines under the expert's name, written whenever `AsyncLLM.do_log_stats` is called.
        The list holds classes because vLLM only then sees that a Prometheus logger is among them.
        """
        loggers = [self._prometheus_logger()]
        if log:
            loggers.append(self._text_logger())
        return loggers

    def engine_stopped(self) -> None:
        """The engine is gone: levels read 0, descriptions of it vanish, counters stay. Harmless twice."""
        self._writer = None
        with self._lock:
            made = [(name, metric) for name, (_, metric) in self._made.items()]
        for name, metric in made:
            if not isinstance(metric, Gauge):
                continue
            if name.endswith("_info"):
                metric.clear()
                continue
            for family in metric.collect():
                for sample in family.samples:
                    (metric.labels(**sample.labels) if sample.labels else metric).set(0)

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            # vllm:cache_config_info and vllm:lora_requests_info carry no model name: without one, two experts
            # of equal settings would show the same series twice and spoil the page.
            metric.samples = [
                sample
                if "model_name" in sample.labels
                else sample._replace(labels={"model_name": self.expert_id, **sample.labels})
                for sample in metric.samples
            ]
            yield metric

    def _find_or_make(
        self,
        metric_type: _MetricType,
        name: str,
        documentation: str = "",
        labelnames: Iterable[str] = (),
        **options: Any,
    ) -> _PrometheusMetric:
        labelnames = tuple(labelnames)
        # Buckets follow max_model_len, which an edited checkpoint may change between two loads.
        shape = (metric_type, labelnames, tuple(options.get("buckets") or ()))
        with self._lock:
            known = self._made.get(name)
            if known is not None and known[0] == shape:
                return known[1]
            if known is not None:
                self._registry.unregister(known[1])
            options["registry"] = self._registry
            metric = metric_type(name, documentation, labelnames, **options)
            self._made[name] = (shape, metric)
            return metric

    def _rebound(self, cls: type) -> type:
        """Subclass of `cls` that makes its metrics here; so do the helper classes it names."""
        makers: dict[object, Callable[..., _PrometheusMetric]] = {
            metric_type: _maker(self._find_or_make, metric_type)
            for metric_type in (Gauge, Counter, Histogram)
        }
        hooks: dict[str, object] = {}
        for name in dir(cls):
            if not name.endswith("_cls"):
                continue
            hook = getattr(cls, name)
            if hook in makers:
                hooks[name] = staticmethod(makers[hook])
            elif isinstance(hook, type):
                hooks[name] = self._rebound(hook)
        return type(cls.__name__, (cls,), hooks)

    def _prometheus_logger(self) -> type:
        from vllm.v1.metrics.loggers import PrometheusStatLogger

        series = self
        base: Any = self._rebound(PrometheusStatLogger)

        class ExpertPrometheusLogger(base):
            def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
                series._writer = self
                with _other_series_kept():
                    super().__init__(vllm_config, engine_indexes)

            def record(self, *args: Any, **kwargs: Any) -> None:
                # What a stopped engine still had to say must not raise its gauges again.
                if series._writer is self:
                    super().record(*args, **kwargs)

            def record_sleep_state(self, *args: Any, **kwargs: Any) -> None:
                if series._writer is self:
                    super().record_sleep_state(*args, **kwargs)

        return ExpertPrometheusLogger

    def _text_logger(self) -> type:
        from vllm.v1.metrics.loggers import LoggingStatLogger

        expert_id = self.expert_id

        class ExpertTextLogger(LoggingStatLogger):
            @property
            def log_prefix(self) -> str:
                return f"Expert {expert_id}: "

        return ExpertTextLogger


class ProcessSeries(Collector):
    """Series of this process as a whole: `python_*`, `process_*`, and vLLM's few that know no engine.

    Not `http_*`: in the global registry these are one expert's at best, see `http_metrics`.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            if metric.name == _TOOL_CALLS:
                yield _without_model_name(metric)
            elif not metric.name.startswith("http_"):
                yield metric


def _without_model_name(metric: Metric) -> Metric:
    # vLLM labels every tool call with the model whose app was built last (parser/metrics.py, `_model_name`):
    # the sums over all experts are right, the split is not, so only the sums are shown.
    sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for sample in metric.samples:
        labels = tuple(item for item in sample.labels.items() if item[0] != "model_name")
        before = sums.get((sample.name, labels))
        if before is None:
            sums[sample.name, labels] = sample.value
        elif sample.name.endswith("_created"):
            sums[sample.name, labels] = min(before, sample.value)
        else:
            sums[sample.name, labels] = before + sample.value
    total = Metric(metric.name, metric.documentation, metric.type, metric.unit)
    for (name, labels), value in sums.items():
        total.add_sample(name, dict(labels), value)
    return total


def _maker(
    make: Callable[..., _PrometheusMetric], metric_type: _MetricType
) -> Callable[..., _PrometheusMetric]:
    def make_metric(*args: Any, **kwargs: Any) -> _PrometheusMetric:
        return make(metric_type, *args, **kwargs)

    return make_metric


@contextmanager
def _other_series_kept() -> Iterator[None]:
    """Put back what `unregister_vllm_metrics` takes out of the global registry: series of the whole process
    such as vllm:websocket_connections_active, which vLLM registers once, when a module is imported."""
    before = [c for c in list(REGISTRY._collector_to_names) if getattr(c, "_name", "").startswith("vllm:")]
    try:
        yield
    finally:
        for collector in before:
            if collector not in REGISTRY._collector_to_names:
                REGISTRY.register(collector)
