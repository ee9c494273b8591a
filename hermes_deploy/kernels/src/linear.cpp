#include "linear.h"

#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

#include "scratch.h"

// behind the headers: what they define is shared with code that also runs where these instructions are not
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")

#include "vectors.h"

namespace hermes {
namespace {

constexpr int kLanes = 16;   // columns of a tile: the floats of a register
constexpr int kGroup = 32;   // K that are multiplied before the sum leaves the integers
constexpr int64_t kAhead = 2048;  // bytes of weights that are fetched before they are needed
constexpr int64_t kNear = 400000;  // bytes of weights that stay near while all rows pass
constexpr int kRows = 12;    // rows that share one unpacking of a tile's weights; their sums stay in registers

constexpr size_t kHuge = size_t{2} << 20;
constexpr size_t kChunk = size_t{32} << 20;

// Memory for weights: large pages, since each page of 4 KB is read once a step and its address costs as much as its bytes.
// Linears made one after the other share a chunk, which goes with the last of them.
std::shared_ptr<uint8_t> take_memory(size_t bytes) {
    struct Chunk {
        explicit Chunk(size_t size) : size(size), data(static_cast<uint8_t*>(std::aligned_alloc(kHuge, size))) {
            if (!data) throw std::bad_alloc();
            madvise(data, size, MADV_HUGEPAGE);
        }
        ~Chunk() { std::free(data); }
        Chunk(const Chunk&) = delete;
        const size_t size;
        uint8_t* const data;
        size_t used = 0;
    };
    static std::mutex taking;
    static std::weak_ptr<Chunk> last;
    const std::lock_guard<std::mutex> held(taking);
    // what is fetched ahead of the end is never read, but let it be ours
    const size_t size = (bytes + kAhead + 1023) / 64 * 64;
    std::shared_ptr<Chunk> chunk = last.lock();
    if (!chunk || chunk->size - chunk->used < size) {
        chunk = std::make_shared<Chunk>((std::max(size, kChunk) + kHuge - 1) / kHuge * kHuge);
        last = chunk;
    }
    uint8_t* found = chunk->data + chunk->used;
    std::memset(found, 0, size);  // columns beyond the last are zeros
    chunk->used += size;
    return {chunk, found};
}

// Rows of activations in int8: codes [rows, K], and of each 32 their scale and minus the sum of their codes.
struct Coded {
    const int8_t* codes;
    const float* scales;
    const int32_t* sums;
};

void code_row(const float* x, int64_t inputs, int8_t* codes, float* scales, int32_t* sums) {
    const __m512 most = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff));
    for (int64_t k = 0; k < inputs; k += kGroup) {
        const __m512 low = _mm512_loadu_ps(x + k), high = _mm512_loadu_ps(x + k + 16);
        const __m512 peaks = _mm512_max_ps(_mm512_and_ps(low, most), _mm512_and_ps(high, most));
        const float peak = _mm512_reduce_max_ps(peaks);
        // a maximum leaves out what is no number; the scale must not
        const bool numbers = _mm512_cmp_ps_mask(low, high, _CMP_UNORD_Q) == 0;
        const float scale = numbers ? peak / 127.0f : NAN;
        const __m512 factor = _mm512_set1_ps(peak > 0 ? 127.0f / peak : 0.0f);
        const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(low, factor));
        const __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(high, factor));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + k), _mm512_cvtsepi32_epi8(a));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + k + 16), _mm512_cvtsepi32_epi8(b));
        scales[k / kGroup] = scale;
        sums[k / kGroup] = -_mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
    }
}

void add_norm_row(const float* x, const float* residual, const AddNorm& norm, int64_t inputs, float* total, float* normed) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t k = 0; k < inputs; k += 16) {
        const __m512 sum = _mm512_add_ps(_mm512_loadu_ps(x + k), _mm512_loadu_ps(residual + k));
        _mm512_storeu_ps(total + k, sum);
        squares = _mm512_fmadd_ps(sum, sum, squares);
    }
    const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(inputs);
    const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(mean + norm.epsilon));
    for (int64_t k = 0; k < inputs; k += 16)
        _mm512_storeu_ps(normed + k, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(total + k), factor), _mm512_loadu_ps(norm.weight + k)));
}

