"""Medians, spreads, tables and JSON of the measurements of scripts/bench: see its head."""

import argparse
import collections
import json
import os
import pathlib
import statistics
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import layers  # noqa: E402
import mounts  # noqa: E402
import plot  # noqa: E402
import prepare  # noqa: E402
import rows  # noqa: E402


FEW = 100  # requests; what fewer of them take is no row's time


def condense(found):
    """Median, quartiles and number of the measurements of one subject in one row."""
    good = [one for one in found if "error" not in one]
    if len(good) < len(found):
        return {"error": next(one["error"] for one in found if "error" in one)}
    out = {"runs": len(good)}
    for key in ("wall", "cpu", "server", "value"):
        values = [one[key] for one in good if key in one]
        if values:
            out[key] = statistics.median(values)
    asked = [one["requests"] for one in good if "requests" in one]
    if asked:
        kinds = {kind for one in asked for kind in one}
        middle = {kind: [statistics.median(one.get(kind, (0, 0))[part] for one in asked) for part in (0, 1)] for kind in kinds}
        out["requests"] = {kind: found for kind, found in sorted(middle.items(), key=lambda pair: -pair[1][1]) if found[0] > 0}
    values = [one.get("value", one.get("wall")) for one in good]
    quarters = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return out | {"low": quarters[0], "high": quarters[2]}


def collect(lines):
    """{mode: {"subjects": [...], "rows": {row: {subject: condensed}}, "layers": the same of the rows of layers}}"""
    modes = {}
    for one in map(json.loads, lines):
        tables = {key: collections.defaultdict(lambda: collections.defaultdict(list)) for key in ("rows", "layers")}
        mode = modes.setdefault(one["mode"], {"subjects": []} | tables)
        if "subjects" in one:
            mode["subjects"] = one["subjects"]
        else:
            key = "layers" if "layers" in one else "rows"
            mode[key][one.get("layers") or one["row"]][one["subject"]].append(one)
    for mode in modes.values():
        for key in ("rows", "layers"):
            mode[key] = {row: {name: condense(found) for name, found in by_name.items()} for row, by_name in mode[key].items()}
    return modes


def ratio(results, row, name, key="wall"):
    """To the kernel's overlay; or, where the row is held against another, to the same filesystem there."""
    mine = results.get(row.name, {}).get(name, {}).get(key)
    base = results.get(row.against or row.name, {}).get(name if row.against else "kernel", {}).get(key)
    return mine / base if mine is not None and base else None


def is_ring(name):
    return "ring" in name.split("+")


def verdict(results, row, mode, name):
    """(the goal is missed, not fast enough beside fuse-overlayfs), for a variant of plyfs."""
    if name in mounts.PEERS:
        return False, False
    found = results.get(row.name, {})
    if row.value:
        return found.get(name, {}).get("value", 0) > row.most, False
    mine, wanted = ratio(results, row, name), rows.goal(row, mode, is_ring(name))
    wall, peer = found.get(name, {}).get("wall"), found.get("fuse-overlayfs", {}).get("wall")
    missed = mine is not None and wanted is not None and mine > wanted
    slow = wall is not None and peer is not None and peer < wall * row.faster[0 if is_ring(name) else 1]
    return missed, slow


def cell(results, row, mode, name):
    found = results.get(row.name, {}).get(name)
    if not found:
        return "-"
    if "error" in found:
        return "error"
    missed, slow = verdict(results, row, mode, name)
    marks = "!" * missed + "<" * slow
    if row.value:
        return f"{found['value']:.1f} {row.unit}{marks}"
    middle, value = found["wall"], ratio(results, row, name)
    spread = f"{50 * (found['high'] - found['low']) / middle:.0f}%"
    return f"{value:.2f} {spread}{marks}" if value is not None else f"{middle:.3f}s {spread}"


def wanted(row, mode):
    if row.value:
        return f"{row.most:g} {row.unit}"
    both = [rows.goal(row, mode, ring) for ring in (True, False)]
    return " / ".join(f"{one:g}" for one in both) if both[0] else ""


def title(row, scale):
    return row.what.format(units=scale["units"])


def line(label, cells):
    return f"{label[:40]:41}" + "".join(f"{text:>{max(14, width)}}" for text, width in cells)


