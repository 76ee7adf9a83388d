"""Strategies of inputs that nobody thought of, and the law of every outcome: success, or one foreseen message."""

import io
import logging
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import vrnn_lab
from vrnn_lab.cli import arguments
from vrnn_lab.config.compose import compose
from vrnn_lab.config.options import groups, options

PACKAGE = Path(vrnn_lab.__file__).parent
LIMIT = 10.0  # seconds of the processor that one input may take; of the clock six times that, on a busy machine
FORESEEN = (ValueError, OSError)


def bounded(examples: int) -> settings:
    """So many inputs, the same in every run, without a clock of hypothesis' own."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class Hang(BaseException):
    """An input took longer than LIMIT."""


@contextmanager
def no_hang(seconds: float = LIMIT):
    def late(number, frame):
        raise Hang(f"more than {seconds:g} s:\n" + "".join(traceback.format_stack(frame)[-8:]))

    timers = [(signal.SIGALRM, signal.ITIMER_REAL, 6 * seconds), (signal.SIGPROF, signal.ITIMER_PROF, seconds)]
    before = [signal.signal(number, late) for number, _, _ in timers]
    for _, timer, length in timers:
        signal.setitimer(timer, length)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def foreseen(error: BaseException) -> bool:
    """Return whether an error was raised by vrnn_lab and is shown as a plain message, unlike errors of libraries."""
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    ours = Path(place).is_relative_to(PACKAGE) or (isinstance(error, OSError) and error.filename is not None)
    said = str(error).strip()
    of_python = (
        "Type-check error",
        "unexpected keyword",
        "NoneType",
        "object has no",
        "not subscriptable",
        "AltException",
    )
    return isinstance(error, FORESEEN) and ours and bool(said) and not any(words in said for words in of_python)


def outcome(call: Callable[[], object]) -> str | None:
    """None for success, else the message; AssertionError for an error that nobody foresaw, Hang for a long wait."""
    try:
        with no_hang():
            call()
    except Exception as error:
        if not foreseen(error):
            raise AssertionError(f"{type(error).__name__}: {error}") from error
        return str(error)
    return None


def called(main: Callable[[], int | None], argv: list[str]) -> tuple[int, str]:
    """Exit code and standard error of a command, in this process; AssertionError where the law is broken."""
    met: list[BaseException] = []
    explain, out, err = arguments.explain, io.StringIO(), io.StringIO()
    handlers, term = list(logging.getLogger("vrnn_lab").handlers), signal.getsignal(signal.SIGTERM)

    def noted(error: BaseException) -> int:
        met.append(error)
        return explain(error)

    try:
        with (
            patch.object(arguments, "explain", noted),
            patch.object(sys, "argv", ["vrnn_lab", *argv]),
            redirect_stdout(out),
            redirect_stderr(err),
            no_hang(),
        ):
            code = arguments.run_command(main)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    finally:
        logging.getLogger("vrnn_lab").handlers[:] = handlers
        signal.signal(signal.SIGTERM, term)
    text = err.getvalue()
    if met and not foreseen(met[0]):
        raise AssertionError(f"{type(met[0]).__name__}: {met[0]}") from met[0]
    assert code in (0, 1, 2), f"exit code {code}: {text}"
    assert "Traceback" not in text and "VRNN_LAB_TRACEBACK" not in text, text
    messages = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(messages) == (code != 0) or "usage: " in text or not (code == 0 or text), f"{code}: {text}"
    return code, text


# ---- cells ---------------------------------------------------------------------------------------------------

# fmt: off
CELLS = [
    "", "0", "-0", "1", "1.5", "-7", "NA", "nan", "NaN", "null", "None", "inf", "-inf", "Infinity", "true", "False",
    "1e154", "-1e150", "1e308", "1e400", "5e-324", "1e-300", "1,5", "1.234,5", "1 000", "1_000", "+1", "1e", "0x10",
    "9999999999999999999999", "-9223372036854775809", "9" * 400, "1" + "0" * 310, "123456789012345678", "٣", "１",
    "2024-01-01", "2024-02-30", "2024-01-01T25:00", "10000-01-01", "0001-01-01", "2024-01-01T00:00Z", "99999-1-1",
    "2024-01-01T00:00+25:00", "2024", "1/2/2024", "12:30", "1 day", "2024-W01", "20240101", "1600-01-01", "x", "y",
    "train", "val", "test", "a", "b", "text", " ", "\t", "\v", "é", "\u2028", "\ufeff", "\x00", "\x1a", '"', '""',
    '"x"', '"x', 'x"y', "'", "\\", "a,b", "a;b", "#", "=1+1", "\r", "\n", "\r\n", "|", "∞", "1e999999999", "True",
    "TRUE", "-", "--", ".", ",", ";", "e", "1.", ".1", "1.2.3", "%", "5%", "$5", "1j", "0b1", "1e-999999999",
]
# fmt: on
HEADERS = ["id", "time", "a", "b", "split", "kind", "value", "Unnamed: 0", "", "month", "x", "id ", "2020", "sep="]
BYTES = [b"\x00", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xfc", b'"', b"\n", b"\r", b",", b";", b"\t", b"\xe2\x82"]
SEPARATORS = [",", ",", ",", ";", "\t", "|"]


def example_rows(series: int = 5, points: int = 7) -> list[list[str]]:
    """A good table with the columns id, time, a, b, split."""
    rng = np.random.default_rng(0)
    splits = ["train", "train", "val", "test", "train"]
    return [
        [f"s{i}", str(t), f"{rng.normal():.3f}", f"{rng.normal():.3f}" if t % 3 else "", splits[i]]
        for i in range(series)
        for t in range(points)
    ]


@st.composite
def csv_files(draw) -> bytes:
    """A good CSV file with one or two of its cells, columns, rows, names or bytes changed."""
    header, rows, content = ["id", "time", "a", "b", "split"], example_rows(), b""
    changes = draw(st.lists(st.sampled_from([_cell, _cell, _cell, _column, _row, _name, _cut, None]), max_size=3))
    for change in filter(None, changes):
        change(draw, header, rows)
    mark, end = draw(st.sampled_from(SEPARATORS)), draw(st.sampled_from(["\n", "\n", "\n", "\r\n", "\r"]))
    text = draw(st.sampled_from(["", "", "", "", "\ufeff", f"sep={mark}\n"]))
    text += end.join(mark.join(row) for row in [header, *rows]) + draw(st.sampled_from([end, end, end, ""]))
    content = text.encode()
    return mutated(draw, content) if None in changes else content


def _cell(draw, header: list[str], rows: list[list[str]]) -> None:
    if rows and (row := rows[draw(st.integers(0, 99)) % len(rows)]):
        row[draw(st.integers(0, 4)) % len(row)] = draw(st.sampled_from(CELLS))


def _column(draw, header: list[str], rows: list[list[str]]) -> None:
    column, cells = draw(st.integers(0, 4)), draw(st.lists(st.sampled_from(CELLS), min_size=1, max_size=3))
    for i, row in enumerate(rows):
        row[column:][:1] and row.__setitem__(column, cells[i % len(cells)])


def _row(draw, header: list[str], rows: list[list[str]]) -> None:
    """One of another length, or again."""
    place = draw(st.integers(0, 99)) % max(len(rows), 1)
    row = rows[place] if rows else []
    rows.insert(place, draw(st.sampled_from([row[:-1], [*row, "1"], list(row), [], [""], ["s9", *row[1:]]])))


def _name(draw, header: list[str], rows: list[list[str]]) -> None:
    header[draw(st.integers(0, 4)) % len(header)] = draw(st.sampled_from(HEADERS))


def _cut(draw, header: list[str], rows: list[list[str]]) -> None:
    """Fewer rows, or fewer columns."""
    if draw(st.booleans()):
        del rows[draw(st.sampled_from([0, 1, 2, 8, 20])) :]
    else:
        keep = draw(st.integers(1, 4))
        for row in (header, *rows):
            del row[keep:]


def mutated(draw, content: bytes, most: int = 2) -> bytes:
    """Bytes put in, taken out, flipped or said again, and the end cut off."""
    for kind in draw(st.lists(st.sampled_from(["in", "out", "flip", "again", "cut"]), max_size=most)):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        if kind == "in":
            content = content[:place] + draw(st.sampled_from(BYTES)) + content[place:]
        elif kind == "out":
            content = content[:place] + content[place + draw(st.integers(1, 20)) :]
        elif kind == "flip" and content:
            content = (
                content[:place] + bytes([content[place] ^ (1 << draw(st.integers(0, 7)))]) + content[place + 1 :]
            )
        elif kind == "again":
            content = content[:place] + content[max(place - draw(st.integers(1, 60)), 0) :]
        elif kind == "cut":
            content = content[:place]
    return content


# ---- Parquet -------------------------------------------------------------------------------------------------


def _columns() -> list[Callable[[int], pa.Array]]:
    """Return a strategy of columns with `n` rows: numbers, texts, dates and odd types."""
    from datetime import date, time, timedelta
    from decimal import Decimal

    whole = lambda kind: lambda n: pa.array([i % 7 for i in range(n)], kind)
    made = lambda values, kind=None: lambda n: pa.array([values[i % len(values)] for i in range(n)], kind)
    return [
        *(whole(kind) for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())),
        *(whole(kind) for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())),
        *(whole(kind) for kind in (pa.float32(), pa.float64(), pa.decimal128(38, 2), pa.decimal256(76, 3))),
        *(whole(kind) for kind in (pa.timestamp("ns"), pa.timestamp("s"), pa.timestamp("us", "UTC"), pa.date32())),
        *(whole(kind) for kind in (pa.duration("s"), pa.time32("s"), pa.time64("ns"))),
        lambda n: pa.array(np.arange(n).astype(np.float16)),
        made([Decimal("1.5"), Decimal("1e20"), None], pa.decimal128(38, 2)),
        made([Decimal(2) ** 127, None, Decimal(1)], pa.decimal256(76, 0)),
        made([2**64 - 1, 1, None], pa.uint64()),
        made([-(2**63), 2**63 - 1, 2**53 + 1], pa.int64()),
        made(["a", "b", None]),
        made(["1", "2.5", "x"]),
        made(["1", "2.5"]),
        made(["", " ", "s1"]),
        made([b"\xff\xfe", b"a", None]),
        made([True, False, None]),
        made([None]),
        made([None], pa.float64()),
        made([1.0, float("nan"), float("inf")]),
        made([1e154, -1e308, 5e-324]),
        made([{"x": 1}, {"x": None}, None]),
        made([[1.0, 2.0], [], None]),
        made([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)),
        made([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
        made([date(2024, 1, 1), date(1, 1, 1), date(9999, 12, 31)]),
        made([time(1, 2), None]),
        made([timedelta(days=1), None]),
        made([2**53, -(2**53)], pa.timestamp("s")),
        made([2**62, -(2**62)], pa.timestamp("us")),
        made([0, 10**18], pa.timestamp("ns", "Europe/Berlin")),
        made([0, 86400], pa.timestamp("s", "+05:30")),
        made(["train", "val", "test"]),
        lambda n: pa.array([f"s{i * 4 // max(n, 1)}" for i in range(n)]),
        lambda n: pa.array([f"s{i * 4 // max(n, 1)}" for i in range(n)]).dictionary_encode(),
        lambda n: pa.array([i * 4 // max(n, 1) for i in range(n)]),
        lambda n: pa.array([i * 4 // max(n, 1) for i in range(n)]).dictionary_encode(),
        lambda n: pa.array([float(i) for i in range(n)]),
        lambda n: pa.array([float(i) for i in range(n)]).dictionary_encode(),
        lambda n: pa.array([i * 10**9 for i in range(n)], pa.timestamp("ns")),
        lambda n: pa.array(list(range(n)), pa.date32()),
        lambda n: pa.array([1.0 + i for i in range(n)], pa.float64()),
        lambda n: pa.array([f"{i}" for i in range(n)], pa.large_string()),
        lambda n: pa.nulls(n, pa.string()),
    ]


COLUMNS = _columns()


@st.composite
def parquet_files(draw) -> bytes:
    """A good Parquet file with columns of other types, or with damaged bytes, or both."""
    rows = example_rows()
    rows = rows[: draw(st.sampled_from([99, 99, 99, 99, 99, 3, 1, 0]))]
    found: dict[str, pa.Array] = {
        "id": pa.array([row[0] for row in rows], pa.string()),
        "time": pa.array([float(row[1]) for row in rows], pa.float64()),
        "a": pa.array([float(row[2]) for row in rows], pa.float64()),
        "b": pa.array([float(row[3]) if row[3] else None for row in rows], pa.float64()),
        "split": pa.array([row[4] for row in rows], pa.string()),
    }
    if draw(st.booleans()):
        del found["split"]
    for name in draw(st.lists(st.sampled_from([*found, "c", "__index_level_0__", ""]), max_size=2)):
        found[name] = draw(st.sampled_from(COLUMNS))(len(rows))
    names = list(found)
    if draw(st.integers(0, 9)) == 9:
        names[draw(st.integers(0, len(names) - 1))] = draw(st.sampled_from(["time", "id", "a", "x.y", "a\x00"]))
    out = io.BytesIO()
    how = {
        "compression": draw(st.sampled_from(["none", "snappy", "gzip"])),
        "row_group_size": draw(st.sampled_from([1000, 5])),
        "use_dictionary": draw(st.booleans()),
        "data_page_version": draw(st.sampled_from(["1.0", "2.0"])),
        "write_page_checksum": draw(st.booleans()),
    }
    pq.write_table(pa.table(list(found.values()), names=names), out, **how)
    content = out.getvalue()
    return mutated(draw, content, 3) if draw(st.integers(0, 4)) == 4 else content


TABLE_OPTIONS = [
    {},
    {},
    {},
    {},
    {},
    {"id": None},
    {"split": None},
    {"values": ["a"]},
    {"values": ["a"], "known": ["b"]},
    {"values": ["a"], "static": ["b"]},
    {"values": ["a"], "error": ["b"]},
    {"channel": "b", "value": "a"},
    {"channel": "split", "value": "a", "split": None},
    {"channel": "split", "value": "a", "split": None, "known": ["b"]},
    {"window": 3},
    {"period": 3.0},
    {"id": None, "trend": "linear"},
    {"dequantise": False},
    {"id": "time", "time": "a"},
    {"id": "a", "time": "time"},
    {"time": "id", "id": None},
]

# ---- overrides and arguments ---------------------------------------------------------------------------------

# fmt: off
VALUES = [
    "0", "1", "-1", "2.5", "1e-3", "1e400", "nan", "inf", "-inf", "null", "true", "false", "''", '""', "abc", "[]",
    "{}", "[1,2]", "[a,b]", "{a:1}", "{_target_:os.system}", "os.system", "vrnn_lab.models.rnn.RNN",
    "torch.optim.SGD", "???", "vrnn_lab.run.main", "vrnn_lab", "builtins.int", "1.5.2", "..", "[[]]", "[null]",
    "9" * 30, "'a b'", "a b", "é", "$x", "${seed}", "${nothing}", "${oc.env:HOME}", "${", "}", "${model}", "1,2",
    "glob(*)", "choice(1,2)", "range(3)", "interval(0,1)", "shuffle(1,2)", "sort(2,1)", "int(1.5)", "str(1)", "a=b",
    "\\", "'", '"', "[", "(", "a:b", "@", "%", "0x10", "1_000", "010", "+1", "rnn", "vrnn", "table", "adamw",
    "none", "off", "auto", "cpu", "[0.7,0.2,0.1]", "~", "None", "tag(a,1)", "extend_list(1)", "${now:%Y}", "-",
    "--", "\n", "\t", "a\x00b", "x" * 300, "1e154", "5e-324", "/", ".",
]
# fmt: on
PREFIXES = ["", "", "", "", "+", "~", "++", "-", "--", "+~", "@", "/", "~+"]


def _keys() -> list[str]:
    from vrnn_lab.config.plain import flatten, to_dict

    config = to_dict(compose(["model=rnn", "data=table", "data.path=x.csv"]), resolve=False)
    keys = list(flatten(config))
    inner = sorted({".".join(key.split(".")[:n]) for key in keys for n in range(1, key.count(".") + 1)})
    odd = [
        "model@foo",
        "model@_global_",
        "optim@a.b",
        "hydra.run.dir",
        "hydra/launcher",
        "hydra.sweep.subdir",
        "a.b.c",
    ]
    odd += [
        "",
        ".",
        "model.",
        ".model",
        "model..width",
        "model[0]",
        "data.shares[0]",
        "data.shares.0",
        "_target_",
        "tricks",
    ]
    odd += [
        "tricks.a",
        "hydra",
        "hydra.job.chdir",
        "hydra.searchpath",
        "hydra.verbose",
        "defaults",
        "experiment",
        "a b",
    ]
    odd += [
        "evaluate",
        "evaluate.forecast",
        "model.new",
        "seed.a",
        "optim._partial_",
        "model._args_",
        "model._convert_",
    ]
    odd += [
        "model._recursive_",
        "model.head._target_.x",
        "hydra.output_subdir",
        "hydra.sweeper.params",
        "retry",
        "sweep",
    ]
    return [*keys, *inner, *groups(), *odd]


KEYS = _keys()
CHOICES = [f"{group}={option}" for group in groups() for option in options(group)]


@st.composite
def override_lists(draw) -> list[str]:
    """Overrides of a run, of which most are good and some are not."""
    one = st.one_of(
        st.sampled_from(CHOICES),
        st.builds("{}{}={}".format, st.sampled_from(PREFIXES), st.sampled_from(KEYS), st.sampled_from(VALUES)),
        st.builds("{}{}={}".format, st.sampled_from(["", "+", "++"]), st.sampled_from(KEYS), st.sampled_from(VALUES)),
        st.builds("{}{}".format, st.sampled_from(PREFIXES), st.sampled_from(KEYS)),
        st.sampled_from(
            ["", "=", "==", "model", "=x", "-x", "--config-dir=nowhere", "--config-dir", "-cd", "a=b=c", "model="]
        ),
    )
    return draw(st.lists(one, min_size=1, max_size=3))


def paths(folder: Path) -> list[str]:
    """Names of files and folders, good and bad."""
    return [
        str(folder / name) for name in ("run", "data.csv", "question.csv", "nothing", "data.parquet", "broken.csv")
    ] + [
        *(
            "",
            ".",
            "/",
            "nowhere/x.csv",
            "a\x00b",
            "x" * 300 + ".csv",
            "~",
            "~nobody/x.csv",
            "/dev/null",
            "out.csv",
            "out.parquet",
        ),
        *(
            "out.txt",
            "run,run",
            ",",
            "é.csv",
            "out.csv/x.csv",
            "/proc/self/mem",
            "new/out.csv",
            "\n",
            "-",
            "con",
            "data.csv,",
        ),
    ]


SMALL_KEYS = {
    "predict": "run input output at horizon every fill draws paths figures seed stream recalibrate when id time "
    "channel value",
    "evaluate": "run split recalibrate backtest backtest.horizon backtest.every backtest.folds output "
    "evaluate.samples evaluate.draws evaluate.forecast.until evaluate.forecast data.path data.seed data.shares data "
    "data.window a",
    "sample": "run n points seed output",
    "report": "where over score columns sort baseline metric claims output runs figures a",
    "search": "model data trials seeds study storage workers failures startup warmup sampler pruner space "
    "space.model.width",
    "fetch": "name",
    "describe": "model data optim config",
}


@st.composite
def argument_lists(draw, name: str, folder: Path) -> list[str]:
    """Arguments of a command: those of a good call, with some left out, changed and added."""
    run, question = folder / "run", folder / "question.csv"
    good = {
        "predict": [f"run={run}", f"input={question}", "output=out.csv", "horizon=1", "every=1"],
        "evaluate": [f"run={run}"],
        "sample": [f"run={run}", "output=s.csv", "n=2"],
        "report": [str(run), "output=r.html"],
        "search": ["model=rnn", "data=periodic", "trials=1"],
        "fetch": ["paleoclimate"],
        "describe": ["model=rnn"],
    }[name]
    asked = [word for word in good if draw(st.integers(0, 7)) != 7]
    keys = st.sampled_from(SMALL_KEYS[name].split())
    known = st.one_of(st.sampled_from(VALUES), st.sampled_from(paths(folder)), st.sampled_from(CELLS))
    good = st.sampled_from(
        ["0", "1", "2", "0.5", "true", "false", "null", "val", "train", "2024-01-01", "a>=0", "1h", "time", "a"]
    )
    file = st.sampled_from([*paths(folder)[:6], "out.csv", "out.parquet", "new/x.csv", "x.html"])
    said = lambda value: st.builds("{}={}".format, keys, value)
    bare = st.sampled_from(
        ["-h", "--help", "-x", "--", "=", "", "paleoclimate2", "model", "a=b", "time", *CHOICES[:20]]
    )
    one = st.one_of(*[said(known)] * 3, *[said(good)] * 4, *[said(file)] * 2, st.one_of(known, bare))
    if name == "report":  # which would read every run folder of this machine, of other tests too
        one = one.filter(lambda word: word not in ("/", "~"))
    return asked + draw(st.lists(one, max_size=3))


def run_beforehand(argv: list[str]) -> None:
    """Compose, check and build a config from overrides, as vrnn_lab.run does before a run begins."""
    from vrnn_lab import run
    from vrnn_lab.runs.build import assemble

    argv = ["trainer=cpu", *argv]
    run.check_launch(argv)
    run.check_beforehand(argv)
    if not run._sweeps(argv):
        overrides, dirs = run._overrides_and_dirs(argv)
        assemble(compose([each for each in overrides if not run._of_hydra(each)], dirs))


def asked_files(folder: Path) -> None:
    """Write the files that `paths` names anew: data.csv, question.csv, data.parquet, broken.csv."""
    import pandas as pd

    rows = [",".join(row) for row in [["id", "time", "a", "b", "split"], *example_rows()]]
    (folder / "data.csv").write_text("\n".join(rows) + "\n")
    (folder / "question.csv").write_text("\n".join(row.rpartition(",")[0] for row in rows) + "\n")
    (folder / "broken.csv").write_text('id,time,a,b\ns0,0,"1,2\n')
    pd.read_csv(folder / "question.csv").to_parquet(folder / "data.parquet")


def tiny_run(folder: Path) -> None:
    """A run folder, `run`, of two steps, and files to ask it about."""
    from vrnn_lab.training import fit

    asked_files(folder)
    words = ["model=rnn", "model.width=4", "data=table", f"data.path={folder / 'data.csv'}", "trainer=cpu"]
    words += [
        "trainer.max_steps=2",
        "evaluate.samples=2",
        "evaluate.draws=3",
        "out_of_time=false",
        "data.dequantise=false",
    ]
    handlers = list(logging.getLogger("vrnn_lab").handlers)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        arguments.configure_logging()
        fit.run(compose(words), folder / "run")
    logging.getLogger("vrnn_lab").handlers[:] = handlers
