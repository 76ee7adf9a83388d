"""The data set `table`: how long a file takes to load, the memory it needs, padding, and what a batch costs."""

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
LOAD, MEMORY, PADDING, LOADER, GROWTH = 10.0, 2.0, 0.20, 0.10, 0.10  # limits: s, times the arrays, shares


def write(folder: Path, series: int, points: int, csv: bool = False) -> Path:
    """A file of random series of one channel, sorted by id and time."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    rng, made = np.random.default_rng(0), None
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
        made = made or (pyarrow.csv.CSVWriter if csv else pq.ParquetWriter)(file, table.schema)
        made.write_table(table)
    assert made is not None
    made.close()
    return file


def anonymous() -> float:
    """MB of memory of this process that no file stands behind."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3  # pyright: ignore


class Peak:
    """The most anonymous memory while it runs, looked at every 5 ms."""

    def __enter__(self):
        self.most, self.ended = anonymous(), threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def _look(self):
        while not self.ended.wait(0.005):
            self.most = max(self.most, anonymous())

    def __exit__(self, *error):
        self.ended.set()
        self.thread.join()


def load(path: str, stream: bool) -> dict[str, float]:
    """Seconds to splits, scale and a first batch, and MB over those of the imported process."""
    import pandas  # noqa: F401 - what it takes is no part of what is measured
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
    """The share of a batch's cells that hold no point; lengths log-uniform from 10 to 500, batches of 50."""
    from vrnn_lab.core.tasks import DensityTask
    from vrnn_lab.data.base import Batches, Ragged

    lengths = np.exp(np.random.default_rng(0).uniform(np.log(10), np.log(500), 5000)).astype(int)
    offsets = np.append(0, np.cumsum(lengths))
    times = np.concatenate([np.arange(n, dtype=float) for n in lengths])
    ends = np.stack([0 * lengths, lengths], 1).astype(float)
    data = Ragged.joined(times, times[:, None], offsets, ends, np.arange(len(lengths)))
    share = lambda order: 1 - lengths.sum() / sum(len(i) * lengths[i].max() for i in order)
    batches = Batches(data, DensityTask(), 50, 0, training=True)
    plain = np.random.default_rng(0).permutation(len(lengths)).reshape(-1, 50)
    return {"alike": share(batches._order()), "shuffled": share(plain)}


def loader(batch_size: int) -> dict[str, float]:
    """Milliseconds a batch for each task, and a training step of the fastest model."""
    import torch

    from vrnn_lab.config.compose import compose
    from vrnn_lab.config.validate import instantiate
    from vrnn_lab.data.base import Batches
    from vrnn_lab.runs.build import assemble

    keys = ["data=periodic", f"data.batch_size={batch_size}", f"data.train={10 * batch_size}", "trainer=cpu"]
    found: dict[str, list[float]] = {}
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
        found.setdefault("step", []).append(1e3 * (time.perf_counter() - started))
        for name in ("density", "interpolate", "forecast", "mixed"):
            task = instantiate(compose([f"task={name}"]).task, "task")
            for kind in ("train", "eval"):
                batches = Batches(train, task, batch_size, 0, training=kind == "train")
                started, count = time.perf_counter(), sum(1 for _ in batches)
                found.setdefault(f"{name} {kind}", []).append(1e3 * (time.perf_counter() - started) / count)
    return {name: statistics.median(each) for name, each in found.items()}


MEASURED = {
    "load": lambda path: load(path, False),
    "stream": lambda path: load(path, True),
    "padding": padding,
    "loader": lambda size: loader(int(size)),
}


