"""The benchmark: how it measures, what it keeps, and that what is compared answers the same question."""

import gc
import json
import os
import subprocess
import sys
from functools import reduce
from itertools import islice, pairwise
from math import log
from operator import getitem
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import __main__ as command
from bench import harness, memory, results, solve, steps, training, vrnn
from bench.plain_latent_ode import PlainLatentODE
from bench.plain_ode_rnn import over_union
from bench.plain_vrnn import copied
from vrnn_lab.models.fused import runge_kutta


class Clock:
    """Time that passes by what is called alone."""

    def __init__(self, monkeypatch):
        self.now, self.calls, self.collected = 0.0, [], []
        stopped = lambda: self.now
        monkeypatch.setattr(harness, "time", SimpleNamespace(perf_counter=stopped, process_time=stopped))

    def call(self, name: str, *seconds: float):
        """Takes these seconds in turn, the last ever after."""
        left = list(seconds)

        def run() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]
            self.calls.append(name)
            self.collected.append(gc.isenabled())

        return run


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


# ---- how a row is measured ---------------------------------------------------------------------------------------


def test_two_things_are_measured_in_turn_after_a_warm_up_and_without_garbage_collection(clock):
    taken = harness.alternate({"a": clock.call("a", 9.0, 0.3), "b": clock.call("b", 0.4)})
    assert clock.calls == ["a", "b"] * (len(clock.calls) // 2)
    assert [each.wall for each in taken["a"]] == pytest.approx([0.3] * 5)  # the first, 9 s, is warm-up
    assert clock.collected[:2] == [True, True] and not any(clock.collected[2:]) and gc.isenabled()


def test_repeats_go_on_until_each_has_its_budget(clock):
    taken = harness.alternate({"a": clock.call("a", 0.1), "b": clock.call("b", 0.2)})
    assert len(taken["a"]) == len(taken["b"]) == 10


def test_a_fast_thing_is_repeated_within_its_turn_and_a_slow_one_is_called_three_times(clock):
    taken = harness.alternate({"fast": clock.call("a", 0.02), "slow": clock.call("b", 3.0)})
    assert (len(taken["fast"]), len(taken["slow"])) == (9, 3)


@pytest.mark.parametrize(
    "sense, ours, peer, target, ratio, ok",
    [
        (">=", 2.0, 6.0, 3.0, 3.0, True),
        (">=", 2.0, 5.0, 3.0, 2.5, False),
        ("<=", 6.0, 5.0, 1.1, 1.2, False),
        ("<=", 5.0, 5.0, 1.1, 1.0, True),
        (">=", 2.0, 6.0, None, 3.0, None),
        (">=", 2.0, None, 3.0, None, None),
        ("<=", None, 1.0, 3.0, None, None),
    ],
)
def test_a_row_says_whether_its_ratio_is_at_the_target(sense, ours, peer, target, ratio, ok):
    row = harness.row("x", ours, peer, "them", "ms", target, sense, nodes=5)
    assert tuple(row)[:8] == harness.FIELDS and row["nodes"] == 5
    assert row["ratio"] == pytest.approx(ratio) and row["ok"] is ok


def test_a_measured_row_holds_medians_in_milliseconds(clock):
    row = harness.against("x", clock.call("a", 1.0, 0.1, 0.2, 0.9, 0.1, 0.2), clock.call("b", 0.4), "them", 1.5)
    assert (row["ours"], row["peer"]) == pytest.approx((200, 400)) and row["ok"]
    assert row["spread"][1] == 0 < row["spread"][0] and row["repeats"] == [5, 5]


def test_the_row_of_a_peer_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setattr(solve, "installed", lambda *packages: False)
    monkeypatch.setattr(solve, "growths", lambda quick: [])
    rows = list(solve.rows(quick=True))
    assert [row["peer_name"] for row in rows] == ["torchdiffeq", "torchode", "diffrax"]
    assert all(row["peer"] is None is row["ok"] and "pip install 'vrnn_lab[bench]'" in row["note"] for row in rows)


# ---- what is kept ------------------------------------------------------------------------------------------------


def rows_of(suite: str, *names: str, threads: int = 1, ours: float = 1.0) -> list[harness.Row]:
    of = {"suite": suite, "threads": threads, "device": "cpu"}
    return [{**harness.row(name, ours, 2.0, "them", "ms", 1.5), **of} for name in names]


def known(file: Path) -> list[tuple]:
    return [(row["suite"], row["threads"], row["name"], row["ours"]) for row in json.loads(file.read_text())]


def test_a_run_of_some_suites_keeps_the_rows_of_the_others(tmp_path):
    file = tmp_path / "latest.json"
    for rows in (rows_of("a", "x", "gone"), rows_of("a", "x", threads=2), rows_of("b", "x")):
        results.keep(file, rows, complete=True)
    results.keep(file, rows_of("a", "x", ours=5.0), complete=True)
    assert known(file) == [("a", 2, "x", 1.0), ("b", 1, "x", 1.0), ("a", 1, "x", 5.0)]


class Worker:
    """A suite's process that says some lines and then ends, with a code or by Ctrl-C."""

    def __init__(self, rows, returncode: int = 0, interrupt: bool = False):
        self.rows, self.returncode, self.interrupt, self.terminated = rows, returncode, interrupt, False

    def __call__(self, *args, **keys):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    @property
    def stdout(self):
        yield from map(json.dumps, self.rows)
        if self.interrupt:
            raise KeyboardInterrupt

    def terminate(self) -> None:
        self.terminated = True


@pytest.mark.parametrize("how", [{"returncode": 1}, {"interrupt": True}])
def test_rows_so_far_are_kept_of_a_suite_that_breaks_off(tmp_path, monkeypatch, how):
    file = tmp_path / "latest.json"
    results.keep(file, rows_of("solve", "x", "y"))
    worker = Worker(rows_of("solve", "x", ours=5.0), **how)
    monkeypatch.setattr(subprocess, "Popen", worker)
    if worker.interrupt:
        with pytest.raises(KeyboardInterrupt):
            command.measure("solve", 1, {}, file)
        assert worker.terminated
    else:
        assert not command.measure("solve", 1, {}, file)
    assert known(file) == [("solve", 1, "y", 1.0), ("solve", 1, "x", 5.0)]


def test_a_broken_file_of_rows_is_named_with_its_cure(tmp_path):
    file = tmp_path / "latest.json"
    file.write_text("[{")
    with pytest.raises(ValueError, match=r"latest\.json is damaged .* remove it"):
        results.keep(file, [])


def test_the_table_is_markdown_in_line_and_tells_what_fell_short(tmp_path):
    short, missing = rows_of("a", "x"), harness.missing("y", "diffrax", 3.0)
    short[0] |= {"ours": 4.0, "ratio": 0.5, "ok": False, "errors": [0.01, 0.02]}
    results.keep(tmp_path / "latest.json", [*short, {**missing, "suite": "a", "threads": 0, "device": "cpu"}])
    lines = results.page(tmp_path / "latest.json").splitlines()[2:]
    assert len({tuple(i for i, c in enumerate(line) if c == "|")[:11] for line in lines}) == 1
    none, found = (next(line for line in lines if f"| {name} " in line) for name in "yx")
    assert "| NO " in found and "errors 0.01 / 0.02" in found and ">= 1.5" in found
    assert "diffrax is not installed" in none and "NO" not in none


# ---- what is asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, what",
    [
        (["solv"], "there is no suite 'solv'; choose among solve, training, vrnn"),
        (["thread=1"], "'thread=' is not an option; expected one of threads=, quick="),
        (["threads=one"], "threads=one; expected whole numbers"),
        (
            ["solve", "threads=7"],
            "threads=7: no suite is measured with these numbers of threads; choose among solve 1/2",
        ),
    ],
)
def test_what_is_not_known_is_an_error_that_names_the_choices(argv, what):
    with pytest.raises(ValueError) as error:
        command.parse(argv)
    assert what in str(error.value)


