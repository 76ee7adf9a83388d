"""Measure the data set `table`: the time to load a file, the memory it needs, padding, and the cost of a batch."""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

SERIES, STREAMED, POINTS = 100_000, 1_000_000, 100
LOAD, MEMORY, PADDING, LOADER, GROWTH = (
    10.0,
    2.0,
    0.20,
    0.10,
    0.10,
)  # limits: seconds, multiples of the arrays, fractions


def write(folder: Path, series: int, points: int, csv: bool = False) -> Path:
    """Write a file of random series of one channel, sorted by id and time, and return its path."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    rng, writer = np.random.default_rng(0), None
    file = folder / (f"{series}.csv" if csv else f"{series}.parquet")
    for first in range(0, series, 10_000):
        count = min(10_000, series - first)
        names = pa.array([f"s{i:08d}" for i in range(first, first + count)])
        times = np.arange(points) + rng.uniform(0, 0.9, (count, points)).round(6)
        table = pa.table(
            {
                "id": names.take(pa.array(np.repeat(np.arange(count), points))),
                "time": times.ravel(),
                "x": rng.standard_normal(count * points).round(6),
            }
        )
        writer = writer or (pyarrow.csv.CSVWriter if csv else pq.ParquetWriter)(file, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    return file


def anonymous() -> float:
    """Return the anonymous memory of this process (not backed by a file), in MB."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3  # pyright: ignore


class Peak:
    """Record the peak of anonymous memory within the context, sampled every 5 ms."""

    def __enter__(self):
        self.most, self.ended = anonymous(), threading.Event()
        self.thread = threading.Thread(target=self._poll)
        self.thread.start()
        return self

    def _poll(self):
        while not self.ended.wait(0.005):
            self.most = max(self.most, anonymous())

    def __exit__(self, *error):
        self.ended.set()
        self.thread.join()


def load(path: str, stream: bool) -> dict[str, float]:
    """Return the seconds to splits, scale and a first batch, and the MB in addition to those before loading."""
    import pandas  # noqa: F401 - its import is not measured
    import pyarrow.parquet  # noqa: F401 - as above

    from vrnn_lab.data.table.dataset import Table

    before, started, cpu = anonymous(), time.perf_counter(), time.process_time()
    with Peak() as peak:
        data = Table(path, stream=stream)
        _ = data.splits, data.scale
        next(iter(data.train_dataloader()))
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        for split in ("train", "val"):
            for place, _ in enumerate(data.batches(split, data.task)):
                if place == 100:
                    break
    return {"seconds": seconds, "cpu_seconds": cpu, "steady": anonymous() - before, "peak": peak.most - before}


def padding() -> dict[str, float]:
    """Return the share of a batch's cells that are padding; lengths log-uniform from 10 to 500, batches of 50."""
    from vrnn_lab.core.tasks import DensityTask
    from vrnn_lab.data.base import Batches, Ragged

    lengths = np.exp(np.random.default_rng(0).uniform(np.log(10), np.log(500), 5000)).astype(int)
    offsets = np.append(0, np.cumsum(lengths))
    times = np.concatenate([np.arange(n, dtype=float) for n in lengths])
    ends = np.stack([0 * lengths, lengths], 1).astype(float)
    data = Ragged.joined(times, times[:, None], offsets, ends, np.arange(len(lengths)))
    share = lambda order: 1 - lengths.sum() / sum(len(i) * lengths[i].max() for i in order)
    batches = Batches(data, DensityTask(), 50, 0, training=True)
    shuffled = np.random.default_rng(0).permutation(len(lengths)).reshape(-1, 50)
    return {"alike": share(batches._order()), "shuffled": share(shuffled)}


def loader(batch_size: int) -> dict[str, float]:
    """Return the milliseconds per batch for each task, and of a training step of the fastest model."""
    import torch

    from vrnn_lab.config.compose import compose
    from vrnn_lab.config.validate import instantiate
    from vrnn_lab.data.base import Batches
    from vrnn_lab.runs.build import assemble

    keys = ["data=periodic", f"data.batch_size={batch_size}", f"data.train={10 * batch_size}", "trainer=cpu"]
    times: dict[str, list[float]] = {}
    parts = assemble(compose([*keys, "model=rnn", "model.width=64", "task=density"]))
    model, train = parts.model.train(), parts.data.splits["train"]
    optimizer = model.recipe.optim(model.parameters())
    batch = next(iter(parts.data.train_dataloader()))
    for _ in range(5):
        started = time.perf_counter()
        model.noise.seed(0, 0, device=torch.device("cpu"))
        terms = model.loss_terms(batch)
        optimizer.zero_grad()
        ((terms.nll.sum() + terms.kl.sum()) / batch.scored.sum()).backward()
        optimizer.step()
        times.setdefault("step", []).append(1e3 * (time.perf_counter() - started))
        for name in ("density", "interpolate", "forecast", "mixed"):
            task = instantiate(compose([f"task={name}"]).task, "task")
            for kind in ("train", "eval"):
                batches = Batches(train, task, batch_size, 0, training=kind == "train")
                started, count = time.perf_counter(), sum(1 for _ in batches)
                times.setdefault(f"{name} {kind}", []).append(1e3 * (time.perf_counter() - started) / count)
    return {name: statistics.median(values) for name, values in times.items()}


