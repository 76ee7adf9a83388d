"""Draw the figure of each model's page: a short run, and what it predicts where values of test series are hidden.

    python docs/model_figures.py [model ...]

Each run trains for 40 seconds on one core. The figures and captions go to docs/models.
"""

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from vrnn_lab.config.compose import choices, compose
from vrnn_lab.config.options import options
from vrnn_lab.figures import model_figures
from vrnn_lab.models import prior_samples
from vrnn_lab.runs.build import load_parts
from vrnn_lab.runs.folder import metrics_of
from vrnn_lab.training.fit import run

FOLDER = Path(__file__).parent / "models"
OWN = {  # what a model is shown on, where it is not sine waves at random times
    "vae": ["experiment=digits"],
    "latent_ode_poisson": ["experiment=events"],
    "neural_ode": ["experiment=ode_demo"],
}
USUAL = ["data=periodic"]
QUESTIONS = ("interpolation", "forecast", "reconstructions")


def main() -> None:
    captions = FOLDER / "captions.yaml"
    said = yaml.safe_load(captions.read_text()) if captions.is_file() else {}
    for name in sys.argv[1:] or options("model"):
        words = [*OWN.get(name, USUAL), f"model={name}", "trainer=cpu", "trainer.max_time=40", "logger=none"]
        with TemporaryDirectory() as place:
            folder = Path(place) / "run"
            run(compose(words), folder, words, choices(words))
            shown = next((name for name in QUESTIONS if (folder / "figures" / f"{name}.png").is_file()), None)
            if shown is not None:
                shutil.copyfile(folder / "figures" / f"{shown}.png", FOLDER / f"{name}.png")
            else:  # a model of event times
                parts = load_parts(folder)
                drawn = model_figures.samples(parts.model, parts.data, prior_samples.draw(parts.model, 16, 0, None))
                model_figures.write({name: drawn}, FOLDER)
            metrics = metrics_of(folder)
        what = "series of the test set, of which the model sees a part, and what it predicts elsewhere."
        if (covered := metrics.get(f"test/{shown}/coverage_90")) is not None:
            what += f" Of all hidden test values, {covered:.0%} lie in their 90 % intervals."
        if shown == "reconstructions":
            what = "test images, and below each what the model draws after reading it."
        elif shown is None:
            what = "series drawn from the model."
        words = " ".join(words[:-3])
        said[name] = f"After {metrics['fit/seconds']:.0f} s of training on one core (`{words}`): {what}"
        captions.write_text(yaml.safe_dump(said, allow_unicode=True, width=1000))
        print(name, said[name], sep="\t")


if __name__ == "__main__":
    main()
