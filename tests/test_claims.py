"""Claims: statistics against what they are defined as, verdicts, the paper's numbers, a table from records alone."""

import dataclasses
import functools
import itertools
import json
import math
import subprocess

import numpy as np
import pytest
import scipy.stats
import yaml

from soco_lib import ROOT, BookError
from soco_lib.figures import claims as figures
from soco_lib.runs import records
from soco_lib.runs.folder import Run, read_json, write_json
from soco_lib.studies import study as studies
from soco_lib.tables import claims, stats, study_table
from soco_lib.tables.__main__ import main
from soco_lib.tables.study_rows import rows_of


def test_the_bootstrap_is_the_percentiles_of_all_resamples():
    values = [0.4, 1.0, 2.5, 1.1, 0.2]
    means = [np.mean(drawn) for drawn in itertools.product(values, repeat=5)]
    assert stats.bootstrap(values) == pytest.approx(tuple(np.percentile(means, (2.5, 97.5))), abs=0.02)
    assert stats.bootstrap(values) == stats.bootstrap(values)
    assert all(math.isnan(side) for side in stats.bootstrap([1.0])) and stats.bootstrap([0.5, 0.5]) == (0.5, 0.5)


def test_seeds_needed_are_found_by_trying():
    """Of as many seeds as are said, Student's test finds the difference in four of five tries; of a third, in fewer."""
    differences = [0.2, 1.4, 0.9, -0.3, 1.1]
    needed, rng = stats.seeds_needed(differences), np.random.default_rng(0)
    tried = rng.normal(np.mean(differences), np.std(differences, ddof=1), (2000, needed))
    power = lambda x: np.mean(scipy.stats.ttest_1samp(x, 0, axis=1).pvalue <= 0.05)
    assert power(tried) == pytest.approx(0.8, abs=0.06) and power(tried[:, : needed // 2]) < 0.7
    assert stats.seeds_needed([0.01, -1.0, 1.0]) is None and stats.seeds_needed([1.0, 1.0]) is None
    assert stats.seeds_needed([1.0] * 3) == 3 and stats.seeds_needed([0.0] * 3) is None


def test_false_discoveries_are_counted_over_all_that_is_known():
    """Benjamini and Hochberg by hand: the i-th of m smallest times m / i, and no larger than the next one's."""
    found = stats.false_discovery([0.04, math.nan, 0.01, 0.9])
    assert found[[0, 2, 3]] == pytest.approx([0.06, 0.03, 0.9]) and math.isnan(found[1])
    assert np.isnan(stats.false_discovery([math.nan])).all() and math.isnan(stats.p_value([1.0, 2.0]))
    assert stats.p_value([1.0] * 3) == 0 and stats.p_value([0.0] * 3) == 1


@pytest.mark.parametrize(
    ("differences", "expected", "word"),
    [
        ([1.0, 1.2, 1.1, 0.9], 1.0, "confirmed"),
        ([-1.0, -1.2, -1.1], 1.0, "contradicted"),
        ([-1.0, -1.2, -1.1], -0.4, "confirmed"),  # the paper's own difference is negative
        ([1.0, 1.2], 1.0, "undecided"),  # too few
        ([0.1, 2.0, 0.3], 1.0, "undecided"),  # the bootstrap alone would say yes
        ([1.0, -1.0, 0.2], 1.0, "undecided"),
        ([0.5, 0.5, 0.5], 1.0, "confirmed"),
    ],
)
def test_verdicts_need_both_intervals(differences, expected, word):
    assert stats.verdict(differences, expected) == word


def test_every_claim_names_what_there_is_and_prints_the_papers_difference():
    found = {claim.says: claims.printed(study, claim) for claim, study in claims.read()}
    assert len(found) == len(claims.read()) > 20
    assert found["SoCo beats random weights, all labels"] == pytest.approx(42.3 - 31.0)
    assert found["objects and all parts of the alignment beat whole images, all labels"] == pytest.approx(42.3 - 38.1)
    assert found["pretraining the FPN"] == pytest.approx(-0.4)
    assert found["pretraining is worth more where labels are few"] == pytest.approx(24.6 - 19.4 - 42.3 + 38.9)
    assert found["four searched boxes beat four random ones"] is None  # it diverged


def test_a_wrong_claim_is_one_line(tmp_path):
    path = tmp_path / "claims.yaml"
    claim = {
        "says": "x",
        "where": "y",
        "study": "labels",
        "of": "soco",
        "against": "scratch",
        "benchmark": "coco-fpn-1x",
    }
    for field, value, says in (
        ("study", "lables", "did you mean 'labels'"),
        ("of", "socco", "did you mean 'soco'"),
        ("metric", "AP_bx", "did you mean 'AP_bb'"),
        ("ofs", "x", "ofs"),
        ("printed", [{"sign": 1}], "table"),
        ("printed", [{"sign": 1, "table": "1", "benchmark": "coco-fpn-1x", "row": "SoKo"}], "SoCo"),
    ):
        path.write_text(f"- {claim | {field: value}}")
        with pytest.raises(BookError, match=says):
            claims.read(path)


#: variant -> what it adds to scratch's score, at each seed.
GAIN = {"scratch": (0, 0, 0), "soco": (1.0, 1.2, 0.9), "whole-image": (1.0, -1.0, 0.1)}
IMAGES = {"minicoco-5": 75, "minicoco-10": 150, "coco-fpn-1x": 1500}


@pytest.fixture
def results(tmp_path):
    """Finished runs of the study of labels: three arms, three seeds; SoCo's class "car" is worse."""
    study = studies.read("labels")
    for (name, gains), seed in itertools.product(GAIN.items(), range(3)):
        variant, init = study.variant(name), "scratch"
        if not variant.scratch:
            run = Run.start(f"labels-{name}-toy-s{seed}", "pretrain", study.pretrain(variant, "toy", seed), tmp_path)
            run.begin()
            run.end("done", {"steps": 1, "images_seen": 16})
            init = str(run.folder)
        for benchmark, images in IMAGES.items():
            cfg = study.finetune(benchmark, "toy", seed, init)
            run = Run.start(f"labels-{name}-toy-s{seed}-{benchmark}", "transfer", cfg, tmp_path)
            run.begin()
            score = images / 100 + seed + gains[seed]
            for step, share in ((1, 0.5), (2, 1.0)):
                run.log({"step": step, "bbox_AP": share * score})
            box = {"AP": score, "AP50": score, "AP75": score, "APs": float("nan"), "APm": score, "APl": score}
            box["per_class"] = {"car": 9 - gains[seed], "fish": score}
            run.end("done", {"bbox": box, "segm": box, "train_images": images, "iterations": 2, "batch": 8})
    study_table.build(study, "toy", tmp_path)
    return tmp_path


def test_the_table_is_made_from_records_alone(results):
    frame, page = claims.build(results)
    rows = frame.set_index("claim")
    ours = rows.loc["SoCo beats random weights, all labels"]
    assert (ours["n"], ours["verdict"], ours["paper"]) == (3, "confirmed", 11.3)
    assert (
        ours["change"] == pytest.approx(np.mean(GAIN["soco"]), abs=1e-4)
        and ours["low"] <= ours["change"] <= ours["high"]
    )
    assert ours["of_score"] == pytest.approx(16 + ours["change"], abs=1e-3) and ours["against_score"] == pytest.approx(
        16
    )
    assert rows.loc["objects and all parts of the alignment beat whole images, all labels", "verdict"] == "undecided"
    few = rows.loc["pretraining is worth more where labels are few"]
    assert few["change"] == pytest.approx(0) and few["verdict"] == "undecided"
    assert rows.loc["box jitter", "verdict"] == "not run" and "**confirmed**" in page and "by chance" in page
    first = (results / "tables" / "headline.md").read_text()
    assert (
        "from random ones is **confirmed in 3 of 3 settings**" in first
        and "baseline, is **undecided in 3 of 3 settings**" in first
    )
    (row,) = (line for line in first.splitlines() if "scenes, all labels " in line)
    assert [cell.strip() for cell in row.split("|")[2:5]] == ["16.00", "16.03", "17.03"] and "photographs" not in first
    csv = (results / "tables" / "claims.csv").read_bytes()
    for run in results.glob("labels-*"):  # as on a fresh clone
        for path in run.iterdir():
            path.unlink()
        run.rmdir()
    assert claims.build(results)[1] == page and (results / "tables" / "claims.csv").read_bytes() == csv


def test_differences_between_two_kinds_of_processor_are_counted_and_told(results):
    assert "No difference is one between runs on two kinds of processor" in claims.build(results)[1]
    moved = results / "labels-soco-toy-s1-minicoco-5" / "run.json"
    record = read_json(moved)
    record["sessions"][-1]["hardware"]["cpu"] = "another"
    write_json(moved, record)
    study_table.build(studies.read("labels"), "toy", results)
    frame, page = claims.build(results)
    assert dict(frame.loc[frame["mixed"] > 0].value_counts(["of", "benchmark", "mixed"])) == {
        ("soco", "minicoco-5", 1): 2, ("soco", "minicoco-5 - coco-fpn-1x", 1): 1}  # fmt: skip
    assert (
        "differences are between runs on two kinds of processor" in page
        and "SoCo beats random weights, 5 % of the labels" in page
    )


def test_a_study_tells_only_what_it_was_run_with(results):
    alignment = studies.read(
        "alignment"
    )  # shares whole image and SoCo with `labels`, which scored them on three benchmarks
    study_table.build(alignment, "toy", results)
    assert {row.benchmark for row in rows_of(alignment, "toy", results)} == {"coco-fpn-1x"}
    shared = {record.name for record in records.tracked(results) if "alignment-toy" in record.record["studies"]}
    assert shared == {
        f"labels-{name}-toy-s{seed}{end}"
        for name in ("whole-image", "soco")
        for seed in range(3)
        for end in ("", "-coco-fpn-1x")
    }
    lines = (results / "runs.jsonl").read_text().splitlines()
    assert len(lines) == len({json.loads(line)["name"] for line in lines})  # what two studies show is one line


def test_figures_and_where_pretraining_hurts(results):
    rows = rows_of(studies.read("labels"), "toy", results)
    changed = figures.changes(rows, "soco", "scratch", "coco-fpn-1x").set_index("name")
    assert set(changed.index) == {"medium objects", "large objects", "car", "fish"}  # nothing small was there to score
    assert changed.loc["car", "high"] < 0 < changed.loc["fish", "low"]
    left, right = figures.labels(rows).axes
    assert [text.get_text() for text in left.get_xticklabels()] == ["75", "150", "1500"]
    assert len(right.containers) == 2  # SoCo and the whole image
    assert len(figures.iterations({"labels": rows}).axes) == 3
    assert figures.draw_changes(changed.reset_index(), "x").axes
    assert figures.changes(rows, "soco-star", "scratch", "coco-fpn-1x").empty


def test_figures_compare_only_seeds_that_random_weights_have_too(results):
    rows = rows_of(studies.read("labels"), "toy", results)
    fewer = [
        dataclasses.replace(row, cells={s: cell for s, cell in row.cells.items() if s or not row.variant.scratch})
        for row in rows
    ]
    left, _ = figures.labels(fewer).axes
    assert {len(line.get_xdata()) for line in left.get_lines() if line.get_marker() == "."} == {
        2
    }  # of scratch, whole image and SoCo
    assert {len(figures.iterations({"labels": each}).axes[0].get_lines()) for each in (rows, fewer)} == {3 * 4, 3 * 3}
    none = [dataclasses.replace(row, cells={} if row.variant.scratch else row.cells) for row in rows]
    assert figures.labels(none).axes[1].get_title(loc="left") == "minus whole-image, same seeds"


def test_a_line_each_claim_that_was_run_with_its_verdict_as_colour(results):
    frame, _ = claims.build(results)
    ax = figures.verdicts(frame).axes[0]
    said = [text.get_text() for text in ax.get_yticklabels()]
    assert said == list(frame.loc[frame["n"] > 0, "claim"]) and 0 < len(said) < len(frame)
    assert [text.get_text() for text in ax.get_legend().get_texts()][:2] == ["confirmed", "undecided"]
    left, right = ax.get_xlim()
    assert left < frame["low"].min() and frame["high"].max() < right


def test_command_line_without_any_record(tmp_path, capsys):
    main(["--tables", "claims", "--results", str(tmp_path)])
    assert "not run" in capsys.readouterr().out


FROZEN = (
    "notebooks/params/pretrain-toy.yaml",
    "notebooks/params/transfer-toy.yaml",
    "soco_lib/transfer/benchmarks.yaml",
)


def toy_settings(path, text):
    """What a parameter file says, comments aside; of the benchmarks their toy forms."""
    content = yaml.safe_load(text)
    return (
        {name: each["toy"] for name, each in content["benchmarks"].items()}
        if path.endswith("benchmarks.yaml")
        else content
    )


def test_tracked_records_were_made_after_the_setting_was_frozen():
    runs = records.tracked(ROOT / "results")
    commits = {run.record["sessions"][0]["git"]["commit"] for run in runs}
    git = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    if not runs or any(git(["git", "cat-file", "-e", f"{commit}^{{commit}}"]).returncode for commit in commits):
        pytest.skip("no tracked record, or a checkout without the history that they name")
    pictures = {run.record["sessions"][0]["git"]["commit"] for run in runs if run.name.startswith("photographs-")}
    asked = [*itertools.product(commits, FROZEN), *itertools.product(pictures, ["notebooks/studies/photographs.yaml"])]
    for commit, path in asked:
        before = path.replace("soco_lib/transfer/", "soco_lib/")  # where it lay until the move
        then = git(["git", "show", f"{commit}:{path}"]).stdout or git(["git", "show", f"{commit}:{before}"]).stdout
        assert toy_settings(path, then) == toy_settings(path, (ROOT / path).read_text()), (
            f"{path} is not what {commit[:10]} had"
        )
    assert all(run.record["config"]["seed"] < 100 for run in runs)  # 100 and up were for development
