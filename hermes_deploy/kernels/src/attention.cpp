// Who computes which tile of attention, and how parts of the context become one answer.
//
// A group is one head of keys of one row with the query rows of some tokens. Many groups: a thread takes a whole
// one. Few (decode): parts of the context are shared out and whoever finishes a group's last part merges them, in
// the order of the context. The bits are the same either way.
#include "attention.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>

#include "scratch.h"

// behind the headers: what they define is shared with code that also runs where these instructions are not
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")

#include "attention_tile.h"

namespace hermes {
namespace {

constexpr int64_t kTileRows = 96;   // a transposed block of keys costs 7% of what they compute
constexpr int64_t kLeastRows = 24;  // where larger tiles are too few for the threads
constexpr int64_t kPart = 256;     // keys, at least; longer where the cache has room for more than 32 of them
constexpr int64_t kAlone = 20000;  // floats of the cache that one thread reads sooner than another is woken
constexpr float kLog2E = 1.44269504088896f;

// 0.6 MB for a tile of 96 rows of 256
Scratch<float>& of_thread() {
    thread_local Scratch<float> scratch;
    return scratch;
}
Scratch<float>& of_caller() {
    thread_local Scratch<float> scratch;
    return scratch;
}

// An answer that grows part by part: mixed [rows, dim], peak [rows], sum [rows].
struct Answer {
    float *mixed, *peak, *sum;
    static int64_t floats(int64_t rows, int64_t dim) { return rows * (dim + 2); }
    Answer(float* memory, int64_t rows, int64_t dim)
        : mixed(memory), peak(memory + rows * dim), sum(memory + rows * dim + rows) {}
};

void take(const Tile& tile, const Answer& to) {
    std::memcpy(to.mixed, tile.mixed, tile.rows * tile.dim * sizeof(float));
    for (int64_t r = 0; r < tile.rows; ++r) {
        to.peak[r] = tile.maximum[r];
        to.sum[r] = _mm512_reduce_add_ps(_mm512_loadu_ps(tile.sums + 16 * r));
    }
}

void merge(const Answer& part, const Answer& to, int64_t rows, int64_t dim) {
    for (int64_t r = 0; r < rows; ++r) {
        const float peak = std::max(to.peak[r], part.peak[r]);
        const float old = exp2(to.peak[r] - peak), now = exp2(part.peak[r] - peak);
        for (int64_t d = r * dim; d < (r + 1) * dim; d += 16) {
            const __m512 before = _mm512_mul_ps(_mm512_loadu_ps(to.mixed + d), _mm512_set1_ps(old));
            const __m512 next = _mm512_loadu_ps(part.mixed + d);
            _mm512_storeu_ps(to.mixed + d, _mm512_fmadd_ps(next, _mm512_set1_ps(now), before));
        }
        to.sum[r] = __builtin_fmaf(part.sum[r], now, to.sum[r] * old);
        to.peak[r] = peak;
    }
}

// to = x rotated by a token's angles; halves of dim / 2, a multiple of 8
void rotate(const float* x, const float* cos, const float* sin, int64_t dim, float* to) {
    const int64_t half = dim / 2;
    for (int64_t i = 0; i < half; i += 16) {
        const __mmask16 some = half - i >= 16 ? 0xffff : 0xff;
        const __m512 a = _mm512_maskz_loadu_ps(some, x + i), b = _mm512_maskz_loadu_ps(some, x + half + i);
        const __m512 c = _mm512_maskz_loadu_ps(some, cos + i), s = _mm512_maskz_loadu_ps(some, sin + i);
        _mm512_mask_storeu_ps(to + i, some, _mm512_fnmadd_ps(b, s, _mm512_mul_ps(a, c)));
        _mm512_mask_storeu_ps(to + half + i, some, _mm512_fmadd_ps(a, s, _mm512_mul_ps(b, c)));
    }
}

template <class Code>
class Attention {
public:
    Attention(const AttentionShape& shape, const AttentionCall& call, const Parallel& parallel)
        : shape_(shape), call_(call), group_(shape.heads / shape.kv_heads), dim_(shape.head_dim) {
        window_ = shape.window > 0 ? shape.window : shape.context;
        part_ = std::max(kPart, (shape.context / 32 + kBlock - 1) / kBlock * kBlock);
        int64_t keys = 0;
        for (int64_t b = 0; b < call.batch; ++b) {
            const int64_t first = std::max<int64_t>(0, call.last[b] - call.tokens + 2 - window_);
            parts_ = std::max(parts_, call.last[b] / part_ + 1 - first / part_);
            keys += call.last[b] + 1 - first;
        }
        const int64_t threads = keys * shape.kv_heads * dim_ * call.tokens < kAlone ? 1 : parallel.threads;
        const int64_t pairs = call.batch * shape.kv_heads;
        int64_t rows = kTileRows;
        do {
            tile_tokens_ = std::clamp<int64_t>(rows / group_, 1, call.tokens);
            tiles_ = (call.tokens + tile_tokens_ - 1) / tile_tokens_;
            rows /= 2;
        } while (pairs * tiles_ * parts_ < 4 * threads && rows >= kLeastRows);
        groups_ = pairs * tiles_;
        alone_ = threads == 1;
        run_ = alone_ || groups_ >= 4 * threads ? parts_ : std::max<int64_t>(1, groups_ * parts_ / (8 * threads));
        runs_ = (parts_ + run_ - 1) / run_;
    }

