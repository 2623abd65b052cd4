"""Asks every tool again: ``python -m tests.export.targets.renew ENVIRONMENTS [TARGET …]``.

``ENVIRONMENTS`` is a folder of virtual environments named as targets are, each with its tool.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from engine.export.target import target_named
from tests.export.exporting import export_checkpoint
from tests.export.targets.mixes import recipe_for, save_tiny

HERE = Path(__file__).parent
ASKED = (
    "llm-compressor", "gptqmodel", "auto-round", "model-optimizer", "torchao", "bitsandbytes",
    "hqq", "mlx", "exllamav3", "quark", "llama-quantize",
)  # fmt: skip


def ask(target: str, python: Path, folder: Path) -> str:
    """What a tool says about the file that is written for it, as a JSON document."""
    checkpoint = save_tiny(folder / "tiny")
    file = folder / f"recipe{target_named(target).ending}"
    export_checkpoint(checkpoint, recipe_for(target), file, target)
    command = [str(python), "-W", "ignore", str(HERE / "ask.py"), target, str(file)]
    asked = subprocess.run(
        [*command, str(checkpoint.folder)], capture_output=True, text=True, timeout=280, check=False
    )
    if asked.returncode:
        raise SystemExit(f"{target}: {asked.stderr[-3000:]}")
    return asked.stdout[asked.stdout.index('{\n "version"') :]


def main() -> None:
    environments, *wanted = sys.argv[1:]
    for target in wanted or ASKED:
        with TemporaryDirectory() as folder:
            python = Path(environments) / target / "bin" / "python"
            answer = ask(target, python, Path(folder))
        (HERE / "decided" / f"{target}.json").write_text(answer)
        sys.stderr.write(f"{target}\n")


if __name__ == "__main__":
    main()
