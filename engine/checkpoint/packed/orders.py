"""How words of 32 bits hold codes of four bits ``[out, in]``, eight each."""

LEVELS = 16
"""How many codes there are."""
ACROSS, DOWN, TURNED = range(3)
"""Eight columns of a row, ``[out, in / 8]``, the first in the lowest bits; the same, words of a row
below each other, ``[in / 8, out]``, as GPTQ has it; or eight rows of a column in `GEMM_ORDER`,
``[in, out / 8]``."""
GEMM_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Row of every eight that each place of a word holds in AWQ's GEMM, the lowest bits first."""
