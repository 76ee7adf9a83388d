"""A model that knows the process, for tests of the protocol."""

import torch

from helpers.small import recipe_of
from vrnn_lab.core.densities import Gaussian
from vrnn_lab.core.tasks import Forecast, Interpolate
from vrnn_lab.data.datasets.ou import OU
from vrnn_lab.evaluation.evaluate import EvaluationProtocol
from vrnn_lab.models.base import Prediction, SequenceModel
from vrnn_lab.models.heads import GaussianHead
from vrnn_lab.models.losses import LossTerms

QUESTIONS = EvaluationProtocol(
    Interpolate(0.5, scored="held_out"), Forecast(0.5, scored="held_out"), samples=4, draws=99
)


def small_data(**keys) -> OU:
    return OU(**{"train": 60, "val": 60, "test": 150, "points": (5, 25), **keys})


class Oracle(SequenceModel):
    """Knows the process; the spreads it tells are `wide` times the right ones."""

    def __init__(self, data: OU, wide: float = 1.0):
        super().__init__(data.scale, recipe_of(), GaussianHead(data.scale))
        self.data, self.wide = data, wide

    _loss_terms = _log_weights = _predict = None

    def loss_terms(self, batch):
        log_p = self.data.exact(batch)[0]
        return LossTerms(-log_p, torch.zeros_like(log_p))

    def log_weights(self, batch, samples):
        return self.data.exact(batch)[0].expand(samples, -1)

    def predict(self, batch, samples):
        exact = self.data.exact(batch.given())[1]
        exact = Gaussian(exact.mean, self.wide * exact.std)
        noise = self.noise.at_points("value", batch, samples, 1, exact.mean)
        whole = lambda x: x.expand(samples, *x.shape)
        return Prediction(exact.draw(noise), exact.map(whole))
