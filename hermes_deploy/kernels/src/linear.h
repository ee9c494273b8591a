// A linear whose weights are 4 or 8 bit codes in blocks along K, for x86-64 with AVX-512 VNNI. No ONNX Runtime here.
//
// Activations are coded in int8, a scale for each 32 of a row. Every row of the result is computed alike, whatever
// the rows beside it: the same sums in the same order, so the bits do not depend on the batch.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "parallel.h"

namespace hermes {

struct LinearShape {
    int64_t inputs;      // K, a multiple of 32
    int64_t outputs;     // N
    int64_t block;       // K that share a scale, a multiple of 32
    int bits;            // 4 or 8
    bool gated;          // N is gate then up: the result is silu(gate) * up, [rows, N / 2]; N a multiple of 32
};

// What is done to the input first: total = x + residual, [rows, K], and of that the root mean square norm.
struct AddNorm {
    const float* residual;  // [rows, K]
    const float* weight;    // [K]
    float epsilon;
    float* total;           // [rows, K]: written
};

class Linear {
public:
    // As ONNX stores a DequantizeLinear of axis 0: codes [K, N] (4 bits: two columns a byte, the first one low; unsigned, or
    // int8 if bits is 8), scales [K / block, N], zero points as the codes or null (8, or 0 for int8).
    Linear(const LinearShape& shape, const uint8_t* codes, const float* scales, const uint8_t* zeros);

    // x [rows, K] to y [rows, N] (gated: [rows, N / 2]); `before` may be null.
    void run(const float* x, int64_t rows, float* y, const AddNorm* before, const Parallel& parallel) const;

private:
    LinearShape shape_;
    int64_t block_bytes_;
    std::shared_ptr<uint8_t> weights_;
};

}  // namespace hermes
