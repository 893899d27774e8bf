# SPDX-License-Identifier: Apache-2.0
"""The dashboard in `entrypoints/deploy/grafana` against what a real server shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.promql import Page, asked, without_variables
from tests.serving.running_server import RunningServer
from vllm_axion.serving.residency import State

CHAT = {"messages": [{"role": "user", "content": "Hola"}], "max_tokens": 3}


@pytest.fixture(scope="module")
def dashboard(repository: Path) -> dict[str, Any]:
    path = repository / "entrypoints" / "deploy" / "grafana" / "vllm-axion.json"
    made: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return made


@pytest.fixture(scope="module")
def page(server: RunningServer) -> Page:
    """Metrics after one routed request, as a Prometheus sees them that asks for nothing else."""
    with server.http() as client:
        client.post("/v1/chat/completions", json={**CHAT, "model": "auto"}).raise_for_status()
        return Page(client.get("/metrics").text)


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def charts(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in panels(dashboard) if panel["type"] != "row"]


def test_it_has_the_shape_grafana_imports(dashboard: dict[str, Any]) -> None:
    assert dashboard["id"] is None, "Grafana gives it one"
    assert dashboard["uid"] == "vllm-axion"
    assert dashboard["schemaVersion"] >= 38, "Grafana 10"
    ids = [panel["id"] for panel in panels(dashboard)]
    assert len(set(ids)) == len(ids)
    for panel in charts(dashboard):
        assert panel["title"] and panel["targets"], panel["id"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references), panel["title"]


def test_no_panel_covers_another_and_none_is_off_the_grid(dashboard: dict[str, Any]) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels(dashboard):
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), panel["title"]) is panel["title"]


def test_every_panel_asks_the_data_source_that_is_chosen(dashboard: dict[str, Any]) -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["expert"]["type"] == "query"
    assert variables["expert"]["datasource"] == chosen
    for panel in charts(dashboard):
        assert panel["datasource"] == chosen
        assert all(target["datasource"] == chosen for target in panel["targets"])


def test_every_series_and_label_it_asks_for_is_on_a_servers_page(
    dashboard: dict[str, Any], page: Page
) -> None:
    expressions = [target["expr"] for panel in charts(dashboard) for target in panel["targets"]]
    assert len(expressions) > 30
    missing = {
        expression: lacks
        for expression in expressions
        if (lacks := page.lacks(without_variables(expression), open_labels=["status"]))
    }
    assert missing == {}


def test_the_list_of_experts_comes_from_a_series_there_is(dashboard: dict[str, Any], page: Page) -> None:
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    query = variables["expert"]["query"]["query"]
    series, label = query.removeprefix("label_values(").removesuffix(")").split(", ")
    assert "qwen_coder" in page.values[series][label]


def test_every_state_has_its_number_name_and_colour(dashboard: dict[str, Any]) -> None:
    (timeline,) = [panel for panel in panels(dashboard) if panel["type"] == "state-timeline"]
    (mapping,) = timeline["fieldConfig"]["defaults"]["mappings"]
    named = {shown["text"]: int(number) for number, shown in mapping["options"].items()}
    assert named.keys() == set(State)
    expression = timeline["targets"][0]["expr"]
    for state, number in named.items():
        asks = f'{number} * vllm_axion:expert_state{{expert=~"$expert", state="{state}"}}'
        assert (asks in expression) == (number > 0), "0 is what is left when no other is 1"
    assert len({shown["color"] for shown in mapping["options"].values()}) == len(State)


def test_panels_tell_experts_apart_by_the_label_of_their_series(dashboard: dict[str, Any]) -> None:
    for panel in charts(dashboard):
        for target in panel["targets"]:
            for selector in asked(without_variables(target["expr"])):
                wrong = "expert" if selector.name.startswith("vllm:") else "model_name"
                assert wrong not in selector.labels, panel["title"]


def test_a_series_that_is_not_there_is_noticed() -> None:
    page = Page('axion_up{expert="a"} 1\n')
    assert page.lacks('axion_up{expert="a"}') == []
    assert page.lacks("rate(axion_down_total[5m])") == ["axion_down_total"]
    assert page.lacks("sum by (model) (axion_up)") == ["axion_up{model}"]
    assert page.lacks('axion_up{expert="b"}') == ['axion_up{expert="b"}']
    assert page.lacks('axion_up{expert="b"}', open_labels=["expert"]) == []
