"""Make the pages of the site that come out of the README, the configs, the commands and the docstrings.

mkdocs calls the functions `on_...`. No page repeats what a file says that the tests read: sections of the README, the
comments of conf/, the text of --help.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from vrnn_lab.__main__ import COMMANDS
from vrnn_lab.config.options import CONF, groups, options, package_of
from vrnn_lab.describe import summary

ROOT = Path(__file__).parent.parent.parent
LINK = re.compile(r"\]\((?!https?:|data:|#)([^)\s#]+)(#[^)]*)?\)")
OPTION = re.compile(r"^([\w=]{1,24}): ")  # the first words of a line on an option of a model
FORMULA, PROSE = re.compile(r"[^.:]{1,40}\s[=~]\s"), re.compile(r"\b(the|of|is|with|a|it)\b")  # of a docstring
CODE = "https://github.com/vrnn-lab/vrnn_lab/blob/main/"
SECTIONS = {  # page -> title, and the sections of the README that it shows
    "start.md": ("Ten minutes", "Set-up", "A first forecast in four lines", "A table and no opinion: one command"),
    "your-series.md": ("Your own series", "Your own series"),
    "what-a-run-prints.md": ("What a run prints", "What a run prints"),
    "sweeps-and-reports.md": ("Sweeps, search and reports", "Sweeps, search and reports", "A fitted model in Python"),
    "data-sets.md": ("Data sets", "Data sets"),
    "results-overview.md": ("Results", "Results", "Limits"),
    "models/index.md": ("Models", "Which model for which data", "Models"),
}
COPIES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md"}
STEP = ["previous value, gap, covariates", "state (GRU)", "output network", "distribution of the value"]
PATH = ["seen values", "encoder", "latent at the start", "solved through time", "decoder", "distribution"]
SYMBOLS = (
    "The values of all channels at the time $t_i$ are $x_i$, of which $m_i$ says which are known; $u_i$ are the "
    "covariates, where there are any."
)
CHAINS = {  # the parts of each model, from the data to the distribution
    "rnn": STEP,
    "rnn_gmm": [*STEP[:-1], "mixture of Gaussians"],
    "rnn_decay": [STEP[0], "state that decays in gaps", *STEP[2:]],
    "gru_d": [STEP[0], "state and values that decay", *STEP[2:]],
    "ode_rnn": [STEP[0], "state that follows an ODE in gaps", *STEP[2:]],
    "neural_ode": ["last seen value", "ODE of the values", "distribution"],
    "vae": ["one point", "encoder", "latent of the point", "decoder", "distribution"],
    "vrnn": [STEP[0], "state (GRU)", "latent of the step", "decoder", "distribution"],
    "vrnn_gmm": [STEP[0], "state (GRU)", "latent of the step", "decoder", "mixture of Gaussians"],
    "rnn_vae": ["seen values", "encoder (GRU)", "latent of the series", "decoder (GRU)", "distribution"],
    "latent_ode": [*PATH[:3], "ODE", *PATH[4:]],
    "latent_ode_poisson": [*PATH[:3], "ODE", *PATH[4:-1], "distribution, rate of events"],
    "latent_sde": [*PATH[:3], "SDE, steered by what is seen", *PATH[4:]],
    "linear_sde": ["seen values", "Kalman filter and smoother", "linear SDE", "sum of its parts", "distribution"],
}
CONTRACTS = (
    "A model, a head, an encoder, a cell, a data set, a task or a logger of your own extends one of these classes."
)
PYTHON = {
    "vrnn_lab": ("build", "load", "Forecaster"),
    "vrnn_lab.auto": ("auto",),
    "vrnn_lab.core.series": ("series_of", "TimeSeries"),
}
EXTENDING = {
    "vrnn_lab.models.base": ("SequenceModel", "Prediction"),
    "vrnn_lab.models.heads": ("Head",),
    "vrnn_lab.models.encoders": ("Encoder",),
    "vrnn_lab.models.cells": ("Cell",),
    "vrnn_lab.data.base": ("SeriesData",),
    "vrnn_lab.core.tasks": ("Task",),
    "vrnn_lab.training.loggers.base": ("RunLogger",),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for place, text in pages():
        files.append(File.generated(config, place, content=text))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put a page for each model into the navigation."""
    models: list[object] = ["models/index.md"]
    models += [{name: f"models/{name}.md"} for name in options("model")]
    entries = [(title, place) for entry in config.nav or [] for title, place in entry.items()]
    names = yaml.safe_load((ROOT / "docs" / "gallery" / "entries.yaml").read_text())
    shown = ["gallery/index.md", *({entry["title"]: f"gallery/{entry['name']}.md"} for entry in names)]
    made = {"models/": models, "gallery/": shown}
    config.nav = [{title: made.get(place, place) if isinstance(place, str) else place} for title, place in entries]
    return config


