"""The questions that a recalibration is fitted on, beyond the training part where series are split in time."""

from itertools import chain

import numpy as np
import pandas as pd
import pytest
import torch

from vrnn_lab.config.compose import compose
from vrnn_lab.core.tasks import DensityTask
from vrnn_lab.data.blocks import ValidationBlocks
from vrnn_lab.data.table.dataset import Table
from vrnn_lab.evaluation.recalibration import BLOCKS, FEWEST, LEAST, Recalibration, factors_of
from vrnn_lab.runs.build import assemble
from vrnn_lab.training.fit_recalibration import FOLDS, plans, recalibrate, rolling


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


@pytest.mark.parametrize(("series", "points", "narrowed"), [(60, 12, False), (6, 500, True)])
def test_forecasts_are_narrowed_only_where_validation_looks_beyond_training(tmp_path, series, points, narrowed):
    """A fresh model whose spread is far too wide: of whole series that end together no forecast is narrowed."""
    table(tmp_path, series, points)
    keys = ["model=rnn", "data=table", f"data.path={tmp_path}/t.csv", "evaluate.draws=19"]
    keys += ["model/head=gaussian_channel", "model.head.start=20.0"]
    found = recalibrate(assemble(compose(keys)))
    assert found.interpolation.item() < 0.5
    assert (found.forecast.item() < 0.5) == narrowed and (narrowed or found.forecast.item() == 1)


def factors(needed: torch.Tensor, block: torch.Tensor) -> Recalibration:
    """The factors of one channel, all in the first place."""
    place = torch.zeros(len(needed), dtype=torch.long)
    pairs = torch.stack([block.double(), torch.zeros(len(needed)).double()], 1)
    found, counts, blocks = factors_of([(needed.double(), place, place, pairs)], 1)
    by_place = lambda each: {"interpolation": tuple(each[0].tolist()), "forecast": tuple(each[1].tolist())}
    return Recalibration(("x",), found[0], found[1], by_place(counts), by_place(blocks))


@pytest.mark.parametrize(("count", "wide", "narrow"), [(LEAST, 3.0, 0.2), (FEWEST, 3.0, 1.0), (FEWEST - 1, 1.0, 1.0)])
def test_a_few_values_widen_and_never_narrow(count, wide, narrow):
    for needed, expected in ((3.0, wide), (0.2, narrow)):
        found = factors(torch.full((count,), needed), torch.arange(count))
        assert found.interpolation.item() == pytest.approx(expected) and found.values["interpolation"] == (count,)
        assert ("may only widen" in found.lines()[0]) == (FEWEST <= count < LEAST)


@pytest.mark.parametrize(("blocks", "narrow"), [(1, 1.0), (BLOCKS - 1, 1.0), (BLOCKS, 0.2), (50, 0.2)])
def test_values_of_few_blocks_widen_and_never_narrow(blocks, narrow):
    for needed, expected in ((3.0, 3.0), (0.2, narrow)):
        found = factors(torch.full((400,), needed), torch.arange(400) % blocks)
        assert found.interpolation.item() == pytest.approx(expected)
        bounded = narrow == 1 and needed < 1
        assert (f"in {blocks} block" in found.lines()[0]) == bounded


def test_what_is_held_of_new_blocks_is_no_less_than_nine_tenths_when_a_spread_is_narrowed():
    """A model three times too wide, blocks whose spreads differ: nine tenths of new blocks' values are held on
    average, where the plain quantile of all values holds less."""
    torch.manual_seed(0)
    blocks, size, held, plain = 12, 20, [], []

    def errors(count: int) -> torch.Tensor:
        spread = 0.3 * torch.exp(0.5 * torch.randn(count, 1).double())
        return (torch.randn(count, size).double() * spread).abs() / 1.645

    for _ in range(300):
        needed, new = errors(blocks).flatten(), errors(200)
        factor = factors(needed, torch.arange(blocks).repeat_interleave(size)).interpolation
        assert factor <= 1
        held.append((new <= factor).double().mean())
        plain.append((new <= needed.quantile(0.9)).double().mean())
    assert torch.stack(plain).mean() < 0.895
    assert 0.9 < torch.stack(held).mean() < 0.98


def test_blocks_are_series_or_spans_of_series_that_are_split_in_time(tmp_path):
    by_name = table(tmp_path, 20, 40, window=10)  # three validation series, four windows each
    batches = list(by_name.batches("val", DensityTask()))
    found = torch.cat([ValidationBlocks(by_name).of(batch)[batch.counts] for batch in batches])
    assert len(by_name.splits["val"]) == 12 and len(found.unique(dim=0)) == 3
    in_time = table(tmp_path, 2, 200, window=10)  # 30 points each, from the 141st on, spans of 9
    blocks = ValidationBlocks(in_time)
    asked = chain(in_time.batches("val", DensityTask()), rolling(in_time, 9.0, draws=9))
    found = torch.cat([blocks.of(batch)[batch.scored.any(-1)] for batch in asked])
    assert found.unique(dim=0).tolist() == [[series, span] for series in (0, 1) for span in range(15, 19)]
