"""The page about one run: all that it holds is in one file, escaped, and read by a browser without a fault."""

import re
import shutil

import pytest

from helpers import accessibility
from helpers.commands import TINY, call, command
from helpers.report_runs import browser as browser
from helpers.report_runs import make
from vrnn_lab import show
from vrnn_lab.reports.run_page import page, write_page
from vrnn_lab.reports.runs import read

EVIL = "</title><script>alert(1)</script>&\x1b[31m"


def test_the_page_of_a_run_holds_its_scores_config_and_command(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished, tmp_path / "run")
    assert call(show, "run=run", monkeypatch, tmp_path) == 0
    assert "page     run/report.html" in capsys.readouterr().out
    text = (tmp_path / "run/report.html").read_text()
    metrics = read(finished).metrics
    for question in ("interpolation", "forecast"):
        assert f"<td>{metrics[f'test/{question}/crps']:.4g}</td>" in text
    assert "exact answer" in text and "data.batch_size" in text and text.count("<h1>") == 1
    assert not re.search(r'(src|href)="(?!data:)', text) and "<script" not in text
    assert call(show, "run=run output=page.txt", monkeypatch, tmp_path) == 2
    assert "expected a file that ends in .html" in capsys.readouterr().err
    assert call(show, "run=nowhere", monkeypatch, tmp_path) == 2


def test_what_a_foreign_folder_holds_is_escaped(tmp_path):
    folder = make(tmp_path / "run", **{"model._target_": EVIL})
    text = page(read(folder))
    assert "<script>" not in text and "\x1b" not in text and "&lt;script&gt;" in text


def test_a_failed_run_shows_why(tmp_path):
    folder = make(tmp_path / "run", error="NotFiniteError: at step 2")
    assert "Status: failed" in page(read(folder)) and "NotFiniteError: at step 2" in page(read(folder))


@pytest.mark.slow
def test_a_run_writes_its_page_which_a_browser_shows_on_a_phone(tmp_path, browser):
    done = command("run", *TINY, "hydra.run.dir=run", folder=tmp_path, figures=True)
    assert "page     run/report.html" in done.stdout or "run/report.html" in done.stdout
    context, faults = browser.new_context(), []
    shown = context.new_page()
    shown.on("console", lambda message: faults.append(message.text))
    shown.on("request", lambda request: faults.append(request.url) if request.url.startswith("http") else None)
    for width, scheme in ((390, "dark"), (1280, "light")):
        shown.set_viewport_size({"width": width, "height": 900})
        shown.emulate_media(color_scheme=scheme)
        shown.goto(f"file://{tmp_path}/run/report.html")
        assert shown.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        names = shown.eval_on_selector_all("img, svg", "all => all.map(e => e.alt || e.getAttribute('aria-label'))")
        assert len(names) >= 4 and all(names)
        assert shown.evaluate("[...document.images].every(image => image.naturalWidth > 100)")
        shown.keyboard.press("Tab")
        assert shown.evaluate("document.activeElement.tagName") in ("DIV", "SUMMARY", "PRE")
        assert accessibility.faults(shown) == []
    assert faults == []


def test_a_page_may_go_elsewhere(finished, tmp_path):
    assert write_page(finished, tmp_path / "a.html") == tmp_path / "a.html"
    assert not (finished / "report.html").exists()
