"""Figures: what is on them, that they are a function of model, data and seed, and that they reach the disk whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from helpers.small import MODELS, model_of
from vrnn_lab.core.tasks import DensityTask, Forecast, Interpolate
from vrnn_lab.data.base import Ragged, SeriesData
from vrnn_lab.data.datasets.periodic import Periodic
from vrnn_lab.data.datasets.spirals import Spirals, Spirals1D
from vrnn_lab.figures import images, model_figures, style
from vrnn_lab.models import prior_samples

SIZES = {"train": 12, "val": 6, "test": 9, "points": 20}
DATA = [Spirals(start=(0, 400), **SIZES), Spirals1D(**SIZES), Periodic(**SIZES)]


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(model_figures, "SAMPLES", 6)


def batch_of(data, task=None, count=3):
    return model_figures._shown(data, "test", task or Interpolate(0.5), count)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("data", DATA, ids=lambda d: type(d).__name__)
def test_every_figure_has_labelled_axes_titles_and_one_legend(name, data):
    drawn = model_figures.figures(model_of(name, scale=data.scale), data, seed=0)
    assert set(drawn) == {"forecast", "interpolation"} | ({"phase_plane"} if data.phase_plane else set())
    for figure in drawn.values():
        assert len(figure.legends) == 1
        assert {"observed", "noise-free truth"} <= {t.get_text() for t in figure.legends[0].get_texts()}
        assert all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)
        assert figure.axes[0].get_title().startswith("series ")


def test_the_phase_plane_goes_backward_except_for_step_models():
    data = DATA[0]
    for name, backward in (("latent_ode", True), ("rnn", False)):
        drawn = model_figures._phase_plane(model_of(name, scale=data.scale), data, 0, "test")
        words = {text.get_text() for text in drawn.legends[0].get_texts()}
        assert ("draws, t < 0" in words) == backward
        assert "draws, t > 0" in words


def test_the_phase_plane_shows_the_truth_beyond_the_window_whole_and_draws_as_far():
    data = DATA[0]
    model = model_of("latent_ode", scale=data.scale)
    batch = batch_of(data, count=6)
    figure = model_figures._phase_plane(model, data, 0, "test")
    assert "truth beyond the window" in {text.get_text() for text in figure.legends[0].get_texts()}
    for curve, window, ax in zip(model_figures._beyond(data, "test", batch), batch.window, figure.axes, strict=True):
        shown = [line.get_xydata() for line in ax.lines if line.get_color() == style.BEYOND["color"]]
        before, after = curve.values[curve.times <= window[0]], curve.values[curve.times >= window[1]]
        assert all(np.array_equal(line, part) for line, part in zip(shown, (before, after), strict=True))
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        assert ((curve.values >= torch.tensor([left, low])) & (curve.values <= torch.tensor([right, high]))).all()
        widest = (curve.values.amax(0) - curve.values.amin(0)).max()
        assert right - left < 1.5 * widest + 2  # whatever the draws of a fresh model do


def test_lines_of_the_phase_plane_end_where_the_truth_does():
    data = Spirals(start=(465, 480), **SIZES)  # the curve ends within a window's length of every window
    batch, model = batch_of(data), model_of("latent_ode", scale=data.scale)
    curves = model_figures._beyond(data, "test", batch)
    fan = model_figures._predict_bands(model, batch, model_figures._times(model, batch, 2.0), 0)
    for row, curve in enumerate(curves):
        lines = model_figures._curves(fan, batch, row, curve)
        assert lines.shape[1] == ((fan.times[row] <= curve.times[-1]) & (fan.times[row] >= curve.times[0])).sum()
        assert 0 < lines.shape[1] < fan.times.shape[1]


def test_units_and_names_of_the_data_set_are_on_the_figure():
    data = Periodic(**SIZES)
    data.time_unit, data.units = "kyr", ("ppm",)
    data.splits["test"] = replace(data.splits["test"], names=tuple("abcdefghi"))
    ax = model_figures.figures(model_of("rnn", scale=data.scale), data, seed=0)["forecast"].axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("time [kyr]", "x [ppm]", "series a")


@pytest.mark.slow
def test_figures_are_whole_png_files(tmp_path):
    data = DATA[2]
    drawn = model_figures.figures(model_of("rnn", scale=data.scale), data, seed=0)
    paths = model_figures.write(drawn, tmp_path / "figures")
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {p.name for p in paths}
    for path in paths:
        image = imread(path)
        assert min(image.shape[:2]) > 300
        assert image.std() > 0.05


def test_figures_touch_no_random_state_and_leave_the_model_as_it_was():
    data = DATA[1]
    model = model_of("vrnn", scale=data.scale)
    model.noise.seed(3, device=torch.device("cpu"))
    before = (model.noise.generator.get_state(), torch.get_rng_state(), np.random.get_state()[1].copy())  # noqa: NPY002 - the global state is what must not move
    for training in (True, False):
        model.train(training)
        model_figures.figures(model, data, seed=0)
        assert model.training is training
        assert model.noise.fixed is None
    after = (model.noise.generator.get_state(), torch.get_rng_state(), np.random.get_state()[1])  # noqa: NPY002 - the global state is what must not move
    assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))


def test_the_same_seed_draws_the_same_picture_and_another_seed_another():
    data, batch = DATA[0], batch_of(DATA[0])
    model = model_of("latent_ode", scale=data.scale)
    grid = model_figures._times(model, batch, 1.3)
    one, same, other = (model_figures._predict_bands(model, batch, grid, seed) for seed in (1, 1, 2))
    assert torch.equal(one.bands, same.bands)
    assert not torch.equal(one.bands, other.bands)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_nothing_that_is_held_out_reaches_the_model(name):
    data, batch = DATA[0], batch_of(DATA[0], Forecast(0.5))
    other = replace(batch, values=torch.where(batch.seen, batch.values, 1e3), clean=batch.clean + 5)
    model = model_of(name, scale=data.scale)
    grid = model_figures._times(model, batch, 1.3)
    one, two = (model_figures._predict_bands(model, b, grid, 0) for b in (batch, other))
    assert torch.equal(one.mean, two.mean)
    assert torch.equal(one.bands, two.bands)


def test_a_step_model_is_asked_at_its_rows_own_points_and_beyond():
    batch = batch_of(DATA[0])
    model = model_of("rnn", scale=DATA[0].scale)
    fan = model_figures._predict_bands(model, batch, model_figures._times(model, batch, 1.3), 0)
    points = batch.times.shape[1]
    assert torch.equal(fan.times[:, :points], batch.times)
    assert fan.times.shape[1] == points + round(0.3 * points)
    assert fan.there.all()
    torch.testing.assert_close(fan.times[:, -1], batch.window[:, 0] + 1.3 * batch.window.diff(dim=1)[:, 0])


def test_the_queries_of_the_grid_stand_in_time_order_among_the_seen_points():
    batch = batch_of(DATA[2])
    model = model_of("latent_ode", scale=DATA[2].scale)
    grid = model_figures._times(model, batch, 1.3)
    asked, place = model_figures._with_queries(batch, grid, own=False)
    assert torch.equal(asked.check().times.gather(1, place), grid)
    assert asked.scored.any(-1).sum() == grid.numel()
    assert asked.seen.sum() == batch.seen.sum()


def test_bands_are_the_quantiles_of_observations():
    data = DATA[1]
    model = model_of("rnn", scale=data.scale)
    batch = batch_of(data, DensityTask())
    fan = model_figures._predict_bands(model, batch, model_figures._times(model, batch, 1.0), 0)
    with model.fixed_noise(0):
        density = model.predict(batch, 1).density
    z = torch.tensor([-1.645, -0.674, 0.674, 1.645], dtype=torch.float64).view(4, 1, 1, 1)
    exact = density.mean + z * density.std  # with all points seen the RNN's density has no path to average over
    torch.testing.assert_close((fan.bands - exact) / density.std, torch.zeros_like(exact), atol=0.45, rtol=0)


def test_the_series_shown_differ():
    batch = batch_of(DATA[0], count=6)
    assert len(set(batch.ids.tolist())) == 6
    left = batch.clean[..., 0].mean(1) < 0
    assert left.any()
    assert not left.all()


def test_curves_that_run_away_do_not_flatten_the_values():
    batch = batch_of(DATA[1])
    values = batch.values[0, batch.known[0, :, 0], 0]
    bands = torch.stack([values.min().expand(9), values.max().expand(9)])
    bands[:, -2:] = torch.tensor([[-1e6], [1e6]])
    low, high = model_figures._limits(batch, bands, 0, 0)
    assert high - low < 5 * (values.max() - values.min())


def test_a_band_is_shown_whole_however_few_values_there_are():
    """The axis of a channel with one value is as large as the band, not as a rounding error."""
    batch = batch_of(DATA[1])
    one = batch.known & (batch.known.cumsum(1) == 1)
    batch = replace(batch, seen=batch.seen & one, scored=batch.scored & one)
    value = batch.values[0, one[0, :, 0], 0].double()
    bands = torch.stack([value - 3, value + 5]).expand(2, 7)
    low, high = model_figures._limits(batch, bands, 0, 0)
    assert low < value - 3 and high > value + 5


def test_a_forecast_is_drawn_only_as_far_as_its_covariates_are_known():
    batch = batch_of(DATA[1])
    assert not model_figures._covariates_change(batch)
    same = torch.ones(*batch.times.shape, 1).double()
    assert not model_figures._covariates_change(replace(batch, covariates=same))
    assert model_figures._covariates_change(replace(batch, covariates=batch.times[..., None]))


# ---- images, rolls and fields -----------------------------------------------------------------------------

BERNOULLI = {"_target_": "vrnn_lab.models.heads.BernoulliHead", "_partial_": True}


class Random(SeriesData):
    """Zeros and ones, or normal values, in any number of channels."""

    def __init__(self, dim: int, points: int, support: str = "binary", series: int = 12):
        super().__init__(batch_size=6)
        self.dim, self.points, self.support, self.series = dim, points, support, series

    @property
    def channels(self):
        return tuple(f"k{i}" for i in range(self.dim))

    def make(self):
        return {split: self.split(100 * place) for place, split in enumerate(("train", "val", "test"))}

    def split(self, first: int):
        rng = np.random.default_rng(first)
        values = rng.standard_normal((self.series, self.points, self.dim))
        times = np.tile(0.5 * np.arange(self.points), (self.series, 1))
        return Ragged.of(times, (values > 0).astype(float) if self.support == "binary" else values, first_id=first)


class Images(Random):
    image = (2, 3)


class Turning(Spirals):
    """A plane whose field is known: a turn about the origin."""

    def field(self, states):
        return states @ states.new_tensor([[0.0, 1.0], [-1.0, 0.0]])


def head_of(data):
    return {"head": BERNOULLI} if data.support == "binary" else {}


def words(figure) -> str:
    legend = [t.get_text() for t in figure.legends[0].get_texts()] if figure.legends else []
    return " ".join([figure.get_suptitle(), *(ax.get_title() for ax in figure.axes), *legend])


@pytest.mark.parametrize("name", ["vae", "rnn"])
@pytest.mark.parametrize("support", ["binary", "real"])
def test_images_are_shown_as_images(name, support):
    data = Images(6, 1, support)
    drawn = model_figures.figures(model_of(name, scale=data.scale, **head_of(data)), data, seed=0)
    assert set(drawn) == {"samples", "reconstructions"}
    (shown,) = drawn["reconstructions"].axes[0].images
    assert shown.get_array().shape == (2 * 2 + 1, 10 * 4 - 1)
    batch = model_figures._shown(data, "test", DensityTask(), 10)
    first = batch.values[0, 0].view(2, 3).numpy()
    assert np.array_equal(shown.get_array().data[:2, :3], first)
    assert drawn["samples"].axes[0].images[0].get_array().shape == (5 * 3 - 1, 5 * 4 - 1)


def test_below_each_image_stands_the_models_mean_of_it():
    data = Images(6, 1)
    model = model_of("vae", scale=data.scale, head=BERNOULLI)
    figure = model_figures.figures(model, data, seed=0)["reconstructions"]
    batch = model_figures._shown(data, "test", DensityTask(), 10)
    with model.fixed_noise(0):
        mean = model.predict(batch, model_figures.SAMPLES).mean
    shown = figure.axes[0].images[0].get_array().data[3:5, 4:7]
    assert np.allclose(shown, mean[1, 0].view(2, 3).numpy())


def test_tiles_stand_row_by_row_with_gaps_between():
    flat = torch.arange(12.0).view(3, 4)
    whole = images.tiled(flat, (2, 2), 2)
    assert whole.shape == (5, 5)
    assert whole[:2, :2].tolist() == [[0, 1], [2, 3]]
    assert whole[:2, 3:].tolist() == [[4, 5], [6, 7]]
    assert whole[3:, :2].tolist() == [[8, 9], [10, 11]]
    assert whole[2].isnan().all() and whole[:, 2].isnan().all() and whole[3:, 3:].isnan().all()


@pytest.mark.parametrize("name", ["rnn", "rnn_vae"])
def test_many_channels_of_zeros_and_ones_are_a_roll(name):
    data = Random(88, 12)
    model = model_of(name, scale=data.scale, head=BERNOULLI)
    drawn = model_figures.figures(model, data, seed=0)
    assert set(drawn) == {"forecast", "interpolation"}
    for task, figure in drawn.items():
        above, below = (ax.collections[0].get_array() for ax in figure.axes)
        assert above.shape == below.shape == (88, 12)
        batch = model_figures._shown(data, "test", model_figures.TASKS[task], 1)
        assert np.array_equal(above, batch.values[0].T.numpy())
        assert below.min() > 0 and below.max() < 1
        assert "observed" in words(figure) and ("start of the forecast" in words(figure)) == (task == "forecast")


def test_many_real_channels_show_the_eight_that_are_observed_most(monkeypatch):
    data = Random(64, 10, "real")
    often = [2, 3, 10, 11, 30, 31, 62, 63]
    shown = model_figures._shown

    def seldom(*arguments):
        batch = shown(*arguments)
        kept = torch.isin(torch.arange(64), torch.tensor(often)) | (torch.arange(batch.times.shape[1]) < 2)[:, None]
        return replace(batch, seen=batch.seen & kept, scored=batch.scored & kept)

    drawn = model_figures.figures(model_of("vae", scale=data.scale), data, seed=0)
    names = lambda figure: [ax.get_ylabel() for ax in figure.axes]
    assert all(names(figure) == list(data.channels[:8]) for figure in drawn.values())  # all are observed as often
    monkeypatch.setattr(model_figures, "_shown", seldom)
    drawn = model_figures.figures(model_of("vae", scale=data.scale), data, seed=0)
    assert all(names(figure) == [data.channels[i] for i in often] for figure in drawn.values())


@pytest.mark.slow
def test_long_series_are_drawn_with_bands(monkeypatch):
    monkeypatch.setattr(model_figures, "SAMPLES", 100)
    data = Random(8, 2500, "real", series=3)
    drawn = model_figures.figures(
        model_of("vae", scale=data.scale), data, 0, tasks={"interpolation": Interpolate(0.5)}
    )
    assert len(drawn["interpolation"].axes) == 8
    values = torch.randn(1000, 1, 2500, 8)  # more than torch takes at once
    bands = model_figures._quantiles(values)
    assert torch.equal(bands[:, 0, 5], torch.quantile(values[:, 0, 5], torch.tensor(model_figures.QUANTILES), dim=0))


def test_columns_of_a_roll_reach_half_way_to_their_neighbours():
    times = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    assert images.edges(times).tolist() == [-0.5, 0.5, 2.5, 5.5]
    assert images.edges(times[:1]).tolist() == [-0.5, 0.5]


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "error"), [(1.0, "0 %"), (1.5, "50 %"), (0.0, "100 %")])
def test_a_learned_field_stands_beside_the_true_one(factor, error):
    data = Turning(**SIZES)
    model = model_of("rnn", scale=data.scale)
    model.vector_field = lambda states: factor * data.field(states)
    figure = model_figures.figures(model, data, seed=0)["vector_field"]
    assert [ax.get_title() for ax in figure.axes[:2]] == ["learned", "true"]
    assert f"mean error {error}" in words(figure)


def test_without_a_field_on_both_sides_none_is_drawn():
    plain, known = Spirals(**SIZES), Turning(**SIZES)
    model = model_of("rnn", scale=plain.scale)
    assert "vector_field" not in model_figures.figures(model, known, seed=0)
    model.vector_field = lambda states: states
    assert "vector_field" not in model_figures.figures(model, plain, seed=0)


def test_the_grid_of_the_plane_holds_the_data_and_runs_along_x_first():
    values = torch.tensor([[0.0, 10.0], [1.0, 30.0]], dtype=torch.float64)
    (x, y), states = images.plane(values)
    assert (x[0], x[-1], y[0], y[-1]) == pytest.approx((-0.1, 1.1, 8.0, 32.0))
    grid = states.view(len(y), len(x), 2)
    assert torch.equal(grid[0, :, 0], x) and torch.equal(grid[:, 0, 1], y)


@pytest.mark.parametrize("name", ["latent_ode", "vrnn"])
@pytest.mark.parametrize("data", DATA, ids=lambda d: type(d).__name__)
def test_series_from_the_prior_are_lines_over_time_and_in_the_plane(name, data):
    model = model_of(name, scale=data.scale)
    figure = model_figures.samples(model, data, prior_samples.draw(model, 3, 0))
    assert len(figure.axes) == len(data.channels) + data.phase_plane
    assert all(ax.get_xlabel() and ax.get_ylabel() and ax.lines for ax in figure.axes)


def test_a_name_of_the_users_is_no_formula(tmp_path):
    figure, (ax,) = style.canvas(1, 1, (3.0, 2.0))
    ax.set_ylabel(style.label("US$_{$", "$"))
    assert model_figures.write({"it": figure}, tmp_path)
