"""Bar charts as SVG: ratios on a logarithmic axis, readable on a white and on a dark page."""

import math
from xml.sax.saxutils import escape

COLOURS = ("#3b82f6", "#f08c2e")
LEAST, MOST = 0.5, 32
LEFT, WIDTH, TOP = 270, 500, 62
BAR, GAP = 10, 9
STYLE = """
  text { font: 12px sans-serif; fill: #24292f; }
  .small { font-size: 10px; }
  .page { fill: #ffffff; }
  .line { stroke: #d0d7de; }
  .one { stroke: #57606a; }
  .goal { stroke: #1a7f37; stroke-width: 2; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .page { fill: #0d1117; }
    .line { stroke: #30363d; }
    .one { stroke: #8b949e; }
    .goal { stroke: #56d364; }
  }
"""


def place(value):
    """Where a ratio lies on the axis; what is outside lies at its end."""
    bounded = min(max(value, LEAST), MOST)
    return LEFT + WIDTH * math.log2(bounded / LEAST) / math.log2(MOST / LEAST)


def text(x, y, words, kind=""):
    return f'<text x="{x:.0f}" y="{y:.0f}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{escape(words)}</text>'


def upright(x, y, end, kind):
    return f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{y:.0f}" y2="{end:.0f}"/>'


def chart(title, labels, lines):
    """`lines`: (name, [ratio or None for each label], goal or None)."""
    step = BAR * len(labels) + GAP
    width, height = LEFT + WIDTH + 50, TOP + len(lines) * step + 8
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">']
    out += [f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", '<rect class="page" width="100%" height="100%"/>', text(10, 18, title)]
    keys = list(zip(labels, COLOURS))
    for at, (label, colour) in enumerate(keys):
        out.append(f'<rect x="{10 + at * 230}" y="28" width="10" height="10" fill="{colour}"/>')
        out.append(text(25 + at * 230, 37, label))
    out += [upright(10 + len(keys) * 230, 27, 39, "goal"), text(18 + len(keys) * 230, 37, "goal")]
    mark = LEAST
    while mark <= MOST:
        out.append(upright(place(mark), TOP - 6, height - 6, "one" if mark == 1 else "line"))
        out.append(text(place(mark) + 2, TOP - 8, f"{mark:g}x", "small"))
        mark *= 2
    for at, (name, ratios, goal) in enumerate(lines):
        y = TOP + at * step
        out.append(text(10, y + step / 2, name))
        for value, (_, colour) in zip(ratios, keys):
            if value is not None:
                start, end = sorted((place(1), place(value)))
                out.append(f'<rect x="{start:.1f}" y="{y}" width="{max(end - start, 1):.1f}" height="{BAR - 1}" fill="{colour}"/>')
                # Not on the mark of the goal.
                beside = place(goal) if goal and end < place(goal) < end + 28 else end
                out.append(text(beside + 3, y + BAR - 1, f"{value:.2f}", "small"))
            y += BAR
        if goal:
            out.append(upright(place(goal), y - BAR * len(ratios) - 1, y, "goal"))
    return "\n".join(out + ["</svg>"]) + "\n"