// The weights of one tile and 32 of K as eight registers, each of four K for sixteen columns.
struct Unpacked {
    __m512i w[8];
};

template <int Bits>
inline void unpack(const uint8_t* codes, Unpacked& to) {
    if constexpr (Bits == 8) {
        for (int j = 0; j < 8; ++j) to.w[j] = _mm512_loadu_si512(codes + 64 * j);
    } else {
        const __m512i nibble = _mm512_set1_epi8(15);
        for (int j = 0; j < 4; ++j) {
            const __m512i both = _mm512_loadu_si512(codes + 64 * j);
            to.w[j] = _mm512_and_si512(both, nibble);
            to.w[j + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
        }
    }
}

inline __m512i four(const int8_t* codes) {
    int32_t value;
    std::memcpy(&value, codes, 4);
    return _mm512_set1_epi32(value);
}

// What the weights of a tile are read as: for each block of K the codes of its groups, sixteen scales, sixteen zero
// points. One stream, in the order in which it is used.
constexpr int64_t group_bytes(int bits) { return bits == 8 ? 512 : 256; }
constexpr int64_t kScaleBytes = 64, kZeroBytes = 16;

// y[r] = sums of `Rows` rows over one tile.
template <int Bits, int Rows>
inline void tile(const uint8_t* weights, int64_t groups, int64_t groups_of_block, const Coded& x, int64_t stride, __m512* y) {
    __m512 sums[Rows];
    for (int r = 0; r < Rows; ++r) sums[r] = _mm512_setzero_ps();
    const uint8_t* here = weights;
    for (int64_t first = 0; first < groups; first += groups_of_block) {
        const uint8_t* behind = here + groups_of_block * group_bytes(Bits);
        const __m512 scale = _mm512_loadu_ps(behind);
        const __m512i zero = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(behind + kScaleBytes)));
        for (int64_t g = first; g < first + groups_of_block; ++g, here += group_bytes(Bits)) {
            if constexpr (Rows < kRows) {
                // weights come from memory, and what fetches ahead by itself stops at the end of each page
                for (int64_t at = 0; at < group_bytes(Bits) + kScaleBytes; at += 64)
                    _mm_prefetch(reinterpret_cast<const char*>(here + kAhead + at), _MM_HINT_T0);
            }
            Unpacked w;
            unpack<Bits>(here, w);
#pragma GCC unroll 12
            for (int r = 0; r < Rows; ++r) {
                const int8_t* row = x.codes + r * stride + g * kGroup;
                __m512i sum = _mm512_mullo_epi32(zero, _mm512_set1_epi32(x.sums[r * groups + g]));
#pragma GCC unroll 8
                for (int j = 0; j < 8; ++j) sum = _mm512_dpbusd_epi32(sum, w.w[j], four(row + 4 * j));
                const __m512 step = _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[r * groups + g]));
                sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), step, sums[r]);
            }
        }
        here += kScaleBytes + kZeroBytes;
    }
    for (int r = 0; r < Rows; ++r) y[r] = sums[r];
}

using Tile = void (*)(const uint8_t*, int64_t, int64_t, const Coded&, int64_t, __m512*);

template <int Bits, int... Rows>
constexpr Tile choose(int rows, std::integer_sequence<int, Rows...>) {
    constexpr Tile all[] = {tile<Bits, Rows + 1>...};
    return all[rows - 1];
}

Tile choose(int bits, int rows) {
    using All = std::make_integer_sequence<int, kRows>;
    return bits == 8 ? choose<8>(rows, All{}) : choose<4>(rows, All{});
}

