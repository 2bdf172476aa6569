"""Study files: the paper's settings field by field, equal work at toy scale, and what is refused."""

import pandas as pd
import pytest

from soco_lib import BookError
from soco_lib.config import plan
from soco_lib.data.sources import open_source
from soco_lib.fields import OPERATIONAL, from_dict, identity, to_dict
from soco_lib.studies import runner
from soco_lib.studies import study as studies
from soco_lib.studies.paper import paper_table
from soco_lib.studies.prepare import write_list
from soco_lib.studies.study import ImageList
from soco_lib.transfer import benchmarks

IMAGENET = 1_281_167
V2 = {"size": 224, "source": "crop", "scale": [0.5, 1.0], "ratio": [0.75, 4 / 3]}
V4 = {**V2, "size": 192}


def v3(size):
    return {**V2, "size": size, "source": "V2"}


#: The paper's SoCo-R50-FPN, 100 epochs (Sec. 3 and 4.1), every field that its result depends on.
SOCO = {
    "images": "folder:imagenet/train", "proposals": "data/imagenet-proposals", "k": 4, "size": 224,
    "views": [V2, v3(112)], "jitter_p": 0.5, "jitter": 0.1, "cutout_p": 0.0, "detector": "mask-rcnn-r50-fpn",
    "overrides": [], "alignment": "head", "assignment": "scale", "canonical": 96.0, "fixed_level": 4, "hidden": 4096,
    "embedding": 256, "optimizer": "lars", "base_lr": 1.0, "final_lr": 1e-6, "warmup_factor": 0.01,
    "warmup_epochs": 10.0, "weight_decay": 1e-5, "momentum": 0.9, "trust": 0.001, "tau": 0.99, "batch": 2048,
    "micro_batch": 0, "epochs": 100.0, "steps": 0, "precision": "bf16", "channels_last": True, "compile": False,
}  # fmt: skip
RANDOM = {"proposals": "data/imagenet-random-proposals"}
PLAIN = {"jitter_p": 0.0, "views": [V2]}  # before box jitter and multi-view
C4 = {"detector": "mask-rcnn-r50-c4", "views": [{**V2, "scale": [0.6, 1.0]}]}
COCO = {"images": "list:data/coco-train-unlabeled.txt", "proposals": "data/coco-train-unlabeled-proposals"}
SUBSET = {"images": "list:data/imagenet-subset.txt", "proposals": "data/imagenet-subset-proposals"}
#: study -> row and epoch of the paper's table (and the benchmark that it is for) -> what differs from SOCO.
PAPER = {
    "alignment": {
        ("whole image", 0): {**PLAIN, "alignment": "whole", "proposals": "whole", "k": 1},
        ("+ selective search", 0): {**PLAIN, "alignment": "c5"},
        ("+ FPN", 0): {**PLAIN, "alignment": "neck", "assignment": "fixed"},
        ("+ head", 0): {**PLAIN, "assignment": "detectron2"},
        ("+ scale-aware assignment", 0): PLAIN,
        ("+ box jitter", 0): {"views": [V2]},
        ("+ multi view", 0): {},
    },
    "viewsize": {(f"view {side}", 0): {"views": [V2, v3(side)]} for side in (96, 112, 128, 160, 192)},
    "batchsize": {(f"batch {batch}", 0): {"batch": batch} for batch in (512, 1024, 2048, 4096)},
    "proposals": {(f"K={k} selective search", 0): {"k": k} for k in (1, 4, 8, 16)}
    | {(f"K={k} random", 0): {"k": k, **RANDOM} for k in (1, 4, 8)},
    "momentum": {(f"tau={tau}", 0): {"tau": tau} for tau in (0.98, 0.99, 0.993)},
    "table9": {
        ("ImageNet", 100): {},
        ("ImageNet-subset", 100): SUBSET,
        ("COCO train set + unlabeled set", 100): COCO,
        ("COCO train set + unlabeled set", 530): {**COCO, "epochs": 530.0},
    },
    "labels": {
        ("Scratch", 0): None,
        ("", 0): {**PLAIN, "alignment": "whole", "proposals": "whole", "k": 1},
        ("SoCo", 100): {},
        ("", -1): {"views": [V2, v3(112), V4]},
    },
    "photographs": {  # as labels: photographs are what the paper uses
        ("Scratch", 0): None,
        ("", 0): {**PLAIN, "alignment": "whole", "proposals": "whole", "k": 1},
        ("SoCo", 100): {},
        ("", -1): {"views": [V2, v3(112), V4]},
    },
    "longer": {
        ("", -3): None,
        ("", -2): {**PLAIN, "alignment": "whole", "proposals": "whole", "k": 1},
        ("", -1): {},
        ("", 0): {"views": [V2, v3(112), V4]},
    },
    "growth": {("", -1): None} | {  # not the paper's: three arms at three lengths
        ("", -10 * number - len(arm)): {**arm, "epochs": epochs}
        for number, epochs in enumerate((25.0, 100.0, 400.0), start=1)
        for arm in ({**PLAIN, "alignment": "whole", "proposals": "whole", "k": 1}, {**PLAIN, "alignment": "c5"}, {})
    },
    "evidence-gpu": {  # the same at a GPU's scale, two lengths
        ("", -10 * number - len(arm)): {**arm, "epochs": epochs}
        for number, epochs in enumerate((100.0, 400.0), start=1)
        for arm in ({**PLAIN, "alignment": "whole", "proposals": "whole", "k": 1}, {**PLAIN, "alignment": "c5"}, {})
    },
    "regions": {("", -1): {}, ("", -2): {"alignment": "rpn"}},  # not the paper's either
    "detectors": {("Scratch", 0): None, ("SoCo", 100, "coco-fpn-1x"): {}, ("SoCo", 100, "coco-c4-1x"): C4},
    "pretrain-soco-100": {("SoCo", 100): {}},
    "pretrain-soco-400": {("SoCo", 400): {"epochs": 400.0}},
    "pretrain-soco-star-400": {("SoCo*", 400): {"epochs": 400.0, "views": [V2, v3(112), V4]}},
    "pretrain-soco-c4-100": {("SoCo", 100): C4},
    "pretrain-soco-c4-400": {("SoCo", 400): {**C4, "epochs": 400.0}},
}  # fmt: skip


