"""What the pages show is what runs left, and what they link to exists."""

import re

from soco_lib import ROOT
from soco_lib.book import gallery
from soco_lib.config import Pretrain
from soco_lib.runs.folder import Run
from soco_lib.runs.settings import load

TOY = "notebooks/params/pretrain-toy.yaml"


def test_reference_curve_stands_behind_runs_of_its_own_settings_only():
    assert gallery.reference(load(Pretrain, TOY)) == Run.read(gallery.HEALTHY).rows()
    assert gallery.reference(load(Pretrain, TOY, seed=3, images="folder:photos", log_every=1))
    assert not gallery.reference(load(Pretrain, TOY, k=8))


def test_pages_show_the_tables_of_the_gallery():
    for page, places in gallery.PLACES.items():
        text = (ROOT / page).read_text()
        for place, name in places.items():
            between = text.split(f"<!-- {place} -->\n")[1].split(f"<!-- end of the {place} -->")[0]
            assert between == gallery.shown(page, name), f"{place} in {page}"


def test_links_and_pictures_of_the_pages_exist():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_tests_that_the_readme_names_exist():
    last = ""
    for name, test in re.findall(r"`(test_\w+\.py)?(?:::(\w+))?`", (ROOT / "tests" / "README.md").read_text()):
        last = name or last
        if name or test:
            assert f"def {test}" in (ROOT / "tests" / last).read_text(), f"{last}::{test}"
