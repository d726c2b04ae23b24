"""The arithmetic of scripts/bench; scripts/check runs it."""

import json
import os
import pathlib
import sys
import unittest
import xml.etree.ElementTree

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import layers  # noqa: E402
import measure  # noqa: E402
import mounts  # noqa: E402
import plot  # noqa: E402
import prepare  # noqa: E402
import rows  # noqa: E402
import summary  # noqa: E402


def row(name):
    return next(row for row in rows.ROWS if row.name == name)


def results(name, **walls):
    return {name: {subject.replace("_", "-"): {"wall": wall} for subject, wall in walls.items()}}


class Medians(unittest.TestCase):
    def test_median_and_quartiles_of_all_runs(self):
        found = summary.condense([{"wall": wall, "cpu": 1.0, "server": 0.0} for wall in (5.0, 1.0, 3.0, 2.0, 4.0)])
        self.assertEqual((found["wall"], found["low"], found["high"], found["runs"]), (3.0, 2.0, 4.0, 5))

    def test_one_run_has_no_spread(self):
        found = summary.condense([{"value": 7.0}])
        self.assertEqual((found["value"], found["low"], found["high"]), (7.0, 7.0, 7.0))

    def test_an_error_is_not_averaged_away(self):
        self.assertEqual(summary.condense([{"wall": 1.0}, {"error": "gone"}]), {"error": "gone"})

    def test_measurements_are_kept_apart_by_mode_row_and_subject(self):
        lines = [{"mode": "root", "subjects": ["kernel"]}, {"mode": "rootless", "subjects": ["kernel"]}]
        lines += [{"mode": mode, "row": "cp", "subject": "kernel", "wall": wall} for mode, wall in (("root", 1.0), ("rootless", 2.0), ("root", 3.0))]
        found = summary.collect(map(json.dumps, lines))
        self.assertEqual(found["root"]["rows"]["cp"]["kernel"]["wall"], 2.0)
        self.assertEqual(found["rootless"]["rows"]["cp"]["kernel"]["wall"], 2.0)
        self.assertEqual(found["rootless"]["rows"]["cp"]["kernel"]["runs"], 1)


class Ratios(unittest.TestCase):
    def test_to_the_kernel(self):
        self.assertEqual(summary.ratio(results("cp", kernel=2.0, ring=3.0), row("cp"), "ring"), 1.5)

    def test_many_layers_to_the_same_filesystem_with_one(self):
        found = results("lookup-1", kernel=1.0, ring=2.0) | results("lookup-64", kernel=9.0, ring=2.5)
        self.assertEqual(summary.ratio(found, row("lookup-64"), "ring"), 1.25)

    def test_none_without_a_base(self):
        self.assertIsNone(summary.ratio(results("cp", ring=3.0), row("cp"), "ring"))


class Profiles(unittest.TestCase):
    REPORT = "[2026-01-01T00:00:00Z INFO  plyfs_fuse::stats] /mnt\n    inodes 1\n    request   count  mean us\n    lookup  10  2.5\n    read  4  100.0\n"

    def test_the_report_of_a_server_is_read(self):
        self.assertEqual(mounts.counted(self.REPORT), {"lookup": (10, 2.5e-05), "read": (4, 0.0004)})

    def test_what_was_asked_before_does_not_count(self):
        before, after = {"lookup": (10, 1.0), "read": (4, 1.0)}, {"lookup": (15, 1.5), "read": (4, 1.0), "write": (1, 0.5)}
        self.assertEqual(measure.since(before, after), {"lookup": [5, 0.5], "write": [1, 0.5]})

    def test_time_beyond_the_kernels_is_shared_out_whole(self):
        found = {"wall": 1.1, "cpu": 0.7, "server": 0.4, "requests": {"lookup": [1000, 0.2], "create": [1000, 0.1]}}
        cells = summary.profile({"wall": 0.1, "cpu": 0.1}, found)
        self.assertEqual([round(cell, 6) for cell in cells], [2000, 500, 150, 200, 100, 200])

    def test_kinds_are_sorted_by_their_time(self):
        runs = [{"wall": 1.0, "requests": {"a": [2, 0.1], "b": [1, wall]}} for wall in (0.3, 0.2, 0.5)]
        self.assertEqual(list(summary.condense(runs)["requests"].items()), [("b", [1, 0.3]), ("a", [2, 0.1])])


class Verdicts(unittest.TestCase):
    def missed(self, name, subject="ring+handleless", mode="root", **walls):
        found = {name: {key: {"wall": wall} for key, wall in walls["walls"].items()}}
        return summary.verdict(found, row(name), mode, subject)

    def test_ring_and_classic_have_goals_of_their_own(self):
        walls = {"kernel": 1.0, "ring+handleless": 2.0, "classic+handleless": 2.0}
        self.assertEqual(self.missed("cp", walls=walls), (True, False))
        self.assertEqual(self.missed("cp", "classic+handleless", walls=walls), (False, False))

    def test_rootless_may_be_slower_at_large_files(self):
        walls = {"kernel": 1.0, "ring+handleless": 2.5}
        self.assertEqual(self.missed("read-big", walls=walls), (True, False))
        self.assertEqual(self.missed("read-big", mode="rootless", walls=walls), (False, False))

    def test_never_slower_than_fuse_overlayfs_and_several_times_as_fast_where_asked(self):
        walls = {"fuse-overlayfs": 4.0, "ring+handleless": 1.0, "classic+handleless": 1.0}
        self.assertEqual(self.missed("find-cold", walls=walls), (False, False))
        self.assertEqual(self.missed("untar", walls=walls), (False, True))
        self.assertEqual(self.missed("untar", "classic+handleless", walls=walls), (False, False))

    def test_a_value_is_held_against_its_bound(self):
        for value, over in ((9.0, False), (11.0, True)):
            found = {"stall": {"classic": {"value": value}}}
            self.assertEqual(summary.verdict(found, row("stall"), "root", "classic"), (over, False))

    def test_peers_have_no_goals(self):
        self.assertEqual(self.missed("cp", "fuse-overlayfs", walls={"kernel": 1.0, "fuse-overlayfs": 99.0}), (False, False))


