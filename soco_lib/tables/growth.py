"""Does a score grow with pretraining? For a study whose variants are arms at several lengths: `soco-x4`, of the arm
`soco`, has seen four times as many images as `soco-x1`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from soco_lib.runs import records
from soco_lib.tables.stats import paired
from soco_lib.tables.study_rows import Row

#: Scores of a pretraining itself, by the object probe: column of its log and what it is called.
PROBES = {"knn": "k-NN", "linear": "linear probe"}


def arm_of(variant: str) -> str:
    """The arm that a variant is one length of; "" where its name does not end in a length."""
    arm, _, length = variant.rpartition("-x")
    return arm if length.isdecimal() else ""


def scores(rows: Sequence[Row]) -> pd.DataFrame:
    """A row a finished score: arm, images seen, seed, score (a probe, or box AP on a benchmark), value in percent; an
    arm "" has no pretraining, and has seen 0 images. No row where no arm has two lengths.
    """
    found = []
    for row in rows:
        arm = arm_of(row.variant.name)
        for seed, cell in row.cells.items():
            pretrained = cell.pretrain.run if cell.pretrain and cell.pretrain.state.word == "done" else None
            said = records.numbers(pretrained) if pretrained and arm else {}
            about = {"arm": arm, "images": said.get("images_seen", 0), "seed": seed}
            found += [about | {"score": name, "value": 100 * said[key]} for key, name in PROBES.items() if key in said]
            ap = row.scores("AP_bb").get(seed) if arm or row.variant.scratch else None
            found += [about | {"score": f"{row.benchmark}, AP_bb", "value": ap}] * (ap is not None)
    frame = pd.DataFrame(found, columns=["arm", "images", "seed", "score", "value"]).drop_duplicates()
    frame = frame.sort_values("score", key=lambda names: ~names.isin(PROBES.values()), kind="stable")
    lengths = frame[frame["arm"] != ""].groupby("arm")["images"].nunique()
    return frame if (lengths > 1).any() else frame[:0]


def slope(values: pd.Series) -> float:
    """Points a doubling: slope of the least-squares line of at least two values over log2 of their index, images."""
    return float(np.polyfit(np.log2(values.index), values, 1)[0])


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a score and arm: at each length mean ± standard deviation (n); `a doubling`: the mean slope over seeds that
    have every length, with its 95 % interval (and their number); `beyond`: its difference to the first arm's, paired
    over seeds.
    """
    lines, lengths = [], sorted({*frame["images"]} - {0})
    for score, of_score in frame.groupby("score", sort=False):
        slopes: dict[str, dict[int, float]] = {}
        for arm, of_arm in of_score.groupby("arm", sort=False):
            line, by_seed = {"score": score, "arm": arm or "random weights"}, of_arm.set_index("images").groupby("seed")
            for length in lengths:
                at = of_arm[of_arm["images"] == (length if arm else 0)]["value"]
                spread = f" ± {at.std():.2f}" if len(at) > 1 else ""
                line[f"{length:,}"] = f"{at.mean():.2f}{spread} ({len(at)})" if len(at) else ""
            if arm:
                whole = [(int(seed), own["value"]) for seed, own in by_seed if len(own) == len(lengths) > 1]
                slopes[arm] = {seed: slope(values) for seed, values in whole}
                line["a doubling"] = _interval(paired(slopes[arm]))
                first = next(iter(slopes))
                line[f"beyond {first}'s"] = _interval(paired(slopes[arm], slopes[first])) if arm != first else ""
            lines.append(line)
    return pd.DataFrame(lines).fillna("")


def _interval(change) -> str:
    if not change.n:
        return ""
    interval = f" [{change.low:+.2f}, {change.high:+.2f}]" if change.n > 1 else ""
    return f"{change.mean:+.2f}{interval} ({change.n})"