def test_suites_and_threads_are_chosen_by_name():
    jobs, _ = command.parse(["vrnn", "solve", "threads=1"])
    assert jobs == [("solve", 1), ("vrnn", 1)]
    assert {name for name, _ in command.parse([])[0]} == set(command.SUITES)


@pytest.mark.slow
def test_a_suite_runs_in_its_own_process_and_leaves_rows_and_machine(tmp_path):
    call = [sys.executable, "-m", "bench", "gpu", "quick=true", "device=cpu"]
    done = subprocess.run(call, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    folder = tmp_path / "outputs" / "bench"
    (row,) = json.loads((folder / "quick.json").read_text())
    assert set(harness.FIELDS) <= set(row) and row["note"] == "no GPU here" and row["suite"] == "gpu"
    assert json.loads((folder / "machine.json").read_text())["torch"] == torch.__version__
    assert b"no GPU here" in done.stdout and not (folder / "latest.json").exists()


# ---- what is compared answers the same question ------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem():
    return solve.Problem.of(4, 5)


def test_ours_comes_down_to_the_exact_answers_as_nodes_grow(problem):
    exact = problem.exact()
    with torch.no_grad():
        errors = [solve.error_of(solve.ours(nodes)(problem), exact) for nodes in (5, 10, 25, 100)]
    assert all(b < a / 5 for a, b in pairwise(errors[:3])) and errors[-1] < 5e-6
    assert solve.fewest_nodes(problem, exact, errors[1] * 1.01)[0] <= 10
    with pytest.raises(RuntimeError, match="no number of nodes"):
        solve.fewest_nodes(problem, exact, 0.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the peers' own libraries
@pytest.mark.parametrize("packages", solve.PEERS)
def test_peers_answer_the_same_question(problem, packages):
    if not harness.installed(*packages):
        pytest.skip(f"{packages[-1]} is not installed")
    for peer in islice(solve.PEERS[packages](problem), 1 if "jax" in packages else None):  # JAX compiles for long
        assert solve.error_of(peer.states, peer.problem.exact()) < 0.1
        own, *_ = solve.step_of(solve.ours(25), peer.problem)()
        found = peer.step()
        slope = found[1][0] if packages[-1] == "diffrax" else found[0]
        slope = torch.as_tensor(slope[0].__array__() if isinstance(slope, tuple) else slope.__array__())
        assert torch.allclose(own, slope, atol=0.05 * own.abs().max().item()), peer.name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the peers' own libraries
def test_the_losses_in_jax_are_ours_and_so_are_their_gradients():
    if not harness.installed("jax", "equinox", "diffrax"):
        pytest.skip("jax and diffrax are not installed")
    from bench import jax_steps, jax_vrnn

    def agree(ours: torch.Tensor, theirs: tuple, *gradients: tuple) -> None:
        loss, step = theirs[:2]
        assert ours.item() == pytest.approx(loss, rel=1e-5)
        ours.backward()
        found = step()[1]
        for weight, place in gradients:
            expected = torch.as_tensor(reduce(getitem, place, found)["matrix"].__array__()).t()
            tolerance = 1e-4 * expected.abs().max().item()
            torch.testing.assert_close(weight.grad, expected, rtol=1e-3, atol=tolerance)

    keys = ("data=periodic", "data.points=12", "data.train=50", "task=interpolate", "task.seen=6", "trainer=cpu")
    for name in ("latent_ode", "latent_sde"):
        parts = training.ours.parts_of(f"model={name}", "model.nodes=8", "model.decoder_depth=1", *keys)
        model, batch = parts.model, next(iter(parts.data.train_dataloader()))
        series = model.standardise(batch)
        noise = steps.noise_of(model, series)
        if name == "latent_ode":
            theirs = jax_steps.latent_ode(model, series, noise, "same")
            further = (model.recognition.posterior[0].weight, ("posterior", 0))
        else:
            theirs = jax_steps.latent_sde(model, series, noise, steps.path_noise_of(model, series, noise), "same")
            further = (model.steering.enter.weight, ("guide", 0))
        agree(steps.loss_of(model, series)(), theirs, (model.field.layers[0].weight, ("field", 0)), further)

    model, batch = vrnn.model_of(4, 8), vrnn.batch_of(3, 4, vrnn.PIXELS)
    theirs = jax_vrnn.vrnn(model, batch.values, vrnn.noise_of(model, batch).transpose(0, 1))
    further = (model.posterior_of_x.weight, ("of_x",))
    agree(steps.loss_of(model, model.standardise(batch))(), theirs, (model.memory.recur.weight, ("recur",)), further)


def test_the_plain_vrnn_is_the_same_function_and_costs_the_same_products():
    model, batch = vrnn.model_of(6, 12), vrnn.batch_of(3, 6, vrnn.PIXELS)
    plain = copied(model, vrnn.PIXELS)
    own, theirs = vrnn.losses(model, plain, batch)
    assert own == pytest.approx(theirs, rel=1e-5)
    counts = [vrnn.flops(step) for step in (vrnn.ours.backward_of(model, batch), vrnn.plain_backward(plain, batch))]
    assert counts[0] == pytest.approx(counts[1], rel=0.1)


def test_the_union_walk_comes_to_the_states_of_ours():
    memory, inputs, times = arguments = training.memory_of(4, 6)
    with torch.no_grad():
        fine = [inputs, times]
        own, theirs = training.last_state(memory, *fine), over_union(*arguments)
        assert torch.allclose(own, theirs, atol=2e-3)
        assert not torch.allclose(own, torch.zeros_like(own), atol=0.05)


def test_the_plain_latent_ode_is_the_negative_elbo():
    plain = PlainLatentODE(3, 4, 5)
    for weight in plain.parameters():
        torch.nn.init.zeros_(weight)  # z ~ N(0, 1), and each value ~ N(0, 1)
    values, times = torch.randn(2, 6), torch.linspace(0, 1, 6)
    seen = torch.tensor([True, False] * 3).expand(2, 6)
    expected = -torch.distributions.Normal(0.0, 1.0).log_prob(values).mean()
    assert plain.loss(times, values, seen, 2).item() == pytest.approx(expected.item(), rel=1e-5)
    torch.nn.init.constant_(
        plain.posterior.get_parameter("2.bias"), log(2.0)
    )  # N(log 2, 4) against N(0, 1), of 3 latents a series
    kl = 0.5 * (4 + log(2.0) ** 2 - 1) - log(2.0)
    added = plain.loss(times, values, seen, 2).item() - expected.item()
    assert added == pytest.approx(3 * 2 * kl / values.numel(), rel=1e-4)


# ---- memory ------------------------------------------------------------------------------------------------------


def test_what_is_kept_for_backward_counts_each_storage_once_and_no_weights():
    weight, x = torch.randn(10, 10, requires_grad=True), torch.randn(5, 10, requires_grad=True)
    kept = memory.Kept([weight])
    with kept:
        y = (x * x) @ weight  # x for the product, x * x for the matrix product
        z = y.exp()  # its result
    assert kept.total == 3 * 5 * 10 * 4
    z.sum().backward()


def test_a_solve_whose_tape_is_too_long_keeps_its_path_alone(monkeypatch):
    whole = memory.kept_by(20, batch=10)
    monkeypatch.setattr(runge_kutta, "TAPE", 1)
    assert memory.kept_by(20, batch=10) < whole / 10
