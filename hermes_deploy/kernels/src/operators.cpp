// The operators of domain "hermes" for ONNX Runtime. Each makes its kernel from the node's constant inputs.
#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention.h"
#include "linear.h"
#include "ort.h"

namespace hermes {
namespace {

using ort::Api;

std::atomic<int> threads{1};  // of the sessions that are made from now on

// What a status says becomes an exception here, and every exception a status at the border.
struct Failed : std::exception {
    explicit Failed(ort::Status* s) : status(s) {}
    ort::Status* status;
};

void check(ort::Status* status) {
    if (status) throw Failed(status);
}

template <class F>
ort::Status* guarded(const Api& api, const F& f) noexcept {
    try {
        f();
        return nullptr;
    } catch (const Failed& failed) {
        return failed.status;
    } catch (const std::exception& error) {
        return api.fail(error.what());
    }
}

struct Tensor {
    const void* data = nullptr;
    std::vector<int64_t> dims;
    int element = 0;

    bool is(int type, std::initializer_list<int64_t> wanted) const {
        if (element != type || dims.size() != wanted.size()) return false;
        size_t i = 0;
        for (int64_t each : wanted)
            if (dims[i++] != each) return false;
        return true;
    }
};

Tensor read(const Api& api, const ort::Value* value) {
    Tensor found;
    if (!value) return found;
    ort::Shape* shape = nullptr;
    check(api.shape(value, &shape));
    const std::unique_ptr<ort::Shape, std::function<void(ort::Shape*)>> kept(shape, [&](ort::Shape* s) { api.release(s); });
    size_t rank = 0;
    check(api.rank(shape, &rank));
    found.dims.resize(rank);
    check(api.dimensions(shape, found.dims.data(), rank));
    check(api.element(shape, &found.element));
    void* data = nullptr;
    check(api.data(value, &data));
    found.data = data;
    return found;
}

Tensor input(const Api& api, const ort::Context* context, size_t index) {
    const ort::Value* value = nullptr;
    check(api.input(context, index, &value));
    return read(api, value);
}

Tensor constant(const Api& api, const ort::Info* info, size_t index, const char* what) {
    int is_constant = 0;
    const ort::Value* value = nullptr;
    check(api.constant(info, index, &is_constant, &value));
    if (!is_constant) throw std::invalid_argument(std::string(what) + " of a hermes operator must be an initializer");
    return read(api, value);
}

// Whether all of it is mapped from one file, by what the kernel says.
bool of_file(uintptr_t first, uintptr_t last) {
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        unsigned long from, to, inode;
        char kind[5];
        if (std::sscanf(line.c_str(), "%lx-%lx %4s %*s %*s %lu", &from, &to, kind, &inode) == 4 && from <= first && last <= to)
            return inode != 0;
    }
    return false;
}

// The pages of a mapped file that were read and are laid out anew: the process does without them, the page cache keeps them.
void give_back(const void* data, size_t bytes) {
    constexpr uintptr_t page = 4096;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
    if (last > first && of_file(first, last)) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

template <class T>
T attribute(const Api& api, const ort::Info* info, const char* name) {
    T found{};
    check(api.attribute(info, name, &found));
    return found;
}

void* output(const Api& api, ort::Context* context, size_t index, const std::vector<int64_t>& dims) {
    ort::Value* value = nullptr;
    check(api.output(context, index, dims.data(), dims.size(), &value));
    void* data = nullptr;
    check(api.data(value, &data));
    return data;
}

struct Pool {
    const Api& api;
    const ort::Context* context;
    Parallel parallel(int threads) {
        return {[](void* self, void (*work)(void*, size_t), void* argument, size_t count) {
                    const Pool& pool = *static_cast<Pool*>(self);
                    // one batch an index: the caller has cut the work into as many as it wants
                    check(pool.api.parallel(pool.context, work, count, count, argument));
                },
                this, threads};
    }
};

// Linear: x, codes, scales (4 bits: and zero points) to y. AddNormLinear: the same behind x, residual, norm weight; to y, total.
template <bool Norm>
class LinearKernel {
public:
    LinearKernel(const Api& api, const ort::Info* info)
        : api_(api), threads_(threads), gated_(attribute<int64_t>(api, info, "gated") != 0) {
        constexpr size_t first = Norm ? 3 : 1;
        const Tensor codes = constant(api, info, first, "weight"), scales = constant(api, info, first + 1, "scale");
        const int bits = codes.element == ort::kUint4 ? 4 : 8;
        const Tensor zeros = bits == 4 ? constant(api, info, first + 2, "zero point") : Tensor{};
        if (codes.dims.size() != 2) throw std::invalid_argument("the weight of a hermes linear is to be UINT4 or INT8 [K, N]");
        inputs_ = codes.dims[0];
        outputs_ = codes.dims[1];
        const int64_t blocks = scales.dims.empty() ? 0 : scales.dims[0];
        if (blocks < 1 || inputs_ % blocks || inputs_ / blocks % 32 || (gated_ && outputs_ % 32) || !scales.is(ort::kFloat, {blocks, outputs_}))
            throw std::invalid_argument("the scales of a hermes linear are to be float [K / block, N], block a multiple of 32 (gated: N too)");
        if (bits == 4 && !zeros.is(codes.element, {blocks, outputs_}))
            throw std::invalid_argument("the zero points of a hermes linear are to be as its codes, [K / block, N]");
        if constexpr (Norm) {
            const Tensor weight = constant(api, info, 2, "norm weight");
            if (!weight.is(ort::kFloat, {inputs_})) throw std::invalid_argument("the norm weight of hermes.AddNormLinear is to be float [K]");
            const float* data = static_cast<const float*>(weight.data);
            norm_.assign(data, data + inputs_);
            epsilon_ = attribute<float>(api, info, "epsilon");
        }
        linear_ = std::make_unique<Linear>(LinearShape{inputs_, outputs_, inputs_ / blocks, bits, gated_}, static_cast<const uint8_t*>(codes.data),
                                           static_cast<const float*>(scales.data), static_cast<const uint8_t*>(zeros.data));
        give_back(codes.data, outputs_ * inputs_ * bits / 8);
        give_back(scales.data, blocks * outputs_ * sizeof(float));
    }

    void compute(ort::Context* context) const {
        const Tensor x = input(api_, context, 0);
        if (x.element != ort::kFloat || x.dims.empty() || x.dims.back() != inputs_) throw std::invalid_argument("the input of a hermes linear is to be float [..., K]");
        std::vector<int64_t> dims = x.dims;
        dims.back() = gated_ ? outputs_ / 2 : outputs_;
        int64_t rows = 1;
        for (size_t i = 0; i + 1 < dims.size(); ++i) rows *= dims[i];
        float* y = static_cast<float*>(output(api_, context, 0, dims));
        Pool pool{api_, context};
        if constexpr (Norm) {
            const Tensor residual = input(api_, context, 1);
            if (residual.element != ort::kFloat || residual.dims != x.dims) throw std::invalid_argument("the residual of hermes.AddNormLinear is to be as its input");
            const AddNorm before{static_cast<const float*>(residual.data), norm_.data(), epsilon_, static_cast<float*>(output(api_, context, 1, x.dims))};
            linear_->run(static_cast<const float*>(x.data), rows, y, &before, pool.parallel(threads_));
        } else {
            linear_->run(static_cast<const float*>(x.data), rows, y, nullptr, pool.parallel(threads_));
        }
    }

private:
    const Api& api_;
    int threads_;
    int64_t inputs_ = 0, outputs_ = 0;
    bool gated_;
    float epsilon_ = 0;
    std::vector<float> norm_;
    std::unique_ptr<Linear> linear_;
};

template <CacheType Cache>
constexpr int kElement = Cache == CacheType::f32 ? ort::kFloat : Cache == CacheType::f16 ? ort::kHalf : ort::kInt8;

// qkv, keys, values, last, cos, sin (8 bits: and scales of keys, of values) to what was mixed, keys, values. The caches are
// written where they are: the caller binds the same memory as input and output.
template <CacheType Cache>
class AttentionKernel {
public:
    AttentionKernel(const Api& api, const ort::Info* info) : api_(api), threads_(threads) {
        shape_.heads = attribute<int64_t>(api, info, "heads");
        shape_.kv_heads = attribute<int64_t>(api, info, "kv_heads");
        shape_.window = attribute<int64_t>(api, info, "window");
        shape_.scale = attribute<float>(api, info, "scale");
        shape_.cache = Cache;
        if (shape_.heads < 1 || shape_.kv_heads < 1 || shape_.heads % shape_.kv_heads) throw std::invalid_argument("the heads of hermes.Attention do not share its kv_heads evenly");
    }

    void compute(ort::Context* context) const {
        const Tensor qkv = input(api_, context, 0), keys = input(api_, context, 1), values = input(api_, context, 2);
        const Tensor last = input(api_, context, 3), cos = input(api_, context, 4), sin = input(api_, context, 5);
        if (keys.dims.size() != 4 || qkv.dims.size() != 3) throw std::invalid_argument("hermes.Attention takes qkv [B, S, ..] and caches [B, kv_heads, context, head_dim]");
        AttentionShape shape = shape_;
        shape.context = keys.dims[2];
        shape.head_dim = keys.dims[3];
        const int64_t batch = qkv.dims[0], tokens = qkv.dims[1], d = shape.head_dim;
        const auto wanted = [](bool met, const char* what) {
            if (!met) throw std::invalid_argument(std::string("hermes.Attention: ") + what);
        };
        wanted(qkv.is(ort::kFloat, {batch, tokens, (shape.heads + 2 * shape.kv_heads) * d}), "qkv is to be float [B, S, (heads + 2 kv_heads) * head_dim]");
        wanted(keys.is(kElement<Cache>, {batch, shape.kv_heads, shape.context, d}) && values.dims == keys.dims && values.element == keys.element,
               "the caches are to be [B, kv_heads, context, head_dim]");
        wanted(last.is(ort::kInt32, {batch}), "seqlens_k is to be int32 [B]");
        wanted(d % 16 == 0 && d <= 256, "head_dim is to be a multiple of 16, at most 256");
        wanted(cos.dims.size() == 2 && cos.dims[1] == d / 2 && sin.dims == cos.dims, "cos and sin are to be [positions, head_dim / 2]");
        const int32_t* ends = static_cast<const int32_t*>(last.data);
        for (int64_t b = 0; b < batch; ++b)
            wanted(ends[b] >= tokens - 1 && ends[b] < shape.context && ends[b] < cos.dims[0], "a row ends outside its cache");
        AttentionCall call{};
        call.batch = batch;
        call.tokens = tokens;
        call.qkv = static_cast<const float*>(qkv.data);
        call.cos = static_cast<const float*>(cos.data);
        call.sin = static_cast<const float*>(sin.data);
        call.last = ends;
        call.mixed = static_cast<float*>(output(api_, context, 0, {batch, tokens, shape.heads * d}));
        call.keys = output(api_, context, 1, keys.dims);
        call.values = output(api_, context, 2, values.dims);
        wanted(call.keys == keys.data && call.values == values.data, "present is to be bound to the memory of past");
        if constexpr (Cache == CacheType::i8) {
            const Tensor key_scale = input(api_, context, 6), value_scale = input(api_, context, 7);
            wanted(key_scale.is(ort::kFloat, {1, shape.kv_heads, 1, d}) && value_scale.is(ort::kFloat, {1, shape.kv_heads, 1, d}), "scales are to be float [1, kv_heads, 1, head_dim]");
            call.key_scale = static_cast<const float*>(key_scale.data);
            call.value_scale = static_cast<const float*>(value_scale.data);
        }
        if (batch && tokens) {
            Pool pool{api_, context};
            attend(shape, call, pool.parallel(threads_));
        }
    }

private:
    const Api& api_;
    int threads_;
    AttentionShape shape_{};
};

struct Signature {
    const char* name;
    std::vector<int> inputs, outputs;
};

template <class Kernel>
struct Registered : ort::Operator {
    Signature signature;

    explicit Registered(Signature s) : signature(std::move(s)) {
        name = [](const ort::Operator* op) { return of(op).name; };
        provider = [](const ort::Operator*) -> const char* { return nullptr; };
        input_type = [](const ort::Operator* op, size_t i) { return of(op).inputs[i]; };
        input_count = [](const ort::Operator* op) { return of(op).inputs.size(); };
        output_type = [](const ort::Operator* op, size_t i) { return of(op).outputs[i]; };
        output_count = [](const ort::Operator* op) { return of(op).outputs.size(); };
        input_presence = [](const ort::Operator*, size_t) -> int { return ort::kRequired; };
        output_presence = [](const ort::Operator*, size_t) -> int { return ort::kRequired; };
        input_memory = [](const ort::Operator*, size_t) { return 0; };
        variadic_input_least = [](const ort::Operator*) { return 1; };
        variadic_input_alike = [](const ort::Operator*) { return 1; };
        variadic_output_least = [](const ort::Operator*) { return 1; };
        variadic_output_alike = [](const ort::Operator*) { return 1; };
        first_version = [](const ort::Operator*) { return 1; };
        last_version = [](const ort::Operator*) { return 0x7fffffff; };
        create = [](const ort::Operator*, const Api* api, const ort::Info* info, void** made) {
            return guarded(*api, [&] { *made = new Held{*api, Kernel(*api, info)}; });
        };
        compute = [](void* held, ort::Context* context) {
            const Held& kernel = *static_cast<Held*>(held);
            return guarded(kernel.api, [&] { kernel.kernel.compute(context); });
        };
        destroy = [](void* held) { delete static_cast<Held*>(held); };
    }

private:
    struct Held {
        const Api& api;
        Kernel kernel;
    };
    static const Signature& of(const ort::Operator* op) { return static_cast<const Registered*>(op)->signature; }
};

const Registered<LinearKernel<false>> kLinear4({"Linear4", {ort::kFloat, ort::kUint4, ort::kFloat, ort::kUint4}, {ort::kFloat}});
const Registered<LinearKernel<false>> kLinear8({"Linear8", {ort::kFloat, ort::kInt8, ort::kFloat}, {ort::kFloat}});
const Registered<LinearKernel<true>> kAddNormLinear4(
    {"AddNormLinear4", {ort::kFloat, ort::kFloat, ort::kFloat, ort::kUint4, ort::kFloat, ort::kUint4}, {ort::kFloat, ort::kFloat}});
const Registered<LinearKernel<true>> kAddNormLinear8(
    {"AddNormLinear8", {ort::kFloat, ort::kFloat, ort::kFloat, ort::kInt8, ort::kFloat}, {ort::kFloat, ort::kFloat}});

const Registered<AttentionKernel<CacheType::f32>> kAttention32(
    {"Attention32", {ort::kFloat, ort::kFloat, ort::kFloat, ort::kInt32, ort::kFloat, ort::kFloat}, {ort::kFloat, ort::kFloat, ort::kFloat}});
const Registered<AttentionKernel<CacheType::i8>> kAttention8(
    {"Attention8",
     {ort::kFloat, ort::kInt8, ort::kInt8, ort::kInt32, ort::kFloat, ort::kFloat, ort::kFloat, ort::kFloat},
     {ort::kFloat, ort::kInt8, ort::kInt8}});

const ort::Operator* const kAll[] = {&kLinear4, &kLinear8, &kAddNormLinear4, &kAddNormLinear8, &kAttention32, &kAttention8};

}  // namespace
}  // namespace hermes

extern "C" {

// 1 where this machine has the instructions, 0 where it has not.
int hermes_kernels_supported() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

// Threads that the kernels of sessions made from now on share their work over: those of the session.
void hermes_kernels_threads(int count) { hermes::threads = count; }

ort::Status* RegisterCustomOps(ort::Options* options, const ort::Base* base) {
    const ort::Api* api = base->api(ort::kVersion);
    if (!api) return nullptr;
    static ort::Domain* domain = nullptr;  // lives as long as the library, which ONNX Runtime never unloads
    if (!domain) {
        if (auto* failed = api->make_domain("hermes", &domain)) return failed;
        for (const ort::Operator* op : hermes::kAll)
            if (auto* failed = api->add_operator(domain, op)) return failed;
    }
    return api->add_domain(options, domain);
}
}
