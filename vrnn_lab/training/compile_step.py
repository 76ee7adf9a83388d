"""Compile the training step by torch.compile, as trainer.compile asks."""

import inspect
import typing
from dataclasses import replace
from math import ceil, exp, log
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._inductor import exc
from torch._inductor.exc import InvalidCxxCompiler

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core.compile_loops import unrolled
from vrnn_lab.core.noise import Noise
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.models.base import SequenceModel
from vrnn_lab.models.losses import LossTerms

# InductorError is new in torch 2.7; before, Inductor raised TorchDynamoException.
InductorError: type[Exception] = getattr(exc, "InductorError", TorchDynamoException)
Compile = Literal["off", "on", "reduce-overhead"] | bool  # a command line's `on` may arrive as true
VERSIONS = 64  # compiled versions of a part of the step, one a kind of batch, before torch leaves it uncompiled


class RecordingNoise(Noise):
    """Record the draws that a model takes for one row."""

    def __init__(self):
        super().__init__()
        self.draws: dict[str, Tensor] = {}

    def at_points(self, stream, series, samples, dim, like):
        return self.draws.setdefault(stream, super().at_points(stream, series, samples, dim, like))

    def of_series(self, stream, series, samples, dim, like):
        return self.draws.setdefault(stream, super().of_series(stream, series, samples, dim, like))


class PredrawnNoise(Noise):
    """Return draws made beforehand, so that the compiled code holds no random generator."""

    def __init__(self):
        super().__init__()
        self.draws: dict[str, Tensor] = {}

    def at_points(self, stream, series, samples, dim, like):
        return self.draws[stream]

    def of_series(self, stream, series, samples, dim, like):
        return self.draws[stream]


class Compiled:
    """Compute a model's loss terms of training batches by compiled code: the same numbers up to rounding.

    on: all but the loops over points and solver steps (`compile_loops.loop`), for batches of any size.
    reduce-overhead: all as one piece, loops unrolled, so that it becomes a CUDA graph; compiled anew for each length.
    Raise ConfigError where the step cannot be compiled.
    """

    def __init__(self, model: SequenceModel, mode: str, backend: str = "inductor"):
        self.model, self.mode, self.whole = model, mode, mode == "reduce-overhead"
        self.predrawn, self.recorded, self.rows = PredrawnNoise(), dict[int, dict[str, Tensor]](), 0
        settings: Any = torch._dynamo.config
        settings.optimize_ddp = False  # these models are so small that their gradients fit into one message
        options: dict[str, Any] = {}
        if self.whole:
            options = {"fullgraph": True, "dynamic": False} | ({"mode": mode} if backend == "inductor" else {})
        else:
            settings.cache_size_limit = max(VERSIONS, settings.cache_size_limit)
        self.terms = torch.compile(model.loss_terms, backend=backend, **options)

    def __call__(self, batch: TimeSeries) -> LossTerms:
        count, own = len(batch.ids), self.model.noise
        draws = self._draws(batch)
        if self.whole:
            batch, draws = self._filled(batch, draws)
            if batch.ids.is_cuda:
                torch.compiler.cudagraph_mark_step_begin()
        self.model.noise, self.predrawn.draws = self.predrawn, draws
        try:
            with unrolled(self.whole):
                terms = self.terms(_rounded(batch))
        except (TorchDynamoException, InductorError, InvalidCxxCompiler) as error:
            raise ConfigError(self._cure(error)) from error
        finally:
            self.model.noise = own
        states = None if terms.states is None else terms.states[:, :count]
        penalty = None if terms.penalty is None else terms.penalty[:count]
        return LossTerms(terms.nll[:count], terms.kl[:count], states=states, penalty=penalty)

    def _draws(self, batch: TimeSeries) -> dict[str, Tensor]:
        """Return the noise that the model would draw itself, in its order."""
        own, time = self.model.noise, batch.times.shape[1]
        if time not in self.recorded:
            self.model.noise = recording = RecordingNoise()
            try:
                with torch.no_grad():
                    self.model.loss_terms(batch.rows(slice(0, 1)))
            finally:
                self.model.noise = own
            self.recorded[time] = recording.draws
        shape = lambda like: (like.shape[0], len(batch.ids), *like.shape[2:])
        return {stream: own._generated(shape(like), like) for stream, like in self.recorded[time].items()}

    def _filled(self, batch: TimeSeries, draws: dict[str, Tensor]) -> tuple[TimeSeries, dict[str, Tensor]]:
        """Pad an epoch's last batch to the others' size with copies of its first row, which are dropped later."""
        count = len(batch.ids)
        self.rows = max(self.rows, count)
        if count == self.rows:
            return batch, draws
        index = torch.arange(self.rows, device=batch.ids.device)
        index = torch.where(index < count, index, 0)
        return batch.rows(index), {stream: draw[:, index] for stream, draw in draws.items()}

    def _cure(self, error: Exception) -> str:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        without = isinstance(error, InvalidCxxCompiler) or "InvalidCxxCompiler" in str(error)
        cure = "there is no C++ compiler; install one (g++)" if without else reason.strip().rstrip(".")
        other = ", or trainer.compile=on, which leaves loops as they are" if self.whole else ""
        return (
            f"trainer.compile={self.mode}: the training step of {type(self.model).__name__} could not be compiled: "
            f"{cure}. Set trainer.compile=off{other}."
        )


