"""Wheels of the packages that a machine with little beside torch and transformers lacks.

``python -m tests.gpu.wheels FOLDER`` collects them, for Python 3.12 on x86-64 Linux; they take 5
MB. scipy, of 35 MB, is left out: whoever has transformers mostly has it, and ``--scipy`` adds it.
`unpack` makes those that are missing importable, with no network and no pip.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ENGINE = ("msgspec", "platformdirs", "tomli", "nvidia-ml-py", "psutil", "gguf==0.19.0")
INTERFACE = (
    "textual==8.2.8", "plotext==5.3.2", "pyte", "wcwidth", "rich", "typer", "shellingham", "click",
    "markdown-it-py", "mdit-py-plugins", "linkify-it-py", "uc-micro-py", "mdurl", "pygments",
    "annotated-doc", "typing-extensions",
)  # fmt: skip
"""For the last step alone."""
PLATFORMS = tuple(
    f"manylinux{name}_x86_64" for name in ("_2_28", "_2_27", "_2_17", "2014", "_2_12", "2010", "1")
)


def collect(folder: Path, *, scipy: bool = False) -> None:
    """Download the wheels, one version of each.

    Raises:
        CalledProcessError: pip found one not to be there; it says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    packages = [*ENGINE, *INTERFACE, *(["scipy"] if scipy else [])]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
         "--python-version", "3.12", "--implementation", "cp", *platforms, "-d", str(folder),
         *packages],
        check=True,
    )  # fmt: skip


def unpack(folder: Path, into: Path) -> list[str]:
    """Unpack the wheels of packages that are not installed, and put them on the path.

    Returns:
        Their names. Processes that are started later find them too.
    """
    into.mkdir(parents=True, exist_ok=True)
    found = []
    for wheel in sorted(folder.glob("*.whl")):
        name = wheel.name.split("-")[0]
        try:
            version(name)
        except PackageNotFoundError:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(into)
            found.append(name)
    sys.path.insert(0, str(into))
    already = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(into), already]))
    return found


def main() -> None:
    """Collect them into a folder."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.wheels", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scipy", action="store_true", help="scipy too")
    given = parser.parse_args()
    collect(given.folder, scipy=given.scipy)
    size = sum(wheel.stat().st_size for wheel in given.folder.glob("*.whl"))
    sys.stdout.write(f"{given.folder}: {size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main()
