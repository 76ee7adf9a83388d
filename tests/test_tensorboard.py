"""What TensorBoard reads of runs, by its own reader."""

import pytest
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.get_experiment import Handler as Columns
from tensorboard.plugins.hparams.list_session_groups import Handler as Rows

from vrnn_lab.config.compose import compose
from vrnn_lab.config.plain import to_dict
from vrnn_lab.training.loggers.base import choices, final
from vrnn_lab.training.loggers.tensorboard import ENDING, TensorBoard, forget_end

STATUSES = list(api_pb2.Status.values())
DONE = {"status": "completed", "val/loss": 0.5, "test/nll": 0.25, "test/forecast/mse": float("nan"), "fit/steps": 9}
FAILED = {"status": "failed", "error": "NotFiniteError: at step 2"}


def end(folder, metrics) -> None:
    TensorBoard(folder).end(metrics)


def begun(folder, *overrides: str, chosen=()):
    """A run folder at the beginning of its fit."""
    files = {"config": compose(list(overrides)), "choices": dict(chosen), "overrides": list(overrides)}
    (folder / ".hydra").mkdir(parents=True)
    for name, content in files.items():
        (folder / ".hydra" / f"{name}.yaml").write_text(OmegaConf.to_yaml(content))
    board = TensorBoard(folder)
    board.begin()
    board.log_metrics({"val/loss": 0.75, "epoch": 1.0}, 9)
    board.finalize("success")
    return folder


def tab(root):
    """The HParams tab over a folder: columns, metrics, and rows by name."""
    runs = EventMultiplexer().AddRunsFromDirectory(str(root))
    runs.Reload()
    provider = MultiplexerDataProvider(runs, str(root))
    context = Context(TBContext(data_provider=provider))
    columns = Columns(RequestContext(), context, "", api_pb2.GetExperimentRequest()).run()
    asked = api_pb2.ListSessionGroupsRequest(allowed_statuses=STATUSES, slice_size=100)
    rows = Rows(RequestContext(), context, "", asked).run().session_groups
    return list(columns.hparam_infos), [m.name.tag for m in columns.metric_infos], {row.name: row for row in rows}


def numbers(row) -> dict[str, float]:
    return {metric.name.tag: metric.value for metric in row.metric_values}


def test_runs_of_different_models_one_failed_and_one_at_work_make_one_table(tmp_path):
    adam = {"model": "rnn", "model/head": "gaussian", "optim": "adam"}
    end(begun(tmp_path / "a", "model=rnn", "optim=adam", "data=periodic", chosen=adam), DONE)
    vrnn = ["model=vrnn", "data=periodic", "optim=rmsprop", "trick=[clip,wide]", "model.latent=5"]
    end(begun(tmp_path / "b", *vrnn, chosen={**adam, "model": "vrnn", "optim": "rmsprop"}), FAILED)
    begun(tmp_path / "c", "model=rnn", "optim=adam", "data=periodic", "seed=1", chosen=adam)
    columns, metrics, rows = tab(tmp_path)
    assert metrics[:2] == ["best/score", "best/test/nll"] and not {"epoch", "best/test/forecast/mse"} & set(metrics)
    status = {name: api_pb2.Status.Name(row.sessions[0].status) for name, row in rows.items()}
    assert status == {"a": "STATUS_SUCCESS", "b": "STATUS_FAILURE", "c": "STATUS_UNKNOWN"}
    assert numbers(rows["a"]) == {"best/score": 0.5, "best/test/nll": 0.25, "val/loss": 0.75}
    assert numbers(rows["b"]) == numbers(rows["c"]) == {"val/loss": 0.75}

    assert [c.name for c in columns[:3]] == ["/model", "/optim", "/trick"]  # what differs, groups before keys
    kinds = {c.name: api_pb2.DataType.Name(c.type).removeprefix("DATA_TYPE_") for c in columns}
    numeric = ("model.width", "optim.lr", "seed", "model.latent", "trainer.gradient_clip_val")
    assert {kinds[name] for name in numeric} == {"FLOAT64"} and kinds["data.shared_times"] == "BOOL"
    assert not [name for name in kinds if "_target_" in name or name.startswith(("evaluate", "sweep", "tricks"))]
    assert (
        rows["b"].hparams["/trick"].string_value == "clip+wide"
        and rows["b"].hparams["model.latent"].number_value == 5
    )
    assert "model.latent" not in rows["a"].hparams


def test_a_failed_run_that_is_tried_again_ends_well(tmp_path):
    end(begun(tmp_path / "a", "model=rnn"), FAILED)
    forget_end(tmp_path / "a")
    end(tmp_path / "a", DONE)
    end_files = list(tmp_path.rglob(f"*{ENDING}"))
    assert len(end_files) == 1 and tab(tmp_path)[2]["a"].sessions[0].status == STATUSES[1]


def test_what_was_logged_beyond_the_checkpoint_is_void_when_a_run_goes_on(tmp_path):
    folder = begun(tmp_path / "a", "model=rnn")
    board = TensorBoard(folder)
    board.begin(5)
    board.log_metrics({"val/loss": 0.7}, 7)
    board.finalize("success")
    points = EventAccumulator(str(folder)).Reload().Scalars("val/loss")
    assert [(point.step, point.value) for point in points] == [(7, pytest.approx(0.7))]


def test_without_known_choices_parts_are_told_by_their_class():
    found = choices(to_dict(compose(["model=vrnn", "schedule=constant"])), {})
    assert found["/model"] == "VRNN" and found["/model/head"] == "GaussianHead" and found["/trick"] == "none"


def test_few_numbers_are_final_and_all_are_finite():
    kept = {"best/score": 0.5, "best/test/nll": 0.25}
    assert final({**DONE, "test/latent/kl_0": 1.0, "reference/last/forecast/mse": 2.0}) == kept
    assert final(FAILED) == {}


def test_the_text_tab_holds_the_command_and_the_config(tmp_path):
    folder = begun(tmp_path / "a", "model=rnn", "trick=[clip]")
    text = (
        EventAccumulator(str(folder)).Reload().Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    )
    assert "python -m vrnn_lab.run model=rnn 'trick=[clip]'" in text and "gradient_clip_val: 0.1" in text
