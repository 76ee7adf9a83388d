"""Extreme numbers: offsets, spreads, magnitudes, precisions, stiff fields, many channels, long series, odd spans."""

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from helpers.small import MODELS, asked, batch_of, fit, held_out, model_of, scale_of
from vrnn_lab.config.options import options
from vrnn_lab.data import splits
from vrnn_lab.data.table.columns import ColumnRoles
from vrnn_lab.data.table.dataset import Table
from vrnn_lab.data.table.reader import SeriesReader, TableSchema
from vrnn_lab.models.ode import Solver
from vrnn_lab.reports.run_table import facts

stress = pytest.mark.stress
every_model = pytest.mark.parametrize("name", options("model"))
OFFSETS, SPREADS = 10.0 ** np.arange(0, 13, 2), 10.0 ** np.arange(-6, 7, 2)
DIGITS = 1e-16  # of a double, about

# ---- rounding ------------------------------------------------------------------------------------------------


def step_of(values: np.ndarray) -> float:
    return splits.rounding_step(lambda: [values])


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("spread", SPREADS)
def test_values_far_from_zero_for_their_spread_are_not_taken_for_rounded(offset, spread):
    values = offset + spread * np.random.default_rng(0).normal(size=500)
    assert step_of(values) == 0.0
    assert step_of(-values) == 0.0


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("spread", SPREADS)
def test_rounded_values_are_found_at_any_offset_and_spread_that_doubles_can_tell(offset, spread):
    """A step of a tenth of the spread, where doubles near the offset have two more digits than that."""
    step = spread / 10
    rounded = np.rint(offset / step + 10 * np.random.default_rng(0).normal(size=500))
    values = rounded * step if step >= 1 else rounded / np.rint(1 / step)
    if offset * DIGITS < 1e-3 * step:
        assert step_of(values) == pytest.approx(step)


MEASURED = {
    "a quartz of 10 MHz": 1e7 + 0.1 * np.random.default_rng(0).normal(size=300),
    "UTM northings": 5_412_345 + 30 * np.random.default_rng(1).random(300),
    "years with fractions": 1950 + 70 * np.random.default_rng(2).random(300),
}


@pytest.mark.parametrize("case", MEASURED)
def test_a_measured_quantity_far_from_zero_is_left_as_it_is(case):
    assert step_of(MEASURED[case]) == 0.0
    assert step_of(MEASURED[case].astype(np.float32).astype(float)[:0]) == 0.0


# ---- magnitudes ----------------------------------------------------------------------------------------------


def frame(value: float, name: str = "a") -> pd.DataFrame:
    rng = np.random.default_rng(0)
    made = pd.DataFrame({"id": np.repeat([f"s{i}" for i in range(5)], 10), "time": np.tile(np.arange(10.0), 5)})
    made["a"] = rng.normal(size=50)
    made.loc[13, name] = value
    return made


@pytest.mark.parametrize("value", [1e154, -1.1e150, 1e308])
@pytest.mark.parametrize("name", ["a", "time"])
@pytest.mark.parametrize("way", ["csv", "parquet", "stream", "question", "frame"])
def test_numbers_beyond_1e150_are_refused_by_their_cell_in_every_way_in(value, name, way, tmp_path, monkeypatch):
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path))
    table, path = frame(value, name), tmp_path / ("t.csv" if way in ("csv", "question") else "t.parquet")
    table.to_csv(path, index=False) if path.suffix == ".csv" else table.to_parquet(path)
    place = "line 15" if path.suffix == ".csv" else "row 14"
    found = table if way == "frame" else path
    ask = lambda: list(SeriesReader(found, "input", TableSchema(), ("a",), ColumnRoles(), None).series(whole=True))
    read = lambda: Table(str(path), stream=way == "stream").whole()
    with pytest.raises(ValueError, match=rf"column '{name}'.*e\+.* in {place}; expected .*1e\+150"):
        ask() if way in ("question", "frame") else read()


def test_whole_numbers_beyond_floats_are_refused_by_their_cell(tmp_path):
    text = frame(1.0).to_csv(index=False).replace("s1,3.0,1.0", f"s1,3.0,{'9' * 400}")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=r"column 'a' is infinite in line 15"):
        _ = Table(str(tmp_path / "t.csv")).whole()


@pytest.mark.parametrize("digits", [311, 400, 5000])
def test_a_column_of_whole_numbers_beyond_floats_is_refused_and_one_not_asked_for_is_left_out(digits, tmp_path):
    """pandas reads a column that begins so as texts, and to_numeric raises OverflowError on them."""
    table = frame(1.0).astype({"a": object})
    table["a"] = ["9" * digits if place % 2 == 0 else "12345678901234567" for place in range(len(table))]
    table["b"] = np.arange(len(table)) % 7 + 0.5
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match=r"column 'a' (is infinite|holds the text '9+\.\.\.') in line 2;") as refused:
        _ = Table(str(tmp_path / "t.csv"), values=["a"]).whole()
    assert len(str(refused.value)) < 700
    assert Table(str(tmp_path / "t.csv"), values=["b"]).channels == ("b",)


def test_a_value_beyond_single_precision_raises_no_warning(tmp_path):
    table = frame(1.0)
    table["a"] = np.where(np.arange(len(table)) % 5, 1e39, 2e39)
    table.to_csv(tmp_path / "t.csv", index=False)
    assert Table(str(tmp_path / "t.csv")).describe()