def on_page_markdown(markdown: str, page, config: MkDocsConfig, files: Files) -> str:
    """Point links to files of the repository at the page made of them, or at the repository."""
    return re.sub(
        r"\]\((?!https?:|data:|#)([^)\s#]+)(#[^)]*)?\)", lambda link: _link(link, page.file.src_uri), markdown
    )


def on_post_page(output: str, page, config: MkDocsConfig) -> str:
    """Return the page as screen readers need it: a name for the search, and no heading of a table without words."""
    named = output.replace('class="md-search" data', 'class="md-search" aria-label="Search" data')
    return named.replace("<th></th>", "<td></td>")


def pages() -> Iterator[tuple[str, str]]:
    """Yield (place, Markdown) of every page that is made."""
    for place, (title, *names) in SECTIONS.items():
        parts = [sections()[name] for name in names]
        heads = [f"## {name}\n" if len(names) > 1 else "" for name in names]
        yield place, f"# {title}\n\n" + "\n\n".join(f"{h}{_relative(p)}" for h, p in zip(heads, parts, strict=True))
    for place, name in COPIES.items():
        yield place, (ROOT / name).read_text()
    for name in options("model"):
        yield f"models/{name}.md", model_page(name)
    yield from gallery()
    for file in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        yield f"notebooks/{file.stem}.md", notebook(json.loads(file.read_text()), file.name)
    yield "configs.md", configs_page()
    yield "commands.md", commands_page()
    yield "python.md", "# Python\n\n" + api(PYTHON)
    yield "extending.md", f"# Extending\n\n{CONTRACTS}\n\n{api(EXTENDING)}"


