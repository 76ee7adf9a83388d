"""The linear VAE, whose likelihood and posterior are known: probabilistic PCA (Tipping & Bishop 1999)."""

from math import atanh, log

import torch
from torch.distributions import MultivariateNormal

from helpers.small import batch_of, density, model_of, scale_of
from vrnn_lab.core.series import TimeSeries, series_of

STD = 0.4  # of the observations, in training stds


def linear_vae(dim: int, widen: float = 1.0):
    """z ~ N(0, 1), x ~ N(w z + b, STD^2 I) with its posterior (eq. 7), `widen` times as wide; and p(x)."""
    scale = scale_of(dim)
    model = model_of("vae", scale, double=True, latent=1, depth=0)
    (decoder,), (encoder,) = model.decoder, model.encoder
    with torch.no_grad():
        model.head.log_std.fill_(0.5 * log(STD**2 - 1e-6) / model.head.speed)
        w, b = decoder.weight[:, 0], decoder.bias
        precision = 1 + w.square().sum() / STD**2
        encoder.weight.zero_()
        encoder.weight[0, :dim] = w / STD**2 / precision
        encoder.bias[0] = -(w @ b) / STD**2 / precision
        log_std = -0.5 * precision.log().item() + log(widen)
        encoder.bias[1] = 5 * atanh((log_std + 2) / 5) - 2  # the inverse of Normal.of
        covariance = torch.outer(w, w) + STD**2 * torch.eye(dim, dtype=torch.float64)
        spread = torch.outer(scale.std, scale.std) * covariance
        return model, MultivariateNormal(scale.mean + scale.std * b, spread)


def whole_points(dim: int) -> TimeSeries:
    """A batch of the density task, all channels of every point known."""
    batch, scale = batch_of(dim=dim), scale_of(dim)
    return density(series_of(batch.times, scale.mean + scale.std * batch.values / 10, window=batch.window))
