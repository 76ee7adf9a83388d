"""Read claims that compare rows from a YAML file, and test them on the runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.reports.compare import Group, Paired, lower_is_better, paired
from vrnn_lab.reports.filters import only, parse
from vrnn_lab.reports.runs import Run


@dataclass(frozen=True)
class Claim:
    """Hold a claim and the result of its test."""

    text: str
    metric: str
    better: str
    than: str
    result: Paired | None
    why: str = ""  # the reason where it cannot be tested

    @property
    def verdict(self) -> str:
        """Return holds, does not hold or undecided."""
        verdict = self.result.verdict if self.result else "undecided"
        return {"better": "holds", "worse": "does not hold"}.get(verdict, verdict)


def read(file: Path) -> list[dict[str, Any]]:
    """Read the claims of a YAML file, each with its text and two filters; raise ConfigError for anything else."""
    if not file.is_file():
        raise ConfigError(f"claims={file}: there is no such file.")
    try:
        claims = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"claims={file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(claims, list):
        raise ConfigError(f"claims={file}: expected a list of {{claim, better, than, metric, lower}}.")
    needed, allowed = {"claim", "better", "than"}, {"claim", "better", "than", "metric", "lower"}
    for place, claim in enumerate(claims, 1):
        keys = set(claim) if isinstance(claim, dict) else set()
        if not needed <= keys <= allowed or not isinstance(claim.get("lower", True), bool):
            raise ConfigError(
                f"claims={file}, claim {place}: expected the keys claim, better and than, and optionally metric "
                f"and lower (true or false); found {', '.join(map(str, keys)) or claim}."
            )
    return claims


def judge(claim: dict[str, Any], runs: list[Run], groups: list[Group], score: str) -> Claim:
    """Test one claim on the groups of all runs; raise ConfigError where a filter names an unknown key."""
    metric = claim.get("metric", score)
    parts = (str(claim["claim"]), metric, _text(claim["better"]), _text(claim["than"]))
    if all(run.number(metric) is None for run in runs):
        return Claim(*parts, None, f"no completed run has a metric {metric}")
    for side in ("better", "than") if runs else ():
        parse(claim[side], runs, side)  # an unknown key is an error; a missing row may be trained later
    try:
        better, than = (only(groups, runs, claim[side], side) for side in ("better", "than"))
    except ConfigError as error:
        return Claim(*parts, None, str(error))
    return Claim(*parts, paired(better, than, metric, claim.get("lower", lower_is_better(metric))))


def _text(filters: Any) -> str:
    return filters if isinstance(filters, str) else ", ".join(map(str, filters))