// silu(x) * up
inline __m512 gate(__m512 x, __m512 up) {
    const __m512 one = _mm512_set1_ps(1.0f), zero = _mm512_setzero_ps();
    const __m512 small = exp2(_mm512_mul_ps(_mm512_sub_ps(zero, _mm512_abs_ps(x)), _mm512_set1_ps(1.44269504f)));  // e^-|x|
    const __m512 above = _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, zero, _CMP_LT_OQ), one, small);
    return _mm512_mul_ps(_mm512_mul_ps(x, _mm512_div_ps(above, _mm512_add_ps(one, small))), up);
}

}  // namespace

// Sixteen columns of four rows, each 8 bytes of 4-bit codes, as one byte a code: the four of a column side by side.
static __m512i four_rows(const uint8_t* codes, int64_t stride) {
    __m128i rows[4];
    for (int64_t k = 0; k < 4; ++k) {
        const __m128i both = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + k * stride));
        const __m128i nibble = _mm_set1_epi8(15);
        rows[k] = _mm_unpacklo_epi8(_mm_and_si128(both, nibble), _mm_and_si128(_mm_srli_epi16(both, 4), nibble));
    }
    const __m128i low01 = _mm_unpacklo_epi8(rows[0], rows[1]), high01 = _mm_unpackhi_epi8(rows[0], rows[1]);
    const __m128i low23 = _mm_unpacklo_epi8(rows[2], rows[3]), high23 = _mm_unpackhi_epi8(rows[2], rows[3]);
    __m512i found = _mm512_castsi128_si512(_mm_unpacklo_epi16(low01, low23));
    found = _mm512_inserti32x4(found, _mm_unpackhi_epi16(low01, low23), 1);
    found = _mm512_inserti32x4(found, _mm_unpacklo_epi16(high01, high23), 2);
    return _mm512_inserti32x4(found, _mm_unpackhi_epi16(high01, high23), 3);
}

// 32 rows of sixteen 4-bit codes as `unpack` takes them apart.
static void pack_group(const uint8_t* codes, int64_t stride, uint8_t* to) {
    for (int64_t part = 0; part < 4; ++part) {
        const __m512i low = four_rows(codes + 4 * part * stride, stride), high = four_rows(codes + 4 * (part + 4) * stride, stride);
        _mm512_storeu_si512(to + 64 * part, _mm512_or_si512(low, _mm512_slli_epi16(high, 4)));
    }
}

Linear::Linear(const LinearShape& shape, const uint8_t* codes, const float* scales, const uint8_t* zeros) : shape_(shape) {
    const int64_t tiles = (shape.outputs + kLanes - 1) / kLanes, blocks = shape.inputs / shape.block, groups = shape.block / kGroup;
    block_bytes_ = groups * group_bytes(shape.bits) + kScaleBytes + kZeroBytes;
    weights_ = take_memory(tiles * blocks * block_bytes_);
    // gate and up of the same columns stand side by side
    const auto column_of = [&](int64_t t) {
        if (!shape.gated) return t * kLanes;
        return (t / 2) * kLanes + (t % 2) * (shape.outputs / 2);
    };
    const auto nibble = [&](const uint8_t* from, int64_t at) { return at % 2 ? from[at / 2] >> 4 : from[at / 2] & 15; };
    for (int64_t t = 0; t < tiles; ++t) {
        const int64_t column = column_of(t), lanes = std::min<int64_t>(kLanes, shape.outputs - column);
        for (int64_t b = 0; b < blocks; ++b) {
            uint8_t* to = weights_.get() + (t * blocks + b) * block_bytes_;
            for (int64_t g = 0; g < groups; ++g, to += group_bytes(shape.bits)) {
                const int64_t top = (b * shape.block + g * kGroup) * shape.outputs + column;
                if (shape.bits == 4 && lanes == kLanes && shape.outputs % 2 == 0) {
                    pack_group(codes + top / 2, shape.outputs / 2, to);
                    continue;
                }
                for (int64_t k = 0; k < kGroup; ++k) {
                    const int64_t row = top + k * shape.outputs, part = k / 4;
                    for (int64_t n = 0; n < lanes; ++n) {
                        if (shape.bits == 8) {
                            to[part * 64 + n * 4 + k % 4] = codes[row + n] ^ 0x80;
                            continue;
                        }
                        uint8_t& place = to[part % 4 * 64 + n * 4 + k % 4];
                        const uint8_t code = static_cast<uint8_t>(nibble(codes, row + n));
                        place = part < 4 ? code : static_cast<uint8_t>(place | code << 4);
                    }
                }
            }
            const int64_t from = b * shape.outputs + column;
            std::memcpy(to, scales + from, lanes * sizeof(float));
            for (int64_t n = 0; n < lanes; ++n)
                to[kScaleBytes + n] = static_cast<uint8_t>(shape.bits == 8 ? 0x80 : zeros ? nibble(zeros, from + n) : 8);
        }
    }
}

