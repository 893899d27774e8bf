# SPDX-License-Identifier: Apache-2.0
"""The server's own Prometheus series (`vllm_axion:*`), and the page that shows them beside everybody else's.

Every label value comes from the configuration or from a list in this file, never from a client, so the
number of series is bounded by the number of experts. `docs/metrics.md` lists them all.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Final, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from vllm_axion.serving.residency import State

LoadOutcome = Literal["loaded", "failed", "cancelled", "refused"]
UnloadReason = Literal["idle", "evicted", "requested", "failed", "shutdown"]
PrefetchOutcome = Literal["hit", "waste"]
HowChosen = Literal["explicit", "routed", "abstained"]
EncoderOutcome = Literal["used", "failed", "timeout", "not_ready"]
RouterStage = Literal["first", "second"]
ReloadOutcome = Literal["applied", "refused"]
Rejection = Literal["queue_full", "never_fits", "timeout", "body_too_large", "unauthorized"]

NO_EXPERT: Final = "none"
"""Label value for a request that never got as far as an expert, and for any id that is not configured."""

_LOAD_SECONDS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0)
_ROUTE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)


class ServerMetrics:
    """What the server itself does: loads, unloads, requests, routes, refusals, memory.

    `experts` maps each configured expert id to its domain; `domains` adds the domains a route may name
    although no expert serves them. Methods are named after what happened and may be called from any thread.
    """

    def __init__(self, experts: Mapping[str, str], *, domains: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry()
        self._domain_of = dict(experts)
        self._domains = {*experts.values(), *domains}

        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self._loads = counter("expert_loads", "Loads, by how they ended.", "expert", "outcome")
        self._load_seconds = histogram(
            "expert_load_seconds", "Time of successful loads.", _LOAD_SECONDS, "expert"
        )
        self._unloads = counter("expert_unloads", "Engines that went away, by why.", "expert", "reason")
        self._prefetches = counter(
            "prefetches", "Experts loaded on a guess: asked for while loaded, or not.", "expert", "outcome"
        )
        self._state = gauge("expert_state", "1 for the state the expert is in, else 0.", "expert", "state")
        self._requests = counter(
            "requests", "Requests answered, however they ended.", "expert", "domain", "status", "chosen"
        )
        self._in_flight = gauge("requests_in_flight", "Requests an expert is working on.", "expert")
        self._waiting = gauge("requests_waiting", "Requests waiting for an expert's load.", "expert")
        # Found once: every request passes here several times, and looking a series up costs more than
        # setting it.
        self._levels = {
            expert: (self._in_flight.labels(expert), self._waiting.labels(expert)) for expert in experts
        }
        self._answered: dict[tuple[str, int, HowChosen], Counter] = {}
        self._wait_seconds = histogram(
            "request_wait_seconds",
            "Time requests waited for their expert to be loaded; only those that waited.",
            _LOAD_SECONDS,
            "expert",
        )
        self._cores = gauge("expert_cores", "Cores the expert's engine may use now.", "expert")
        self._routes = counter("routes", "Requests the router placed, by domain.", "domain")
        self._abstentions = counter("route_abstentions", "Routes too unsure to follow: default taken.")
        self._route_seconds = histogram("route_seconds", "Time to choose an expert.", _ROUTE_SECONDS)
        self._encoder = counter("router_encoder", "Requests to an encoder.", "stage", "outcome")
        self._cache_look_ups = counter("router_cache_lookups", "Texts looked up in the cache.", "result")
        self._cache_entries = gauge("router_cache_entries", "Vectors in the embedding cache.")
        self._cache_bytes = gauge("router_cache_bytes", "Size of the vectors in the cache.")
        self._reloads = counter("router_reloads", "Changes of the configuration file.", "outcome")
        self._rejections = counter(
            "rejections", "Requests refused by a limit or for want of a key.", "reason"
        )
        self._memory_limit = gauge("memory_limit_bytes", "The smaller of the cgroup limit and RAM.")
        self._memory_allowed = gauge("memory_allowed_bytes", "Part of the limit that experts may use.")
        self._memory_reserved = gauge("memory_reserved_bytes", "Promised to loaded and loading experts.")
        self._memory_others = gauge("memory_others_bytes", "In use under the limit by anything else.")
        self._expert_memory = gauge("expert_memory_bytes", "Memory of a loaded expert.", "expert", "kind")
        self._show_zeros()

    # Loading

    def state_changed(self, expert_id: str, state: State) -> None:
        expert = self._expert(expert_id)
        for each in State:
            self._state.labels(expert, each).set(each == state)

    def load_finished(self, expert_id: str, outcome: LoadOutcome, seconds: float) -> None:
        """A load ended after `seconds`, well or badly. Only the time of a good one enters the histogram."""
        expert = self._expert(expert_id)
        self._loads.labels(expert, outcome).inc()
        if outcome == "loaded":
            self._load_seconds.labels(expert).observe(seconds)

    def unloaded(self, expert_id: str, reason: UnloadReason) -> None:
        """The expert's engine is gone. Its memory gauges read 0 from here on."""
        self._unloads.labels(self._expert(expert_id), reason).inc()
        self.expert_memory(expert_id, weights=0, kv=0, process=0)

    def cores_given(self, expert_id: str, cores: int) -> None:
        """The expert's engine may run on so many logical CPUs; 0 while there is none."""
        self._cores.labels(self._expert(expert_id)).set(cores)

    def prefetched(self, expert_id: str, outcome: PrefetchOutcome) -> None:
        """An expert loaded on a guess was asked for (hit), or went without (waste)."""
        self._prefetches.labels(self._expert(expert_id), outcome).inc()

    # Requests

    def request_answered(self, expert_id: str | None, chosen: HowChosen, status: int) -> None:
        """An answer of HTTP `status` is complete, or its client is gone (give 499); no expert: None."""
        expert = self._expert(expert_id)
        key = (expert, status // 100, chosen)
        series = self._answered.get(key)
        if series is None:
            domain = self._domain_of.get(expert, NO_EXPERT)
            series = self._requests.labels(expert, domain, f"{min(max(status // 100, 1), 5)}xx", chosen)
            self._answered[key] = series
        series.inc()

    def requests_now(self, expert_id: str, *, in_flight: int, waiting: int) -> None:
        """Levels, not steps: whoever counts requests says the count, so this copy can't drift."""
        in_flight_level, waiting_level = self._levels[self._expert(expert_id)]
        in_flight_level.set(in_flight)
        waiting_level.set(waiting)

    def request_waited(self, expert_id: str, seconds: float) -> None:
        """A request was given its expert after waiting for the load."""
        self._wait_seconds.labels(self._expert(expert_id)).observe(seconds)

    def request_rejected(self, reason: Rejection) -> None:
        self._rejections.labels(reason).inc()

    # Routing

    def routed(self, domain: str, seconds: float, *, abstained: bool = False) -> None:
        self._routes.labels(domain if domain in self._domains else NO_EXPERT).inc()
        self._route_seconds.observe(seconds)
        if abstained:
            self._abstentions.inc()

    def encoder_asked(self, stage: RouterStage, outcome: EncoderOutcome) -> None:
        """An encoder beside the built-in one was to be asked; unless it was `used`, routing went without."""
        self._encoder.labels(stage, outcome).inc()

    def router_cache_used(self, *, hits: int, misses: int, entries: int, size: int) -> None:
        """So many texts were found and not found; `entries` and `size` (bytes) are levels."""
        self._cache_look_ups.labels("hit").inc(hits)
        self._cache_look_ups.labels("miss").inc(misses)
        self._cache_entries.set(entries)
        self._cache_bytes.set(size)

    def router_reloaded(self, outcome: ReloadOutcome) -> None:
        """The configuration file changed, and what the router reads of it was applied or had faults."""
        self._reloads.labels(outcome).inc()

    def configured(self, experts: Mapping[str, str], *, domains: Iterable[str]) -> None:
        """Domains of the experts after a reload: label values of what comes from now on."""
        self._domain_of = {expert: experts.get(expert, domain) for expert, domain in self._domain_of.items()}
        self._domains |= {*self._domain_of.values(), *domains}
        self._answered.clear()
        for domain in self._domains:
            self._routes.labels(domain)

    # Memory, all in bytes

    def memory_measured(self, *, limit: int, allowed: int, reserved: int, others: int) -> None:
        self._memory_limit.set(limit)
        self._memory_allowed.set(allowed)
        self._memory_reserved.set(reserved)
        self._memory_others.set(others)

    def expert_memory(self, expert_id: str, *, weights: int, kv: int, process: int) -> None:
        """`process` is what the operating system says of the engine's process, weights and KV included."""
        expert = self._expert(expert_id)
        for kind, size in (("weights", weights), ("kv", kv), ("process", process)):
            self._expert_memory.labels(expert, kind).set(size)

    def _expert(self, expert_id: str | None) -> str:
        return expert_id if expert_id in self._domain_of and expert_id is not None else NO_EXPERT

    def _show_zeros(self) -> None:
        # A series that appears only with its first event hides that event from rate(): begin all at 0.
        for expert in self._domain_of:
            self.state_changed(expert, State.UNLOADED)
            self.requests_now(expert, in_flight=0, waiting=0)
            self.expert_memory(expert, weights=0, kv=0, process=0)
            self.cores_given(expert, 0)
            self._load_seconds.labels(expert)
            self._wait_seconds.labels(expert)
            for outcome in get_args(LoadOutcome):
                self._loads.labels(expert, outcome)
            for guess in get_args(PrefetchOutcome):
                self._prefetches.labels(expert, guess)
            for reason in get_args(UnloadReason):
                self._unloads.labels(expert, reason)
        for domain in self._domains:
            self._routes.labels(domain)
        for reason in get_args(Rejection):
            self._rejections.labels(reason)
        for stage in get_args(RouterStage):
            for outcome in get_args(EncoderOutcome):
                self._encoder.labels(stage, outcome)
        for result in ("hit", "miss"):
            self._cache_look_ups.labels(result)
        for outcome in get_args(ReloadOutcome):
            self._reloads.labels(outcome)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"vllm_axion:{name}", meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"vllm_axion:{name}", meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"vllm_axion:{name}", meaning, labels, buckets=buckets, registry=self.registry)


