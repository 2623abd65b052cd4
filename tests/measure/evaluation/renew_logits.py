"""Renews ``written/llama_cpp.*``: a logits file and its tables by llama.cpp's own functions.

Run ``python -m tests.measure.evaluation.renew_logits SOURCE`` with the path of llama.cpp's
``tools/perplexity/perplexity.cpp``. Its functions that write, read and print are compiled and given
logits that `example` draws; no model runs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.measure.evaluation.logits_example import CHUNKS, CONTEXT, VOCABULARY, WRITTEN, example

HEAD = """
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <mutex>
#include <thread>
#include <vector>
#define LOG(...) printf(__VA_ARGS__)
struct results_log_softmax { double log_softmax; float logit; float prob; };
"""
MAIN = """
int main(int argc, char ** argv) {
    int n_ctx = atoi(argv[5]), n_vocab = atoi(argv[6]), n_chunk = atoi(argv[7]);
    const int first = n_ctx/2, n = n_ctx - 1 - first, nv = 2*((n_vocab + 1)/2) + 4;
    std::vector<int> tokens(n_ctx*n_chunk);
    std::vector<float> base(size_t(n)*n_chunk*n_vocab), other(base.size());
    std::ifstream(argv[2], std::ios::binary).read((char *) tokens.data(), tokens.size()*4);
    std::ifstream(argv[3], std::ios::binary).read((char *) base.data(), base.size()*4);
    std::ifstream(argv[4], std::ios::binary).read((char *) other.data(), other.size()*4);
    std::vector<std::thread> workers(0);
    std::vector<uint16_t> log_probs(size_t(n_ctx)*nv);
    std::ofstream out(argv[1], std::ios::binary);
    out.write("_logits_", 8);
    out.write((char *) &n_ctx, 4); out.write((char *) &n_vocab, 4); out.write((char *) &n_chunk, 4);
    out.write((char *) tokens.data(), tokens.size()*4);
    double nll = 0, nll2 = 0;
    for (int c = 0; c < n_chunk; c++) {
        process_logits(out, n_vocab, base.data() + size_t(c)*n*n_vocab,
            tokens.data() + c*n_ctx + first, n, workers, log_probs, nll, nll2);
    }
    out.close();
    std::ifstream in(argv[1], std::ios::binary);
    in.seekg(20 + 4*tokens.size());
    std::vector<float> kld_values(size_t(n)*n_chunk), p_diff_values(size_t(n)*n_chunk);
    std::vector<uint16_t> rows(size_t(n)*nv);
    kl_divergence_result kld;
    for (int c = 0; c < n_chunk; c++) {
        in.read((char *) rows.data(), rows.size()*2);
        process_logits(n_vocab, other.data() + size_t(c)*n*n_vocab,
            tokens.data() + c*n_ctx + first, n, workers, rows, kld,
            kld_values.data() + size_t(c)*n, p_diff_values.data() + size_t(c)*n);
    }
    std::sort(kld_values.begin(), kld_values.end());
    std::sort(p_diff_values.begin(), p_diff_values.end());
"""


def program(source: str) -> str:
    """The functions of llama.cpp's file, with a main that needs no model."""
    start = source.index("static results_log_softmax log_softmax(")
    functions = source[start : source.index("static results_perplexity perplexity_v2(")]
    whole = source[source.index("static void kl_divergence(") :]
    sums = whole[
        whole.index("    auto mean_and_uncertainty") : whole.index("    kl_divergence_result kld;")
    ]
    begin = whole.index('    LOG("====== Perplexity statistics')
    printing = whole[begin : whole.index("\n}", begin)]
    return HEAD + functions + MAIN + sums + printing + "\n}\n"


def main(source: Path) -> None:
    tokens, base, other = example()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "main.cpp").write_text(program(source.read_text()))
        for name, table in (("tokens", tokens), ("base", base), ("other", other)):
            (home / name).write_bytes(table.tobytes())
        build = ["g++", "-O1", "-std=c++17", "-pthread", "main.cpp", "-o", "main"]
        subprocess.run(build, cwd=home, check=True)
        WRITTEN.mkdir(exist_ok=True)
        given = ["tokens", "base", "other", str(CONTEXT), str(VOCABULARY), str(CHUNKS)]
        found = subprocess.run(
            ["./main", str(WRITTEN / "llama_cpp.logits"), *given],
            cwd=home,
            check=True,
            capture_output=True,
            text=True,
        )
    (WRITTEN / "llama_cpp.txt").write_text(found.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
