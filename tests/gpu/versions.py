"""What the check runs on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from tests.gpu.rows import Recorder
from tests.gpu.steps import Options

PACKAGES = ("torch", "transformers", "triton", "numpy", "scipy", "compressed-tensors", "textual")


def run(options: Options, figures: Recorder) -> None:
    """Tells device and versions; fails if the device cannot add."""
    import psutil
    import torch

    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    figures.tell("processors", psutil.cpu_count() or 0, note=", ".join(found))
    figures.tell(
        "memory", psutil.virtual_memory().total / 2**30, "GiB", note=platform.processor() or "cpu"
    )
    if options.device != "cpu":
        from engine.model.load import choose_device

        device, why = choose_device(options.device)
        properties = torch.cuda.get_device_properties(device)
        figures.tell(
            "device memory", properties.total_memory / 2**30, "GiB",
            note=f"{why}, CUDA {torch.version.cuda}, capability {properties.major}."
            f"{properties.minor}, {properties.multi_processor_count} multiprocessors",
        )  # fmt: skip
        free, total = torch.cuda.mem_get_info(device)
        figures.tell("of it free", free / total, note="of all processes")
        for name, on in (
            ("float32 products in TF32", torch.backends.cuda.matmul.allow_tf32),
            ("convolutions in TF32", torch.backends.cudnn.allow_tf32),
        ):
            figures.tell(f"{name} before a model is loaded", float(on))
    one = torch.arange(1000, device=options.device, dtype=torch.float64)
    figures.same("a sum", float(one.sum()), 999 * 500)
