"""Record the provenance of a run (code, data file, torch), so that a resumed sweep can report what changed since."""

import ast
import hashlib
import importlib.util
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vrnn_lab.config.options import PACKAGE
from vrnn_lab.config.plain import nodes, to_dict
from vrnn_lab.core import run_files
from vrnn_lab.core.files import DamagedError, read_json, write_json
from vrnn_lab.data.cache import cache_folder, own_folder

CURE = "Remove the file: changes since the run began are then not reported, and all else works."
NAMES = {"code": "the code changed", "data": "the data file changed", "torch": "the version of torch changed"}


def write(folder: Path, config: DictConfig) -> None:
    """Write the present provenance into a run folder."""
    write_json(folder / run_files.ORIGIN, of(config))


def changes(folder: Path, config: DictConfig) -> list[str]:
    """Return, in words, what changed since the run in this folder began."""
    file = folder / run_files.ORIGIN
    if not file.is_file():
        return []
    before, now = read_json(file, CURE), of(config)
    return [words for key, words in NAMES.items() if before.get(key) != now[key]]


def data_changed(folder: Path, config: DictConfig) -> bool:
    """Return whether the data file that a run was trained on has other contents now."""
    file = folder / run_files.ORIGIN
    return file.is_file() and read_json(file, CURE).get("data") != _data(to_dict(config))


def of(config: DictConfig) -> dict[str, Any]:
    """Return the present provenance of a config: hashes of code and data, and the version of torch."""
    plain = to_dict(config)
    return {"code": _code(_foreign(plain)), "data": _data(plain), "torch": version("torch")}


def _foreign(config: dict[str, Any]) -> frozenset[Path]:
    """Return the source files of the user's own models and datasets."""
    modules = {node["_target_"].rpartition(".")[0] for _, node in nodes(config)}
    own = {m for m in modules if m.partition(".")[0] not in ("vrnn_lab", "torch", "lightning")}
    specs = (importlib.util.find_spec(module) for module in own)
    return frozenset(Path(spec.origin) for spec in specs if spec and spec.origin)


@cache
def _code(foreign: frozenset[Path]) -> str:
    """Return a hash of every source file that a fit uses; comments and docstrings do not count.

    Reading the files takes about a second, so the hash is kept in the cache until a file has another date or size.
    """
    stats = {str(file): file.stat() for file in sorted({*PACKAGE.rglob("*.py"), *foreign})}
    dates = _hash(*(f"{file} {stat.st_mtime_ns} {stat.st_size}".encode() for file, stat in stats.items()))
    cached = cache_folder() / "code.json"
    with suppress(OSError, DamagedError, KeyError):
        own_folder(cached.parent)
        if (last := read_json(cached, CURE))["dates"] == dates:
            return last["code"]
    trees = _reached() | {file: _parsed(file) for file in foreign}
    code = _hash(*(ast.unparse(_bare(tree)).encode() for _, tree in sorted(trees.items())))
    with suppress(OSError):
        own_folder(cached.parent)  # nothing is written to a folder of somebody else
        write_json(cached, {"dates": dates, "code": code})
    return code


def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def _reached() -> dict[Path, ast.Module]:
    """Return the syntax tree of each file that fitting imports, directly or not, and of all models and datasets."""
    todo = [PACKAGE / "training" / "fit.py", *(PACKAGE / "models").rglob("*.py"), *(PACKAGE / "data").rglob("*.py")]
    trees: dict[Path, ast.Module] = {}
    while todo:
        if (file := todo.pop()) not in trees:
            trees[file] = _parsed(file)
            todo += _imported(trees[file])
    return trees


def _imported(tree: ast.Module) -> list[Path]:
    names = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in names if (node.module or "").partition(".")[0] == PACKAGE.name]
    modules = {m for node in ours for m in (node.module, *(f"{node.module}.{a.name}" for a in node.names))}
    files = [PACKAGE.parent / f"{str(module).replace('.', '/')}.py" for module in modules]
    return [each for each in files if each.is_file()]


def _bare(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _data(config: dict[str, Any]) -> str | None:
    path = config["data"].get("path")
    where = Path(path).expanduser() if path else None
    if where and where.is_dir():
        files = sorted(file for file in where.iterdir() if file.is_file())
        return _hash(*(f"{file.name} {_of_file(file, file.stat().st_mtime_ns)}".encode() for file in files))
    return _of_file(where, where.stat().st_mtime_ns) if where and where.is_file() else None


@cache
def _of_file(file: Path, changed: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]
