"""Report what a sweep found, from its run folders alone: python -m vrnn_lab.report."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import shorten

from vrnn_lab.cli.arguments import run_command
from vrnn_lab.cli.result import HELP, result
from vrnn_lab.cli.shown_text import complain
from vrnn_lab.cli.suggestions import did_you_mean
from vrnn_lab.cli.terminal import Terminal
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core.files import write_whole
from vrnn_lab.reports import claims, csv_files, formats
from vrnn_lab.reports.page import page
from vrnn_lab.reports.runs import Run, read_all
from vrnn_lab.reports.summary import ReportQuery, Summary, summarise
from vrnn_lab.reports.tables import report_tables
from vrnn_lab.runs.folder import SCORE

USAGE = """python -m vrnn_lab.report <folder> ... [key=value ...]

Reads run folders and what holds them, finished or not, and shows one row for all runs that differ by seed alone:
the mean of their scores with half of its 95 % interval (Student's t over the seeds), best by validation first.
Runs on several data sets have a table for each data set, whose rows are named by folder: scores are ranked and
compared only on the same data. Below each table are the baselines of its data set.

What is shown
  where=optim=adam              only runs that match; also != < <= > >=, by config key, group, trick, status or
                                val/ metric; several by commas, or where= again: where=model.width>=32,optim=adam
                                trick=[big_batch,wide] means exactly these tricks, trick=none no trick
  score=val/loss                the val/ metric that rows are ranked by; less is better, but for accuracy, auc, ks_p
  columns=test/nll,fit/seconds  further metrics to show
  sort=model.width              by a metric, key, name or runs; sort=-fit/seconds from the largest; default: the score
  over=seed                     the keys over which a config is repeated: over=data.seed,seed
  runs=true                     also a table of all runs

What is compared
  baseline=trick=none           each row less this one, paired by seed: difference, interval, verdict
  metric=test/nll               what is compared with the baseline; default: the score
  claims=claims.yaml            a list of {claim: text, better: filter, than: filter, metric: test/nll, lower: true};
                                without metric and lower the score's; each holds, does not hold or is undecided

What is written
  output=report.csv             also .md, .tex, .html; several by commas. CSV has every digit; the baselines are in
                                report.baselines.csv, and runs=true adds report.runs.csv. HTML is one page with table,
                                baselines, curves, views and figures, no network
  figures=200                   at most so many figures in the page, the best rows first; true: all, false: none

Examples
  python -m vrnn_lab.report outputs/optimisers
  python -m vrnn_lab.report outputs/tricks baseline=trick=none metric=test/forecast/mse output=tricks.html,tricks.tex
  python -m vrnn_lab.report outputs where=model=vrnn where=model.width>=32 columns=test/nll,fit/seconds
  python -m vrnn_lab.report outputs where=status=failed runs=true"""
USAGE += "\n" + HELP

LISTS = ("where", "over", "columns", "output")
ENDINGS = (".csv", ".md", ".tex", ".html")
ALLOWED = ("where", "over", "score", "columns", "sort", "baseline", "metric", "claims", "output", "runs", "figures")


def options(argv: Sequence[str]) -> tuple[list[Path], dict[str, list[str]]]:
    """Return the folders, and the values of each option in order; raise ConfigError for an unknown option."""
    folders, given = [], {}
    for argument in argv:
        key, equals, value = argument.partition("=")
        if not equals or (key not in ALLOWED and Path(argument).is_dir()):  # a folder's name may hold a `=`
            folders.append(Path(argument))
        elif key not in ALLOWED:
            raise ConfigError(
                f"{argument}: there is no option {key}.{did_you_mean(key, ALLOWED)} Options: {', '.join(ALLOWED)}"
            )
        elif key in given and key not in LISTS:
            raise ConfigError(f"{key}= is given twice; expected once.")
        elif not value:
            raise ConfigError(f"{key}= has no value.")
        else:
            given.setdefault(key, []).append(value)
    if not folders:
        raise ConfigError("no folder to read; expected python -m vrnn_lab.report <folder> ..., such as outputs.")
    return folders, given


def _truth(value: str, option: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ConfigError(f"{option}={value}: expected true or false.")
    return value.lower() == "true"


def _figures(value: str) -> int:
    """Return the maximum number of figures; true means all."""
    if value.isdigit():
        return int(value)
    return sys.maxsize if _truth(value, "figures") else 0


def _outputs(names: Sequence[str]) -> list[Path]:
    files = [Path(name) for name in names]
    for file in files:
        if file.suffix not in ENDINGS:
            raise ConfigError(f"output={file}: expected a name that ends in {', '.join(ENDINGS)}.")
        if not file.absolute().parent.is_dir():
            raise ConfigError(f"output={file}: there is no folder {file.parent}.")
    return files


def _question(given: dict[str, list[str]]) -> ReportQuery:
    if "metric" in given and "baseline" not in given:
        raise ConfigError("metric= names what is compared with a baseline; add baseline=<filter>.")
    return ReportQuery(
        over=_split(given, "over") or ("seed",),
        score=_one(given, "score", SCORE),
        columns=_split(given, "columns"),
        sort=_one(given, "sort"),
        where=given.get("where", []),
        baseline=_one(given, "baseline"),
        metric=_one(given, "metric"),
        claims=claims.read(Path(_one(given, "claims"))) if "claims" in given else (),
    )


def _one(given: dict[str, list[str]], option: str, default: str = "") -> str:
    return given.get(option, [default])[-1]


def _split(given: dict[str, list[str]], option: str) -> list[str]:
    return [part for value in given.get(option, []) for part in value.split(",")]


def _files(summary: Summary, outputs: Sequence[Path], runs: bool, figures: int) -> Iterator[tuple[Path, str]]:
    """Yield each file to write with its content, by its ending."""
    for file in outputs:
        if file.suffix == ".html":
            yield file, page(summary, figures)
        elif file.suffix == ".csv":
            yield file, csv_files.rows(summary)
            if baselines := csv_files.baseline_rows(summary):
                yield file.with_suffix(".baselines.csv"), baselines
            if runs:
                yield file.with_suffix(".runs.csv"), csv_files.runs(summary)
        else:
            write = formats.markdown if file.suffix == ".md" else formats.latex
            yield file, write(report_tables(summary, runs), summary.notes)


def _failures(runs: Sequence[Run]) -> list[str]:
    """Return lines on the first failures with their reasons."""
    lines = [f"failed   {r.folder}: {shorten(r.error, 200)}" for r in runs if r.status == "failed"]
    more = f"         and {len(lines) - 10} more; where=status=failed runs=true"
    return lines[:10] + [more] * (len(lines) > 10)


def main() -> int:
    argv = sys.argv[1:]
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE)
        return 0 if argv else 2
    folders, given = options(argv)
    outputs, with_runs = _outputs(_split(given, "output")), _truth(_one(given, "runs", "false"), "runs")
    figures = _figures(_one(given, "figures", "200"))
    if "figures" in given and not any(file.suffix == ".html" for file in outputs):
        raise ConfigError("figures= applies to the HTML page; add output=report.html.")
    question = _question(given)
    runs, broken = read_all(folders)
    summary = summarise(runs, question)
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
    console = Terminal(width=wide)
    formats.print_tables(report_tables(summary, with_runs) if runs else [], console)
    none = [] if runs else [f"no runs in {', '.join(map(str, folders))}"]
    for line in [*none, *summary.notes, *_failures(summary.runs)]:
        console.print(line, soft_wrap=True)
    summary.notes += [f"unreadable: {line}" for line in broken]  # on the terminal they are warnings
    written = []
    for file, text in _files(summary, outputs, with_runs, figures):
        write_whole(file, text)
        written.append(str(file))
        console.print(f"written  {file}", soft_wrap=True)
    for line in broken:
        complain(f"warning: {line}")
    result(**csv_files.as_dicts(summary, with_runs), notes=summary.notes, written=written)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, scripts=True))