def print_tables(mode, found, scale):
    results, names = found["rows"], [name for name in found["subjects"] if name != "kernel"]
    shown = [row for row in rows.ROWS if row.name in results]
    widths = [len(name) + 2 for name in names]
    print(f"\n{mode}: wall time; the kernel's overlay in seconds, the others as a ratio to it (64 and 400 layers: to their own time")
    print("with one layer), and the spread; ! misses the goal (ring / classic), < is not fast enough beside fuse-overlayfs")
    print(line("", [("kernel", 0)] + list(zip(names, widths)) + [("goal", 0)]))
    for row in shown:
        kernel = results[row.name].get("kernel", {})
        text = f"{kernel['wall']:.4f} {50 * (kernel['high'] - kernel['low']) / kernel['wall']:.0f}%" if "wall" in kernel else cell(results, row, mode, "kernel")
        cells = [cell(results, row, mode, name) for name in names]
        print(line(title(row, scale), [(text, 0)] + list(zip(cells, widths)) + [(wanted(row, mode), 0)]))
    print(f"\n{mode}: CPU time of client and server together, as a ratio to the kernel's overlay; in brackets the server's share")
    print(line("", list(zip(names, widths))))
    for row in [row for row in shown if not row.value and not row.against]:
        cells = []
        for name in names:
            value, one = ratio(results, row, name, "cpu"), results[row.name].get(name, {})
            cells.append(f"{value:.2f} [{100 * one['server'] / max(one['cpu'], 1e-9):.0f}%]" if value is not None else "-")
        print(line(title(row, scale), list(zip(cells, widths))))


def profile(kernel, found):
    """[how many requests, microseconds for each: whole, in handlers, CPU of the server, CPU of the program, left] of a row. What
    the kernel's overlay takes for the row is none of the requests' time; what is left is waiting and waking."""
    count = sum(n for n, _ in found["requests"].values())
    work = sum(seconds for _, seconds in found["requests"].values())
    more, client = found["wall"] - kernel["wall"], found["cpu"] - found["server"] - kernel["cpu"]
    return [count] + [1e6 * seconds / max(count, 1) for seconds in (more, work, found["server"], client, more - found["server"] - client)]


def print_profile(mode, found, scale):
    results = found["rows"]
    print(f"\n{mode}: where the time goes that a row takes beyond the kernel's overlay; microseconds a request: all of it, the calls of the")
    print("handlers (on classic with the answer), CPU of the server, CPU of the program beyond the kernel's, and the rest: waiting and waking")
    for name in [name for name in found["subjects"] if name not in mounts.PEERS]:
        print(line(name, [(text, 0) for text in ("requests", "all", "handlers", "server", "program", "rest")]) + "  most time in")
        for row in [row for row in rows.ROWS if row.name in results]:
            one, kernel = results[row.name].get(name, {}), results[row.name].get("kernel", {})
            if "requests" not in one or "wall" not in kernel:
                continue
            cells = profile(kernel, one)
            if cells[0] < FEW:
                continue
            most = ", ".join(f"{kind} {n:.0f} x {1e6 * seconds / n:.1f}" for kind, (n, seconds) in list(one["requests"].items())[:4])
            print(line(title(row, scale), [(f"{cells[0]:.0f}", 0)] + [(f"{cell:.1f}", 0) for cell in cells[1:]]) + f"  {most}")


def layer_verdict(row, found):
    """(the ratio or None, whether the goal is missed) of a row of layers."""
    mine, base = found.get("plyfs", {}), found.get(row.against, {})
    ratio = mine["wall"] / base["wall"] if "wall" in mine and base.get("wall") else None
    return ratio, bool(row.goal and ratio and ratio > row.goal) or bool(row.most and mine.get("value", 0) > row.most)


