"""Two kinds of plots as SVG: bars for systems side by side, lines over a size that grows tenfold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH = 680
_COLOURS = {"requeue": "#2a6f97", "": "#2a6f97"}
_OTHER = "#a9a9a9"
_STYLE = "font-family='sans-serif' font-size='12' fill='#222'"


def bars(title: str, unit: str, values: Mapping[str, float]) -> str:
    """Horizontal bars, one for each label, with its value behind it."""
    longest = max(values.values())
    left, right, step = 170, 90, 26
    shapes = [_text(10, 20, title, "bold")]
    for row, (label, value) in enumerate(values.items()):
        y = 36 + row * step
        width = (WIDTH - left - right) * value / longest
        colour = _COLOURS.get(label.partition(" ")[0], _OTHER)
        shapes.append(_text(left - 8, y + 14, label, anchor="end"))
        shapes.append(f"<rect x='{left}' y='{y}' width='{width:.1f}' height='18' fill='{colour}'/>")
        shapes.append(_text(left + width + 6, y + 14, f"{value:,.0f}{unit}"))
    return _svg(shapes, 44 + len(values) * step)


def lines(title: str, axis: str, panels: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """A panel for each series of (size, value): size on a logarithmic axis, value from zero."""
    height, left, top = 130, 90, 34
    shapes = [_text(10, 20, title, "bold")]
    for row, (name, points) in enumerate(panels.items()):
        y0 = top + row * (height + 40)
        highest = max(value for _, value in points) * 1.15
        low, high = (math.log10(edge) for edge in (points[0][0], points[-1][0]))

        def place(
            size: float,
            value: float,
            y0: float = y0,
            top_value: float = highest,
            low: float = low,
            high: float = high,
        ) -> tuple[float, float]:
            across = (math.log10(size) - low) / (high - low or 1)
            return left + across * (WIDTH - left - 60), y0 + height * (1 - value / top_value)

        shapes.append(f"<path d='M{left} {y0} V{y0 + height} H{WIDTH - 40}' fill='none' stroke='#999'/>")
        shapes.append(_text(left, y0 + 2, name))
        at = [place(size, value) for size, value in points]
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in at)
        shapes.append(f"<path d='M{path}' fill='none' stroke='#2a6f97' stroke-width='2'/>")
        for (x, y), (size, value) in zip(at, points, strict=True):
            shapes.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='#2a6f97'/>")
            shapes.append(
                _text(x, y - 8, f"{value:,.0f}" if value >= 100 else f"{value:.1f}", anchor="middle")
            )
            shapes.append(_text(x, y0 + height + 15, f"{size:,.0f}", anchor="middle"))
    bottom = top + len(panels) * (height + 40)
    shapes.append(_text(WIDTH / 2, bottom, axis, anchor="middle"))
    return _svg(shapes, bottom + 12)


def _text(x: float, y: float, text: str, weight: str = "normal", anchor: str = "start") -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-weight='{weight}' text-anchor='{anchor}'>{escape(text)}</text>"
    )


def _svg(shapes: Sequence[str], height: float) -> str:
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:.0f}' width='{WIDTH}' {_STYLE}>"
    ground = f"<rect width='{WIDTH}' height='{height:.0f}' fill='#fff'/>"
    return "\n".join([head, ground, *shapes, "</svg>"]) + "\n"