@cache
def sections() -> dict[str, str]:
    """Return the sections of the README by their headings."""
    parts = re.split(r"^## (.*)\n", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _relative(text: str) -> str:
    """Return text of the README with links that start at docs/."""
    return re.sub(r"\]\(docs/", "](", text)


def _link(link: re.Match[str], source: str) -> str:
    """Return a link of a page, whose target may be a file of the repository that is no page."""
    target, anchor = link[1], link[2] or ""
    up = "../" * source.count("/")
    name = target.replace("../", "").removeprefix("docs/")
    made = {file: place for place, file in COPIES.items()} | {"README.md": "index.md"}
    if name in made:
        return f"]({up}{made[name]}{anchor})"
    if (ROOT / "docs" / name).is_file() and not name.endswith(".py"):
        return f"]({up}{name}{anchor})"
    if name.endswith(".md"):
        return f"]({target}{anchor})"  # a page that is made
    place = name if (ROOT / name).exists() else f"docs/{name}"
    return f"]({CODE}{place}{anchor})" if (ROOT / place).exists() else link[0]


def model_page(name: str) -> str:
    """Return the page of a model: what it is, its parts, its equations, when to take it, a figure, its keys."""
    text = (CONF / "model" / f"{name}.yaml").read_text()
    target = yaml.safe_load(text)["_target_"]
    row = next((row for row in sections()["Models"].splitlines() if re.match(rf"\| .*`{name}`", row)), None)
    cells = [cell.strip() for cell in row.strip("| ").split(" | ")] if row else []  # a model that was just added
    parts = [f"# {name}"]
    parts += [f"`model={name}`: {cells[1]}. Likelihood: {cells[2]}."] if cells else []
    parts += [chain(CHAINS[name])] if name in CHAINS else []
    if (ROOT / "docs" / "models" / f"{name}.png").is_file():
        parts += [f"![Test series, and what {name} predicts where values are hidden]({name}.png)", caption(name)]
    rows = [row.split(" | ") for row in sections()["Which model for which data"].splitlines() if row.startswith("| ")]
    choice = [" | ".join(row) for row in rows if f"`{name}`" in row[1]]
    if choice:
        head = ["| your question | model | what was measured |", "|---|---|---|"]
        parts += ["## When to take it", "\n".join(head + choice)]
    parts += equations(name)
    parts += ["## Definition", prose(summary(target), formulas=name not in equations_of_models())]
    parts += ["## Try it", f"```\n{cells[3].strip('` ')}\n```"] if cells else []
    parts += ["## Keys", "Set as `model.<key>=<value>`.", keys_table(text, "model")]
    return "\n\n".join(parts)


def gallery() -> Iterator[tuple[str, str]]:
    """Yield the pages of the gallery and their index."""
    folder = ROOT / "docs" / "gallery"
    entries = yaml.safe_load((folder / "entries.yaml").read_text())
    known = yaml.safe_load((folder / "measured.yaml").read_text())
    heads = "Each page is one data set, one command, one picture, and what it shows and does not show."
    index = ["# Gallery", heads]
    for entry in entries:
        name, title = entry["name"], entry["title"]
        picture = f"![{title}: {entry['shows'].split('. ')[0]}.]({name}.png)"
        command = "\n".join([*entry.get("before", []), *entry["commands"]])
        parts = [f"# {title}", f"```\n{command}\n```"]
        parts += [f"`{file}`: {place}." for file, place in entry.get("files", {}).items()]
        parts += [picture, entry["shows"], known.get(name, "")]
        parts += ["## What it does not show", entry["not"]]
        yield f"gallery/{name}.md", "\n\n".join(filter(None, parts))
        index += [f"## [{title}]({name}.md)", f"[{picture}]({name}.md)"]
    yield "gallery/index.md", "\n\n".join(index)


def notebook(content: dict[str, Any], name: str) -> str:
    """Return a notebook as Markdown: its text, its code, and what the code printed and drew."""
    parts = []
    for cell in content["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                image = "".join(data["image/png"]).replace("\n", "")
                parts.append(f"![The figure that this code draws](data:image/png;base64,{image})")
            elif printed := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(f"```text\n{printed.rstrip()}\n```")
    parts.append(f"[The notebook itself]({CODE}docs/notebooks/{name})")
    return "\n\n".join(parts)


@cache
def captions() -> dict[str, str]:
    """Return the sentence below each model's figure, which the program that drew it wrote."""
    file = ROOT / "docs" / "models" / "captions.yaml"
    return yaml.safe_load(file.read_text()) if file.is_file() else {}


def caption(name: str) -> str:
    """Return the sentence below the figure of a model."""
    return f"*{captions().get(name, '')}*"


def chain(parts: list[str]) -> str:
    """Return a diagram of a model's parts as boxes with arrows, in SVG that takes the colours of the page."""
    height, gap, left, drawn = 40, 24, 1, []
    for number, part in enumerate(parts):
        width = 8 * len(part) + 20
        drawn.append(f'<rect x="{left}" y="1" width="{width}" height="{height}" rx="6"/>')
        drawn.append(f'<text x="{left + width / 2}" y="26">{escape(part)}</text>')
        left += width
        if number + 1 < len(parts):
            drawn.append(f'<path d="M{left} 21 h{gap - 5} m-5 -5 l5 5 l-5 5"/>')
            left += gap
    words, size = escape(" to ".join(parts)), f'viewBox="0 0 {left + 1} {height + 2}" width="{left + 1}"'
    return f'<svg class="chain" {size} role="img" aria-label="From {words}">{"".join(drawn)}</svg>'


@cache
def equations_of_models() -> dict[str, dict[str, Any]]:
    """Return the equations of the models' pages."""
    return yaml.safe_load((ROOT / "docs" / "models" / "equations.yaml").read_text())


def equations(name: str) -> list[str]:
    """Return the section of a model's equations, in MathML; empty for a model that was just added."""
    if (known := equations_of_models().get(name)) is None:
        return []
    spaced = [line.replace(r"\sim", r"\ \sim\ ") for line in known["equations"]]
    lines = [f'<div class="equation" tabindex="0">{convert(line, display="block")}</div>' for line in spaced]
    inline = lambda text: re.sub(r"\$(.+?)\$", lambda found: convert(found[1]), text)
    return ["## Equations", inline(SYMBOLS), *lines, inline(f"Here {known['where']}")]


def prose(docstring: str, formulas: bool = True) -> str:
    """Return a docstring as Markdown: equations as code, or left out, lists of options as lists, the rest as text."""
    shown = []
    for paragraph in docstring.split("\n\n"):
        plain = escape(paragraph, quote=False)
        if FORMULA.match(paragraph) and not PROSE.search(paragraph.splitlines()[0]):
            shown += [f"```text\n{paragraph}\n```"] * formulas
        elif OPTION.match(paragraph) and re.search(r"\n +\S", paragraph):
            joined = re.sub(r"\n +", " ", plain)
            shown.append("\n".join(re.sub(OPTION, r"- `\1`: ", line) for line in joined.splitlines()))
        else:
            shown.append(plain)
    return "\n\n".join(shown)


def keys_table(text: str, group: str) -> str:
    """Return a table of the keys of an option: name, default, meaning, out of its YAML."""
    found = re.findall(r"^( *)(\w+): *(\S.*?)? +# (.*)$", text, re.MULTILINE)
    plain = lambda text: escape(text, quote=False).replace("|", "&#124;")
    rows = [
        f"| {'&nbsp;' * len(indent)}`{key}` | {f'`{value}`' if value else ''} | {plain(meaning)} |"
        for indent, key, value, meaning in found
        if key != "_target_"
    ]
    if not rows:
        return f"`{group}` has no keys here."
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def configs_page() -> str:
    """Return a page with every group of conf/ but the models, their options and keys."""
    parts = ["# Configs", "Every choice is `<group>=<option>`; every key is set as `<group>.<key>=<value>`. "
             "`python -m vrnn_lab.describe <group>=<option>` prints the same."]  # fmt: skip
    whole = (CONF / "config.yaml").read_text().partition("\nhydra:")[0]
    parts += ["## Keys of no group", keys_table(whole, "config")]
    for group in groups():
        if group in ("model", "experiment"):
            continue
        parts.append(f"## {group}")
        for name in options(group):
            text = (CONF / group / f"{name}.yaml").read_text()
            target = (yaml.safe_load(text) or {}).get("_target_", "")
            said = summary(target).split("\n\n")[0] if target.startswith("vrnn_lab") else target and f"`{target}`"
            notes = [line[2:] for line in text.splitlines() if line.startswith("# ") and "@package" not in line]
            said = escape(said or next(iter(notes), ""), quote=False)
            parts += [f"### {group}={name}", said, keys_table(text, package_of(group, name))]
    return "\n\n".join(part for part in parts if part)


def commands_page() -> str:
    """Return a page with what --help prints of every command."""
    parts = ["# Commands", "`vrnn-lab <command>` is the same as `python -m vrnn_lab.<command>`."]
    for name, what in COMMANDS.items():
        usage = getattr(import_module(f"vrnn_lab.{name}"), "USAGE", f"python -m vrnn_lab.{name} --help lists all.")
        parts += [f"## {name}", f"{what[0].upper()}{what[1:]}.", f"```text\n{usage}\n```"]
    return "\n\n".join(parts)


def api(named: dict[str, tuple[str, ...]]) -> str:
    """Return the directives by which mkdocstrings shows classes and functions."""
    return "\n\n".join(f"::: {module}.{name}" for module, names in named.items() for name in names)
