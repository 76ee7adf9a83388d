"""Draw the standard normal noise of models, reproducibly in training and evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from zlib import crc32

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vrnn_lab.core.series import TimeSeries
from vrnn_lab.core.shard import ALL, Shard

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # constants of SplitMix64, as the signed integers that torch has
AT_ONCE = 2**17  # numbers that evaluation draws at a time
FIRST, SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


class Noise:
    """Draw standard normal noise for a batch of series.

    While `fixed` is None (training), draws come from the object's own generator, which `seed` seeds; a process that
    holds a shard of the batch draws for the whole batch, so that each row's noise equals that of a single process.
    Otherwise (evaluation) a draw is a function of (fixed, stream, series id, time, sample, dim) alone: it is the same
    on every device and does not depend on the rest of the batch, on padding or on other queries. So evaluation never
    advances the training generator.
    """

    def __init__(self):
        self.fixed: int | None = None
        self.generator: torch.Generator | None = None
        self.shard = ALL
        self.number = 0  # index of the part of the samples that is being drawn

    @contextmanager
    def part(self, number: int) -> Iterator[None]:
        """Draw, within the context, part `number` of the evaluation samples; no two parts share a draw."""
        self.number = number
        try:
            yield
        finally:
            self.number = 0

    @contextmanager
    def repeatable(self, device: torch.device) -> Iterator[None]:
        """Make draws within the context repeatable functions of their names, as in evaluation.

        In training their seed is first drawn from the training generator.
        """
        before = self.fixed
        if before is None:
            like = torch.empty(0, dtype=torch.float64, device=device)
            self.fixed = int(self._generated((1, 1), like).item() * 2**30)
        try:
            yield
        finally:
            self.fixed = before

    def seed(self, *numbers: int, device, shard: Shard = ALL) -> None:
        self.shard = shard
        if self.generator is None or self.generator.device != device:
            self.generator = torch.Generator(device)
        self.generator.manual_seed(crc32(repr(numbers).encode()))

    def at_points(
        self, stream: str, series: TimeSeries, samples: int, dim: int, like: Tensor
    ) -> Float[Tensor, "samples batch time dim"]:
        """Return a draw for every point, in the dtype and on the device of `like`; `stream` names its purpose."""
        if self.fixed is None:
            return self._generated((samples, *series.times.shape, dim), like)
        keys = _of_points(series)
        return self.hashed(stream, series, keys, _all(samples, dim, keys[0]), like)

    def of_series(
        self, stream: str, series: TimeSeries, samples: int, dim: int, like: Tensor
    ) -> Float[Tensor, "samples batch dim"]:
        """Return a draw for every series, in the dtype and on the device of `like`; `stream` names its purpose."""
        if self.fixed is None:
            return self._generated((samples, len(series.ids), dim), like)
        return self.hashed(stream, series, _of_whole(series), _all(samples, dim, series.ids), like)[:, :, 0]

    def of_channels(self, channel: Int64[Tensor, " rows"], channels: int) -> "ChannelNoise":
        """Return the noise of rows that are single channels, of `channels` in a series; only while `fixed` is set."""
        return ChannelNoise(self, channel, channels)

    def _generated(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        if self.generator is None or self.generator.device != like.device:
            self.seed(torch.initial_seed(), device=like.device)
        draw = lambda *shape: torch.randn(shape, generator=self.generator, device=like.device, dtype=like.dtype)
        if self.shard.rows is None:
            return draw(*shape)
        return draw(shape[0], self.shard.total, *shape[2:])[:, self.shard.rows]

    def hashed(
        self,
        stream: str,
        series: TimeSeries,
        keys: list[Int64[Tensor, "batch time"]],
        numbers: Int64[Tensor, "samples batch 1 dim"] | Int64[Tensor, "samples 1 1 dim"],
        like: Tensor,
    ) -> Float[Tensor, "samples batch time dim"]:
        """Return the draws of some numbers for every key of a series."""
        part = f" {self.number}" if self.number else ""
        name = series.ids[:, None] ^ crc32(f"{self.fixed} {stream}{part}".encode())
        state = _mix(name)
        for key in keys:
            state = _mix(state ^ key)
        count, (samples, *_, dim) = _mix(numbers), numbers.shape
        # A few points at a time: larger intermediate results would leave the processor's cache, and cost page faults.
        size = max(1, AT_ONCE // max(1, samples * dim * len(state)))
        return torch.cat([_normal(part[None, :, :, None], count).to(like) for part in state.split(size, 1)], 2)


@dataclass(frozen=True)
class ChannelNoise:
    """Draw for rows that are single channels the numbers which `Noise` draws for those channels of whole series."""

    noise: Noise
    channel: Int64[Tensor, " rows"]  # of each row
    channels: int  # of a whole series

    def at_points(
        self, stream: str, series: TimeSeries, samples: int, dim: int, like: Tensor
    ) -> Float[Tensor, "samples rows time dim"]:
        """Return `dim` draws for every point of every row, as `Noise.at_points`."""
        return self.noise.hashed(stream, series, _of_points(series), self._numbers(samples, dim), like)

    def of_series(
        self, stream: str, series: TimeSeries, samples: int, dim: int, like: Tensor
    ) -> Float[Tensor, "samples rows dim"]:
        """Return `dim` draws for every row, as `Noise.of_series`."""
        return self.noise.hashed(stream, series, _of_whole(series), self._numbers(samples, dim), like)[:, :, 0]

    def _numbers(self, samples: int, dim: int) -> Int64[Tensor, "samples rows 1 dim"]:
        of_whole = _all(samples, self.channels * dim, self.channel)[:, 0, 0].unflatten(1, (self.channels, dim))
        return of_whole[:, self.channel, None]


def _all(samples: int, dim: int, like: Tensor) -> Int64[Tensor, "samples 1 1 dim"]:
    return torch.arange(samples * dim, device=like.device).view(samples, 1, 1, dim)


def _of_points(series: TimeSeries) -> list[Int64[Tensor, "batch time"]]:
    return [(series.times + 0.0).view(torch.int64), _rank(series)]  # adding 0 makes -0 the same time as 0


def _of_whole(series: TimeSeries) -> list[Int64[Tensor, "batch 1"]]:
    return [torch.zeros_like(series.ids[:, None])]


def _normal(state: Int64[Tensor, "1 batch time 1"], count: Int64[Tensor, "samples rows 1 dim"]) -> Tensor:
    """Return a standard normal number (samples, batch, time, dim) for each hash state and draw count."""
    uniform = (_shift(_mix(_mix(state ^ count)), 12).double() + 0.5) * 2.0**-52
    return torch.special.ndtri(uniform)


def _shift(bits: Int64[Tensor, "..."], places: int) -> Int64[Tensor, "..."]:
    """Shift bits to the right, filling with zeros from the left (a logical shift, which torch lacks)."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _mix(bits: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """Mix bits by SplitMix64 (Steele, Lea & Flood 2014): every output bit depends on every input bit."""
    bits = bits + GOLDEN
    bits = (bits ^ _shift(bits, 30)) * FIRST
    bits = (bits ^ _shift(bits, 27)) * SECOND
    return bits ^ _shift(bits, 31)


def _rank(series: TimeSeries) -> Int64[Tensor, "batch time"]:
    """Return each point's rank among the unpadded points at the same time, so that they do not share a draw."""
    counts = series.counts.long()
    before = counts.cumsum(1) - counts
    fresh = torch.ones_like(before, dtype=torch.bool)
    fresh[:, 1:] = series.times[:, 1:] != series.times[:, :-1]
    return before - torch.where(fresh, before, 0).cummax(1).values