void Linear::run(const float* x, int64_t rows, float* y, const AddNorm* before, const Parallel& parallel) const {
    if (rows < 1) return;
    const int64_t inputs = shape_.inputs, groups = inputs / kGroup, blocks = inputs / shape_.block;
    const int64_t step = shape_.gated ? 2 : 1, units = (shape_.outputs + kLanes - 1) / kLanes / step;
    const int64_t width = shape_.gated ? shape_.outputs / 2 : shape_.outputs;
    const int64_t stride = inputs + 64;  // not a power of two, or all rows would want the same places of the cache
    thread_local Scratch<int8_t> code_room;
    thread_local Scratch<float> scale_room;
    thread_local Scratch<int32_t> sum_room;
    int8_t* codes = code_room.reserve(rows * stride);
    float* scales = scale_room.reserve(rows * groups);
    int32_t* sums = sum_room.reserve(rows * groups);
    const auto code = [&](int64_t first, int64_t last) {
        thread_local Scratch<float> row_room;
        float* normed = before ? row_room.reserve(inputs) : nullptr;
        for (int64_t r = first; r < last; ++r) {
            const float* row = x + r * inputs;
            if (before) {
                add_norm_row(row, before->residual + r * inputs, *before, inputs, before->total + r * inputs, normed);
                row = normed;
            }
            code_row(row, inputs, codes + r * stride, scales + r * groups, sums + r * groups);
        }
    };
    if (rows <= 16 || parallel.threads == 1) {
        code(0, rows);
    } else {
        const int64_t parts = parallel.threads;
        parallel(parts, [&](size_t i) { code(rows * i / parts, rows * (i + 1) / parts); });
    }
    // a few parts a thread, so that one that loses its core to somebody does not leave the others idle
    const int64_t parts = std::min<int64_t>(units, parallel.threads * 4);
    parallel(parts, [&](size_t part) {
        const int64_t first = units * part / parts, last = units * (part + 1) / parts;
        const int64_t tile_bytes = blocks * block_bytes_;
        // as many columns at a time as leave room in the second cache: rows are read once for all of them
        const int64_t together = std::max<int64_t>(1, kNear / (tile_bytes * step));
        for (int64_t from = first; from < last; from += together) {
            const int64_t to = std::min(last, from + together);
            for (int64_t r = 0; r < rows; r += kRows) {
                const int now = static_cast<int>(std::min<int64_t>(kRows, rows - r));
                const Tile each = choose(shape_.bits, now);
                const Coded coded{codes + r * stride, scales + r * groups, sums + r * groups};
                for (int64_t unit = from; unit < to; ++unit) {
                    __m512 found[2][kRows];
                    for (int64_t s = 0; s < step; ++s)
                        each(weights_.get() + (unit * step + s) * tile_bytes, groups, shape_.block / kGroup, coded, stride, found[s]);
                    const __mmask16 lanes = static_cast<__mmask16>((1u << std::min<int64_t>(kLanes, width - unit * kLanes)) - 1);
                    for (int i = 0; i < now; ++i)
                        _mm512_mask_storeu_ps(y + (r + i) * width + unit * kLanes, lanes, shape_.gated ? gate(found[0][i], found[1][i]) : found[0][i]);
                }
            }
        }
    });
}

}  // namespace hermes
