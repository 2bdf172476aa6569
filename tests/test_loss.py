import math

import pytest
import torch

from soco_lib.loss import box_weights, pair_loss


def test_by_hand():
    """Two boxes of one image: one aligned (cos 1), one orthogonal (cos 0): -2 (1 + 0) / 2."""
    v, z = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[5.0, 0.0], [1.0, 0.0]])
    weight = box_weights(torch.tensor([[True, True]])).flatten()
    assert pair_loss(v, z, weight).item() == pytest.approx(-1.0)
    assert pair_loss(v, -z, weight).item() == pytest.approx(1.0)


def test_weights_average_over_boxes_then_images():
    valid = torch.tensor([[True, True, True, True], [True, False, False, False], [False] * 4])
    assert box_weights(valid).flatten().tolist() == pytest.approx([1 / 12] * 4 + [1 / 3, 0, 0, 0] + [0] * 4)


def naive(v, z, valid):
    """Eqs. 5 and 6 in Python floats, box by box."""
    total, rows = 0.0, iter(range(len(v)))
    for image in valid.tolist():
        terms = []
        for present in image:
            if present:
                i = next(rows)
                a, b = v[i].tolist(), z[i].tolist()
                dot = sum(x * y for x, y in zip(a, b))
                terms.append(-2 * dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b)))
        total += sum(terms) / len(terms) if terms else 0.0
    return total / len(valid)


def test_against_a_naive_loop():
    torch.manual_seed(0)
    valid = torch.rand(7, 4) < 0.7
    v, z = torch.randn(2, int(valid.sum()), 16, dtype=torch.float64)
    assert pair_loss(v, z, box_weights(valid)[valid]).item() == pytest.approx(naive(v, z, valid), abs=1e-12)
