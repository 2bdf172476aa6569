"""The paper's tables with our runs beside them, from run folders alone."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from soco_lib import BookError
from soco_lib.config import Pretrain, View
from soco_lib.fields import to_dict
from soco_lib.runs import records
from soco_lib.runs.folder import Run
from soco_lib.studies.paper import paper_table
from soco_lib.tables import show
from soco_lib.tables.__main__ import main
from soco_lib.tables.paper_tables import against_paper, build, start_of, table_cells, table_parts, transfers
from soco_lib.transfer import benchmarks

TABLES = ["1", "2", "3", "6", "7", "8", "10"]


def folder(path, kind, config, metrics=None, status="done"):
    path.mkdir(parents=True)
    record = {"name": path.name, "kind": kind, "config": config, "identity": "0" * 12, "status": status, "sessions": []}
    (path / "run.json").write_text(json.dumps(record))
    if metrics:
        (path / "metrics.json").write_text(json.dumps(metrics))


def transfer(path, ap=None, benchmark="coco-fpn-1x", profile="toy", **changes):
    """A transfer's run folder: finished with box and mask AP `ap`, or still running."""
    config = to_dict(benchmarks.settings(benchmark, profile, **changes))
    metrics = (
        {task: {"AP": ap, "AP50": 2 * ap, "AP75": ap / 2, "per_class": {}} for task in ("bbox", "segm")} if ap else None
    )
    folder(path, "transfer", config, metrics, "done" if ap else "running")


def pretraining(path, images_seen=128_200_000, **fields):
    folder(
        path,
        "pretrain",
        to_dict(Pretrain("folder:imagenet/train", **{"proposals": "p"} | fields)),
        {"images_seen": images_seen},
    )


def cells(results, table="1", profile="all"):
    """Our cells, by (scale, pretraining, benchmark, metric), and the notes."""
    known, torn = records.found(results)
    runs, left = transfers(known, table, profile)
    found, notes = table_cells(table, runs, known)
    notes = left + notes + torn
    return found[found["source"] == "ours"].set_index(["scale", "pretraining", "benchmark", "metric"]), notes


@pytest.mark.parametrize("table", TABLES)
def test_the_papers_rows_are_complete(table):
    found, _ = table_cells(table, [])
    wide = paper_table(table)
    assert set(found["source"]) == {"paper"} and len(found) == wide.size
    parts = table_parts(found)
    assert len(parts) == len(wide.columns.unique("benchmark"))
    for part, benchmark in zip(parts.values(), wide.columns.unique("benchmark")):
        assert list(part["pretraining"]) == [row for row, _ in wide.index]
        assert list(part["epochs"]) == ["" if pd.isna(epoch) else str(epoch) for _, epoch in wide.index]
        for metric, values in wide[benchmark].items():
            assert list(part[metric]) == ["" if np.isnan(v) else f"{v:.1f}" for v in values]


def test_every_benchmark_names_columns_that_the_paper_prints():
    for b in benchmarks.BENCHMARKS.values():
        assert list(paper_table(b.table)[b.paper].columns) == list(b.metrics), b.name


def test_seeds_are_averaged_and_missing_runs_stay_empty(tmp_path):
    for seed, ap in enumerate((1.0, 2.0, 6.0)):
        transfer(tmp_path / f"s{seed}", ap, seed=seed)
    transfer(tmp_path / "s3", seed=3)
    transfer(tmp_path / "again", 9.0, seed=0)
    transfer(tmp_path / "elsewhere", 5.0, "minicoco-5")
    ours, notes = cells(tmp_path)
    cell = ours.loc["toy", "Scratch", "coco-fpn-1x", "AP_bb"]
    assert (cell["value"], cell["n"], cell["runs"]) == (
        pytest.approx(17 / 3),
        3,
        "again s1 s2 s3",
    )  # by name, one a seed
    assert cell["state"] == "done (s0 s1 s2); step 0 of 600 (s3)"
    assert cell["sd"] == pytest.approx(np.std([9, 2, 6], ddof=1)) and np.isnan(cell["difference"])
    assert ours.loc[("toy", "Scratch", "coco-fpn-2x"), ["value", "difference"]].isna().all(axis=None)
    assert notes == ["s0 repeats seed 0 of again"]
    part = next(iter(table_parts(ours.reset_index().assign(source="ours")).values()))
    assert part.loc[0, "AP_bb"] == "5.7 ± 3.5" and part.loc[0, "n"] == "3"