def fresh(what: str, *args, cache: Path | None = None) -> dict[str, float]:
    """A measurement in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"VRNN_LAB_CACHE": str(cache)} if cache else {})
    command = [sys.executable, "-m", "bench.data", "--measure", what, *map(str, args)]
    said = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(said.splitlines()[-1])


def row(
    name: str, ours: float, peer: float | None, peer_name: str, unit: str, limit: float, **more
) -> dict[str, Any]:
    """A limit on ours itself, where there is no peer; else on ours / peer."""
    ratio, target = (ours / limit, 1.0) if peer is None else (ours / peer, limit)
    found = {"name": name, "ours": ours, "peer": peer, "peer_name": peer_name, "unit": unit, "ratio": ratio}
    return {**found, "target": target, "sense": "<=", "ok": bool(ratio <= target), **more}


def streaming(folder: Path, series: int, streamed: int, points: int) -> list[dict]:
    """What memory a series costs, from a small file to a large one, which is written here."""
    first, found = fresh("stream", folder / f"{series}.parquet", cache=folder), []
    (folder / f"{series}.parquet").unlink()
    large = write(folder, streamed, points)
    grown = streamed - series  # a series brings its name, id, window and place, whatever its length
    for what in ("converted", "opened again"):
        second = fresh("stream", large, cache=folder)
        ours = 1e6 * (second["peak"] - first["peak"]) / grown
        each = {"seconds": second["seconds"], "peak_MB": second["peak"], "peak_small_MB": first["peak"]}
        title = f"peak memory streamed, {what}, from {series:,} to {streamed:,} series"
        found.append(row(title, ours, 16.0 * points, "arrays", "bytes a series", GROWTH, **each))
    return found


def rows(
    quick: bool = False, series: int | None = None, streamed: int | None = None, points: int = POINTS
) -> list[dict]:
    series = series or (SERIES // 50 if quick else SERIES)
    streamed = streamed or (STREAMED // 50 if quick else STREAMED)
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder, arrays = Path(name), 16e-6 * series * points
        size = f"{series:,} series x {points} points"
        for csv in (True, False):
            kind, file = "CSV" if csv else "Parquet", write(folder, series, points, csv)
            load = fresh("load", file, cache=folder)
            found.append(
                row(f"load {kind}, {size}", load["seconds"], None, "limit", "s", LOAD, cpu=load["cpu_seconds"])
            )
            peak = {"peak_MB": load["peak"]}
            if not quick:  # in small files the process itself is most of it
                found.append(row(f"memory {kind}, {size}", load["steady"], arrays, "arrays", "MB", MEMORY, **peak))
            if csv:
                file.unlink()
        if not quick:
            found += streaming(folder, series, streamed, points)
    share = fresh("padding")
    more = {"shuffled": share["shuffled"]}
    found.append(row("padding, lengths 10 to 500", share["alike"], None, "limit", "share", PADDING, **more))
    for size in (50, 500):
        cost = fresh("loader", size)
        for task in ("density", "interpolate", "forecast", "mixed"):
            ours, more = cost[f"{task} train"], {"evaluation_ms": cost[f"{task} eval"]}
            found.append(
                row(f"batch {size} x 100, {task}", ours, cost["step"], "step of rnn 64", "ms", LOADER, **more)
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, help=f"of the file that is loaded (default {SERIES})")
    parser.add_argument("--streamed", type=int, help=f"series of the file that is streamed (default {STREAMED})")
    parser.add_argument("--points", type=int, default=POINTS)
    parser.add_argument("--quick", action="store_true", help="small files")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(MEASURED[args.measure[0]](*args.measure[1:])))
        return
    for each in rows(args.quick, args.series, args.streamed, args.points):
        peer = "" if each["peer"] is None else f" {each['peer']:.4g}"
        more = [
            f"{k} {v:.3g}" for k, v in each.items() if isinstance(v, float) and k not in ("ours", "peer", "target")
        ]
        said = f"{each['ours']:.4g} {each['unit']}, {each['peer_name']}{peer}: {', '.join(more)}"
        print(f"{'ok  ' if each['ok'] else 'MISS'} {each['name']}: {said} (<= {each['target']})", flush=True)


if __name__ == "__main__":
    main()
