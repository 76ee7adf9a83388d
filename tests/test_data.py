"""The data sets: their formulas, and what every one in conf/data promises."""

from dataclasses import replace
from math import cos, pi, sin

import numpy as np
import pytest
import torch
from scipy import stats

from helpers.small import model_of
from vrnn_lab.config.compose import compose
from vrnn_lab.config.options import CONF, options
from vrnn_lab.config.validate import instantiate
from vrnn_lab.core.tasks import DensityTask, Forecast, Interpolate, Mixed, Own
from vrnn_lab.data.base import SPLITS, Batches, generator
from vrnn_lab.data.datasets.periodic import Periodic
from vrnn_lab.data.datasets.spirals import TIMES, Spirals, Spirals1D
from vrnn_lab.data.splits import rounding_step

SIZES = {"train": 30, "val": 8, "test": 9}
# Sets that count otherwise: the keys that make them small and let the seed matter, and the sizes that follow.
OTHERS = {
    "ode_demo": ({"points": 40, "starts": 9, "noise": 0.05}, {"train": 30, "val": 1, "test": 9}),
    "digits": ({}, {"train": 1257, "val": 270, "test": 270}),
}
MIXED = Mixed(
    [DensityTask(), Interpolate([0.1, 0.9]), Interpolate(0.5, unit="value"), Forecast([0.2, 0.8], [0.3, 1.0])]
)


def needs_a_file(name: str) -> bool:
    text = (CONF / "data" / f"{name}.yaml").read_text()
    return "path: ???" in text or "vrnn_lab.fetch" in text


NAMES = [name for name in options("data") if not needs_a_file(name)]
every_data_set = pytest.mark.parametrize("name", NAMES)


def data_of(name: str, **keys):
    """A small data set of conf/data/<name>.yaml."""
    node = compose([f"data={name}"]).data
    for key, value in {**OTHERS.get(name, (SIZES,))[0], **keys}.items():
        node[key] = value
    return instantiate(node, "data")


def sizes(name: str) -> dict[str, int]:
    return OTHERS.get(name, ({}, SIZES))[1]


def arrays(split):
    return [split.times, split.values, split.offsets, split.windows, split.ids]


def same(one, two) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(arrays(one), arrays(two), strict=True))


# ---- what every data set promises ------------------------------------------------------------------------


def test_the_usual_data_sets_are_looked_at_here():
    old = {"spirals", "spirals_1d", "periodic", "ou", "lgssm"}
    assert old | {"ode_demo", "events", "digits", "mixture", "curves"} <= set(NAMES)


@every_data_set
def test_a_data_set_is_a_function_of_its_seed(name):
    one, again, other = data_of(name), data_of(name), data_of(name, seed=1)
    for split in SPLITS:
        assert same(one.splits[split], again.splits[split])
        assert not same(one.splits[split], other.splits[split])


@every_data_set
def test_making_a_data_set_leaves_everyones_generators_alone(name):
    np.random.seed(0)  # noqa: NPY002 - the global state is what must not move
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002 - the global state is what must not move
    data_of(name).splits["train"].batch(np.arange(3), MIXED, Own(generator, range(3)))
    assert (before[0] == np.random.get_state()[1]).all()  # noqa: NPY002 - the global state is what must not move
    assert torch.equal(before[1], torch.get_rng_state())


@every_data_set
def test_no_series_is_in_two_splits(name):
    splits = data_of(name).splits
    ids = np.concatenate([splits[s].ids for s in SPLITS])
    assert len(set(ids.tolist())) == len(ids)
    if name == "digits":  # some binary images are alike; images of grey are not
        splits = data_of(name, binary=False).splits
    points = {s: np.column_stack([splits[s].times, splits[s].values]) for s in SPLITS}
    rows = [part.tobytes() for s in SPLITS for part in np.split(points[s], splits[s].offsets[1:-1])]
    assert len(set(rows)) == len(rows)


@every_data_set
def test_the_splits_have_the_sizes_asked_for(name):
    assert {split: len(series) for split, series in data_of(name).splits.items()} == sizes(name)


