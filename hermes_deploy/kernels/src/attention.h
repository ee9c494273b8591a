// Grouped-query attention over a cache, for x86-64 with AVX-512 (F, BW, VL, VNNI). Pure functions, no ONNX Runtime.
#pragma once
#include <cstddef>
#include <cstdint>

#include "parallel.h"

namespace hermes {

enum class CacheType : int32_t { f32 = 0, f16 = 1, i8 = 2 };

struct AttentionShape {
    int64_t heads, kv_heads, head_dim;  // head_dim: a multiple of 16 up to 256 (64 and 128 are the ones that matter)
    int64_t context;                    // tokens that a row of the cache has room for
    int64_t window;                     // tokens that a query sees, itself included; <= 0: all
    float scale;                        // of q.k
    CacheType cache;
};

struct AttentionCall {
    int64_t batch, tokens;       // B rows with S new tokens each
    const float* qkv;            // [B, S, (heads + 2 kv_heads) * head_dim]
    const float* cos;            // [>= context, head_dim / 2], rotation of halves (not interleaved)
    const float* sin;
    const int32_t* last;         // [B]: position of the last new token (seqlens_k of GroupQueryAttention), < context;
                                 // tokens that would stand before 0 are padding: not written, mixed is 0
    void* keys;                  // [B, kv_heads, context, head_dim] of the cache type; new ones are written here
    void* values;
    const float* key_scale;      // i8 only: [kv_heads, head_dim], code = clamp(round_half_even(x / scale), -128, 127)
    const float* value_scale;
    float* mixed;                // [B, S, heads * head_dim]
};

// Same result whatever the threads, the batch and how the tokens were cut into calls (up to the order of float sums,
// and even that fixed for a token wherever it can be).
void attend(const AttentionShape& shape, const AttentionCall& call, const Parallel& parallel);

}  // namespace hermes
