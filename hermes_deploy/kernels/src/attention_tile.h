// One tile of attention: all query rows of some tokens that read one head of keys, against one part of the context.
//
// Keys come in blocks of 64 tokens that start at multiples of 64, blocks in parts that start at multiples of the
// part: where a call begins changes neither. Inside a part the softmax is carried from block to block (Milakov and
// Gimelshein, arXiv 1805.02867; Dao and others, arXiv 2205.14135); parts are merged in their order.
// A block that a row does not see leaves the row's bits as they were.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "scratch.h"
#include "vectors.h"

namespace hermes {

constexpr int64_t kBlock = 64;  // keys at a time: four vectors
constexpr int kRows = 6;        // rows at a time: 24 sums in registers
constexpr float kNone = -1e30f; // the maximum before any score; finite, so that differences are numbers
constexpr int64_t kMaxDim = 256;

// Rows are token-major: row r is of token r / group. Sees keys [max(0, p - window + 1), p], p = position + r / group.
struct Tile {
    int64_t rows, group, dim, position, window;
    int64_t first, end;  // all keys that any row sees
    float* queries;  // [rows, dim], rotated and scaled: scores are powers of two
    float* keys;  // [dim, 64]
    float* values;  // [64, dim]; unused where the cache holds floats
    float* weights;  // [rows, 64]
    float* mixed;  // [rows, dim]: of one part
    float* fade;  // [rows]: what a row's earlier blocks count now
    float* maximum;  // [rows]
    float* sums;  // [rows, 16]

    static int64_t floats(int64_t rows, int64_t dim) {
        return 2 * (rows + kBlock) * dim + rows * (kBlock + 32);
    }
    void lay_out(float* memory) {
        queries = memory;
        keys = queries + rows * dim;
        values = keys + kBlock * dim;
        weights = values + kBlock * dim;
        mixed = weights + rows * kBlock;
        sums = mixed + rows * dim;
        fade = sums + rows * 16;
        maximum = fade + rows;
    }
    int64_t last_key(int64_t row) const { return position + row / group; }
    bool whole(int64_t row, int64_t count, int64_t key) const {  // rows see all of [key, key + 64)
        return last_key(row) >= key + kBlock - 1 && first_key(row + count - 1) <= key;
    }
    int64_t first_key(int64_t row) const { return std::max<int64_t>(0, last_key(row) - window + 1); }
};

inline uint64_t low_bits(int64_t count) {
    return count <= 0 ? 0 : count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

// x[i]: the vector at place d of key k + i; of keys from `count` on, where anything may be, nothing is read.
// The same place of the values, which come next, is called from memory: both are read as fast as memory gives them.
template <class Code, class Load>
inline __attribute__((always_inline)) void load_lines(const Code* keys, int64_t k, int64_t count, int64_t dim,
                                                      int64_t d, const Code* values, Load load, __m512 (&x)[16]) {
    const Code* key = keys + k * dim + d;
    if (k + 16 <= count) {
        const Code* value = values + k * dim + d;
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i, key += dim, value += dim) {
            x[i] = load(key);
            _mm_prefetch(value, _MM_HINT_T1);
        }
    } else {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) x[i] = k + i < count ? load(key + i * dim) : _mm512_setzero_ps();
    }
}

// x[i]: dim d + i of keys [k, k + 16)
template <class Code>
inline __attribute__((always_inline)) void load_keys(const Code* keys, int64_t k, int64_t count, int64_t dim, int64_t d,
                                                     const Code* values, __m512 (&x)[16]) {
    load_lines(keys, k, count, dim, d, values, [](const Code* key) { return load16(key); }, x);
    transpose(x);
}

