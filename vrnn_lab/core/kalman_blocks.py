"""Sweep long rows in parallel over time: the blocks of a row are swept together, as if they were rows of a batch.

The likelihood of the state before a block, and the law of the state at its end given the one before it, are Gaussian
(Sarkka & Garcia-Fernandez 2021, section III). A filter from a known start computes both, with one extra column for
each dimension of the starting state. A short loop over blocks passes them on, forward and backward, and a second
filter starts each block where the previous one ended. This takes about three times the work in a hundredth of the
steps.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from vrnn_lab.core.compile_loops import loop
from vrnn_lab.core.kalman_sweeps import (
    Messages,
    Moments,
    Moves,
    State,
    Values,
    stay,
    sweep_back,
    sweep_forward,
    take_in,
)

SHORTEST = 32  # points in a block, at least
FEWEST = 8  # blocks in a row, at least; with fewer, one long sweep is as fast
SIDE_BY_SIDE = 512  # blocks of all rows together, at most


@dataclass(frozen=True)
class Blocks:
    """Cut rows of `points` points into `count` blocks of `length` points each, the last one padded."""

    points: int
    count: int
    length: int

    @classmethod
    def of(cls, points: int, rows: int) -> "Blocks":
        count = min(points // SHORTEST, SIDE_BY_SIDE // max(rows, 1))
        if count < FEWEST:
            return cls(points, 1, points)
        length = -(-points // count)
        return cls(points, -(-points // length), length)

    def cut(self, x: Tensor, fill: Tensor | float = 0.0) -> Tensor:
        """Cut a tensor (time or value, ..., batch) into (time or value in a block, ..., blocks * batch)."""
        if self.count == 1:
            return x
        missing = self.count * self.length * (len(x) // self.points) - len(x)
        if missing:
            more = torch.as_tensor(fill, dtype=x.dtype, device=x.device)
            x = torch.cat([x, more.expand(missing, *x.shape[1:])])
        return x.unflatten(0, (self.count, -1)).movedim(0, -2).flatten(-2).contiguous()

    def joined(self, x: Tensor) -> Tensor:
        """Invert `cut`: return (time or value, ..., batch) without the padding."""
        values = self.points * (len(x) // self.length)
        return self._apart(x).movedim(-2, 0).flatten(0, 1)[:values]

    def total(self, x: Float64[Tensor, " both"]) -> Float64[Tensor, " batch"]:
        """Return the sum (batch,) over the blocks of each row."""
        return self._apart(x).sum(0)

    def first(self, x: Float64[Tensor, "time *shape both"]) -> Float64[Tensor, "*shape batch"]:
        """Return the entries (*shape, batch) of the first point of each row."""
        return self._apart(x[0])[..., 0, :]

    def moves(self, moves: Moves) -> Moves:
        """Cut the moves into blocks; the moves of padding leave the state as it is."""
        fills = stay(len(moves.stationary), moves.other is not None, moves.parts[0])
        parts = [self.cut(part, fill) for part, fill in zip(moves.parts, fills, strict=True)]
        process = None if moves.process is None else self.cut(moves.process)
        return Moves(parts, process, moves.stationary, moves.other)

    def values(self, seen: Values) -> Values:
        return Values(self.cut(seen.y), self.cut(seen.h), self.cut(seen.r, 1.0), self.cut(seen.mask, 0.0))

    def _apart(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.count, -1))

    def matrices(self, x: Float64[Tensor, "one other both"]) -> Float64[Tensor, "blocks batch one other"]:
        return self._apart(x).permute(2, 3, 0, 1)

    def lanes(self, x: Float64[Tensor, "blocks batch one other"]) -> Float64[Tensor, "one other both"]:
        return x.permute(2, 3, 0, 1).flatten(-2).contiguous()


@dataclass(frozen=True)
class BlockEvidence:
    """Hold the likelihood of each block: given the state x before it, the last state is N(A x + b, C), and the log
    probability of its values is constant + x'eta - x'J x / 2. Fields are (blocks, batch, state, state or column)."""

    a: Tensor
    b: Tensor
    c: Tensor
    eta: Tensor
    j: Tensor

    def each(self) -> list[tuple[Tensor, ...]]:
        """Return a list with the tuple (a, b, c, eta, j) of every block."""
        return list(zip(self.a, self.b, self.c, self.eta, self.j, strict=True))


class Sweeps:
    """Run the forward and the backward sweep of rows that were cut into blocks."""

    def __init__(self, start: State, moves: Moves, seen: Values, blocks: Blocks):
        """Take the start of each row, mean (state, column, batch) and covariance (state, state, batch), and the
        transitions `moves` and values `seen` of its blocks."""
        self.start, self.moves, self.seen, self.blocks = start, moves, seen, blocks
        self.evidence = None if blocks.count == 1 else _evidence(moves, seen, blocks)

    def forward(self) -> Moments:
        start = self.start if self.evidence is None else _starts(self.evidence, self.start, self.blocks)
        return sweep_forward(start, self.moves, self.seen)

    def back(self, moments: Moments) -> Messages:
        last = moments.after[0][-1], moments.after[1][-1]
        nothing = torch.zeros_like(last[0]), torch.zeros_like(last[1])
        end = nothing if self.evidence is None else _ends(self.evidence, last, self.blocks)
        return sweep_back(end, self.moves, self.seen, moments)


@loop
def _evidence(moves: Moves, seen: Values, blocks: Blocks) -> BlockEvidence:
    columns, both = seen.y.shape[1:]
    unit = torch.eye(len(moves.stationary), dtype=seen.y.dtype, device=seen.y.device)
    mean = torch.cat([unit.new_zeros(len(unit), columns), unit], 1)[..., None].expand(-1, -1, both)
    state = mean, torch.zeros_like(mean[:, columns:])
    still = unit.new_zeros(len(unit), both)
    scores, channels = torch.zeros_like(mean), len(seen.y) // len(moves)
    for i, (y, h, r) in enumerate(zip(seen.y.unbind(0), seen.h.unbind(0), seen.r.unbind(0), strict=True)):
        if i % channels == 0:
            state = moves.onward(i // channels, state)
        state, (error, variance, _) = take_in(state, torch.cat([y, still]), h, r)
        scores = torch.addcmul(scores, error, (error[columns:] / variance)[:, None])
    mean, covariance = state
    # The errors of the unit-vector columns are -h'A e_k, so J has the right sign and eta the opposite one.
    parts = mean[:, columns:], mean[:, :columns], covariance, -scores[:, :columns], scores[:, columns:]
    return BlockEvidence(*map(blocks.matrices, parts))


@loop
def _starts(evidence: BlockEvidence, start: State, blocks: Blocks) -> State:
    """Return the mean and covariance of the state before each block, given all values before it."""
    mean, covariance = (each.movedim(-1, 0) for each in start)
    columns, size = mean.shape[-1], mean.shape[-2]
    unit, starts = torch.eye(size, dtype=mean.dtype, device=mean.device), []
    for a, b, c, eta, j in evidence.each():
        starts.append((mean, covariance))
        right = torch.cat([mean + covariance @ eta, covariance], -1)
        mean, covariance = torch.linalg.solve(unit + covariance @ j, right).split([columns, size], -1)
        mean, covariance = a @ mean + b, a @ covariance @ a.mT + c
        covariance = (covariance + covariance.mT) / 2
    means, covariances = (torch.stack(each) for each in zip(*starts, strict=True))
    return blocks.lanes(means), blocks.lanes(covariances)


@loop
def _ends(evidence: BlockEvidence, last: State, blocks: Blocks) -> State:
    """Return the slope and curvature, in the last state of each block, of the log probability of later values."""
    linear, bend = torch.zeros_like(evidence.b[0]), torch.zeros_like(evidence.c[0])
    columns, size = linear.shape[-1], linear.shape[-2]
    unit, ends = torch.eye(size, dtype=bend.dtype, device=bend.device), []
    for a, b, c, eta, j in reversed(list(evidence.each())):
        ends.append((linear, bend))
        right = torch.cat([linear - bend @ b, bend @ a], -1)
        more = a.mT @ torch.linalg.solve(unit + bend @ c, right)
        linear, bend = eta + more[..., :columns], j + more[..., columns:]
        bend = (bend + bend.mT) / 2
    linear, bend = (torch.stack(each[::-1]) for each in zip(*ends, strict=True))
    mean, covariance = map(blocks.matrices, last)
    right = torch.cat([linear - bend @ mean, bend], -1)
    slope, curvature = torch.linalg.solve(unit + bend @ covariance, right).split([columns, size], -1)
    return blocks.lanes(slope), blocks.lanes((curvature + curvature.mT) / 2)
