"""A PostgreSQL server of its own for a test: on the loopback, in a folder that goes away, without rights."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from shutil import which


def binaries() -> Path | None:
    """The folder of PostgreSQL's programs, or None where there are none (Debian: apt-get install postgresql)."""
    found = [Path(path).resolve().parent for name in ("initdb", "pg_ctl") if (path := which(name))]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((each for each in found if (each / "initdb").exists() and (each / "postgres").exists()), None)


class Server:
    """A server on a free port of 127.0.0.1. The programs refuse to run as root, which becomes `nobody` for them."""

    def __init__(self, programs: Path, folder: Path):
        self.programs, self.data, self.log = programs, folder / "data", folder / "log"
        self.port = _free_port()
        folder.mkdir(mode=0o755)
        self.user = pwd.getpwnam("nobody") if os.getuid() == 0 else None
        if self.user:
            shutil.chown(folder, self.user.pw_uid, self.user.pw_gid)
        how = ["--username", "lab", "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync"]
        self._call(["initdb", "--pgdata", str(self.data), *how])

    @property
    def url(self) -> str:
        """The address for SQLAlchemy, by the driver psycopg."""
        return f"postgresql+psycopg://lab@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = f"-p {self.port} -h 127.0.0.1 -k '' -c fsync=off"
        self._call(["pg_ctl", "-D", str(self.data), "-l", str(self.log), "-o", options, "-w", "-t", "60", "start"])

    def stop(self, mode: str = "fast") -> None:
        """Stop it; fast: open connections are cut; immediate: as after a power failure."""
        self._call(["pg_ctl", "-D", str(self.data), "-m", mode, "-w", "-t", "60", "stop"])

    def _call(self, words: Sequence[str]) -> None:
        own = {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []} if self.user else {}
        done = subprocess.run(
            [str(self.programs / words[0]), *words[1:]],
            **own,
            cwd="/",
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if words[0] == "initdb" else subprocess.DEVNULL,  # the server keeps a pipe open
            stderr=subprocess.STDOUT if words[0] == "initdb" else subprocess.DEVNULL,
            timeout=120,
        )
        assert done.returncode == 0, (words[0], done.stdout, self.log.read_text() if self.log.exists() else "")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
