"""A search in a PostgreSQL database that workers share, through kills and a restart of the server."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from helpers.commands import TINY, UNDRAWN, metrics
from helpers.postgres import Server, binaries
from vrnn_lab.sweeps import study

pytestmark = [
    pytest.mark.stress,
    pytest.mark.skipif(binaries() is None, reason="no PostgreSQL here: apt-get install postgresql"),
    pytest.mark.skipif(
        importlib.util.find_spec("psycopg") is None, reason="no driver: pip install 'psycopg[binary]'"
    ),
]
TRIALS = 8
FAST_HEART = "from vrnn_lab.sweeps import study; study.HEARTBEAT, study.GRACE = 1, 4\n"
SLOW = "import time; from vrnn_lab.sweeps import trial; kept = trial.run\n"
SLOW += "trial.run = lambda *a: time.sleep(2) or kept(*a)\n"


@pytest.fixture
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("postgres")
    for each in (folder, *folder.parents[:2]):  # `nobody` must come through
        each.chmod(each.stat().st_mode | 0o711)
    made = Server(binaries(), folder / "server")
    made.start()
    yield made
    study.open_storage(made.url).engine.dispose()
    made.stop("immediate")


def worker(server: Server, folder: Path, *more: str) -> subprocess.Popen:
    """A worker of a search, in a process of its own."""
    words = [*TINY, "study=shared", f"trials={TRIALS}", f"storage={server.url}", "failures=99", "pruner=none", *more]
    code = (
        f"{UNDRAWN}{FAST_HEART}{SLOW}import sys; sys.argv = {['x', *words]!r}\n"
        "from vrnn_lab import search\nfrom vrnn_lab.cli.arguments import run_command\n"
        "sys.exit(run_command(search.main))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    log = (folder / f"worker{time.monotonic_ns()}.log").open("w")
    with log:
        return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environment, stdout=log, stderr=log)


def seats_in(server: Server) -> list[study.TrialSlot]:
    return study.slots(optuna.load_study(study_name="shared", storage=study.open_storage(server.url)).trials)


def ended(server: Server) -> int:
    """How many trials have ended; -1 while the database has no study, or does not answer."""
    try:
        return sum(slot.end is not None for slot in seats_in(server))
    except Exception:
        return -1


def said_in(folder: Path) -> str:
    return "".join(log.read_text() for log in sorted(folder.glob("*.log")))


def wait_for(server: Server, count: int, workers: list[subprocess.Popen], folder: Path) -> None:
    """Wait until so many trials have ended; an error, with what the workers said, once none of them is left."""
    while ended(server) < count:
        assert any(each.poll() is None for each in workers), said_in(folder)
        time.sleep(0.5)


def test_three_workers_a_kill_and_a_restart_lose_no_trial_and_run_none_twice(server, tmp_path):
    started = time.monotonic()
    workers = [worker(server, tmp_path) for _ in range(3)]
    try:
        wait_for(server, 1, workers, tmp_path)
        assert workers[0].poll() is None, said_in(tmp_path)
        workers[0].send_signal(signal.SIGKILL)
        wait_for(server, 3, workers, tmp_path)
        server.stop("fast")
        time.sleep(2)
        server.start()
        time.sleep(5)
        alive = sum(each.poll() is None for each in workers)
        assert ended(server) < TRIALS
        workers += [worker(server, tmp_path)]  # the same command again, as after any crash
        wait_for(server, TRIALS, workers, tmp_path)
        for each in workers:
            each.wait(timeout=120)
    finally:
        for each in workers:
            each.kill()
            each.wait()
    said = said_in(tmp_path)
    assert workers[-1].returncode == 0, said
    found = seats_in(server)[:TRIALS]  # workers that began together queued more than were asked
    assert [slot.number for slot in found] == list(range(len(found))) and len(found) == TRIALS
    finished = [[a for a in slot.attempts if a.state == TrialState.COMPLETE] for slot in found]
    assert [len(each) for each in finished] == [1] * TRIALS, said  # none lost, none twice
    folder = tmp_path / "outputs" / "search" / "shared"
    scores = {number: metrics(folder / str(number))["val/loss"] for number in range(TRIALS)}
    assert scores == pytest.approx({number: each[0].value for number, each in enumerate(finished)})
    assert len({str(sorted(each[0].params.items())) for each in finished}) == TRIALS  # no draw is made twice
    count = Counter(len(slot.attempts) for slot in found)
    print(
        f"{TRIALS} trials by 3 workers in {time.monotonic() - started:.0f} s; {alive} of 2 lived on after the restart"
    )
    print(f"attempts at a trial: {dict(count)}")
