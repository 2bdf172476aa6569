"""What the README shows is what runs left."""

from soco_lib import ROOT
from soco_lib.book import gallery
from soco_lib.config import Pretrain
from soco_lib.fields import load
from soco_lib.runs.folder import Run

TOY = "notebooks/params/pretrain-toy.yaml"


def test_reference_curve_stands_behind_runs_of_its_own_settings_only():
    assert gallery.reference(load(Pretrain, TOY)) == Run.read(gallery.HEALTHY).rows()
    assert gallery.reference(load(Pretrain, TOY, seed=3, images="folder:photos", log_every=1))
    assert not gallery.reference(load(Pretrain, TOY, k=8))


def test_readme_shows_the_tables_of_the_gallery():
    readme = (ROOT / "README.md").read_text()
    for place, name in gallery.PLACES.items():
        between = readme.split(f"<!-- {place} -->\n")[1].split(f"<!-- end of the {place} -->")[0]
        assert between == (ROOT / "results" / "gallery" / name).read_text()