    void run(const Parallel& parallel) {
        for (int64_t b = 0; b < call_.batch; ++b) {  // tokens before the start are padding
            const int64_t width = shape_.heads * dim_, padding = call_.tokens - 1 - call_.last[b];
            if (padding > 0) std::memset(call_.mixed + b * call_.tokens * width, 0, padding * width * sizeof(float));
        }
        // With one tile, who reads a part also writes the new keys and values that fall in it.
        if (tiles_ > 1) each(parallel, call_.batch * shape_.kv_heads * tiles_, [](void* self, size_t i) {
            static_cast<Attention*>(self)->write_tile(static_cast<int64_t>(i));
        });
        if (runs_ > 1) {
            const size_t floats = groups_ * parts_ * Answer::floats(tile_tokens_ * group_, dim_);
            answers_ = of_caller().reserve(floats + groups_);
            pending_ = reinterpret_cast<std::atomic<int32_t>*>(answers_ + floats);
            for (int64_t g = 0; g < groups_; ++g) new (pending_ + g) std::atomic<int32_t>(static_cast<int32_t>(runs_));
        }
        each(parallel, groups_ * runs_, [](void* self, size_t i) {
            static_cast<Attention*>(self)->attend(static_cast<int64_t>(i));
        });
    }

private:
    void each(const Parallel& parallel, int64_t count, void (*work)(void*, size_t)) {
        if (alone_) {
            for (int64_t i = 0; i < count; ++i) work(this, i);
        } else {
            parallel.run(parallel.pool, work, this, count);
        }
    }

    const float* new_token(int64_t b, int64_t s) const {
        return call_.qkv + (b * call_.tokens + s) * (shape_.heads + 2 * shape_.kv_heads) * dim_;
    }
    int64_t position(int64_t b, int64_t s) const { return call_.last[b] - call_.tokens + 1 + s; }
    Code* head_of(void* cache, int64_t b, int64_t head) const {
        return static_cast<Code*>(cache) + (b * shape_.kv_heads + head) * shape_.context * dim_;
    }

    void write(int64_t b, int64_t head, int64_t begin, int64_t end) const {
        alignas(64) float rotated[kMaxDim];
        for (int64_t s = begin; s < end; ++s) {
            const int64_t at = position(b, s);
            const float* key = new_token(b, s) + (shape_.heads + head) * dim_;
            const float* value = key + shape_.kv_heads * dim_;
            rotate(key, call_.cos + at * dim_ / 2, call_.sin + at * dim_ / 2, dim_, rotated);
            Code* keys = head_of(call_.keys, b, head) + at * dim_;
            Code* values = head_of(call_.values, b, head) + at * dim_;
            for (int64_t d = 0; d < dim_; d += 16) {
                store16(keys + d, _mm512_load_ps(rotated + d), call_.key_scale + head * dim_ + d);
                store16(values + d, _mm512_loadu_ps(value + d), call_.value_scale + head * dim_ + d);
            }
        }
    }

    struct Place {
        int64_t b, head, begin, end;  // tokens
    };
    Place place(int64_t group) const {
        const int64_t pair = group / tiles_, tile = tiles_ - 1 - group % tiles_;  // the longest first
        Place place{pair / shape_.kv_heads, pair % shape_.kv_heads, tile * tile_tokens_, 0};
        place.end = std::min(call_.tokens, place.begin + tile_tokens_);
        place.begin = std::max(place.begin, call_.tokens - 1 - call_.last[place.b]);
        return place;
    }

    void write_tile(int64_t group) const {
        const Place p = place(group);
        write(p.b, p.head, p.begin, p.end);
    }