def print_layers(mode, found, scale):
    """Returns how many rows ended in an error."""
    shown = [row for row in layers.ROWS if row.name in found]
    errors = 0
    print(f"\n{mode}: layers; the ratio is to tar, of what writes a tree to tar and sync -f; ! misses the goal")
    print(line("", [(text, 0) for text in ("plyfs", "tar", "tar+sync", "ratio", "goal")]))
    for row in shown:
        ratio, missed = layer_verdict(row, found[row.name])
        cells = []
        for subject in ("plyfs", "tar", "tar+sync"):
            one = found[row.name].get(subject, {})
            value = one.get("wall", one.get("value"))
            if value is None:
                cells.append("error" if one else "-")
                continue
            cells.append(f"{value:.3f} {row.unit}" if row.unit == "s" else f"{value:.1f} {row.unit}")
        mark = "!" * missed
        cells.append(f"{ratio:.2f}{mark}" if ratio else mark or "-")
        cells.append(f"{row.goal:g}" if row.goal else f"{row.most:g} {row.unit}" if row.most else "")
        print(line(row.what.format(**scale), [(text, 0) for text in cells]))
    for row in shown:
        for subject, one in found[row.name].items():
            if "error" in one:
                print(f"{mode} {subject}: {row.what.format(**scale)}: error: {one['error']}")
                errors += subject == "plyfs"
    return errors


def print_verdicts(mode, found, scale):
    """Errors, a line each, and a count for each variant; returns how many rows of plyfs ended in an error."""
    errors = 0
    shown = [row for row in rows.ROWS if row.name in found["rows"]]
    for name in found["subjects"]:
        met = missed = slower = 0
        for row in shown:
            one = found["rows"][row.name].get(name, {})
            if "error" in one:
                print(f"{mode} {name}: {title(row, scale)}: error: {one['error']}")
                errors += name not in mounts.PEERS
                continue
            bad, slow = verdict(found["rows"], row, mode, name)
            judged = row.value or (rows.goal(row, mode, is_ring(name)) and ratio(found["rows"], row, name) is not None)
            missed += bad
            met += bool(judged and one and not bad)
            slower += slow
        if name not in mounts.PEERS:
            print(f"{mode} {name}: {met} goals met, {missed} missed; on {slower} rows not fast enough beside fuse-overlayfs")
    return errors


def main():
    parse = argparse.ArgumentParser()
    parse.add_argument("file")
    parse.add_argument("--machine", default="", help="one word=value a line")
    parse.add_argument("--quick", action="store_true")
    parse.add_argument("--json")
    parse.add_argument("--plot")
    parse.add_argument("--tag", default="", help="what the machine was set to, for the names of the charts")
    args = parse.parse_args()
    modes = collect(pathlib.Path(args.file).read_text().splitlines())
    scale = vars(prepare.QUICK if args.quick else prepare.Scale())
    layer_scale = vars(layers.QUICK if args.quick else layers.Scale())
    errors = 0
    for mode, found in modes.items():
        if found["rows"]:
            print_tables(mode, found, scale)
            if any("requests" in one for by_name in found["rows"].values() for one in by_name.values()):
                print_profile(mode, found, scale)
        if found["layers"]:
            errors += print_layers(mode, found["layers"], layer_scale)
    print()
    for mode, found in modes.items():
        errors += print_verdicts(mode, found, scale)
    if args.json:
        machine = dict(one.split("=", 1) for one in args.machine.splitlines())
        text = json.dumps({"machine": machine, "scale": scale, "layers": layer_scale, "modes": modes}, indent=1)
        pathlib.Path(args.json).write_text(text + "\n")
    if args.plot:
        pathlib.Path(args.plot).mkdir(parents=True, exist_ok=True)
        for mode, found in modes.items():
            draw(mode, found, scale, pathlib.Path(args.plot), args.tag)
    sys.exit(1 if errors or not modes else 0)


def draw(mode, found, scale, directory, tag=""):
    """One chart for each variant of plyfs, with fuse-overlayfs beside it."""
    where = "-".join(filter(None, (mode, tag)))
    shown = [row for row in rows.ROWS if row.name in found["rows"] and not row.value and not row.against]
    for name in [name for name in found["subjects"] if name not in mounts.PEERS]:
        bars = [(f"plyfs {name.replace('+', ', ')}", name), ("fuse-overlayfs", "fuse-overlayfs")]
        lines = [(title(row, scale), [ratio(found["rows"], row, subject) for _, subject in bars], rows.goal(row, mode, is_ring(name))) for row in shown]
        path = directory / f"{where}-{name.replace('+', '-').replace('=', '-')}.svg"
        path.write_text(plot.chart(f"{where}: time as a ratio to the kernel's overlay, shorter is better", [label for label, _ in bars], lines))
        print(f"drawn: {path}")


if __name__ == "__main__":
    main()