template <class Code>
inline void transpose_keys(const Code* keys, int64_t count, int64_t dim, const Code* values, float* to) {
    for (int64_t k = 0; k < kBlock; k += 16) {
        for (int64_t d = 0; d < dim; d += 16) {
            __m512 x[16];
            load_keys(keys, k, count, dim, d, values, x);
#pragma GCC unroll 16
            for (int64_t i = 0; i < 16; ++i) _mm512_store_ps(to + (d + i) * kBlock + k, x[i]);
        }
    }
}

// Scores of a row with 64 keys become weights; the row's maximum and sum go on. whole: it sees all of them.
inline __attribute__((always_inline)) void soften(const Tile& tile, int64_t row, int64_t key, bool whole,
                                                  __m512 (&score)[4]) {
    if (!whole) {
        const uint64_t seen = low_bits(tile.last_key(row) + 1 - key) & ~low_bits(tile.first_key(row) - key);
        const __m512 nothing = _mm512_set1_ps(-__builtin_inff());
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) {
            score[c] = _mm512_mask_mov_ps(nothing, static_cast<__mmask16>(seen >> 16 * c), score[c]);
        }
    }
    const float highest = _mm512_reduce_max_ps(
        _mm512_max_ps(_mm512_max_ps(score[0], score[1]), _mm512_max_ps(score[2], score[3])));
    const float before = tile.maximum[row], maximum = std::max(before, highest);
    const float fade = maximum == before ? 1.0f : exp2(before - maximum);
    const __m512 top = _mm512_set1_ps(maximum);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
        score[c] = exp2(_mm512_sub_ps(score[c], top));
        _mm512_store_ps(tile.weights + row * kBlock + 16 * c, score[c]);
    }
    const __m512 sum = _mm512_add_ps(_mm512_add_ps(score[0], score[1]), _mm512_add_ps(score[2], score[3]));
    float* sums = tile.sums + row * 16;
    _mm512_storeu_ps(sums, _mm512_fmadd_ps(_mm512_loadu_ps(sums), _mm512_set1_ps(fade), sum));
    tile.maximum[row] = maximum;
    tile.fade[row] = fade;
}

// Of the block's four vectors of keys, the first `Columns` are seen by one of the rows at least.
template <int Rows, int Columns>
inline void weigh_columns(const Tile& tile, int64_t row, int64_t key) {
    __m512 sum[Rows][Columns];
    for (auto& line : sum)
        for (auto& x : line) x = _mm512_setzero_ps();
    multiply<Rows, Columns, float>(tile.queries + row * tile.dim, tile.dim, tile.keys, kBlock, tile.dim, sum);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
        __m512 score[4];
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) score[c] = c < Columns ? sum[r][c < Columns ? c : 0] : _mm512_setzero_ps();
        soften(tile, row + r, key, tile.whole(row, Rows, key), score);
    }
}

template <int Rows>
void weigh(const Tile& tile, int64_t row, int64_t key) {
    switch ((tile.last_key(row + Rows - 1) - key) / 16) {
        case 0: return weigh_columns<Rows, 1>(tile, row, key);
        case 1: return weigh_columns<Rows, 2>(tile, row, key);
        case 2: return weigh_columns<Rows, 3>(tile, row, key);
        default: return weigh_columns<Rows, 4>(tile, row, key);
    }
}

// The same for a tile of few rows, without a transposed copy of the keys.
template <int Rows, class Code>
void weigh_few(const Tile& tile, const Code* keys, int64_t key, int64_t count, const Code* values) {
    __m512 score[Rows][4];
#pragma GCC unroll 1
    for (int64_t k = 0; k < kBlock; k += 16) {
        __m512 sum[Rows];
        for (auto& x : sum) x = _mm512_setzero_ps();
        for (int64_t d = 0; k < count && d < tile.dim; d += 16) {
            __m512 x[16];
            load_keys(keys, k, count, tile.dim, d, values, x);
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i)
#pragma GCC unroll 8
                for (int r = 0; r < Rows; ++r)
                    sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(tile.queries[r * tile.dim + d + i]), x[i], sum[r]);
        }
        for (int r = 0; r < Rows; ++r) score[r][k / 16] = sum[r];
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) soften(tile, r, key, tile.whole(0, Rows, key), score[r]);
}

