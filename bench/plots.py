# SPDX-License-Identifier: Apache-2.0
"""Plots of results, where matplotlib is installed (the extra `bench`)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def figure_of_lines(
    path: Path,
    title: str,
    x_label: str,
    x: Sequence[float],
    panels: Mapping[str, Mapping[str, Sequence[float]]],
) -> None:
    """One panel below the other, each with its named lines over the same ``x``."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: pip install vllm-axion[bench]", file=sys.stderr)
        return
    figure = Figure(figsize=(8, 3 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axis, (name, lines) in zip(axes, panels.items(), strict=True):
        for label, y in lines.items():
            axis.plot(x, y, label=label)
        axis.set_ylim(bottom=0)
        axis.set_ylabel(name)
        axis.legend(fontsize="small")
    axes[-1].set_xlabel(x_label)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def figure_of_bars(path: Path, title: str, bars: Sequence[tuple[str, float, float, float]]) -> None:
    """Horizontal bars ``(label, value, least, most)``, each a share of its target: up to 1 it is met."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: pip install vllm-axion[bench]", file=sys.stderr)
        return
    figure = Figure(figsize=(9, 0.5 * len(bars) + 1.5), layout="constrained")
    axis = figure.subplots()
    places = range(len(bars))
    values = [value for _, value, _, _ in bars]
    spread = [
        [max(0.0, value - least) for _, value, least, _ in bars],
        [max(0.0, most - value) for _, value, _, most in bars],
    ]
    colours = ["tab:green" if value <= 1 else "tab:red" for value in values]
    axis.barh(places, values, xerr=spread, color=colours)
    axis.set_yticks(places, [label for label, _, _, _ in bars])
    axis.invert_yaxis()
    axis.axvline(1.0, color="black", linewidth=1)
    axis.set_xlabel("share of the target (1 = exactly met; less is better)")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
