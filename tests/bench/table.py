"""The table of docs/formats.md: every family and method on the demo model, by stored bits and KL.

    python -m tests.bench.table

asks ``qtui eval demo`` for each of `ROWS` and writes what it says between the two markers of
``docs/formats.md``. Results are saved, so that a run that was stopped resumes; what
this version refuses is left out, and said.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path(__file__).resolve().parents[2] / "docs" / "formats.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

FORMATS = (
    *("int8", "int6", "int5", "int4-g32", "int4-g64", "int4", "int4-channel", "int4-g128-sym"),
    *("int3-g64", "int3", "int2-g32"),
    *("int4+clip", "int4+hqq", "int4+gptq", "int4+awq", "int4+awq+clip", "int4+hadamard"),
    *("int4-channel+gptq", "int4-channel+awq"),
    *("int3+clip", "int3+hqq", "int3+gptq", "int3+awq", "int3+awq+gptq"),
    *("int8+a8", "int8+smooth.5+a8", "int8+a8:static", "int8+outlier6+a8"),
    *("fp8-e4m3", "fp8-e5m2", "mxfp8", "mxfp4", "mxfp4+clip", "nvfp4", "nvfp4+clip"),
    *("nf4", "nf4:dq", "fp4", "kmeans4", "kmeans3", "kmeans3:sparse=.5%", "e8-2+hadamard"),
    *("q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "iq4_nl", "iq4_xs"),
    *("q3_k", "q2_k", "iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "q4_k+imatrix"),
    *("iq4_xs+imatrix", "q3_k+imatrix", "q2_k+imatrix", "iq3_s+imatrix", "iq3_xxs+imatrix"),
    *("iq2_s+imatrix", "iq2_xs+imatrix", "iq2_xxs+imatrix"),
)
RECIPES = (
    *("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_L", "Q3_K_M"),
    *(
        "Q3_K_S",
        "Q2_K",
        "IQ3_M",
        "IQ3_S",
        "IQ3_XS",
        "IQ3_XXS",
        "IQ2_M",
        "IQ2_S",
        "IQ2_XS",
        "IQ2_XXS",
    ),
    "first-last",
)
ROWS = (*(("--format", text) for text in FORMATS), *(("--recipe", name) for name in RECIPES))


class Refused(Exception):
    """A format that this version does not have, with what it says about it."""


class Row(NamedTuple):
    """One line of the table."""

    option: str
    name: str
    bits: float
    kl: float
    kl_se: float
    ppl: float
    top1: float
    gave_way: int
    """Layers that do not hold what was asked for."""


def measured(option: str, name: str, given: Iterable[str]) -> dict[str, Any]:
    """The document of one evaluation.

    Raises:
        Refused: the command line was not accepted.
        subprocess.CalledProcessError: the evaluation failed.
    """
    command = [sys.executable, "-m", "qtui", "eval", "demo", option, name, "--json", "-", *given]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode == 2:
        raise Refused(ended.stderr.strip().splitlines()[-1].removeprefix("qtui: "))
    ended.check_returncode()
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def row_of(option: str, document: dict[str, Any]) -> Row:
    """A line of the table from the document of an evaluation."""
    recipe = document["recipe"]
    return Row(
        option=option,
        name=recipe["name"],
        bits=recipe["bits_per_weight"],
        kl=recipe["kl"],
        kl_se=recipe["kl_se"],
        ppl=recipe["ppl"],
        top1=recipe["top1_agreement"],
        gave_way=len({each["layer"] for each in document["fallbacks"]}),
    )


def table_of(rows: Iterable[Row], document: dict[str, Any]) -> str:
    """The table in Markdown, fewest bits first, then least KL.

    Args:
        rows: in any order.
        document: any of the evaluations, for what all have in common.
    """
    protocol, baseline = document["protocol"], document["baseline"]
    lines = [
        f"`demo`, perplexity {baseline['ppl']:.2f} unchanged, on {protocol['tokens']:,} tokens of "
        f"{protocol['text']} in windows of {protocol['seq_len']}, {protocol['dtype']} on "
        f"{protocol['device']}. KL is that to the unchanged model, with its standard error. Head "
        "and embedding are kept by a format and by `first-last`, and quantised by the recipes.",
        "",
        "| format or recipe | bits | KL, 10⁻³ nats | perplexity | same first choice |",
        "|---|---:|---:|---:|---:|",
    ]
    gave_way = False
    for row in sorted(rows, key=lambda row: (round(row.bits, 2), row.kl)):
        mark = f" ({row.gave_way}†)" if row.gave_way else ""
        gave_way = gave_way or bool(mark)
        kind = "recipe " if row.option == "--recipe" else ""
        lines.append(
            f"| {kind}`{row.name}`{mark} | {row.bits:.2f} | {row.kl * 1e3:.2f} "
            f"± {row.kl_se * 1e3:.2f} | {row.ppl:.2f} | {row.top1:.1%} |"
        )
    if gave_way:
        lines += ["", "† Layers that cannot hold it, and are kept or hold another format."]
    return "\n".join(lines)


def between_markers(text: str, table: str) -> str:
    """A document with the table in the place of what stood between its markers.

    Raises:
        ValueError: a marker is missing, or they are in the wrong order.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no {BEGIN} with {END} after it")
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def main() -> None:
    """Measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description="The table.")
    parser.add_argument("--into", type=Path, default=PAGE, metavar="FILE")
    parser.add_argument(
        "--only", metavar="A,B", help="formats and recipes with one of these in their names"
    )
    known, given = parser.parse_known_args()
    text = known.into.read_text(encoding="utf-8")
    between_markers(text, "")
    parts = (known.only or "").lower().split(",")
    rows: list[Row] = []
    document: dict[str, Any] = {}
    for option, name in ROWS:
        if not any(part in name.lower() for part in parts):
            continue
        try:
            document = measured(option, name, given)
        except Refused as refused:
            print(f"left out: {refused}", flush=True)
            continue
        except subprocess.CalledProcessError as failed:
            sys.exit(f"{option} {name} failed:\n{failed.stderr}")
        rows.append(row_of(option, document))
        print(f"{name}: {rows[-1].bits:.2f} bits, KL {rows[-1].kl:.5f}", flush=True)
    if not rows:
        sys.exit("nothing was measured: the table stays as it is")
    known.into.write_text(between_markers(text, table_of(rows, document)), encoding="utf-8")


if __name__ == "__main__":
    main()
