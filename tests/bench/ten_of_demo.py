"""Ten quantised versions of ``demo`` from different tools: ``qtui compare`` beside a plain loop::

    python -m tests.bench.ten_of_demo OUT --tools PYTHON --cyllama PYTHON

Versions that ``OUT`` lacks are made first. The first ``PYTHON`` is that of an environment with
transformers, accelerate, bitsandbytes, compressed-tensors and gptqmodel, the second with cyllama,
for llama.cpp's own quantiser. The plain loop is transformers' in the former, in float32 over the
same windows. Printed is KL of both; it fails where their orders differ.

Run by the path of this file, a step is made in another environment, where qtui is not imported.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
BITSANDBYTES: dict[str, dict[str, Any]] = {
    "bitsandbytes-nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "bitsandbytes-nf4-twice": {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True
    },
    "bitsandbytes-fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
}  # fmt: skip
COMPRESSED: dict[str, dict[str, Any]] = {
    "compressed-tensors-int4-sym": {
        "num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True
    },
    "compressed-tensors-int4-asym": {
        "num_bits": 4, "type": "int", "strategy": "group", "group_size": 64, "symmetric": False
    },
    "compressed-tensors-int8": {"num_bits": 8, "type": "int", "strategy": "channel"},
    "compressed-tensors-fp8": {"num_bits": 8, "type": "float", "strategy": "channel"},
}  # fmt: skip
GGUF = {"llama.cpp-Q4_0.gguf": 2, "llama.cpp-Q4_K_M.gguf": 15, "llama.cpp-Q8_0.gguf": 7}
GPTQ = {"gptqmodel-4-g128": (4, 128), "gptqmodel-3-g64": (3, 64)}


def bitsandbytes(demo: Path, out: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(**BITSANDBYTES[out.name])
    AutoModelForCausalLM.from_pretrained(
        demo, quantization_config=config, dtype="float16", device_map="cpu"
    ).save_pretrained(out)


def compressed(demo: Path, out: Path) -> None:
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(demo, dtype=torch.bfloat16)
    scheme = QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(**COMPRESSED[out.name])
    )
    apply_quantization_config(
        model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
    )
    for module in model.modules():
        found = getattr(module, "quantization_scheme", None)
        if found is None or found.weights is None:
            continue
        weight = module.weight.detach().float()
        size = found.weights.group_size
        grouped = weight.unflatten(-1, (-1, size)) if size else weight.unsqueeze(1)
        scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), found.weights)
        module.weight_scale.data.copy_(scale.reshape(module.weight_scale.shape))
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data.copy_(zero.reshape(module.weight_zero_point.shape))
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(out)
    compressor.update_config(out)


def gptqmodel(demo: Path, out: Path) -> None:
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # it fails on two cores else
    from gptqmodel import GPTQModel, QuantizeConfig

    bits, group = GPTQ[out.name]
    model = GPTQModel.load(str(demo), QuantizeConfig(bits=bits, group_size=group), device="cpu")
    texts = [each.read_text()[:2000] for each in sorted(Path(json.__file__).parent.glob("*.py"))]
    model.quantize(texts, batch_size=1)
    model.save(str(out))


def llama_cpp(source: Path, out: Path) -> None:
    from cyllama.llama import llama_cpp as llama

    given = llama.LlamaModelQuantizeParams()
    given.ftype = GGUF[out.name]
    llama.model_quantize(str(source), str(out), given)


def plain(demo: Path, out: Path) -> None:
    """KL of every version, over the windows in ``windows.json``; written to ``plain.json``."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.tensor(json.loads((out / "windows.json").read_text()))

    def log_probs(model: Any) -> Iterator[Any]:
        with torch.no_grad():
            for rows in ids.split(4):
                yield model(input_ids=rows).logits[:, :-1].double().log_softmax(-1)

    before = AutoModelForCausalLM.from_pretrained(demo, dtype=torch.float32).eval()
    reference, found = list(log_probs(before)), {}
    for path in versions(out):
        where: dict[str, Any] = {"pretrained_model_name_or_path": path, "device_map": "cpu"}
        if path.suffix:
            where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        model = AutoModelForCausalLM.from_pretrained(dtype=torch.float32, **where).eval()
        parts = zip(reference, log_probs(model), strict=True)
        found[path.name] = sum(float((p.exp() * (p - q)).sum()) for p, q in parts)
    count = ids.shape[0] * (ids.shape[1] - 1)
    kls = {name: total / count for name, total in found.items()}
    (out / "plain.json").write_text(json.dumps(kls))


STEPS = {each.__name__: each for each in (bitsandbytes, compressed, gptqmodel, llama_cpp, plain)}


def versions(out: Path) -> list[Path]:
    return [out / name for name in (*BITSANDBYTES, *COMPRESSED, *GPTQ, *GGUF)]


def elsewhere(python: Path, step: str, source: Path, out: Path) -> None:
    given = [str(python), str(HERE), step, str(source), str(out)]
    subprocess.run(given, check=True, cwd=out.parent)  # GPTQModel leaves a folder of logs


def make(demo: Path, out: Path, tools: Path, cyllama: Path) -> None:
    """Make what is missing."""
    from engine.checkpoint import open_checkpoint
    from tests.export.exporting import export_checkpoint

    plain_file = out / "demo.gguf"
    if not plain_file.exists():
        export_checkpoint(open_checkpoint(demo), {}, plain_file, "gguf")
    for names, python, step in (
        (BITSANDBYTES, tools, bitsandbytes), (COMPRESSED, tools, compressed),
        (GPTQ, tools, gptqmodel), (GGUF, cyllama, llama_cpp),
    ):  # fmt: skip
        for name in names:
            if not (out / name).exists():
                source = plain_file if step is llama_cpp else demo
                unfinished = out / "unfinished"
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                elsewhere(python, step.__name__, source, unfinished / name)
                (unfinished / name).rename(out / name)


def main() -> None:
    from engine.demo import DEMO_PATH
    from engine.profiles import load_profile
    from engine.store.facts import FactStore
    from tests.bench.llama_perplexity import qtui_compare
    from tests.drive import load

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--cyllama", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    given = parser.parse_args()
    out = Path(given.out).resolve()
    out.mkdir(exist_ok=True)
    make(DEMO_PATH, out, given.tools, given.cyllama)
    settings = load_profile("standard").settings("standard", tokens=given.tokens)
    windows = load("demo", FactStore(out / "facts.sqlite"), settings).windows
    (out / "windows.json").write_text(json.dumps(windows.ids.tolist()))
    elsewhere(given.tools, "plain", DEMO_PATH, out)
    theirs: dict[str, float] = json.loads((out / "plain.json").read_text())
    document = qtui_compare(out, "demo", *versions(out), "--tokens", given.tokens)
    ours = {Path(each["path"]).name: each["kl"] for each in document["artefacts"]}
    print("| KL·10³ | plain | qtui |\n|---|---|---|")
    for name in sorted(theirs, key=lambda each: theirs[each]):
        print(f"| {name} | {1000 * theirs[name]:.3f} | {1000 * ours[name]:.3f} |")
    assert sorted(ours, key=lambda each: ours[each]) == sorted(
        theirs, key=lambda each: theirs[each]
    )
    print(f"the same order of {len(theirs)} versions")


if __name__ == "__main__":
    if sys.argv[1] in STEPS:
        STEPS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