MEASURED = {
    "load": lambda path: load(path, False),
    "stream": lambda path: load(path, True),
    "padding": padding,
    "loader": lambda size: loader(int(size)),
}


def in_own_process(what: str, *args, cache: Path | None = None) -> dict[str, float]:
    """Make a measurement in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"VRNN_LAB_CACHE": str(cache)} if cache else {})
    command = [sys.executable, "-m", "bench.data", "--measure", what, *map(str, args)]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def row(
    name: str, ours: float, peer: float | None, peer_name: str, unit: str, limit: float, **more
) -> dict[str, Any]:
    """Return a row whose limit applies to ours / peer, or to ours itself where there is no peer."""
    ratio, target = (ours / limit, 1.0) if peer is None else (ours / peer, limit)
    values = {"name": name, "ours": ours, "peer": peer, "peer_name": peer_name, "unit": unit, "ratio": ratio}
    return {**values, "target": target, "sense": "<=", "ok": bool(ratio <= target), **more}


def streaming(folder: Path, series: int, streamed: int, points: int) -> list[dict]:
    """Measure the memory per series, from a small file to a large one, which is written here."""
    first, measured = in_own_process("stream", folder / f"{series}.parquet", cache=folder), []
    (folder / f"{series}.parquet").unlink()
    large = write(folder, streamed, points)
    grown = streamed - series  # a series needs memory for its name, id, window and place, whatever its length
    for what in ("converted", "opened again"):
        second = in_own_process("stream", large, cache=folder)
        ours = 1e6 * (second["peak"] - first["peak"]) / grown
        details = {"seconds": second["seconds"], "peak_MB": second["peak"], "peak_small_MB": first["peak"]}
        title = f"peak memory streamed, {what}, from {series:,} to {streamed:,} series"
        measured.append(row(title, ours, 16.0 * points, "arrays", "bytes a series", GROWTH, **details))
    return measured


def rows(
    quick: bool = False, series: int | None = None, streamed: int | None = None, points: int = POINTS
) -> list[dict]:
    series = series or (SERIES // 50 if quick else SERIES)
    streamed = streamed or (STREAMED // 50 if quick else STREAMED)
    measured = []
    with tempfile.TemporaryDirectory() as name:
        folder, arrays = Path(name), 16e-6 * series * points
        size = f"{series:,} series x {points} points"
        for csv in (True, False):
            kind, file = "CSV" if csv else "Parquet", write(folder, series, points, csv)
            load = in_own_process("load", file, cache=folder)
            measured.append(
                row(f"load {kind}, {size}", load["seconds"], None, "limit", "s", LOAD, cpu=load["cpu_seconds"])
            )
            peak = {"peak_MB": load["peak"]}
            if not quick:  # with small files most of the memory is that of the process itself
                measured.append(row(f"memory {kind}, {size}", load["steady"], arrays, "arrays", "MB", MEMORY, **peak))
            if csv:
                file.unlink()
        if not quick:
            measured += streaming(folder, series, streamed, points)
    share = in_own_process("padding")
    more = {"shuffled": share["shuffled"]}
    measured.append(row("padding, lengths 10 to 500", share["alike"], None, "limit", "share", PADDING, **more))
    for size in (50, 500):
        cost = in_own_process("loader", size)
        for task in ("density", "interpolate", "forecast", "mixed"):
            ours, more = cost[f"{task} train"], {"evaluation_ms": cost[f"{task} eval"]}
            measured.append(
                row(f"batch {size} x 100, {task}", ours, cost["step"], "step of rnn 64", "ms", LOADER, **more)
            )
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, help=f"series of the file that is loaded (default {SERIES})")
    parser.add_argument("--streamed", type=int, help=f"series of the file that is streamed (default {STREAMED})")
    parser.add_argument("--points", type=int, default=POINTS)
    parser.add_argument("--quick", action="store_true", help="small files")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(MEASURED[args.measure[0]](*args.measure[1:])))
        return
    for measured in rows(args.quick, args.series, args.streamed, args.points):
        peer = "" if measured["peer"] is None else f" {measured['peer']:.4g}"
        more = [
            f"{k} {v:.3g}"
            for k, v in measured.items()
            if isinstance(v, float) and k not in ("ours", "peer", "target")
        ]
        text = f"{measured['ours']:.4g} {measured['unit']}, {measured['peer_name']}{peer}: {', '.join(more)}"
        print(
            f"{'ok  ' if measured['ok'] else 'MISS'} {measured['name']}: {text} (<= {measured['target']})", flush=True
        )


if __name__ == "__main__":
    main()
