"""Run the commands of the gallery, copy each picture to docs/gallery, and write what the runs measured.

    python docs/gallery/make.py [name ...] [files=<folder>]

files: a folder with the files that entries.yaml says the reader has to bring; an entry whose files are not there is
left out. It takes about two minutes a page on one core.
"""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

FOLDER = Path(__file__).parent
ENTRIES = yaml.safe_load((FOLDER / "entries.yaml").read_text())
QUESTIONS = {"interpolation": "gaps", "forecast": "forecasts"}


def measured(folder: Path) -> str:
    """Return sentences on the scores of the run in a folder, empty where there is none."""
    if not (file := next(folder.glob("*/metrics.json"), None)):
        return ""
    metrics, said = json.loads(file.read_text()), []
    for question, words in QUESTIONS.items():
        if (covered := metrics.get(f"test/{question}/coverage_90")) is None:
            continue
        score = "ncrps" if f"test/{question}/ncrps" in metrics else "crps"
        values = metrics[f"test/{question}/values"]
        ending = f"/{question}/{score}"
        others = {key.split("/")[1]: value for key, value in metrics.items() if key.endswith(ending)}
        others = {name: value for name, value in others.items() if f"reference/{name}{ending}" in metrics}
        others.pop("exact", None)
        best = min(others, key=lambda name: others[name])
        said.append(
            f"Of {values:.0f} test values that were {'hidden' if question == 'interpolation' else 'forecast'}, "
            f"{covered:.0%} lay in their 90 % intervals; the CRPS of the {words} was "
            f"{metrics[f'test/{question}/{score}']:.3g}, and {others[best]:.3g} for the best baseline ({best})"
            f"{' in training stds' if score == 'ncrps' else ''}."
        )
    if not said and "test/nll_point" in metrics:
        said.append(
            f"The negative log-likelihood of the test series was {metrics['test/nll_point']:.3g} nats a step."
        )
    return " ".join(said)


def main() -> None:
    file = FOLDER / "measured.yaml"
    known = yaml.safe_load(file.read_text()) if file.is_file() else {}
    wanted = [word for word in sys.argv[1:] if not word.startswith("files=")]
    brought = Path(next((word[6:] for word in sys.argv[1:] if word.startswith("files=")), ".")).resolve()
    for entry in ENTRIES:
        if wanted and entry["name"] not in wanted:
            continue
        if missing := [name for name in entry.get("files", []) if not (brought / name).exists()]:
            print(f"{entry['name']}\tleft out: {brought} has no {', '.join(missing)}", flush=True)
            continue
        with TemporaryDirectory() as place:
            for name in entry.get("files", []):
                (Path(place) / name).symlink_to(brought / name)
            for command in entry["commands"]:
                words = [sys.executable, *shlex.split(command)[1:]]
                subprocess.run(words, cwd=place, check=True, stdout=subprocess.DEVNULL)
            shutil.copyfile(Path(place) / entry["picture"], FOLDER / f"{entry['name']}.png")
            known[entry["name"]] = measured(Path(place))
        file.write_text(yaml.safe_dump(known, allow_unicode=True, width=1000))
        print(entry["name"], known[entry["name"]], sep="\t", flush=True)


if __name__ == "__main__":
    main()