// And for codes of heads of a multiple of 64: transposed four bytes at a time, [dim / 4, 64 keys], taken apart after.
template <int Rows>
void weigh_few_codes(const Tile& tile, const int8_t* keys, int64_t key, int64_t count, const int8_t* values) {
    if (tile.dim % 64 != 0) return weigh_few<Rows, int8_t>(tile, keys, key, count, values);
    for (int64_t k = 0; k < kBlock; k += 16) {
        for (int64_t d = 0; d < tile.dim; d += 64) {
            __m512 x[16];
            const auto load = [](const int8_t* line) { return _mm512_loadu_ps(line); };
            load_lines(keys, k, count, tile.dim, d, values, load, x);
            transpose(x);
#pragma GCC unroll 16
            for (int64_t i = 0; i < 16; ++i) _mm512_store_ps(tile.keys + (d / 4 + i) * kBlock + k, x[i]);
        }
    }
    __m512 sum[Rows][4];
    for (auto& line : sum)
        for (auto& x : line) x = _mm512_setzero_ps();
    const float* line = tile.keys;
    for (int64_t d = 0; d < tile.dim; d += 4, line += kBlock) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            __m512 code[4];
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c) {
                const __m512i four = _mm512_castps_si512(_mm512_load_ps(line + 16 * c));
                code[c] = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(four, 24 - 8 * j), 24));
            }
#pragma GCC unroll 8
            for (int r = 0; r < Rows; ++r) {
                const __m512 query = _mm512_set1_ps(tile.queries[r * tile.dim + d + j]);
#pragma GCC unroll 4
                for (int c = 0; c < 4; ++c) sum[r][c] = _mm512_fmadd_ps(query, code[c], sum[r][c]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) soften(tile, r, key, tile.whole(0, Rows, key), sum[r]);
}

template <int Rows, int Columns, class Code>
inline void mix_columns(const Tile& tile, int64_t row, int64_t column, const Code* values, int64_t from, int64_t to,
                        const char* next, size_t fetched) {
    __m512 sum[Rows][Columns];
    float* mixed = tile.mixed + row * tile.dim + column;
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < Columns; ++c)
            sum[r][c] = _mm512_mul_ps(_mm512_loadu_ps(mixed + r * tile.dim + 16 * c),
                                      _mm512_set1_ps(tile.fade[row + r]));
    multiply<Rows, Columns, Code>(tile.weights + row * kBlock + from, kBlock, values + from * tile.dim + column,
                                  tile.dim, to - from, sum, next, fetched);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < Columns; ++c) _mm512_storeu_ps(mixed + r * tile.dim + 16 * c, sum[r][c]);
}

// values [64, dim] of which keys [from, to) are seen by one of the rows at least
template <int Rows, class Code>
void mix(const Tile& tile, int64_t row, const Code* values, int64_t from, int64_t to, const char* next,
         size_t fetched) {
    int64_t column = 0;
    for (; column + 64 <= tile.dim; column += 64) {
        mix_columns<Rows, 4, Code>(tile, row, column, values, from, to, next, fetched);
        next += fetched * (to - from);
    }
    for (; column < tile.dim; column += 16) mix_columns<Rows, 1, Code>(tile, row, column, values, from, to, nullptr, 0);
}

using Weigh = void (*)(const Tile&, int64_t, int64_t);
template <class Code>
using Mix = void (*)(const Tile&, int64_t, const Code*, int64_t, int64_t, const char*, size_t);
constexpr Weigh kWeigh[] = {nullptr, weigh<1>, weigh<2>, weigh<3>, weigh<4>, weigh<5>, weigh<6>};
template <class Code>
constexpr Mix<Code> kMix[] = {nullptr,      mix<1, Code>, mix<2, Code>, mix<3, Code>,
                              mix<4, Code>, mix<5, Code>, mix<6, Code>};

