# SPDX-License-Identifier: Apache-2.0
"""Which series a PromQL expression asks for, and whether a page of `/metrics` has them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import promql_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text


@dataclass(frozen=True)
class Asked:
    """A selector: the series' name and, by label, the value it must equal (None: any, or a pattern)."""

    name: str
    labels: dict[str, str | None] = field(default_factory=dict)


def asked(expression: str) -> list[Asked]:
    """The selectors of an expression, each with the labels it is grouped by. Raises ValueError."""
    tree = promql_parser.parse(expression)
    found: list[Asked] = []

    def visit(node: promql_parser.Expr, groups: tuple[str, ...]) -> None:
        if isinstance(node, promql_parser.AggregateExpr):
            modifier = node.modifier
            if modifier is not None and modifier.type == promql_parser.AggModifierType.By:
                groups = tuple(modifier.labels)
            visit(node.expr, groups)
        elif isinstance(node, promql_parser.Call):
            for argument in node.args:
                visit(argument, groups)
        elif isinstance(node, promql_parser.BinaryExpr):
            visit(node.lhs, groups)
            visit(node.rhs, groups)
        elif isinstance(node, (promql_parser.ParenExpr, promql_parser.SubqueryExpr, promql_parser.UnaryExpr)):
            visit(node.expr, groups)
        elif isinstance(node, promql_parser.MatrixSelector):
            visit(node.vector_selector, groups)
        elif isinstance(node, promql_parser.VectorSelector):
            exact = {
                m.name: m.value if m.op == promql_parser.MatchOp.Equal else None
                for m in node.matchers.matchers
            }
            found.append(Asked(node.name or "", {**dict.fromkeys(groups), **exact}))

    visit(tree, ())
    return found


class Page:
    """A page of `/metrics`: the label values of each series."""

    def __init__(self, text: str) -> None:
        self.values: dict[str, dict[str, set[str]]] = {}
        for family in parse_text(text):
            for sample in family.samples:
                labels = self.values.setdefault(sample.name, {})
                for label, value in sample.labels.items():
                    labels.setdefault(label, set()).add(value)

    def lacks(self, expression: str, *, open_labels: Iterable[str] = ()) -> list[str]:
        """What an expression asks for that the page has not; values of `open_labels` are not looked at,
        since not all of them need have occurred.
        """
        missing = []
        for selector in asked(expression):
            if selector.name not in self.values:
                missing.append(selector.name)
                continue
            labels = self.values[selector.name]
            for label, value in selector.labels.items():
                if label not in labels:
                    missing.append(f"{selector.name}{{{label}}}")
                elif value is not None and label not in open_labels and value not in labels[label]:
                    missing.append(f'{selector.name}{{{label}="{value}"}}')
        return missing


def without_variables(expression: str) -> str:
    """An expression of a dashboard with Grafana's variables filled in."""
    return re.sub(r"\$\{?expert\}?", ".*", expression.replace("$__rate_interval", "5m"))