class Layers(unittest.TestCase):
    def verdict(self, name, **found):
        return summary.layer_verdict(next(row for row in layers.ROWS if row.name == name), found)

    def test_filling_is_held_against_tar_and_sync(self):
        found = {"plyfs": {"wall": 2.3}, "tar": {"wall": 1.0}, "tar+sync": {"wall": 2.0}}
        self.assertEqual(self.verdict("layer-apply", **found), (1.15, True))
        self.assertEqual(self.verdict("layer-apply", **found | {"plyfs": {"wall": 2.1}}), (1.05, False))

    def test_reading_is_held_against_tar(self):
        self.assertEqual(self.verdict("layer-diff", plyfs={"wall": 1.0}, tar={"wall": 1.0}), (1.0, False))

    def test_values_have_a_bound(self):
        self.assertEqual(self.verdict("layer-rm", plyfs={"value": 51.0}), (None, True))
        self.assertEqual(self.verdict("layer-memory-diff", plyfs={"value": 9.0}), (None, False))
        self.assertEqual(self.verdict("layer-memory-diff", plyfs={"error": "none"}), (None, False))

    def test_measurements_are_collected_beside_those_of_mounts(self):
        lines = [{"mode": "root", "layers": "layer-rm", "subject": "plyfs", "value": value} for value in (1.0, 2.0, 9.0)]
        lines += [{"mode": "root", "subjects": ["kernel"]}, {"mode": "root", "row": "cp", "subject": "kernel", "wall": 1.0}]
        found = summary.collect(map(json.dumps, lines))["root"]
        self.assertEqual((found["layers"]["layer-rm"]["plyfs"]["value"], found["rows"]["cp"]["kernel"]["wall"]), (2.0, 1.0))
        self.assertEqual(found["subjects"], ["kernel"])

    def test_an_archive_of_empty_files_is_one(self):
        import tarfile
        import tempfile

        with tempfile.TemporaryDirectory() as place:
            layers.write_many(f"{place}/many.tar", 3)
            with tarfile.open(f"{place}/many.tar") as archive:
                self.assertEqual(archive.getnames(), [f"many/{number:06}" for number in range(3)])


class Rows(unittest.TestCase):
    def test_every_row_can_be_prepared_and_said(self):
        names = [row.name for row in rows.ROWS + layers.ROWS]
        self.assertEqual(len(names), len(set(names)))
        self.assertTrue(all(row.name.startswith("layer-") for row in layers.ROWS))
        known = {**vars(prepare.Scale()), "m": "/mnt", "load": "load", "src": "/src"}
        for row in rows.ROWS:
            self.assertTrue(row.lower.startswith("layers") or hasattr(prepare.Sources, f"make_{row.lower}"), row.name)
            self.assertIn(row.against or row.name, names)
            for words in row.first + (row.run if row.both else [row.run]):
                self.assertNotIn("{", " ".join(words).format(**known))

    def test_variants_are_options(self):
        self.assertEqual(mounts.plyfs_options("ring+passthrough"), ["transport=ring", "io=passthrough"])
        self.assertEqual(mounts.plyfs_options("default"), [])
        self.assertEqual(mounts.plyfs_options("classic+noxattrs"), ["transport=classic", "noxattrs"])


class Charts(unittest.TestCase):
    def test_the_axis_is_logarithmic_and_bounded(self):
        self.assertAlmostEqual(plot.place(2) - plot.place(1), plot.place(16) - plot.place(8))
        self.assertEqual(plot.place(1000), plot.LEFT + plot.WIDTH)
        self.assertEqual(plot.place(0.01), plot.LEFT)

    def test_a_chart_is_well_formed(self):
        chart = plot.chart("a < b", ["one", "two"], [("row & row", [0.8, None], 1.1), ("other", [3.0, 40.0], None)])
        self.assertEqual(xml.etree.ElementTree.fromstring(chart).tag, "{http://www.w3.org/2000/svg}svg")

    def test_charts_are_one_a_variant(self):
        import contextlib
        import io
        import tempfile

        found = {"subjects": ["kernel", "ring+handleless", "classic"], "rows": results("cp", kernel=1.0, classic=2.0)}
        with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(io.StringIO()):
            summary.draw("root", found, vars(prepare.QUICK), pathlib.Path(place))
            self.assertEqual(sorted(os.listdir(place)), ["root-classic.svg", "root-ring-handleless.svg"])


if __name__ == "__main__":
    unittest.main()