class _Merged(Collector):
    """Several collectors as one: a family that more than one of them has becomes one family."""

    def __init__(self, collectors: Iterable[Collector]) -> None:
        self._collectors = tuple(collectors)

    def collect(self) -> Iterable[Metric]:
        families: dict[tuple[str, str], Metric] = {}
        names: dict[str, str] = {}
        for collector in self._collectors:
            for metric in collector.collect():
                # Two types under one name can't be shown at all: the first one stays.
                if names.setdefault(metric.name, metric.type) != metric.type:
                    continue
                merged = families.get((metric.name, metric.type))
                if merged is None:
                    merged = Metric(metric.name, metric.documentation, metric.type, metric.unit)
                    families[metric.name, metric.type] = merged
                merged.samples.extend(metric.samples)
        return families.values()


def render(collectors: Iterable[Collector], accept: str = "") -> tuple[bytes, str]:
    """The page of `/metrics` and its content type: Prometheus text, or OpenMetrics if `accept` asks for it.

    Each family stands once, with the samples of every collector below it, as both formats demand
    (https://prometheus.io/docs/instrumenting/exposition_formats/). Reads counters only; wakes nothing.
    """
    encode, content_type = choose_encoder(accept)
    if isinstance(encode, partial) and "escaping" in encode.keywords:
        # prometheus_client would write the colon of a sample's name as an underscore, but not that of its
        # family's (its issue 1177), which breaks the page. No name here needs escaping, so ask for none.
        encode = partial(encode, escaping="allow-utf-8")
    return encode(_Merged(collectors)), content_type