inline const float* as_floats(const float* values, int64_t, int64_t, float*) { return values; }
template <class Code>
const float* as_floats(const Code* values, int64_t count, int64_t dim, float* to) {
    for (int64_t i = 0; i < count * dim; i += 16) _mm512_store_ps(to + i, load16(values + i));
    return to;
}

template <class Code>
using WeighFew = void (*)(const Tile&, const Code*, int64_t, int64_t, const Code*);
template <class Code>
constexpr WeighFew<Code> kWeighFew[] = {nullptr,
                                        weigh_few<1, Code>,
                                        weigh_few<2, Code>,
                                        weigh_few<3, Code>,
                                        weigh_few<4, Code>,
                                        weigh_few<5, Code>,
                                        weigh_few<6, Code>};
template <>
constexpr WeighFew<int8_t> kWeighFew<int8_t>[] = {nullptr,
                                                  weigh_few_codes<1>,
                                                  weigh_few_codes<2>,
                                                  weigh_few_codes<3>,
                                                  weigh_few_codes<4>,
                                                  weigh_few_codes<5>,
                                                  weigh_few_codes<6>};

// Keys [key, key + 64) and their values, of which the first `count` are tokens. more: the caller goes on with the next
// block, whose keys are called from memory while these values are summed.
template <class Code>
void attend_block(const Tile& tile, const Code* keys, const Code* values, int64_t key, int64_t count, bool more) {
    keys += key * tile.dim;
    values += key * tile.dim;
    const char* next = reinterpret_cast<const char*>(keys + kBlock * tile.dim);
    const size_t fetched = more ? tile.dim * sizeof(Code) / std::max<int64_t>(1, tile.dim / 64) : 0;
    if (tile.rows <= kRows) {
        kWeighFew<Code>[tile.rows](tile, keys, key, count, values);
        kMix<Code>[tile.rows](tile, 0, values, std::max<int64_t>(0, tile.first - key), count, next,
                               fetched);
        return;
    }
    transpose_keys(keys, count, tile.dim, values, tile.keys);
    const float* floats = as_floats(values, count, tile.dim, tile.values);
    const auto each = [&](auto work) {
        for (int64_t row = 0; row < tile.rows; row += kRows) {
            const int64_t rows = std::min<int64_t>(kRows, tile.rows - row);
            const int64_t from = std::max<int64_t>(0, tile.first_key(row) - key);
            const int64_t to = std::min(count, tile.last_key(row + rows - 1) + 1 - key);
            if (from < to) work(rows, row, from, to);
        }
    };
    each([&](int64_t rows, int64_t row, int64_t, int64_t) { kWeigh[rows](tile, row, key); });
    each([&](int64_t rows, int64_t row, int64_t from, int64_t to) { 
        kMix<float>[rows](tile, row, floats, from, to, next, row == 0 ? fetched : 0);
    });
}

// Leaves mixed, maximum and sums of keys [begin, end), a part. keys, values: of one row of the cache and one head.
// until: where the caller's next parts end.
template <class Code>
void attend_part(const Tile& tile, const Code* keys, const Code* values, int64_t begin, int64_t end, int64_t until) {
    std::memset(tile.mixed, 0, tile.rows * tile.dim * sizeof(float));
    std::memset(tile.sums, 0, tile.rows * 16 * sizeof(float));
    std::fill(tile.maximum, tile.maximum + tile.rows, kNone);
    begin = std::max(begin, tile.first / kBlock * kBlock);
    end = std::min(end, tile.end);
    until = std::min(until, tile.end);
    for (int64_t key = begin; key < end; key += kBlock) {
        attend_block(tile, keys, values, key, std::min(kBlock, end - key), key + kBlock < until);
    }
}

}  // namespace hermes
