"""Asks tools to write again: ``python -m tests.checkpoint.quantised.renew ENVIRONMENTS [TOOL …]``.

``ENVIRONMENTS`` is a folder of virtual environments.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.checkpoint.quantised.write import ON_GPU, TOOLS

HERE = Path(__file__).parent


def main() -> None:
    """Write ``written/TOOL.json`` for every tool that needs no GPU, or for those that are named."""
    environments, *wanted = sys.argv[1:]
    for tool in wanted or [each for each in TOOLS if each not in ON_GPU]:
        python = Path(environments) / TOOLS[tool][1] / "bin" / "python"
        command = [str(python), "-W", "ignore", str(HERE / "write.py"), tool]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
        if asked.returncode:
            raise SystemExit(f"{tool}: {asked.stderr[-3000:]}")
        # Tools greet on standard output, too.
        answer = json.loads(asked.stdout[asked.stdout.index('{\n "versions"') :])
        lines = [
            f"{json.dumps(name)}: {json.dumps(case)}" for name, case in answer["cases"].items()
        ]
        versions, whole = json.dumps(answer["versions"]), ",\n".join(lines)
        text = f'{{"versions": {versions}, "cases": {{\n{whole}\n}}}}\n'
        (HERE / "written" / f"{tool}.json").write_text(text)
        sys.stderr.write(f"{tool}: {len(answer['cases'])} weights\n")


if __name__ == "__main__":
    main()
