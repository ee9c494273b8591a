// Vectors: 16 floats at a time, out of a cache of any type. AVX-512 F, BW and VL.
//
// A sum is always taken in one order (over head_dim for a score, over keys for a value), whatever the number of
// rows at a time: a row's bits do not depend on its neighbours. No contraction is left to the compiler
// (-ffp-contract=off): where a product is added it says fmadd.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace hermes {

struct Half {
    uint16_t bits;
};

inline __m512 load16(const float* from) { return _mm512_loadu_ps(from); }
inline __m512 load16(const Half* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline __m512 load16(const int8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

// scale: of 16 channels; only codes have one
inline void store16(float* to, __m512 x, const float*) { _mm512_storeu_ps(to, x); }
inline void store16(Half* to, __m512 x, const float*) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline void store16(int8_t* to, __m512 x, const float* scale) {
    __m512 code = _mm512_div_ps(x, _mm512_loadu_ps(scale));
    // clamped as floats: a float out of range has no int32
    code = _mm512_min_ps(_mm512_max_ps(code, _mm512_set1_ps(-128.0f)), _mm512_set1_ps(127.0f));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(code)));
}

// 2^x for x <= 0, within 2e-7 of it; 0 below 2^-126; exactly 1 at 0; NaN stays NaN.
inline __m512 exp2(__m512 x) {
    const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 rest = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(1.5403530394e-4f);  // ln(2)^n / n!
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.3333558146e-3f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(9.6181291076e-3f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(5.5504108665e-2f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(2.4022650696e-1f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(6.9314718056e-1f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(counts, y, whole);
}

inline float exp2(float x) { return _mm512_cvtss_f32(exp2(_mm512_set1_ps(x))); }

// x[i][j] becomes x[j][i]
inline __attribute__((always_inline)) void transpose(__m512 (&x)[16]) {
    __m512 y[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {  // x[i + j]: column 4 l + j of rows i to i + 3, l the lane of 4
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            const __m512d low = _mm512_castps_pd(y[i + j]), high = _mm512_castps_pd(y[i + 2 + j]);
            x[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            x[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        y[j] = _mm512_shuffle_f32x4(x[j], x[4 + j], 0x88);  // lanes 0 2 of rows 0 to 3, then of rows 4 to 7
        y[4 + j] = _mm512_shuffle_f32x4(x[j], x[4 + j], 0xdd);
        y[8 + j] = _mm512_shuffle_f32x4(x[8 + j], x[12 + j], 0x88);
        y[12 + j] = _mm512_shuffle_f32x4(x[8 + j], x[12 + j], 0xdd);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        x[j] = _mm512_shuffle_f32x4(y[j], y[8 + j], 0x88);
        x[8 + j] = _mm512_shuffle_f32x4(y[j], y[8 + j], 0xdd);
        x[4 + j] = _mm512_shuffle_f32x4(y[4 + j], y[12 + j], 0x88);
        x[12 + j] = _mm512_shuffle_f32x4(y[4 + j], y[12 + j], 0xdd);
    }
}

// sum[r][c] += a[r][k] * b[k][16 c ..] for k < depth, in that order. With each k, `fetched` bytes more of `next` are
// called from memory.
template <int Rows, int Columns, class Code>
inline __attribute__((always_inline)) void multiply(const float* a, size_t a_stride, const Code* b, size_t b_stride,
                                                    size_t depth, __m512 (&sum)[Rows][Columns],
                                                    const char* next = nullptr, size_t fetched = 0) {
    for (size_t k = 0; k < depth; ++k, b += b_stride) {
        for (size_t i = 0; i < fetched; i += 64) _mm_prefetch(next + i, _MM_HINT_T1);
        next += fetched;
        __m512 line[Columns];
#pragma GCC unroll 4
        for (int c = 0; c < Columns; ++c) line[c] = load16(b + 16 * c);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            const __m512 x = _mm512_set1_ps(a[r * a_stride + k]);
#pragma GCC unroll 4
            for (int c = 0; c < Columns; ++c) sum[r][c] = _mm512_fmadd_ps(x, line[c], sum[r][c]);
        }
    }
}

}  // namespace hermes
