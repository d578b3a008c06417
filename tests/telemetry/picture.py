"""Draws panels of the Grafana dashboard as an SVG."""

from html import escape

WIDTH, HEIGHT, LEGEND = 560, 210, 34
LEFT, TOP, RIGHT, BOTTOM = 58, 36, 16, 26
COLOURS = ["#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0"]


def amount(value, unit):
    if unit == "s":
        return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
    return f"{value:.3g}{'/s' if unit in ('reqps', 'ops', 'cps') else ''}"


def name(target, labels):
    """As Grafana fills legendFormat in."""
    text = target["legendFormat"]
    for key in {part.split("}}")[0] for part in text.split("{{")[1:]}:
        text = text.replace(f"{{{{{key}}}}}", labels.get(key.strip()) or "(none)")
    return text


def panel_at(x, y, panel, series, began, ended):
    unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit")
    # What stays at zero would fill the legend.
    series = [(target, each) for target, each in series if any(value not in ("0", "NaN") for _, value in each["values"])]
    numbers = [[(float(at), float(value)) for at, value in each["values"] if value != "NaN"] for _, each in series]
    top = max((value for each in numbers for _, value in each), default=0) * 1.1 or 1
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    horizontal = lambda at: LEFT + (at - began) / (ended - began) * width
    vertical = lambda value: TOP + height - value / top * height
    yield f'<g transform="translate({x} {y})"><rect width="{WIDTH}" height="{HEIGHT + LEGEND}" rx="3" fill="#181b1f" stroke="#2c3235"/>'
    yield f'<text x="12" y="22" class="title">{escape(panel["title"])}</text>'
    for part in range(5):
        value = top * part / 4
        yield f'<path d="M{LEFT} {vertical(value):.1f}h{width}" stroke="#2c3235"/>'
        yield f'<text x="{LEFT - 6}" y="{vertical(value) + 4:.1f}" text-anchor="end">{escape(amount(value, unit))}</text>'
    for second in range(0, int(ended - began) + 1, 15):
        yield f'<text x="{horizontal(began + second):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{second} s</text>'
    at, row = 12, 0
    for index, ((target, each), points) in enumerate(zip(series, numbers)):
        colour = COLOURS[index % len(COLOURS)]
        if points:
            line = " ".join(f"{horizontal(when):.1f},{vertical(value):.1f}" for when, value in points)
            yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        text = name(target, each["metric"])
        if at + 24 + 6.4 * len(text) > WIDTH:
            at, row = 12, row + 1
        if row < 2:
            yield f'<rect x="{at}" y="{HEIGHT + 4 + 14 * row}" width="12" height="4" fill="{colour}"/>'
            yield f'<text x="{at + 17}" y="{HEIGHT + 10 + 14 * row}">{escape(text)}</text>'
        at += 34 + 6.4 * len(text)
    yield "</g>"


def draw(panels, began, ended):
    """Two columns of panels, each with its series: pairs of a query's target and what Prometheus answered."""
    gap, rows = 8, -(-len(panels) // 2)
    size = 2 * WIDTH + 3 * gap, rows * (HEIGHT + LEGEND + gap) + gap
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" height="{size[1]}">',
             "<style>text { font: 11px sans-serif; fill: #ccccdc } .title { font-size: 13px; font-weight: 600 }</style>",
             f'<rect width="{size[0]}" height="{size[1]}" fill="#111217"/>']
    for index, (panel, series) in enumerate(panels):
        x, y = gap + index % 2 * (WIDTH + gap), gap + index // 2 * (HEIGHT + LEGEND + gap)
        lines += panel_at(x, y, panel, series, began, ended)
    return "\n".join([*lines, "</svg>", ""])
