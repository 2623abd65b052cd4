"""What lm-eval itself makes of the task of `tests.measure.tasks.items`, kept in ``lm_eval.json``.

Not run with the tests. In an environment with torch, transformers, qtui's other packages and
``lm_eval==0.4.13``, in the root of the repository::

    python -m tests.measure.tasks.renew

Its own ``HFLM`` runs the bundled checkpoint in float32, and a copy of it whose body has the weights
of `FORMAT`; the task is a ``ConfigurableTask`` on a local file.
"""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from engine.demo import DEMO_PATH
from engine.formats.grammar import parse_format
from engine.quant.quantize import dequantized
from tests.measure.tasks.items import rows, write

FORMAT = "int2-g32"
KEPT_IN = Path(__file__).parent / "lm_eval.json"
METRICS = ("acc", "acc_norm")


def config(file: Path) -> dict[str, Any]:
    """The task, as lm-eval has it written down."""
    return {
        "task": "python",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": metric, "aggregation": "mean"} for metric in METRICS],
    }


def model(format: str | None) -> Any:
    """The bundled checkpoint, with the weights of a format in its body."""
    from transformers import AutoModelForCausalLM

    found = AutoModelForCausalLM.from_pretrained(DEMO_PATH, dtype=torch.float16)
    if format is not None:
        with torch.no_grad():
            for name, module in found.named_modules():
                if isinstance(module, torch.nn.Linear) and name != "lm_head":
                    weight = module.weight
                    weight.copy_(dequantized(weight, parse_format(format), torch.float16))
    return found.float().eval()


def run(file: Path, format: str | None) -> list[dict[str, Any]]:
    """Every item, by lm-eval."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    lm = HFLM(pretrained=model(format), tokenizer=AutoTokenizer.from_pretrained(DEMO_PATH))
    found = simple_evaluate(model=lm, tasks=[config(file)], log_samples=True, bootstrap_iters=0)
    return [
        {
            "likelihoods": [float(each[0]) for each in sample["filtered_resps"]],
            **{metric: sample[metric] for metric in METRICS},
        }
        for sample in sorted(found["samples"]["python"], key=lambda sample: sample["doc_id"])
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder) / "python.jsonl", rows())
        kept = {
            "version": f"lm_eval {version('lm_eval')}",
            "format": FORMAT,
            "reference": run(file, None),
            "recipe": run(file, FORMAT),
        }
    KEPT_IN.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
