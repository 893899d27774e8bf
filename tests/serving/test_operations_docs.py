# SPDX-License-Identifier: Apache-2.0
"""`docs/operations.md` against the server an operator runs by it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from tests.serving.promql import Page
from tests.serving.running_server import RunningServer
from vllm_axion.serving import errors
from vllm_axion.serving.errors import ServingError
from vllm_axion.serving.metrics import Rejection, ServerMetrics
from vllm_axion.serving.residency import State
from vllm_axion.serving.tracing import _ATTRIBUTES


@pytest.fixture(scope="module")
def text(repository: Path) -> str:
    return (repository / "docs" / "operations.md").read_text("utf-8")


def section(text: str, heading: str) -> str:
    return re.split(r"^## ", text.split(f"\n## {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def rows(table: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in table.splitlines() if re.match(r"\| .*[^-|: ]", line)]


def kinds(of: type[ServingError]) -> Iterator[type[ServingError]]:
    yield of
    for kind in of.__subclasses__():
        yield from kinds(kind)


def test_every_state_is_explained_with_what_to_do(text: str) -> None:
    assert [row[0].strip("`") for row in rows(section(text, "States"))[1:]] == list(State)


def test_every_error_is_explained_with_its_status(text: str) -> None:
    explained = {(row[0], row[1].strip("`")) for row in rows(section(text, "Errors"))[1:]}
    raised = {
        (str(kind.status), kind.code) for kind in kinds(ServingError) if kind.__module__ == errors.__name__
    }
    assert explained == raised


def test_every_series_is_explained_and_no_other(text: str) -> None:
    explained = [row[0].strip("`") for row in rows(section(text, "Metrics"))[1:]]
    series = [
        metric.name + ("_total" if metric.type == "counter" else "")
        for metric in ServerMetrics({"coder": "coding"}).registry.collect()
    ]
    assert sorted(explained) == sorted(series)


@pytest.mark.parametrize("reason", get_args(Rejection))
def test_every_reason_of_a_rejection_is_explained(text: str, reason: str) -> None:
    (row,) = [row for row in rows(section(text, "Metrics")) if row[0] == "`vllm_axion:rejections_total`"]
    assert f"`{reason}`" in row[2]


def test_every_fact_of_a_request_is_explained(text: str) -> None:
    explained = section(text, "Lines of the log")
    assert [fact for fact in _ATTRIBUTES if f"`{fact}`" not in explained] == []


def alerts(text: str) -> list[dict[str, Any]]:
    block = section(text, "Alerts").split("```yaml\n", 1)[1].split("```", 1)[0]
    (group,) = yaml.safe_load(block)["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def test_alerts_ask_for_series_a_server_has(text: str, server: RunningServer) -> None:
    with server.http() as client:
        body = {"messages": [{"role": "user", "content": "Hola"}], "max_tokens": 1}
        client.post("/v1/chat/completions", json=body).raise_for_status()
        page = Page(client.get("/metrics").text + 'up{job="vllm-axion"} 1\n')
    missing = {rule["alert"]: page.lacks(rule["expr"], open_labels=["status"]) for rule in alerts(text)}
    assert {name: lacks for name, lacks in missing.items() if lacks} == {}


def test_alerts_say_which_label_the_expression_leaves(text: str) -> None:
    names = [rule["alert"] for rule in alerts(text)]
    assert len(set(names)) == len(names) >= 10
    for rule in alerts(text):
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            grouped = re.search(r"by \(([\w, ]+)\)", rule["expr"])
            assert grouped is None or label in grouped[1].split(", "), rule["alert"]


def test_every_link_within_the_page_leads_somewhere(text: str, repository: Path) -> None:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    linked = re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text)
    assert len(linked) > 10
    for page, anchor in linked:
        if page:
            assert (repository / "docs" / page).is_file(), page
        else:
            assert anchor in anchors, anchor
