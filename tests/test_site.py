"""The documentation site builds without a warning, holds every model, command and key, and asks no other server."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from html import unescape
from pathlib import Path

import pytest
import yaml

from helpers import accessibility
from helpers.report_runs import browser as browser
from vrnn_lab.__main__ import COMMANDS
from vrnn_lab.config.options import CONF, groups, options

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text_of(page: Path) -> str:
    return unescape(re.sub(r"<[^>]+>", "", page.read_text()))


@pytest.mark.parametrize("name", options("model"))
def test_every_model_has_a_page_with_its_definition_its_figure_and_its_keys(name, site):
    page = site / "models" / f"{name}.html"
    said = text_of(page)
    keys = {*yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())} - {"defaults", "_target_"}
    assert keys <= {*said.split()}
    assert "Definition" in said
    if f"`{name}`" in (ROOT / "README.md").read_text():  # a model that was just added may have no figure yet
        assert "python -m vrnn_lab.run experiment=" in said and "of training on one core" in said
        assert (site / "models" / f"{name}.png").is_file() and f'src="{name}.png"' in page.read_text()


def test_every_command_option_and_public_name_is_there(site):
    commands, configs, python = (text_of(site / f"{name}.html") for name in ("commands", "configs", "python"))
    assert all(f"python -m vrnn_lab.{name}" in commands for name in COMMANDS)
    for group in groups():
        for option in options(group) if group not in ("model", "experiment") else []:
            assert f"{group}={option}" in configs
    assert all(name in python for name in ("Forecaster", "predict", "build", "load", "auto"))


def test_a_page_links_only_to_what_is_there(site):
    for page in site.rglob("*.html"):
        for target in re.findall(r'(?:href|src)="([^"#:]+?)(?:#[^"]*)?"', page.read_text()):
            if page.name != "404.html" and target not in (".", ".."):
                assert (page.parent / unescape(target)).exists(), f"{page}: {target}"


def test_every_model_has_its_equations(site):
    for name in options("model"):
        page = (site / "models" / f"{name}.html").read_text()
        assert page.count("<math") >= 5 and page.count('class="equation"') >= 3, name


def test_in_the_browser_pages_fit_a_phone_are_accessible_and_ask_no_other_server(site, browser):
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}/"
        page, asked = browser.new_page(viewport={"width": 390, "height": 800}), []
        page.on("request", lambda request: asked.append(request.url))
        for name in (
            "index",
            "start",
            "models/index",
            "models/linear_sde",
            "configs",
            "commands",
            "python",
            "results",
        ):
            page.goto(f"{here}{name}.html")
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), name
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                assert accessibility.faults(page) == [], f"{name}, {scheme}"
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(f"{here}index.html")
        for _ in range(60):  # what is typed before the page's script listens is lost, so it is typed again
            page.fill("input[name=query]", "")
            page.fill("input[name=query]", "recalibrate")
            page.wait_for_timeout(500)
            if found := page.query_selector(".md-search-result__item"):
                break
        assert found
        assert not [url for url in asked if not url.startswith((here, "data:", "blob:"))]
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serve files without a line on each."""

    def log_message(self, format: str, *args: object) -> None:
        pass