    void load_queries(const Tile& tile, const Place& p) const {
        const __m512 scale = _mm512_set1_ps(shape_.scale * kLog2E);
        for (int64_t r = 0; r < tile.rows; ++r) {
            const int64_t s = p.begin + r / group_, at = position(p.b, s);
            float* query = tile.queries + r * dim_;
            rotate(new_token(p.b, s) + (p.head * group_ + r % group_) * dim_, call_.cos + at * dim_ / 2,
                   call_.sin + at * dim_ / 2, dim_, query);
            for (int64_t d = 0; d < dim_; d += 16) {
                __m512 x = _mm512_mul_ps(_mm512_loadu_ps(query + d), scale);
                if (coded) x = _mm512_mul_ps(x, _mm512_loadu_ps(call_.key_scale + p.head * dim_ + d));
                _mm512_storeu_ps(query + d, x);
            }
        }
    }

    void attend(int64_t item) {
        const int64_t group = item / runs_;
        const Place p = place(group);
        if (p.begin >= p.end) return;
        Tile tile{};
        tile.rows = (p.end - p.begin) * group_;
        tile.group = group_;
        tile.dim = dim_;
        tile.window = window_;
        tile.position = position(p.b, p.begin);
        tile.first = tile.first_key(0);
        tile.end = position(p.b, p.end);
        const int64_t first_part = tile.first / part_, end_part = (tile.end + part_ - 1) / part_;
        const int64_t begin = first_part + item % runs_ * run_, end = std::min(begin + run_, end_part);

        const int64_t of_answer = Answer::floats(tile.rows, dim_), of_tile = Tile::floats(tile.rows, dim_);
        float* memory = of_thread().reserve(of_tile + 2 * of_answer);
        tile.lay_out(memory);
        Answer total(memory + of_tile, tile.rows, dim_), next(memory + of_tile + of_answer, tile.rows, dim_);
        if (begin < end) load_queries(tile, p);
        for (int64_t part = begin; part < end; ++part) {
            const int64_t key = part * part_;
            if (tiles_ == 1) {
                const int64_t s = p.begin + key - tile.position;  // the token that stands at the part's first key
                write(p.b, p.head, std::max(p.begin, s), std::min(p.end, s + part_));
            }
            attend_part<Code>(tile, head_of(call_.keys, p.b, p.head), head_of(call_.values, p.b, p.head), key,
                              key + part_, end * part_);
            if (runs_ > 1) {
                take(tile, answer(group, part - first_part, tile.rows));
            } else {
                take(tile, part == begin ? total : next);
                if (part > begin) merge(next, total, tile.rows, dim_);
            }
        }
        if (runs_ > 1) {
            if (pending_[group].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
            total = answer(group, 0, tile.rows);
            for (int64_t i = 1; i < end_part - first_part; ++i) {
                merge(answer(group, i, tile.rows), total, tile.rows, dim_);
            }
        }
        finish(p, total);
    }

    Answer answer(int64_t group, int64_t slot, int64_t rows) const {
        return Answer(answers_ + (group * parts_ + slot) * Answer::floats(tile_tokens_ * group_, dim_), rows, dim_);
    }

    void finish(const Place& p, const Answer& total) const {
        const int64_t width = shape_.heads * dim_;
        float* mixed = call_.mixed + p.b * call_.tokens * width + p.head * group_ * dim_;
        for (int64_t r = 0; r < (p.end - p.begin) * group_; ++r) {
            float* to = mixed + (p.begin + r / group_) * width + r % group_ * dim_;
            const __m512 share = _mm512_set1_ps(1.0f / total.sum[r]);
            for (int64_t d = 0; d < dim_; d += 16) {
                __m512 x = _mm512_mul_ps(_mm512_loadu_ps(total.mixed + r * dim_ + d), share);
                if (coded) x = _mm512_mul_ps(x, _mm512_loadu_ps(call_.value_scale + p.head * dim_ + d));
                _mm512_storeu_ps(to + d, x);
            }
        }
    }

    static constexpr bool coded = std::is_same_v<Code, int8_t>;  // then the scales stand outside of all sums
    const AttentionShape& shape_;
    const AttentionCall& call_;
    const int64_t group_, dim_;
    int64_t window_, part_, tile_tokens_, tiles_, groups_;
    int64_t parts_ = 1;     // of the longest row
    int64_t run_, runs_;  // parts that one thread takes one after the other
    bool alone_;
    float* answers_ = nullptr;
    std::atomic<int32_t>* pending_ = nullptr;
};

}  // namespace

void attend(const AttentionShape& shape, const AttentionCall& call, const Parallel& parallel) {
    switch (shape.cache) {
        case CacheType::f32: return Attention<float>(shape, call, parallel).run(parallel);
        case CacheType::f16: return Attention<Half>(shape, call, parallel).run(parallel);
        case CacheType::i8: return Attention<int8_t>(shape, call, parallel).run(parallel);
    }
}

}  // namespace hermes