@every_data_set
def test_the_scale_is_read_from_training_alone(name):
    data = data_of(name)
    scale, train = data.scale, data.splits["train"]
    real = data.support == "real"  # zeros, ones and events have no units
    np.testing.assert_allclose(scale.mean, np.nanmean(train.values, 0) if real else 0 * train.values[0])
    np.testing.assert_allclose(scale.std, np.nanstd(train.values, 0) if real else 0 * train.values[0] + 1)
    assert scale.channels == data.channels and scale.support == data.support
    for split in ("val", "test"):
        other = data.splits[split]
        data.splits[split] = replace(
            other, points=replace(other.points, values=1e6 + other.points.values), windows=other.windows * 9
        )
    for field in ("mean", "std", "clock", "gap", "longest", "start", "reach"):
        assert torch.equal(getattr(data.scale, field), getattr(scale, field))


@every_data_set
def test_every_window_holds_its_series(name):
    for series in data_of(name).splits.values():
        for (start, end), a, b in zip(series.windows, series.offsets, series.offsets[1:], strict=False):
            assert ((start <= series.times[a:b]) & (series.times[a:b] <= end)).all()


@every_data_set
@pytest.mark.parametrize("split", SPLITS)
def test_batches_keep_the_promises_of_a_batch_of_series(name, split):
    data = data_of(name, batch_size=7)
    data.task = MIXED
    loader = {"train": data.train_dataloader, "val": data.val_dataloader, "test": data.test_dataloader}[split]()
    batches = list(loader)
    assert len(batches) == len(loader) == -(-sizes(name)[split] // 7)
    assert sorted(int(i) for b in batches for i in b.ids) == sorted(data.splits[split].ids.tolist())
    for batch in batches:
        batch.check()
        assert batch.values.isfinite().all()  # also where nothing is known
        assert (batch.values[~batch.known] == 0).all()
        assert batch.values.shape[2] == len(data.channels)
        assert batch.in_training == (split == "train")
        assert batch.most_seen == batch.seen.any(-1).sum(1).max()
        opening = [seen[there][:1].any() for seen, there in zip(batch.seen, batch.counts, strict=True)]
        assert batch.opens_seen == all(opening)
        if batch.clean is not None:
            assert batch.clean.shape == batch.values.shape and batch.clean.isfinite().all()


@every_data_set
def test_a_batch_holds_the_series_as_they_were_observed(name):
    data = data_of(name)
    series = data.splits["test"]
    batch = next(iter(data.batches("test", DensityTask(), len(series))))
    for row, (a, b) in enumerate(zip(series.offsets, series.offsets[1:], strict=False)):
        observed = ~np.isnan(series.values[a:b])
        np.testing.assert_array_equal(batch.seen[row, : b - a], observed)
        np.testing.assert_array_equal(batch.scored[row, : b - a], observed)
        np.testing.assert_array_equal(batch.times[row, : b - a], series.times[a:b])
        np.testing.assert_array_equal(batch.values[row, : b - a].numpy()[observed], series.values[a:b][observed])
        assert not batch.known[row, b - a :].any()


@every_data_set
def test_the_observation_noise_is_what_stands_beside_the_clean_curve(name):
    data = data_of(name, **({"train": 300} if name not in OTHERS else {}))
    train = data.splits["test" if name == "ode_demo" else "train"]  # whose windows share their points
    if train.clean is None or data.noise_std is None:
        pytest.skip("the clean curve or the noise of this data set is not known")
    noise = (train.values - train.clean)[1:]
    assert noise.std() == pytest.approx(data.noise_std, rel=5 * (1 / (2 * noise.size)) ** 0.5 + 0.01)
    assert abs(noise.mean()) < 5 * data.noise_std / noise.size**0.5


# ---- spirals ---------------------------------------------------------------------------------------------


def published(clockwise: bool, place: int) -> tuple[float, float]:
    """torchdiffeq's examples/latent_ode.py: ts = linspace(0, 6 pi, 500), a = 0, b = 0.3."""
    t = 6 * pi * place / 499
    if clockwise:
        theta = 6 * pi + 1 - t
        r = 0 + 0.3 * 50 / theta
        return r * cos(theta) - 5, r * sin(theta)
    r = 0 + 0.3 * t
    return r * cos(t) + 5, r * sin(t)


def starts(series, points: int) -> np.ndarray:
    return np.rint(series.times.reshape(-1, points)[:, 0] / (6 * pi / 499)).astype(int)


def test_spirals_are_windows_of_the_published_curves():
    train = Spirals(train=60, val=1, test=1, points=20, start=(5, 400)).splits["train"]
    clean = train.clean.reshape(60, 20, 2)
    sides = set()
    for row, first in enumerate(starts(train, 20)):
        truth = {side: np.array([published(side, first + i) for i in range(20)]) for side in (True, False)}
        side = min(truth, key=lambda s: abs(truth[s] - clean[row]).max())
        np.testing.assert_allclose(clean[row], truth[side], atol=1e-9)
        np.testing.assert_allclose(train.times.reshape(60, 20)[row], [6 * pi * (first + i) / 499 for i in range(20)])
        sides.add(side)
    assert sides == {True, False}


def test_a_fair_coin_chooses_the_spiral_and_starts_are_uniform():
    train = Spirals(train=3000, val=1, test=1, points=2, start=(10, 29)).splits["train"]
    left = (train.clean.reshape(3000, 2, 2)[:, 0, 0] < 0).mean()
    assert left == pytest.approx(0.5, abs=4 * (0.25 / 3000) ** 0.5)
    counts = np.bincount(starts(train, 2), minlength=30)
    assert counts[:10].sum() == 0 and len(counts) == 30
    assert stats.chisquare(counts[10:]).pvalue > 1e-3


def test_the_noise_of_spirals_is_gaussian_and_independent():
    train = Spirals(train=200, val=1, test=1, points=50, noise=0.3).splits["train"]
    noise = (train.values - train.clean) / 0.3
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 4 / len(noise) ** 0.5
    assert abs(np.corrcoef(noise[1:, 0], noise[:-1, 0])[0, 1]) < 4 / len(noise) ** 0.5


@pytest.mark.parametrize(
    "start, points", [((100, 401), 100), ((5, 4), 100), ((0,), 100), ((0, 0), 501), ((1, 2, 3), 9)]
)
def test_a_start_that_leaves_the_curve_is_refused(start, points):
    with pytest.raises(ValueError, match="first <= last"):
        Spirals(start=start, points=points)


@pytest.mark.parametrize("start, points", [((400, 400), 100), ((0, 0), 500), ((499, 499), 1)])
def test_the_last_possible_start_is_allowed(start, points):
    splits = Spirals(train=3, val=1, test=1, start=start, points=points).splits
    assert splits["train"].times.reshape(3, points)[:, -1] == pytest.approx(
        [6 * pi * (start[0] + points - 1) / 499] * 3
    )


@pytest.mark.parametrize("made", [Spirals, Spirals1D])
def test_the_clock_relabels_times_and_nothing_else(made):
    own, shared = (made(**SIZES, clock=clock).splits["train"] for clock in ("own", "shared"))
    np.testing.assert_array_equal(own.values, shared.values)
    np.testing.assert_array_equal(own.clean, shared.clean)
    assert (shared.times.reshape(-1, 100) == TIMES[:100]).all()
    assert len(np.unique(own.windows[:, 0])) > 10
    np.testing.assert_allclose(np.diff(own.windows), np.diff(shared.windows))


def test_the_one_dimensional_spirals_are_windows_of_x():
    data = Spirals1D(**SIZES)
    train = data.splits["train"]
    assert data.channels == ("x",) and train.values.shape[1] == 1
    for first, clean in zip(starts(train, 100), train.clean.reshape(-1, 100), strict=True):
        truth = [[published(side, first + i)[0] for i in range(100)] for side in (True, False)]
        assert min(abs(clean - t).max() for t in truth) < 1e-9


def clocked(origin: str, clock: str, made=Spirals1D):
    """A latent ODE's loss and predictive means on spirals of a clock, from the same weights."""
    data = made(**SIZES, points=30, clock=clock)
    model = model_of("latent_ode", data.scale, double=True, origin=origin)
    batch = next(iter(data.batches("test", Forecast(10))))
    with model.fixed_noise(0):
        terms, prediction = model.loss_terms(batch), model.predict(batch, 3)
    return torch.stack([terms.nll, terms.kl]), prediction.density.mean


@pytest.mark.parametrize("made", [Spirals, Spirals1D])
def test_with_the_origin_at_each_rows_start_the_clock_changes_nothing(made):
    own, shared = (clocked("row", clock, made) for clock in ("own", "shared"))
    for one, two in zip(own, shared, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-8)


def test_with_a_common_origin_the_clock_matters():
    own, shared = (clocked("common", clock) for clock in ("own", "shared"))
    assert not torch.isclose(own[0][0], shared[0][0], rtol=1e-3).any()


@pytest.mark.parametrize("made", [Spirals, Spirals1D])
@pytest.mark.parametrize("clock", ["own", "shared"])
def test_beyond_the_windows_of_spirals_lies_the_same_curve(made, clock):
    data = made(train=30, val=8, test=40, points=60, start=(0, 440), clock=clock)
    window, wide = data.splits["test"], data.beyond("test")
    assert np.array_equal(wide.ids, window.ids) and np.array_equal(wide.windows, window.windows)
    step = TIMES[1]
    for row, first in enumerate(starts(window, 60) if clock == "own" else [None] * 40):
        part = slice(*wide.offsets[row : row + 2])
        times, values, clean = wide.times[part], wide.values[part], wide.clean[part]
        inside = (times >= wide.windows[row, 0]) & (times <= wide.windows[row, 1])
        assert np.array_equal(values[inside], window.values[60 * row : 60 * (row + 1)])
        assert np.array_equal(clean[inside], window.clean[60 * row : 60 * (row + 1)])
        np.testing.assert_allclose(np.diff(times), step, rtol=1e-9)
        if first is not None:
            place = np.rint(times / step).astype(int)
            assert place[0] == max(0, first - 60) and place[-1] == min(499, first + 119)
            truth = [np.array([published(side, i)[: clean.shape[1]] for i in place]) for side in (True, False)]
            assert min(abs(clean - t).max() for t in truth) < 1e-9
    assert (wide.values - wide.clean).std() == pytest.approx(0.3, rel=0.05)
    assert wide.lengths.max() == 180 and wide.lengths.min() < 180  # the curve ends


def test_data_that_know_the_truth_beyond_their_windows_ask_for_it():
    data = Spirals(**SIZES, points=30)
    assert list(data.questions) == ["before", "after"] and Periodic(**SIZES).questions == {}
    inside = next(iter(data.batches("test", DensityTask(), 100)))
    for name, task in data.questions.items():
        batch = next(iter(data.batches("test", task, 100))).check()
        start, end = batch.window.split(1, 1)
        assert not (batch.seen & batch.scored).any() and batch.scored.any()
        asked = batch.scored.any(2)
        there = batch.times < start if name == "before" else batch.times > end
        assert torch.equal(asked, there & batch.counts)
        assert torch.equal(batch.values[batch.seen], inside.values[inside.seen])


@pytest.mark.parametrize(("clock", "origin"), [("own", "middle"), ("shared", "row")])
def test_origin_auto_follows_what_the_data_set_says_of_its_clock(clock, origin):
    for made in (Spirals, Spirals1D):
        scale = made(**SIZES, clock=clock).scale
        assert model_of("latent_ode", scale).origin == model_of("latent_ode", scale, origin="auto").origin == origin
        assert model_of("latent_ode", scale, origin="row").origin == "row"
    assert model_of("latent_ode", Periodic(**SIZES).scale).origin == "row"


@pytest.mark.parametrize("name", ["latent_ode", "latent_ode_poisson"])
@pytest.mark.parametrize("encoder", ["gru", "ode_rnn"])
def test_with_the_origin_in_the_middle_a_batch_from_the_loader_is_as_any_other(name, encoder):
    """What the model knows of training beforehand covers it: no window lies beyond the path or the encoder's walk."""
    data = Spirals(**SIZES, points=30)
    model = model_of(f"{name} model/encoder={encoder}", data.scale, double=True, origin="middle")
    batch = next(iter(data.train_dataloader()))
    with model.fixed_noise(0):
        known, asked = (model.loss_terms(replace(batch, in_training=there)) for there in (True, False))
    torch.testing.assert_close(known.nll, asked.nll, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(known.kl, asked.kl, rtol=1e-8, atol=1e-8)


def test_asking_beyond_the_window_changes_no_answer_inside():
    data = Spirals(**SIZES, points=30)
    model = model_of("latent_ode", data.scale, double=True)
    inside = next(iter(data.batches("test", DensityTask(), 100)))
    for task in data.questions.values():
        wide = next(iter(data.batches("test", task, 100)))
        both = replace(wide, scored=wide.known)
        with model.fixed_noise(0):
            one = model.predict(replace(inside, scored=inside.known), 3).density.mean
            two = model.predict(both, 3).density.mean
        torch.testing.assert_close(one[:, inside.seen], two[:, wide.seen], rtol=1e-8, atol=1e-8)


# ---- periodic --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def waves():
    return Periodic(train=400, val=5, test=5, points=60, noise=0.02).splits["train"]


def sine(series, points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(frequency, offset, times) of each clean curve: the two that fit sin(2 pi f t) + c best, refined."""
    times, clean = series.times.reshape(-1, points), series.clean.reshape(-1, points)
    offset = series.values.reshape(-1, points)[:, 0]  # at time 0 without noise the curve is c
    grid = np.linspace(0.39, 0.81, 421)
    left = clean[:, 1:] - offset[:, None] - 0.01
    error = [((np.sin(2 * np.pi * f * times[:, 1:]) - left) ** 2).sum(1) for f in grid]
    return grid[np.argmin(error, 0)], offset, times


def test_periodic_series_are_sines_of_their_own_frequency_and_offset(waves):
    frequency, offset, times = sine(waves, 60)
    curve = np.sin(2 * np.pi * frequency[:, None] * times) + offset[:, None]
    clean = waves.clean.reshape(-1, 60)
    assert abs(clean - curve - 0.01 * (times > 0)).max() < 2 * np.pi * 5 * 0.0005 + 1e-9  # half a grid step of f
    assert stats.kstest(frequency, stats.uniform(0.4, 0.4).cdf).pvalue > 1e-3
    assert stats.kstest(offset, stats.norm(1, 0.1).cdf).pvalue > 1e-3


def test_periodic_noise_is_uniform_and_spares_the_first_point(waves):
    clean, observed = waves.clean.reshape(-1, 60), waves.values.reshape(-1, 60)
    np.testing.assert_array_equal(clean[:, 0], observed[:, 0])
    noise = (observed - clean)[:, 1:].ravel() + 0.01
    assert stats.kstest(noise, stats.uniform(0, 0.02).cdf).pvalue > 1e-3
    assert Periodic(noise=0.02).noise_std == pytest.approx(0.02 / 12**0.5)


def test_periodic_times_are_zero_and_uniform_draws_in_order(waves):
    times = waves.times.reshape(-1, 60)
    assert (times[:, 0] == 0).all() and (np.diff(times) >= 0).all()
    assert stats.kstest(times[:, 1:].ravel(), stats.uniform(0, 5).cdf).pvalue > 1e-3
    assert (waves.windows == [0, 5]).all()
    assert len(np.unique(times[:, 1])) == len(times)


def test_shared_times_are_the_same_for_all_and_values_are_not():
    splits = Periodic(**SIZES, shared_times=True).splits
    times = np.concatenate([splits[s].times.reshape(-1, 100) for s in SPLITS])
    assert (times == times[0]).all() and len(np.unique(times[0])) == 100
    assert len(np.unique(splits["train"].values)) == splits["train"].values.size


# ---- batches and their place -----------------------------------------------------------------------------


def order(batches: Batches, count: int | None = None) -> list[list[int]]:
    found = []
    for batch in batches:
        found.append(batch.ids.tolist())
        if len(found) == count:
            break
    return found


def test_training_that_was_cut_goes_on_where_it_stopped():
    data = Periodic(**SIZES, points=5, batch_size=7)
    whole = data.train_dataloader()
    expected = order(whole) + order(whole)
    cut = data.train_dataloader()
    start = order(cut, 3)
    resumed = data.train_dataloader()
    place = iter([(0, 3), (1, 0)])
    resumed.now = lambda: next(place)  # as a trainer that goes on from a checkpoint says
    assert start + order(resumed) + order(resumed) == expected


def test_training_that_was_cut_sees_the_same_points():
    data = Periodic(**SIZES, points=20, batch_size=7)
    data.task = Interpolate([0.1, 0.9])
    expected = [batch.seen for batch in data.train_dataloader()][3:]
    resumed = data.train_dataloader()
    resumed.now = lambda: (0, 3)
    assert all(torch.equal(a.seen, b) for a, b in zip(resumed, expected, strict=True))


def test_an_evaluation_that_was_broken_off_starts_again_at_the_beginning():
    """A Trainer with limit_val_batches breaks every validation off; each must score the same series."""
    data = Periodic(**SIZES, points=5, batch_size=3)
    for loader in (data.val_dataloader(), data.batches("test", DensityTask())):
        assert order(loader, 1) == order(loader, 1) == order(loader)[:1]


def test_an_empty_split_is_refused_by_name():
    class Hollow(Periodic):
        def make(self):
            made = super().make()
            return {**made, "val": made["val"].part(np.arange(0))}

    with pytest.raises(ValueError, match="the val split has no series"):
        Hollow(**SIZES, points=5).scale  # noqa: B018 - reading it is what raises


def test_the_order_of_training_is_the_runs_own_and_what_is_asked_in_a_test_is_not():
    from vrnn_lab.config.compose import compose
    from vrnn_lab.runs.build import assemble

    small = ["data=periodic", "data.train=40", "data.val=10", "data.test=10", "data.batch_size=10", "model=rnn"]
    one, two = (assemble(compose([*small, f"seed={seed}"])).data for seed in (0, 1))
    ids = lambda data: torch.cat([batch.ids for batch in data.train_dataloader()])
    assert not torch.equal(ids(one), ids(two)) and torch.equal(ids(one).sort().values, ids(two).sort().values)
    for a, b in zip(one.test_dataloader(), two.test_dataloader(), strict=True):
        assert torch.equal(a.seen, b.seen) and torch.equal(a.values, b.values)


def step_of(values) -> float:
    return rounding_step(lambda: iter([np.asarray(values, dtype=float)]))


@pytest.mark.parametrize("spread", [1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("offset", [0.0, 1.0, 1e3, 1e7, 1e12])
def test_rounding_is_told_from_differences_and_spread(offset, spread):
    """Neither an offset that is large beside the spread nor one value far out makes values rounded, or hides that."""
    values = offset + spread * np.random.default_rng(0).normal(size=500)
    precise = np.spacing(offset) < 1e-4 * spread
    if precise:
        assert step_of(values) == 0
        assert step_of([*values, 1e30]) == 0
        assert step_of([*values, -9999.0]) == 0
    step = spread / 10
    rounded = np.round(values / step) * step
    if precise:
        assert step_of(rounded) == pytest.approx(step)
        assert step_of([*rounded, 1e30]) == pytest.approx(step)


def test_rounding_of_single_precision_and_of_half_steps_is_found():
    values = np.random.default_rng(1).normal(20, 5, 500)
    assert step_of(np.round(values, 1).astype(np.float32)) == pytest.approx(0.1)
    assert step_of(values.astype(np.float32)) == 0
    assert step_of(np.floor(values) + 0.5) == 1.0
    assert step_of(np.full(50, 3.0)) == 0 and step_of([]) == 0 and step_of([1.5]) == 0
