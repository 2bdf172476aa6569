import pytest
import yaml

from soco_lib import BookError
from soco_lib.config import Pretrain, View, plan
from soco_lib.fields import differences, from_dict, identity, to_dict
from soco_lib.runs.settings import load


def cfg(**changes):
    return Pretrain(**{"images": "a", "proposals": "b", **changes})


def test_defaults_are_the_papers_setting():
    c = cfg()
    assert (c.k, c.view_sizes, c.batch, c.base_lr, c.weight_decay, c.tau) == (4, (224, 224, 112), 2048, 1.0, 1e-5, 0.99)
    assert c.views == (View(224, "crop", (0.5, 1.0), (3 / 4, 4 / 3)), View(112, "V2"))
    assert (c.hidden, c.embedding, c.epochs, c.warmup_epochs, c.jitter_p, c.jitter) == (4096, 256, 100, 10, 0.5, 0.1)


def test_plan_of_the_paper():
    p = plan(cfg(), images=1_281_167, world=16)
    assert (p.share, p.accumulate, p.steps_per_epoch, p.steps, p.warmup_steps, p.lr) == (
        128,
        1,
        625,
        62_500,
        6_250,
        8.0,
    )


def test_accumulation_keeps_the_global_batch():
    p = plan(cfg(micro_batch=32), images=5000, world=2)
    assert p.world * p.accumulate * p.micro_batch == 2048


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"k": 0}, "k=0"),
        ({"size": 0}, "size=0"),
        ({"views": ()}, "views is empty"),
        ({"views": (View(96, "V3"),)}, "V3"),
        ({"alignment": "heads"}, "did you mean 'head'"),
        ({"alignment": "whole"}, "k=1"),
        ({"precision": "fp8"}, "fp8"),
        ({"tau": 1.5}, "tau=1.5"),
        ({"batch": 0}, "batch=0"),
    ],
)
def test_bad_values_are_named(changes, word):
    with pytest.raises(BookError, match=word):
        cfg(**changes)


def test_view_size_must_be_positive():
    with pytest.raises(BookError, match="size=0"):
        View(0)


@pytest.mark.parametrize(
    ("world", "changes", "word"), [(1, {}, "larger than the 100"), (3, {"batch": 64}, "3 processes")]
)
def test_plan_refuses_what_no_accumulation_reaches(world, changes, word):
    with pytest.raises(BookError, match=word):
        plan(cfg(**changes), images=100, world=world)
    with pytest.raises(BookError, match="no accumulation"):
        plan(cfg(batch=64, micro_batch=24), images=100)


def test_file_values_and_overrides(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("images: a\nproposals: b\nbase_lr: 1e-3\nviews:\n- {size: 96}\n- {size: 48, source: V2}\n")
    c = load(Pretrain, path, k=2, seed=None)
    assert (c.base_lr, c.k, c.seed, c.view_sizes) == (1e-3, 2, 0, (224, 96, 48))
    assert from_dict(Pretrain, yaml.safe_load(yaml.safe_dump(to_dict(c)))) == c


def test_label_names_what_was_changed(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("images: a\nproposals: b\nprofile: toy\nk: 4\n")
    assert load(Pretrain, path, images="c", seed=3, workers=1, k=4).profile == "toy"
    assert load(Pretrain, path, k=8, steps=30).profile == "toy, k=8, steps=30"
    assert load(Pretrain, path, k=8, profile="mine").profile == "mine"


def test_unknown_field_names_the_nearest():
    with pytest.raises(BookError, match="did you mean 'batch'"):
        from_dict(Pretrain, {"images": "a", "proposals": "b", "bach": 3})
    with pytest.raises(BookError, match="needs a value for proposals"):
        from_dict(Pretrain, {"images": "a"})
    with pytest.raises(BookError, match="k='four'"):
        from_dict(Pretrain, {"images": "a", "proposals": "b", "k": "four"})


def test_identity_ignores_how_a_run_is_watched():
    assert identity(cfg()) == identity(cfg(workers=1, log_every=7, save_every=9, keep=1))
    assert identity(cfg()) != identity(cfg(seed=1))
    assert differences(to_dict(cfg()), to_dict(cfg(k=8))) == {"k": (4, 8)}


def test_one_image_at_once_is_too_few_for_batch_norm_unless_it_is_synchronised():
    """Of an image's K boxes a crop may leave one."""
    for k in (1, 4):
        with pytest.raises(BookError, match=r"batch norm needs two boxes.*micro_batch=1 or batch=64"):
            plan(cfg(batch=64, micro_batch=1, k=k), images=100)
    with pytest.raises(BookError, match="batch norm needs two boxes"):
        plan(cfg(batch=2), images=100, world=2, synchronised=False)
    assert plan(cfg(batch=64, micro_batch=2, k=1), images=100).accumulate == 32
    assert plan(cfg(batch=2), images=100, world=2, synchronised=True).micro_batch == 1
