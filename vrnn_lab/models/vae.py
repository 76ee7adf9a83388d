"""Define the variational autoencoder."""

import torch

from vrnn_lab.core.series import Scale
from vrnn_lab.core.types import Count, Natural
from vrnn_lab.models.layers import Activation, mlp
from vrnn_lab.models.losses import Normal
from vrnn_lab.models.networks import with_covariates
from vrnn_lab.models.paths import PathModel
from vrnn_lab.models.recipe import Recipe


class VAE(PathModel):
    """Model each point by a latent of its own, without time (Kingma & Welling 2014, arXiv 1312.6114, section 3).

    z_i ~ N(0, I),  x_i ~ head(decoder(z_i)),  q(z_i | seen channels of x_i) = N(encoder(x_i, which are seen)).

    All points are independent; the prediction of a point with nothing observed is the prior's. Encoder and decoder
    are MLPs (appendix C).
    """

    def __init__(
        self,
        scale: Scale,
        recipe: Recipe,
        head,
        latent: Count = 8,
        width: Count = 64,
        depth: Natural = 2,
        activation: Activation = "tanh",
    ):
        super().__init__(scale, recipe, head(scale), states=latent)
        self.latent = latent
        covariates = len(scale.covariates)
        self.encoder = mlp(2 * scale.dim + covariates, width, 2 * latent, depth, activation)
        self.decoder = self.head.begin(mlp(latent + covariates, width, self.head.width, depth, activation))

    def _encode(self, series):
        seen = series.seen.to(series.values)
        inputs = torch.cat([series.values * seen, seen], -1)
        posterior = Normal.of(self.encoder(with_covariates(inputs, series.covariates)))
        return posterior.where(series.seen.any(-1, keepdim=True), Normal.standard(posterior.mean))

    def _states(self, series, z):
        return z

    def _decode(self, states):
        return self.head(self.decoder(states))
