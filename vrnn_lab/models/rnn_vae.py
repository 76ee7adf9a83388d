"""Define a model of one latent per series with a recurrent decoder."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vrnn_lab.core.compile_loops import loop
from vrnn_lab.core.series import Scale, TimeSeries
from vrnn_lab.core.types import Count, Natural
from vrnn_lab.models.encoders import GRUEncoder, Recognition
from vrnn_lab.models.layers import Activation, GRUCell, mlp
from vrnn_lab.models.lines import PathLevel
from vrnn_lab.models.ode import linear_read, steps_in_training, steps_to_cover
from vrnn_lab.models.paths import PathModel
from vrnn_lab.models.recipe import Recipe


class RNNVAE(PathModel):
    """Model a series by one latent that an RNN decodes over time (RNN-VAE of Rubanova et al. 2019, arXiv 1907.03907,
    section 4); it is the latent ODE with an RNN in place of the ODE.

    q(z | seen) = N(encoder),  z ~ N(0, I),
    s_0 = tanh(W z + b),  s_{k+1} = GRU(z, s_k),  x_i ~ head(decoder(s(t_i))).

    s_k is the state k / nodes typical windows after the start of the row's window; s(t) is linear between them, and
    s_0 before the start. A decoder that stepped from query to query would change its predictions when queries are
    added.
    """

    def __init__(
        self,
        scale: Scale,
        recipe: Recipe,
        head,
        latent: Count = 8,
        width: Count = 64,
        encoder_width: Count = 64,
        decoder_width: Count = 64,
        decoder_depth: Natural = 1,
        activation: Activation = "tanh",
        nodes: Count = 20,
        level: PathLevel = "none",
        encoder=GRUEncoder,
    ):
        super().__init__(scale, recipe, head(scale), states=width, level=level)
        self.latent, self.step = latent, 1 / nodes
        self.reach = (scale.longest / scale.clock).item()
        self.nodes = steps_in_training(nodes, self.reach)
        self.recognition = Recognition(encoder(scale, encoder_width), latent, encoder_width, activation)
        self.start = nn.Linear(latent, width)
        self.memory = GRUCell(latent, width)
        self.decoder = self.head.begin(
            mlp(width + len(scale.covariates), decoder_width, self.head.width, decoder_depth, activation)
        )

    def _encode(self, series):
        return self.recognition(series, series.times, self.reach if series.in_training else None)

    @loop
    def _chain(
        self, z: Float[Tensor, "samples batch latent"], steps: int
    ) -> Float[Tensor, "nodes samples batch state"]:
        """Return the states s_0, s_1, ..., s_steps."""
        gates, states = self.memory.gates(z), [torch.tanh(self.start(z))]
        for _ in range(steps):
            states.append(self.memory(gates, states[-1]))
        return torch.stack(states)

    def _moving(self, series: TimeSeries) -> Tensor:
        """Return the time at which each point reads the path; with a line, at most the training range."""
        return series.times if self.lines is None else series.times.clamp(max=self.reach)

    def _steps(self, series: TimeSeries) -> int:
        if series.in_training:
            return self.nodes
        return steps_to_cover(self._moving(series).clamp(min=0), self.step, self.nodes)[0]

    def _states(self, series, z):
        return linear_read(self._chain(z, self._steps(series)), self.step, 0, self._moving(series))

    def _decode(self, states):
        return self.head(self.decoder(states))