@pytest.mark.parametrize("value", [1e6, -1e6, 1e149])
def test_a_value_a_million_spreads_away_is_warned_of_by_series_time_and_channel(value, tmp_path):
    path = tmp_path / "t.csv"
    table = frame(value)
    table["a"] += 5.0 if value == -1e6 else 0.0
    table.to_csv(path, index=False)
    odd = Table(str(path)).describe()[1]
    assert len(odd) == 1
    assert "channel 'a'" in odd[0] and "series 's1' at 3" in odd[0] and f"{table.a[13]:g}" in odd[0]


def test_common_measurements_are_not_warned_of(tmp_path):
    table = frame(0.0)
    table["a"] = np.random.default_rng(0).standard_cauchy(50)
    table.to_csv(tmp_path / "t.csv", index=False)
    assert not [line for line in Table(str(tmp_path / "t.csv")).describe()[1] if "middle half" in line]


@pytest.mark.parametrize("ours", [1e9, float("nan"), float("inf")])
def test_a_fit_that_went_astray_is_named_beside_the_table(ours):
    metrics = {"test/forecast/nmse": ours, "reference/constant/forecast/nmse": 1.0, "test/nll_samples": 1}
    said = facts(metrics, "test")
    assert "training diverged" in said and "optim.lr" in said
    assert "astray" not in facts({**metrics, "test/forecast/nmse": 3.0}, "test")


# ---- solvers -------------------------------------------------------------------------------------------------


class Field(nn.Module):
    """dz/dt of a kind that adaptive methods cannot follow."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.rate = kind, nn.Parameter(torch.tensor(1.0))

    def forward(self, time, z):
        if self.kind == "stiff":
            return -1e7 * self.rate * (z - torch.cos(1e10 * z))
        return {"explodes": 1e3 * z**3, "not a number": z * torch.nan, "too large": 1e30 * z}[self.kind] * self.rate


@pytest.mark.parametrize("kind", [pytest.param("stiff", marks=stress), "explodes", "not a number", "too large"])
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3"])
def test_an_adaptive_method_ends_with_a_message_where_it_cannot_solve(method, adjoint, kind):
    begun = time.process_time()
    with pytest.raises(
        ValueError, match=rf"method={method} with rtol=0.0001 .*rtol.*method=rk4.*optim.lr.*trick=clip"
    ):
        Solver(method, adjoint=adjoint).nodes(Field(kind), torch.ones(1, 2, 3), 0.05, 3)
    assert time.process_time() - begun < 20


@pytest.mark.parametrize("method", ["rk4", "euler", "midpoint"])
def test_a_fixed_method_ends_on_a_stiff_field(method):
    states, _ = Solver(method).nodes(Field("stiff"), torch.ones(1, 2, 3), 0.05, 3)
    assert len(states) == 4


def test_the_way_back_of_the_adjoint_method_ends_with_a_message(monkeypatch):
    model = model_of("latent_ode method=dopri5 adjoint=true".replace(" ", " model."))
    monkeypatch.setattr("lightning.pytorch.LightningModule.backward", lambda *_: (_ for _ in ()).throw(
        AssertionError("underflow in dt 0.0")
    ))  # fmt: skip
    with pytest.raises(ValueError, match="shorter than the precision of time"):
        model.backward(torch.zeros(()))


# ---- precision and size --------------------------------------------------------------------------------------

SINGLE = (
    1e-3  # of a series' nats, and as many nats: measured at most 1e-4; float32 has 1e-7, over some 1e3 operations
)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_single_precision_gives_the_loss_of_double_precision(name):
    """The noise of evaluation is drawn in double precision and cast, so both see the same draws."""
    terms = []
    double = model_of(name, double=True)
    single = model_of(name)
    single.load_state_dict(double.state_dict())
    for model in (single, double):
        with model.fixed_noise(5):
            found = model.loss_terms(held_out(batch_of()))
        terms.append((found.nll.double(), found.kl.double()))
    for one, two in zip(*terms, strict=True):
        torch.testing.assert_close(one, two, rtol=SINGLE, atol=SINGLE)


def trains_and_predicts(name: str, scale, batch) -> None:
    model = model_of(name, scale)
    fit(model, lambda step: held_out(batch, seed=step), 2)
    model.eval()
    with model.fixed_noise(0):
        found = model.predict(asked(batch), 3)
    assert found.paths.isfinite().all() and found.density.mean.isfinite().all() and found.density.std.isfinite().all()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("dim", [20, pytest.param(500, marks=stress)])
@every_model
def test_many_channels_train_and_predict(name, dim):
    scale = scale_of(2)
    wide = lambda x: x.repeat(dim // 2)
    names = tuple(f"c{i}" for i in range(dim))
    scale = replace(scale, channels=names, mean=wide(scale.mean), std=wide(scale.std))
    trains_and_predicts(name, scale, batch_of(2, 4, dim, scale=scale))


@pytest.mark.slow
@pytest.mark.parametrize("points", [200, pytest.param(20_000, marks=stress)])
@every_model
def test_long_series_train_and_predict(name, points):
    trains_and_predicts(name, scale_of(), batch_of(1, points))


@pytest.mark.slow
@pytest.mark.parametrize("span", [1e-9, 1e15, *(pytest.param(10.0**p, marks=stress) for p in range(-8, 15))])
@every_model
def test_any_span_of_time_trains_and_predicts(name, span):
    scale = replace(scale_of(clock=span), start=torch.tensor(0.0, dtype=torch.float64))
    trains_and_predicts(name, scale, batch_of(scale=scale))