def _rounded(batch: TimeSeries) -> TimeSeries:
    """Return a batch with its bounds (most_seen, longest_gap) rounded up.

    Compilation is repeated for each value of them, so they should take few.
    """
    seen, gap = batch.most_seen, batch.longest_gap
    return replace(
        batch,
        most_seen=None if seen is None else min(8 * ceil(seen / 8), batch.times.shape[1]),
        longest_gap=exp(ceil(4 * log(gap)) / 4) if gap else gap,
    )


class Compiling(Callback):
    """Compile the training steps of a fit."""

    def __init__(self, mode: str):
        self.mode = mode

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.compiled = Compiled(pl_module, self.mode)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.compiled = None


def trainer(*, compile: Compile = "off", max_steps: int | None = None, **keys: Any) -> pl.Trainer:
    """Make a lightning.pytorch.Trainer with the extra option `compile`.

    All of the Trainer's parameters can be set, as +trainer.<key>=<value>.

    The length of a fit is counted in training steps: 2400, or trainer.max_steps. Where trainer.max_epochs is set,
    epochs count instead. trainer.max_time ends a fit after a length of time, as 90 (seconds), 2m or 00:02:00, and the
    learning rate then follows the time. Where several are set, the fit ends with whichever comes first.

    compile=on: torch.compile takes the training step but for its loops over points and solver steps. The first steps
    take one to two minutes; it pays where there are no such loops (vae: 1.4 times as fast on one core) and hardly
    elsewhere. compile=reduce-overhead: the whole step as one CUDA graph, loops unrolled, which takes minutes for each
    length of series; for many steps on series of one length, on a GPU.
    """
    mode = ("off", "on")[compile] if isinstance(compile, bool) else compile
    if mode != "off":
        keys["callbacks"] = [*(keys.get("callbacks") or []), Compiling(mode)]
    return pl.Trainer(max_steps=-1 if max_steps is None else max_steps, **keys)


_of_lightning = inspect.signature(pl.Trainer)
_own = inspect.signature(trainer).parameters
_parameters = [*(_own.get(name, each) for name, each in _of_lightning.parameters.items()), _own["compile"]]
trainer.__signature__ = _of_lightning.replace(parameters=_parameters)  # pyright: ignore[reportFunctionMemberAccess]
trainer.__annotations__ = {
    **typing.get_type_hints(pl.Trainer.__init__),
    "compile": Compile,
    "max_steps": int | None,
    "max_time": str | int | float | None,
}
