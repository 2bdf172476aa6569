"""The list of trials is made from their records alone, failures included."""

import json

from soco_lib.config import Pretrain
from soco_lib.runs import records, settings
from soco_lib.runs.folder import Run
from soco_lib.tables import trials
from soco_lib.tables.__main__ import main
from soco_lib.transfer import benchmarks


def test_every_trial_is_listed_with_what_it_changed(tmp_path, capsys):
    main(["--tables", "trials", "--results", str(tmp_path)])
    assert "no trial has a record" in capsys.readouterr().out
    folder = tmp_path / "trials"
    one = Run.start("wide", "pretrain", settings.load(Pretrain, trials.PRETRAIN, k=8, seed=100), folder)
    one.begin()
    one.log({"step": 300, "loss": -3.25, "effective_rank": 12.0})
    one.end("done", {"images_seen": 4800})
    score = {"knn": 0.1, "linear": 0.25}
    (one.folder / "probe.json").write_text(json.dumps({"random": score, "trained": score}))
    slow = benchmarks.settings("minicoco-10", "toy", lr=1e-3, init="results/trials/wide", seed=100)
    two = Run.start("slow", "transfer", slow, folder)
    two.begin()
    for step, ap in ((200, 0.5), (600, 1.5)):
        two.log({"step": step, "bbox_AP": ap})
    two.end("failed", error="the loss is not finite at step 7: lower lr")
    page = trials.build(tmp_path)
    assert "| wide" in page and "k=8" in page and "-3.25" in page and "10.0 / 25.0" in page
    assert "| slow" in page and "lr=0.001" in page and "0.50 (200), 1.50 (600)" in page and "diverged at step 7" in page
    assert "labelled=" not in page and "seed=" not in page
    assert not records.found(tmp_path)[0]  # no table of the paper's shows them
    for path in (one.folder, two.folder):  # as on a fresh clone
        (path / "run.json").unlink()
    assert trials.build(tmp_path) == page
