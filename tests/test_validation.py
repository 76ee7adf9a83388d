"""The questions that a recalibration is fitted on, beyond the training part where series are split in time."""

import numpy as np
import pandas as pd
import pytest
import torch

from vrnn_lab.config import compose
from vrnn_lab.data.table import Table
from vrnn_lab.experiment import assemble
from vrnn_lab.recalibration import FEWEST, LEAST, Recalibration, factors_of
from vrnn_lab.validation import FOLDS, plans, recalibrate, rolling


def table(tmp_path, series: int, points: int, **keys) -> Table:
    rng = np.random.default_rng(0)
    owner, times = np.repeat(np.arange(series), points), np.tile(np.arange(float(points)), series)
    frame = pd.DataFrame({"id": owner, "time": times, "x": rng.normal(size=series * points)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    return Table(str(tmp_path / "t.csv"), **keys)


def test_series_split_in_time_are_asked_beyond_their_training_part(tmp_path):
    data = table(tmp_path, 2, 200, window=20)
    far, near = plans(data, longest=19.0)
    assert (far.horizon, far.folds) == (19.0, 1) and (near.horizon, near.folds) == (9.5, FOLDS)
    longest, count = float(data.scale.longest), 0
    for batch in rolling(data, longest, draws=9):
        origin = torch.where(batch.seen.any(-1), batch.times, -torch.inf).amax(1)
        last = torch.where(batch.counts, batch.times, -torch.inf).amax(1)
        assert (origin >= 139).all()  # the training part is the first 140 points
        assert ((last - origin <= 19.0) & (last < 170)).all()
        count += len(batch.ids)
    assert count == 2 * (1 + FOLDS)


def test_series_split_by_name_are_asked_within_their_windows(tmp_path):
    data = table(tmp_path, 20, 12)
    assert plans(data, longest=11.0) == []
    shares = [batch.seen.any(-1).sum(1) / batch.counts.sum(1) for batch in rolling(data, 11.0, draws=9)]
    assert torch.cat(shares).unique().tolist() == pytest.approx([0.33, 0.67], abs=0.02)


@pytest.mark.parametrize(("series", "points", "narrowed"), [(60, 12, False), (2, 500, True)])
def test_forecasts_are_narrowed_only_where_validation_looks_beyond_training(tmp_path, series, points, narrowed):
    """A fresh model whose spread is far too wide: of whole series that end together no forecast is narrowed."""
    table(tmp_path, series, points)
    keys = ["model=rnn", "data=table", f"data.path={tmp_path}/t.csv", "evaluate.draws=19"]
    keys += ["model/head=gaussian_channel", "model.head.start=20.0"]
    found = recalibrate(assemble(compose(keys)))
    assert found.interpolation.item() < 0.5
    assert (found.forecast.item() < 0.5) == narrowed and (narrowed or found.forecast.item() == 1)


@pytest.mark.parametrize(("count", "wide", "narrow"), [(LEAST, 3.0, 0.2), (FEWEST, 3.0, 1.0), (FEWEST - 1, 1.0, 1.0)])
def test_a_few_values_widen_and_never_narrow(count, wide, narrow):
    for needed, expected in ((3.0, wide), (0.2, narrow)):
        least, place = torch.full((count,), needed).double(), torch.zeros(count, dtype=torch.long)
        factors, counts = factors_of([(least, place, place)], 1)
        assert factors[0].item() == pytest.approx(expected) and counts[0].item() == count
    assert "only widened" in Recalibration(("x",), factors[0], factors[1], {"interpolation": (FEWEST,)}).lines()[0]
