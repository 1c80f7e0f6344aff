"""`octavo bench waste --plot`: one picture of what paging and sharing do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo_server.bench.errors import BenchError

INK, GRID = "#24292f", "#d8dee4"
USED, WASTED, BOUND, PALE = "#2a7f62", "#d9a441", "#b3372f", "#9ab8ac"


def require_matplotlib(path: Path) -> None:
    """Before the measurement: raises BenchError where the picture could not be drawn or saved in the end."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise BenchError("--plot needs matplotlib, which is not installed: pip install 'octavo[bench]'.") from None
    if not path.parent.is_dir():
        raise BenchError(f"--plot {path}: there is no directory {path.parent}.")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise BenchError(f"--plot {path}: the name must end in .png, .svg or .pdf.")


def plot_waste(results: dict[str, Any], engine: dict[str, Any], path: Path) -> None:
    """Four panels from the results of `octavo bench waste`, as a file of the kind that `path` names."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # No pyplot: it keeps global state and looks for a screen.
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    _allocators(panels[0][0], results)
    _steps(panels[0][1], results)
    _block_sizes(panels[1][0], results, engine["block_size"])
    _sharing(panels[1][1], results)
    figure.suptitle(
        f"KV cache of {engine['model']} on {engine['backend']}, blocks of {engine['block_size']} tokens",
        color=INK,
        fontsize=13,
    )
    figure.savefig(path, dpi=150)


def _allocators(panel: Any, results: dict[str, Any]) -> None:
    rows = {name: 1 - each["overall"] for name, each in reversed(results["contiguous"].items())}
    rows = {"paged (octavo)": 1 - results["paged"]["overall"], **rows}
    names = [name.replace(" (", "\n(") for name in rows]
    used = [100 * part for part in rows.values()]
    panel.barh(names, used, color=USED, height=0.62, label="holds a token")
    panel.barh(names, [100 - part for part in used], left=used, color=WASTED, height=0.62, label="wasted")
    for row, part in enumerate(used):
        inside = part > 15  # a short bar has no room for its figure
        place, color = (part / 2, "white") if inside else (part + 2, INK)
        align = "center" if inside else "left"
        panel.text(place, row, f"{part:.1f} %", ha=align, va="center", color=color, fontsize=10)
    panel.invert_yaxis()
    panel.set_xlim(0, 100)
    panel.tick_params(axis="y", length=0)
    _finish(panel, "Allocated memory, over all steps", "% of allocated slots", "", grid=None)
    panel.legend(loc="lower left", bbox_to_anchor=(0, 1.06), ncols=2, fontsize=8, frameon=False)


def _steps(panel: Any, results: dict[str, Any]) -> None:
    rows = [row for row in results["samples"]["mixed"] if row[1]]
    panel.plot([100 * (1 - used / allocated) for _, allocated, used, _ in rows], color=USED, linewidth=1.4)
    panel.axhline(100 * results["bound"], color=BOUND, linewidth=1, linestyle="--")
    panel.set_ylim(bottom=0)
    mean = 100 * results["paged"]["mean"]
    _finish(panel, f"Waste after each step (mean {mean:.2f} %)", "engine step", "% of allocated slots")
    count = panel.twinx()
    count.fill_between(range(len(rows)), [row[0] for row in rows], color=GRID, alpha=0.55, linewidth=0)
    count.set_ylabel("running requests", color="#6e7781", fontsize=9)
    count.tick_params(colors="#6e7781", labelsize=8)
    count.set_ylim(bottom=0)
    count.yaxis.get_major_locator().set_params(integer=True)
    count.spines[["top", "left"]].set_visible(False)
    count.spines["right"].set_color(GRID)
    panel.set_zorder(count.get_zorder() + 1)  # the line stands in front of the requests' shadow
    panel.patch.set_visible(False)


def _block_sizes(panel: Any, results: dict[str, Any], own: int) -> None:
    sizes = results["block_sizes"]
    means = [100 * each["mean"] for each in sizes.values()]
    colors = [USED if int(size) == own else PALE for size in sizes]
    bars = panel.bar(list(sizes), means, color=colors, width=0.62)
    bound = 100 * results["bound"]
    panel.axhline(bound, color=BOUND, linewidth=1, linestyle="--")
    panel.text(-0.4, bound + 0.35, f"PagedAttention's {bound:.0f} %", color=BOUND, fontsize=8, va="bottom")
    for label in panel.bar_label(bars, fmt="%.2f %%", fontsize=9, padding=3, color=INK):
        # On top of the line where the two meet.
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
    panel.margins(y=0.15)
    _finish(panel, "Waste by block size (mean over steps)", "tokens a block", "% of allocated slots")


def _sharing(panel: Any, results: dict[str, Any]) -> None:
    completions = results["completions"]
    rows = [(step, row) for step, row in enumerate(results["samples"]["completions"]) if row[3]]
    steps = [step for step, _ in rows]
    shared, unshared = [row[1] for _, row in rows], [row[3] for _, row in rows]
    label = "saved by sharing"
    panel.fill_between(steps, shared, unshared, color=WASTED, alpha=0.45, linewidth=0, label=label)
    panel.plot(steps, unshared, color=WASTED, linewidth=1.2, label="every completion its own blocks")
    panel.plot(steps, shared, color=USED, linewidth=1.4, label="prompt blocks shared")
    panel.set_ylim(bottom=0)
    title = f"n = {completions['n']}: sharing saves {100 * completions['saved']:.1f} %"
    _finish(panel, title, "engine step", "allocated slots")
    panel.legend(fontsize=8, framealpha=0.95)


def _finish(panel: Any, title: str, x: str, y: str, grid: str | None = "y") -> None:
    panel.set_title(title, fontsize=10.5, color=INK, loc="left")
    panel.set_xlabel(x, fontsize=9, color=INK)
    panel.set_ylabel(y, fontsize=9, color=INK)
    panel.tick_params(labelsize=8, colors=INK)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(GRID)
    if grid:
        panel.grid(axis=grid, color=GRID, linewidth=0.6)
        panel.set_axisbelow(True)
