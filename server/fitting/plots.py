"""Plots of what each size keeps, as files that are the same for the same figures."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from server.errors import MissingExtra, OutputFileError

STYLES = (("o-", "#0969a2"), ("s--", "#b4530a"))
PANEL_INCHES = (5.2, 4.2)


class Panel(NamedTuple):
    """One measure at several sizes: lines by label, each with a value a size."""

    title: str
    sizes: Sequence[int]
    lines: Mapping[str, Sequence[float]]


def check_plot(file: Path) -> None:
    """Find out before the work whether `draw` can write this file.

    Raises:
        OutputFileError: its name does not end in .svg or .png, or its folder is not there.
        MissingExtra: matplotlib is not installed.
    """
    if file.suffix not in (".svg", ".png"):
        raise OutputFileError(f"--plot {file}: the name must end in .svg or .png")
    if not file.parent.is_dir():
        raise OutputFileError(f"--plot {file}: there is no folder {file.parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtra("--plot", "matplotlib", "plot")


def draw(panels: Sequence[Panel], file: Path) -> None:
    """Draw the panels side by side on white, to be read on light and dark pages alike.

    Raises:
        OutputFileError: the file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Without a salt the ids inside an SVG are random, and no two files are equal.
    with mpl.rc_context({"svg.hashsalt": "embedding-server", "font.size": 11}):
        width = PANEL_INCHES[0] * len(panels)
        figure = Figure(figsize=(width, PANEL_INCHES[1]), layout="constrained")
        for axes, panel in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            places = range(len(panel.sizes))
            for (label, values), (style, color) in zip(panel.lines.items(), STYLES, strict=False):
                axes.plot(places, values, style, color=color, label=label, linewidth=2)
                for place in places:
                    axes.annotate(
                        f"{values[place]:.1f}", (place, values[place]), color=color, fontsize=9,
                        xytext=(4, 5), textcoords="offset points",
                    )  # fmt: skip
            axes.set_title(panel.title, fontsize=11)
            axes.set_xticks(places, [str(size) for size in panel.sizes])
            axes.set_xlabel("dimensions kept")
            axes.margins(x=0.13, y=0.16)
            axes.grid(axis="y", color="#d8dee4")
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(loc="lower left", frameon=False)
        try:
            figure.savefig(
                file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=150
            )
        except OSError as error:
            raise OutputFileError(f"--plot {file}: {error.strerror}") from error