def test_runs_that_differ_in_more_than_their_seed_are_kept_apart(tmp_path):
    transfer(tmp_path / "a", 1.0)
    transfer(tmp_path / "b", 2.0, seed=1, lr=0.5)
    transfer(tmp_path / "c", 4.0, seed=1, precise_bn=3, profile="toy")
    transfer(tmp_path / "d", 8.0, test="coco:mine.json@mine")
    for name in "bc":  # as if someone had set the label by hand
        config = json.loads((tmp_path / name / "run.json").read_text())
        config["config"]["profile"] = "toy"
        (tmp_path / name / "run.json").write_text(json.dumps(config))
    ours, _ = cells(tmp_path)
    rows = ours.xs(("coco-fpn-1x", "AP_bb"), level=["benchmark", "metric"])
    assert rows["value"].to_dict() == {
        ("toy", "Scratch, lr=0.002, precise_bn=8"): 1.0,
        ("toy", "Scratch, lr=0.5, precise_bn=8"): 2.0,
        ("toy", "Scratch, lr=0.002, precise_bn=3"): 4.0,
        ("toy, other data", "Scratch"): 8.0,
    }


def test_pretrainings_that_differ_in_their_seed_alone_are_one_row(tmp_path):
    for seed, ap in enumerate((1.0, 3.0)):
        pretraining(tmp_path / f"mine-s{seed}", seed=seed)
        transfer(tmp_path / f"t{seed}", ap, seed=seed, init=str(tmp_path / f"mine-s{seed}"))
    pretraining(tmp_path / "mine-s2", seed=2, k=8)
    pretraining(tmp_path / "image-s0", alignment="whole", proposals="whole", k=1, jitter_p=0)
    transfer(tmp_path / "whole", 4.0, init=str(tmp_path / "image-s0"))
    rows = lambda: cells(tmp_path)[0].xs(("coco-fpn-1x", "AP_bb"), level=["benchmark", "metric"])["value"].to_dict()
    assert rows() == {("toy", "SoCo (mine)"): 2.0, ("toy", "whole image (image)"): 4.0}
    transfer(tmp_path / "t2", 8.0, seed=2, init=str(tmp_path / "mine-s2"))  # other settings under a like name
    assert rows() == {
        ("toy", "SoCo (mine), pretraining's k=4"): 2.0,
        ("toy", "SoCo (mine), pretraining's k=8"): 8.0,
        ("toy", "whole image (image)"): 4.0,
    }


SOCO_STAR = (View(224), View(112, "V2"), View(192))


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        ({}, ("SoCo", 100)),
        ({"epochs": 400, "profile": "paper, epochs=400", "images_seen": 512_800_000}, ("SoCo", 400)),
        (
            {"epochs": 400, "views": SOCO_STAR, "profile": "paper, epochs=400, views", "images_seen": 512_800_000},
            ("SoCo*", 400),
        ),
        ({"views": (View(224), View(96, "V2")), "profile": "paper, views"}, ("", 100)),  # Table 5a's
        ({"images_seen": 11_800_000}, ("", 100)),  # COCO, or an interrupted run
        ({"batch": 512, "profile": "paper, batch=512"}, ("", 100)),
        ({"steps": 200, "profile": "toy"}, ("", None)),
    ],
)
def test_which_row_of_the_paper_a_pretraining_repeats(fields, row, tmp_path):
    pretraining(tmp_path / "p", **fields)
    (tmp_path / "p" / "checkpoints").mkdir()
    for init in (tmp_path / "p", tmp_path / "p" / "checkpoints" / "step_10.pt"):
        start = start_of({"init": str(init)})
        assert (start.label, start.row, start.epochs) == ("SoCo (p)", *row)


def test_scratch_and_foreign_files_are_called_by_name(tmp_path):
    assert start_of({"init": "scratch"}).row == "Scratch"
    other = start_of({"init": str(tmp_path / "moco_v2.pth.tar")})
    assert (other.label, other.row) == ("moco_v2.pth.tar", "")


def test_a_difference_needs_the_same_scale(tmp_path):
    pretraining(tmp_path / "p")
    transfer(tmp_path / "small", 1.0, init=str(tmp_path / "p"))
    transfer(tmp_path / "full", 42.0, profile="paper", init=str(tmp_path / "p"))
    transfer(tmp_path / "foreign", 30.0, profile="paper", init="moco.pth")
    ours, _ = cells(tmp_path)
    differences = ours.xs(("coco-fpn-1x", "AP_bb"), level=["benchmark", "metric"])["difference"]
    assert "42.0 (-0.3)" in build("1", tmp_path, "paper")
    assert differences["paper", "SoCo (p)"] == pytest.approx(42.0 - 42.3)
    assert differences[[("toy", "SoCo (p)"), ("paper", "moco.pth")]].isna().all()


