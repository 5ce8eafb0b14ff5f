"""What every picture is drawn on: colours, style, and a figure without matplotlib's global state.

matplotlib is optional (`pip install 'resque-ext[plots]'`). No display is needed. The same values
give the same file byte for byte with the same matplotlib.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from resque_ext.errors import needing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which all kinds of colour vision tell apart; with a marker each, twice
# over with other markers, they are 14 kinds, and again from the start after that.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d", "*", "8")
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "path",  # as text it would look otherwise where the font is missing
    "svg.hashsalt": "resque_ext",  # else the names inside an SVG are random
    "savefig.dpi": 110,
}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """matplotlib's own defaults and `STYLE`, whatever the caller's are, which come back."""
    with needing("figures", "matplotlib", "matplotlib", "plots"):
        import matplotlib
    # Not the backend: a look at it would choose one, and import what that needs.
    names = [name for name in matplotlib.rcParamsDefault if not name.startswith("backend")]
    default = {name: matplotlib.rcParamsDefault[name] for name in names}
    with matplotlib.rc_context(default | STYLE):
        yield


def make_figure(
    size: tuple[float, float], rows: int = 1, columns: int = 1, share: bool = True
) -> tuple[Figure, Any]:
    """A figure and its axes, inside :func:`styled`. A notebook shows it at the end of a cell."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class Picture(Figure):
        """Without pyplot a notebook does not know how to show a figure."""

        def _repr_png_(self) -> bytes:
            text = io.BytesIO()
            with styled():
                self.savefig(text, format="png", metadata={"Software": None})
            return text.getvalue()

    figure = Picture(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, sharex=share, sharey=share)


def legend(figure: Figure) -> None:
    """Outside of the axes, so that it covers no point."""
    figure.legend(loc="outside right upper", fontsize=9, handlelength=1.6, labelspacing=0.55)


def looks(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """Each name once with its colour and marker, in the order given."""
    return [
        (name, COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(dict.fromkeys(names))
    ]


def words(name: str) -> str:
    """A name of a column as people read it."""
    known = {"resque_dist": "RESQUE_dist", "resque_dist_reestimated": "RESQUE_dist, re-estimated"}
    return known.get(name, name.replace("_", " "))


def draw_costs(
    axes: Axes, points: Sequence[tuple[float, float, bool]], label: str, color: str, marker: str
) -> None:
    """(x, cost, censored) of one kind; a censored cost is open, with an arrow upwards."""
    style = {"color": color, "marker": marker, "linestyle": "", "markersize": 6.5}
    known = [(x, y) for x, y, censored in points if not censored]
    stopped = [(x, y) for x, y, censored in points if censored]
    axes.plot(*zip(*known, strict=True) if known else ([], []), label=label, **style)
    for x, y in stopped:
        axes.plot([x], [y], markerfacecolor="white", markeredgewidth=1.4, **style)
        axes.annotate(
            "",
            (x, y),
            xytext=(0, 17),
            textcoords="offset points",
            arrowprops={"arrowstyle": "<-", "color": color, "shrinkB": 3.5, "lw": 1.2},
        )


def explain_censored(axes: Axes) -> None:
    """A line of the legend for the arrows of :func:`draw_costs`."""
    stopped = {"color": "0.35", "markerfacecolor": "white", "linestyle": ""}
    axes.plot([], [], marker=r"$\uparrow$", label="stopped short: costs more", **stopped)
