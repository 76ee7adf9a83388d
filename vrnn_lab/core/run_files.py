"""List every file that a run folder may hold: its place, what writes it, when, and what it holds."""

from dataclasses import dataclass

CONFIG, CHOICES = ".hydra/config.yaml", ".hydra/choices.yaml"
OVERRIDES, ORIGIN = ".hydra/overrides.yaml", ".hydra/origin.json"
LOGGERS, CURVES = ".hydra/loggers.json", "metrics.csv"
CHECKPOINTS, FIGURES = "checkpoints", "figures"
BEST, LAST, BEFORE_LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt", "checkpoints/before_last.ckpt"
FIT, THREADS = "checkpoints/fit.json", "checkpoints/threads.json"
METRICS, CALIBRATION, RECALIBRATION = "metrics.json", "calibration.json", "recalibration.json"
OUT_OF_TIME_VALUES = "out_of_time.npz"
OUT_OF_TIME, LOG, LOCK, FRAME = "out_of_time.json", "run.log", ".lock", "data.csv"
MIXTURE, STUDY = "mixture.json", "auto.json"  # of the folder of vrnn_lab.auto, in which the run folders lie
PAGE = "report.html"
FUTURE = "future.csv"  # of the covariates that vrnn_lab.auto was given as a frame
BASELINE = "baseline.json"  # of a folder beside those, which holds a baseline in place of a run


@dataclass(frozen=True)
class File:
    """Describe a file of a run folder."""

    place: str  # within the folder; * stands for any text
    writer: str  # the module that writes it
    when: str
    holds: str


FILES = (
    File(CONFIG, "runs.folder", "before the fit", "the config of the run, with every default: what the run is"),
    File(CHOICES, "runs.folder", "before the fit", "the option that was chosen in each config group"),
    File(OVERRIDES, "runs.folder", "before the fit", "the overrides as they were typed"),
    File(ORIGIN, "runs.provenance", "before the fit", "hashes of the code and of the data file, and the releases"),
    File(LOCK, "runs.folder", "while it runs", "nothing; the process that trains the run holds its lock"),
    File(FRAME, "forecaster", "before the fit", "the data frame that a `Forecaster` was fitted to"),
    File(LOG, "training.fit", "while it runs", "what the terminal shows, with times, the table and tracebacks"),
    File(THREADS, "training.threads", "before the fit", "the number of threads, which a resumed run keeps"),
    File("events.out.tfevents.*", "training.loggers", "while it runs", "losses, scores, figures for TensorBoard"),
    File(CURVES, "training.loggers", "while it runs", "losses and scores by step, with logger=csv"),
    File(LOGGERS, "training.loggers", "before the fit", "the name of the run in MLflow or Weights & Biases"),
    File(LAST, "runs.checkpoints", "at each validation", "weights and state from which `resume=` continues"),
    File(BEFORE_LAST, "runs.checkpoints", "at each validation", "the one before, kept until the last one is whole"),
    File(BEST, "runs.checkpoints", "at each validation", "weights of the lowest val/loss, which all commands use"),
    File(OUT_OF_TIME, "training.out_of_time", "after the fit", "how well a second fit forecast each second half"),
    File(OUT_OF_TIME_VALUES, "training.out_of_time", "after the fit", "the scores of the single values behind it"),
    File(FIT, "training.fit", "after the fit", "seconds, steps and parameters of the fit; the fit is not repeated"),
    File(RECALIBRATION, "training.fit_recalibration", "after the fit", "factors of the intervals, for `predict`"),
    File("figures/*.png", "figures", "after the fit", "the pictures"),
    File(CALIBRATION, "training.fit", "after the fit", "coverage and PIT by distance and by channel"),
    File(METRICS, "training.fit", "at the end", "status and every score; the run is finished once it says completed"),
    File(PAGE, "reports.run_page", "at the end", "one page with the scores, figures, losses and config"),
    File("samples/*", "sample", "on demand", "draws from the model, by `vrnn_lab.sample`"),
)


def table() -> str:
    """Return the list as a table in Markdown."""
    rows = [f"| `{f.place}` | `vrnn_lab.{f.writer}` | {f.when} | {f.holds} |" for f in FILES]
    return "\n".join(["| file | written by | when | what it holds |", "|---|---|---|---|", *rows])