def test_files_say_scale_and_what_was_left_out(tmp_path):
    transfer(tmp_path / "toy-run", 1.0)
    transfer(tmp_path / "unfinished")
    transfer(tmp_path / "full", 42.0, profile="paper")
    page = build("1", tmp_path, "toy")
    assert page == (tmp_path / "tables" / "table1.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| ours"))
    assert " 1.0 [s0]" in row and "(+" not in row and "not comparable" in page
    assert "unfinished repeats seed 0 of toy-run" in page
    assert page.count("\n\n|") == 3  # two of scores, and what they cost
    stored = pd.read_csv(tmp_path / "tables" / "table1.csv")
    assert len(stored) == paper_table("1").size + 12 and set(stored["runs"].dropna()) == {"toy-run"}
    assert "42.0 (+11.0)" in build("1", tmp_path, "paper") and "toy" not in build("1", tmp_path, "paper")


def test_command_line(tmp_path, capsys):
    assert main(["--tables", "7", "--results", str(tmp_path)]) == 0
    assert "No transfer run of Table 7" in capsys.readouterr().out
    assert main(["--tables", "11", "--results", str(tmp_path)]) == 1
    assert "did you mean '1'" in capsys.readouterr().err
    with pytest.raises(BookError, match="known: 1, 2, 3"):
        build("5a", tmp_path)


def test_one_run_beside_the_papers_rows(tmp_path):
    transfer(tmp_path / "r", 1.0)
    frame = against_paper(Run.read(tmp_path / "r"), benchmarks.find("coco-fpn-1x"))
    assert frame["AP_bb"].to_dict() == {
        ("toy", "Scratch"): "1.0",
        ("paper", "Scratch"): "31.0 (-30.0)",
        ("paper", "Supervised, 90 epochs"): "38.9 (-37.9)",
        ("paper", "SoCo, 100 epochs"): "42.3 (-41.3)",
        ("paper", "SoCo, 400 epochs"): "43.0 (-42.0)",
        ("paper", "SoCo*, 400 epochs"): "43.2 (-42.2)",
    }


def test_numbers_link_to_records_and_say_what_they_cost(tmp_path):
    pretraining(tmp_path / "p", steps=10, profile="toy")
    transfer(tmp_path / "of-p", 2.0, init=str(tmp_path / "p"))
    page = build("1", tmp_path, "toy")
    assert "2.0 [s0][" in page and "make show RUN=of-p" in page and 'make show RUN=p"' in page
    assert "Cost and provenance of 2 runs" in page and "128200000" in page
    for run in ("p", "of-p"):  # as on a fresh clone, which has the records alone
        shutil.rmtree(tmp_path / run)
    kept = pd.read_json(tmp_path / "runs.jsonl", lines=True)
    assert list(kept["name"]) == ["of-p", "p"] and list(kept["studies"]) == [[], []]
    assert kept["metrics"][0]["bbox"]["AP"] == 2.0
    assert build("1", tmp_path, "toy") == page


def test_a_torn_file_is_named_and_its_row_is_empty(tmp_path):
    transfer(tmp_path / "whole", 2.0)
    transfer(tmp_path / "torn", 3.0, seed=1)
    (tmp_path / "torn/metrics.json").write_text('{"bbox": {"AP"')
    transfer(tmp_path / "cut", 4.0, seed=2)
    (tmp_path / "cut/run.json").write_text('{"name": "cut", "ki')
    page = build("1", tmp_path, "toy")
    assert "failed: torn/metrics.json is torn or empty (s1)" in page and "cut/run.json" in page and " 2.0 [s0]" in page
    (tmp_path / "torn/metrics.json").write_text("")
    assert "failed: torn/metrics.json is torn or empty (s1)" in build("1", tmp_path, "toy")


def test_every_table_again_without_a_run_or_with_one(tmp_path, capsys):
    assert main(["--results", str(tmp_path)]) == 0
    assert [path.name for path in sorted((tmp_path / "tables").iterdir())] == ["claims.csv", "claims.md", "headline.md"]
    transfer(tmp_path / "of-mine", 2.0)
    assert main(["--results", str(tmp_path)]) == 0
    assert "tables/table1.md" in capsys.readouterr().out and (tmp_path / "tables" / "table1.csv").is_file()
    assert not (tmp_path / "tables" / "table2.md").exists()


def test_a_run_is_shown_from_its_folder_and_from_its_record(tmp_path, capsys):
    pretraining(tmp_path / "p", steps=10, profile="toy")
    transfer(tmp_path / "of-p", 2.0, init=str(tmp_path / "p"), lr=0.5)
    build("1", tmp_path)
    said = []
    for _ in range(2):
        assert show.main(["of-p", "--results", str(tmp_path)]) == 0
        said.append(capsys.readouterr().out)
        shutil.rmtree(tmp_path / "of-p", ignore_errors=True)
    folder, record = said
    assert folder.splitlines()[1:] == record.splitlines()[1:] and "a tracked record" in record
    assert "state: done" in record and "lr=0.5" in record and "milestones" not in record and "bbox.AP50  4.0" in record
    assert show.main(["of-q", "--results", str(tmp_path)]) == 1
    assert "did you mean of-p?" in capsys.readouterr().err
