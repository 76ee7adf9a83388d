"""Simulate a one-legged hopper that is thrown and falls: positions and velocities of its joints."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.cli.progress import tracked
from vrnn_lab.core.types import Count, Natural
from vrnn_lab.data.base import SPLITS, Ragged, SeriesData, generator
from vrnn_lab.data.cache import cache_folder

log = logging.getLogger("vrnn_lab")

STEPS = 200  # points in a whole trajectory
JOINTS = ("rootx", "rootz", "rooty", "waist", "hip", "knee", "ankle")
MODEL, PARTS = "hopper.xml", ("materials.xml", "skybox.xml", "visual.xml")  # the model and the files it includes


class Hopper(SeriesData):
    """Simulate the planar hopper of dm_control's suite in MuJoCo without any action (Rubanova et al. 2019,
    arXiv 1907.03907, section 4.2): 7 positions (m, rad), then their velocities, every 0.005 s.

    Starts: rootx, rootz ~ U(0, 0.5), the angles ~ U(-2, 2), velocities ~ U(-5, 5). From a trajectory's 200 points a
    random window of `points` consecutive ones is kept: 100 for the paper's interpolation, 200 for its extrapolation.
    A trajectory is a function of the seed, its split and its number there, so that the test split does not depend on
    the size of the training split. There is no noise.

    The model is dm_control 1.0.50's suite/hopper.xml (Apache-2.0; Tassa et al. 2018, arXiv 1801.00690; `python -m
    vrnn_lab.fetch hopper`), else that of an installed dm_control; MuJoCo: Todorov, Erez & Tassa 2012, IROS.
    """

    time_unit = "s"
    units = ("m", "m", *["rad"] * 5, "m/s", "m/s", *["rad/s"] * 5)

    def __init__(
        self,
        train: Count = 7500,
        val: Count = 500,
        test: Count = 2000,
        points: Count = 100,
        batch_size: Count = 50,
        seed: Natural = 0,
    ):
        super().__init__(batch_size, seed)
        if not 2 <= points <= STEPS:
            raise ValueError(f"data.points={points}; expected 2 to {STEPS}, the points of a trajectory.")
        self.sizes, self.points = (train, val, test), points

    @property
    def channels(self):
        return (*JOINTS, *(f"{joint}_velocity" for joint in JOINTS))

    def make(self):
        simulator = Simulator()
        wanted = [(split, i) for split, size in enumerate(self.sizes) for i in range(size)]
        first, values = np.zeros(len(wanted)), np.zeros((len(wanted), self.points, len(self.channels)))
        log.info("hopper: %d trajectories to simulate", len(wanted))
        for place, (split, i) in enumerate(tracked(wanted, "simulating trajectories", len(wanted))):
            rng = generator(self.seed, 14, split, i)
            whole = simulator.trajectory(*starts(rng))
            start = rng.integers(STEPS - self.points + 1)
            first[place], values[place] = start, whole[start : start + self.points]
        times = (first[:, None] + np.arange(self.points)) * simulator.step
        ends = np.cumsum([0, *self.sizes])
        return {
            name: Ragged.of(times[a:b], values[a:b], first_id=split << 32)
            for split, (name, a, b) in enumerate(zip(SPLITS, ends[:-1], ends[1:], strict=True))
        }


def starts(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw the positions and velocities, each (7,), from which a trajectory starts."""
    place, angles = rng.uniform(0, 0.5, 2), rng.uniform(-2, 2, 5)
    return np.concatenate([place, angles]), rng.uniform(-5, 5, 7)


class Simulator:
    """Run MuJoCo with the hopper's model; raise ValueError where MuJoCo or the model is missing."""

    def __init__(self):
        try:
            mujoco: Any = importlib.import_module("mujoco")  # a binary module, whose names the type checker lacks
        except ImportError:
            raise ValueError(
                "data=hopper is simulated by mujoco, which is not installed; run: pip install 'vrnn_lab[hopper]'"
            ) from None
        folder, parts = _files()
        assets = {f"./common/{name}": (parts / name).read_bytes() for name in PARTS}
        self.mujoco = mujoco
        self.model = mujoco.MjModel.from_xml_string((folder / MODEL).read_text("utf-8"), assets)
        self.data = mujoco.MjData(self.model)
        joints = tuple(self.model.joint(i).name for i in range(self.model.njnt))
        if joints != JOINTS:
            raise ValueError(
                f"{folder / MODEL} has the joints {', '.join(joints)}; expected {', '.join(JOINTS)}. Delete it and "
                "run: python -m vrnn_lab.fetch hopper"
            )
        self.step = self.model.opt.timestep

    def trajectory(self, position: NDArray[np.float64], velocity: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the states (STEPS, 14) from a start on; the first state is the start itself."""
        self.mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = position, velocity
        states = np.empty((STEPS, 2 * len(JOINTS)))
        for state in states:
            state[: len(JOINTS)], state[len(JOINTS) :] = self.data.qpos, self.data.qvel
            self.mujoco.mj_step(self.model, self.data)
        return states


def _files() -> tuple[Path, Path]:
    """Return the folders of the model and of its included files: the cache, else an installed dm_control.

    Raise ValueError where neither has them.
    """
    cache = cache_folder()
    if all((cache / name).is_file() for name in (MODEL, *PARTS)):
        return cache, cache
    installed = importlib.util.find_spec("dm_control")  # located without being imported
    if installed is not None and installed.submodule_search_locations:
        suite = Path(installed.submodule_search_locations[0]) / "suite"
        if (suite / MODEL).is_file():
            return suite, suite / "common"
    raise ValueError(
        f"{cache / MODEL} and the files that it includes ({', '.join(PARTS)}) are not all there, and dm_control "
        "is not installed; run: python -m vrnn_lab.fetch hopper"
    )
