// What EXL3 decodes on a GPU, on a CPU: the headers of exllamav3 themselves, with the few words of CUDA
// that they use. Reads tiles from standard input, writes the 256 numbers of each in the order of lanes.
// Arguments: twice the bits of a code, and the codebook (0, 1 for mcg, 2 for mul1).

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>
#define __device__
#define __forceinline__ inline
typedef _Float16 half;
typedef half __half;
struct half2 { half x, y; };
static inline half __ushort_as_half(uint16_t v) { half h; __builtin_memcpy(&h, &v, 2); return h; }
static inline half2 __half2half2(half h) { return {h, h}; }
static inline half2 __halves2half2(half a, half b) { return {a, b}; }
static inline half __low2half(half2 v) { return v.x; }
static inline half __high2half(half2 v) { return v.y; }
static inline half2 __lows2half2(half2 a, half2 b) { return {a.x, b.x}; }
static inline half2 __highs2half2(half2 a, half2 b) { return {a.y, b.y}; }
static inline half __hadd(half a, half b) { return (half) ((double) a + (double) b); }
static inline half2 __hadd2(half2 a, half2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
static inline half __hfma(half a, half b, half c) { return (half) ((double) a * (double) b + (double) c); }
static inline half2 __hfma2(half2 a, half2 b, half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
static inline float __half2float(half h) { return (float) h; }
static inline uint32_t __dp4a(uint32_t a, uint32_t b, uint32_t c) {
    for (int i = 0; i < 4; i++) c += ((a >> 8 * i) & 255) * ((b >> 8 * i) & 255);
    return c;
}
static inline uint32_t __funnelshift_r(uint32_t lo, uint32_t hi, uint32_t n) {
    return (uint32_t) ((((uint64_t) hi << 32) | lo) >> (n & 31));
}
union half2_uint32 { uint32_t as_uint32; half2 as_half2; half2_uint32(uint32_t v) : as_uint32(v) {} };
union half_uint16 { uint16_t as_uint16; half as_half; half_uint16(uint16_t v) : as_uint16(v) {} };
struct FragB { half2 v[2]; half2& operator[](int i) { return v[i]; } };
#include "ptx_portable.cuh"
#define FSHF_IMM(d, lo, hi, n) (d) = exl3_shf_r_wrap((lo), (hi), (n))
#define BFE16_IMM(d, a, n) (d) = exl3_bfe_u32_16((a), (n))
static inline uint32_t bfe64(uint32_t lo, uint32_t hi, int p, int n) { return exl3_bfe_u64(((uint64_t) hi << 32) | lo, p, n); }
#include "quant/exl3_dq.cuh"
template <int K, int cb, bool H> void run() {
    std::vector<uint32_t> tile((16 * K + (H ? 8 : 0)) / 2);
    while (fread(tile.data(), 4, tile.size(), stdin) == tile.size())
        for (int lane = 0; lane < 32; lane++) {
            FragB f[2];
            dq_dispatch<K, cb, H>(tile.data(), lane * 8, f[0], f[1]);
            fwrite(f, 2, 8, stdout);
        }
}
int main(int, char** a) {
    int k2 = atoi(a[1]), cb = atoi(a[2]);
#define C(K) if (k2 == 2 * K) cb == 0 ? run<K, 0, false>() : cb == 1 ? run<K, 1, false>() : run<K, 2, false>();
    C(1) C(2) C(3) C(4) C(5) C(6) C(7) C(8)
#define D(K) if (k2 == 2 * K + 1) run<K, 2, true>();
    D(1) D(2) D(3)
}
