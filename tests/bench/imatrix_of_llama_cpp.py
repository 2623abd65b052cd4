"""Compare GGUF files of qtui's mixes with those of llama.cpp's own quantiser, tensor by tensor.

Not run with the tests: it needs the environment of `tests.bench.mixes_of_llama_cpp`. In the root of
the repository,

    qtui imatrix demo -o build/imatrix.gguf
    qtui export demo --format fp32 --to gguf -o build/plain.gguf
    qtui export demo --recipe IQ3_XXS --imatrix build/imatrix.gguf --to gguf -o build/IQ3_XXS.gguf
    scratch/bin/python -m tests.bench.imatrix_of_llama_cpp build IQ3_XXS

hands ``llama_model_quantize`` the importances that qtui reads from its file, and prints how many
tensors have the same type and bytes.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from engine.checkpoint.imatrix import Imatrix, read_imatrix
from tests.bench.mixes_of_llama_cpp import FTYPES

Importance = llama_cpp.llama_cpp.llama_model_imatrix_data


def quantised(plain: Path, out: Path, mix: str, matrix: Imatrix) -> None:
    """What llama.cpp makes of a file, written to ``out``."""
    values = {name: np.ascontiguousarray(e.importance) for name, e in matrix.entries.items()}
    pointer = ctypes.POINTER(ctypes.c_float)
    entries = [
        Importance(name.encode(), numbers.ctypes.data_as(pointer), numbers.size)
        for name, numbers in values.items()
    ]
    given = (Importance * (len(entries) + 1))(*entries)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FTYPES[mix]
    params.imatrix = ctypes.cast(given, ctypes.POINTER(Importance))
    code = llama_cpp.llama_model_quantize(
        str(plain).encode(), str(out).encode(), ctypes.byref(params)
    )
    assert code == 0


def main() -> None:
    """Print what differs."""
    folder = Path(sys.argv[1])
    matrix = read_imatrix(folder / "imatrix.gguf")
    for mix in sys.argv[2:]:
        theirs = folder / f"{mix}-of-llama-cpp.gguf"
        quantised(folder / "plain.gguf", theirs, mix, matrix)
        expected = {each.name: each for each in gguf.GGUFReader(theirs).tensors}
        found = {each.name: each for each in gguf.GGUFReader(folder / f"{mix}.gguf").tensors}
        assert set(found) == set(expected)
        alike = [
            name
            for name, each in expected.items()
            if each.tensor_type == found[name].tensor_type
            and np.array_equal(each.data, found[name].data)
        ]
        types = sorted({each.tensor_type.name.lower() for each in expected.values()})
        print(f"{mix}: {len(alike)} of {len(expected)} tensors alike, in {', '.join(types)}")


if __name__ == "__main__":
    main()