def test_these_are_all_studies():
    assert set(studies.names()) == set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_setting_field_by_field(name):
    study = studies.read(name)
    assert [(v.row, v.epoch, *v.only) for v in study.variants] == [
        (row, max(epoch, 0), *only) for row, epoch, *only in PAPER[name]
    ]
    for variant, changes in zip(study.variants, PAPER[name].values()):
        cfg = study.pretrain(variant, "paper")
        if changes is None:
            assert variant.scratch and cfg is None
            continue
        plain = {k: v for k, v in to_dict(cfg).items() if k not in OPERATIONAL | {"profile", "seed"}}
        assert plain == SOCO | changes, variant.name
        numbers = plan(cfg, IMAGENET, 16)
        assert numbers.lr == cfg.batch / 256 and numbers.steps == cfg.epochs * (IMAGENET // cfg.batch)
        assert numbers.warmup_steps == round(numbers.steps * 10 / cfg.epochs)
    for benchmark in study.benchmarks:  # fine-tuning is the benchmark's own
        ours = to_dict(study.finetune(benchmark, "paper", 0, "x"))
        assert ours == to_dict(benchmarks.settings(benchmark, "paper", init="x"))


@pytest.mark.parametrize("name", ["alignment", "viewsize", "batchsize", "proposals", "momentum", "table9"])
def test_every_printed_row_has_a_variant(name):
    study, printed = studies.read(name), paper_table(studies.read(name).table)
    assert [(v.row, v.epoch) for v in study.variants] == [(row, 0 if pd.isna(e) else e) for row, e in printed.index]
    assert list(study.metrics) == [metric for _, metric in printed.columns]


def test_a_printed_number_stands_beside_the_variant_that_it_is_of():
    study = studies.read("detectors")
    printed = {
        v.name: [study.printed(v, name, "AP_bb") for name in ("coco-fpn-1x", "coco-c4-1x")] for v in study.variants
    }
    assert printed == {"scratch": [31.0, 26.4], "soco-fpn": [42.3, None], "soco-c4": [None, 40.4]}


def test_the_base_is_one_run_for_all_studies():
    all_of = [
        studies.read(name) for name in ("viewsize", "batchsize", "proposals", "momentum", "table9", "pretrain-soco-100")
    ]
    base = [(study, study.variant(study.baseline)) for study in all_of]
    others = {"alignment": "multi-view", "labels": "soco", "longer": "soco", "detectors": "soco-fpn"}
    base += [(studies.read(name), studies.read(name).variant(variant)) for name, variant in others.items()]
    for profile in ("paper", "toy"):
        assert len({identity(study.pretrain(variant, profile, 3)) for study, variant in base}) == 1


def test_photographs_are_the_labels_study_on_other_images():
    labels, photographs = studies.read("labels"), studies.read("photographs")
    for ours, theirs in zip(photographs.variants[1:], labels.variants[1:]):
        a, b = (to_dict(study.pretrain(v, "toy")) for study, v in ((photographs, ours), (labels, theirs)))
        assert {name for name in a if a[name] != b[name]} - {"proposals"} == {"images"}
    for benchmark in labels.benchmarks:
        a, b = (to_dict(study.finetune(benchmark, "toy", 0, "x")) for study in (photographs, labels))
        assert {name for name in a if a[name] != b[name]} == {"train", "test", "iterations", "eval_every", "profile"}


@pytest.mark.parametrize("name", ["alignment", "viewsize", "batchsize", "proposals", "momentum"])
def test_toy_variants_see_as_many_images_and_differ_where_the_papers_do(name):
    study = studies.read(name)
    made = [study.pretrain(variant, "toy") for variant in study.variants]
    assert len({cfg.steps * cfg.batch for cfg in made}) == 1
    assert all(cfg.profile.startswith("toy") for cfg in made)
    for variant in study.variants:
        extra = {"batchsize": {"steps"}, "alignment": {"canonical", "assignment"}}.get(name, set())
        assert {*variant.toy} - extra == {*variant.paper} - extra


def test_a_plan_of_the_paper_prints_its_settings(capsys, tmp_path):
    assert runner.main(["batchsize", "--profile", "paper", "--plan", "--gpus", "16", "--results", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for name, value in SOCO.items():
        if name not in ("views", "overrides"):
            assert f"{name}={value}" in said
    lines = {line.split()[0]: line.split() for line in said.splitlines() if line.strip().startswith("batch-")}
    assert {name: line[1:6] for name, line in lines.items()} == {
        "batch-512": ["0", "512", "2", "250200", "100"],
        "batch-1024": ["0", "1024", "4", "125100", "100"],
        "batch-2048": ["0", "2048", "8", "62500", "100"],
        "batch-4096": ["0", "4096", "16", "31200", "100"],
    }
    assert "to run: 4 pretrainings, 4 transfers" in said and not list(tmp_path.iterdir())


GOOD = """
question: Which k?
table: 5c
benchmarks: [coco-fpn-1x]
metrics: [AP_bb]
baseline: four
toy: {steps: 9}
variants:
  one: {row: K=1 random, paper: {k: 1}, toy: {k: 1}}
  four: {row: K=4 random}
"""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("toy: {steps: 9}", "toy: {stesp: 9}", "toy: field='stesp' is unknown; did you mean 'steps'"),
        ("toy: {k: 1}", "toy: {kk: 1}", "variant one, toy: field='kk' is unknown; did you mean 'k'"),
        ("toy: {k: 1}", "toy: {k: four}", "variant one, toy: k='four' must be of type int"),
        ("toy: {k: 1}", "toy: {seed: 1}", "seed is given by the runner"),
        ("paper: {k: 1}, toy: {k: 1}", "paper: {k: 1}, toy: {k: 4}", "variant one, toy equals the base"),
        ("paper: {k: 1}, toy: {k: 1}", "paper: {}, toy: {k: 1}", "variant one, paper equals the base"),
        ("  four: {row", "  two: {paper: {k: 1}, toy: {k: 2}}\n  four: {row", "variant two, paper equals variant one"),
        ("  four: {row", "  one: {row: x}\n  four: {row", r"'one' stands there twice \(line 10\)"),
        ("baseline: four", "baseline: fuor", "did you mean 'four'"),
        ("K=1 random", "K=1 randon", "did you mean 'K=1 random'"),
        ("[AP_bb]", "[AP_bx]", "did you mean 'AP_bb'"),
        ("coco-fpn-1x", "coco-fnp-1x", "did you mean 'coco-fpn-1x'"),
        ("question:", "qestion:", "did you mean 'question'"),
        ("{row: K=1 random", "{row: [K=1 random", "not YAML"),
        ("variants:", "variant:", "needs `variants`"),
        (
            "{row: K=1 random",
            "{scratch: true",
            "variant one, paper: scratch has no pretraining that fields could change",
        ),
        (
            "  one: {row: K=1 random, paper: {k: 1}, toy: {k: 1}}\n  four: {row: K=4 random}",
            "  four: {scratch: true}",
            "every variant is scratch",
        ),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, old, new, says):
    assert old in GOOD
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(BookError, match=f"mine.yaml: .*{says}") as error:
        studies.read(str(path))
    assert "\n" not in str(error.value)
    path.write_text(GOOD)
    assert studies.read(str(path)).name == "mine"


def test_unknown_study_and_variant_name_the_nearest(capsys, tmp_path):
    assert runner.main(["batchsise", "--plan"]) == 1
    assert "did you mean 'batchsize'" in capsys.readouterr().err
    assert runner.main(["batchsize", "--plan", "--variants", "batch-215", "--results", str(tmp_path)]) == 1
    assert "did you mean 'batch-512'" in capsys.readouterr().err


def test_a_drawn_list_is_a_source(pictures, tmp_path):
    asked = from_dict(ImageList, {"of": [f"folder:{pictures}"], "images": 5})
    assert write_list(tmp_path / "a.txt", asked) == write_list(tmp_path / "b.txt", asked) == 5
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "b.txt").read_text()
    source = open_source(f"list:{tmp_path}/a.txt")
    assert len(source) == 5 and source.load(4).shape == (96, 128, 3)
    assert (
        write_list(tmp_path / "c.txt", from_dict(ImageList, {"of": [f"folder:{pictures}"], "images": 5, "seed": 1}))
        == 5
    )
    assert (tmp_path / "a.txt").read_text() != (tmp_path / "c.txt").read_text()
    assert write_list(tmp_path / "all.txt", from_dict(ImageList, {"of": [f"folder:{pictures}"], "images": 0})) == 12
    with pytest.raises(BookError, match="asks for 13 images; .* hold 12"):
        write_list(tmp_path / "d.txt", from_dict(ImageList, {"of": [f"folder:{pictures}"], "images": 13}))
