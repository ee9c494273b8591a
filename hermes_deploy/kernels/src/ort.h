// What we call of ONNX Runtime's C interface, and the table by which it calls us.
//
// The interface only ever grows at its end, so the places are those of every version since 1.17; the places are
// checked by tests that run the operators in the installed version.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ort {

constexpr uint32_t kVersion = 17;

enum Element : int { kNone = 0, kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7, kHalf = 10, kUint4 = 21, kInt4 = 22 };
enum Presence : int { kRequired = 0, kOptional = 1 };

struct Status;
struct Value;
struct Shape;
struct Options;
struct Domain;
struct Info;     // of a node, while its kernel is made
struct Context;  // of one run of a kernel

struct Api {
    void* entries[275];

    template <class F>
    F at(int place) const { return reinterpret_cast<F>(entries[place]); }

    Status* fail(const char* why) const { return at<Status* (*)(int, const char*)>(0)(1, why); }
    void release(Status* status) const { at<void (*)(Status*)>(93)(status); }
    Status* make_domain(const char* name, Domain** made) const { return at<Status* (*)(const char*, Domain**)>(26)(name, made); }
    Status* add_operator(Domain* domain, const void* op) const { return at<Status* (*)(Domain*, const void*)>(27)(domain, op); }
    Status* add_domain(Options* options, Domain* domain) const { return at<Status* (*)(Options*, Domain*)>(28)(options, domain); }
    Status* data(const Value* value, void** found) const { return at<Status* (*)(const Value*, void**)>(51)(value, found); }
    Status* element(const Shape* shape, int* found) const { return at<Status* (*)(const Shape*, int*)>(60)(shape, found); }
    Status* rank(const Shape* shape, size_t* found) const { return at<Status* (*)(const Shape*, size_t*)>(61)(shape, found); }
    Status* dimensions(const Shape* shape, int64_t* found, size_t rank) const { return at<Status* (*)(const Shape*, int64_t*, size_t)>(62)(shape, found, rank); }
    Status* shape(const Value* value, Shape** found) const { return at<Status* (*)(const Value*, Shape**)>(65)(value, found); }
    void release(Shape* shape) const { at<void (*)(Shape*)>(99)(shape); }
    Status* attribute(const Info* info, const char* name, float* found) const { return at<Status* (*)(const Info*, const char*, float*)>(85)(info, name, found); }
    Status* attribute(const Info* info, const char* name, int64_t* found) const { return at<Status* (*)(const Info*, const char*, int64_t*)>(86)(info, name, found); }
    Status* input_count(const Context* context, size_t* found) const { return at<Status* (*)(const Context*, size_t*)>(88)(context, found); }
    Status* input(const Context* context, size_t index, const Value** found) const { return at<Status* (*)(const Context*, size_t, const Value**)>(90)(context, index, found); }
    Status* output(Context* context, size_t index, const int64_t* dims, size_t rank, Value** found) const {
        return at<Status* (*)(Context*, size_t, const int64_t*, size_t, Value**)>(91)(context, index, dims, rank, found);
    }
    Status* constant(const Info* info, size_t index, int* is_constant, const Value** found) const {
        return at<Status* (*)(const Info*, size_t, int*, const Value**)>(249)(info, index, is_constant, found);
    }
    Status* parallel(const Context* context, void (*work)(void*, size_t), size_t total, size_t batches, void* argument) const {
        return at<Status* (*)(const Context*, void (*)(void*, size_t), size_t, size_t, void*)>(274)(context, work, total, batches, argument);
    }
};

struct Base {
    const Api* (*api)(uint32_t version);
    const char* (*version)();
};

struct Operator {
    uint32_t version = kVersion;
    void* (*create_old)(const Operator*, const Api*, const Info*) = nullptr;
    const char* (*name)(const Operator*) = nullptr;
    const char* (*provider)(const Operator*) = nullptr;
    int (*input_type)(const Operator*, size_t) = nullptr;
    size_t (*input_count)(const Operator*) = nullptr;
    int (*output_type)(const Operator*, size_t) = nullptr;
    size_t (*output_count)(const Operator*) = nullptr;
    void (*compute_old)(void*, Context*) = nullptr;
    void (*destroy)(void*) = nullptr;
    int (*input_presence)(const Operator*, size_t) = nullptr;
    int (*output_presence)(const Operator*, size_t) = nullptr;
    int (*input_memory)(const Operator*, size_t) = nullptr;
    int (*variadic_input_least)(const Operator*) = nullptr;
    int (*variadic_input_alike)(const Operator*) = nullptr;
    int (*variadic_output_least)(const Operator*) = nullptr;
    int (*variadic_output_alike)(const Operator*) = nullptr;
    Status* (*create)(const Operator*, const Api*, const Info*, void**) = nullptr;
    Status* (*compute)(void*, Context*) = nullptr;
    Status* (*infer_shape)(const Operator*, void*) = nullptr;
    int (*first_version)(const Operator*) = nullptr;
    int (*last_version)(const Operator*) = nullptr;
    size_t (*may_inplace)(int**, int**) = nullptr;
    void (*release_may_inplace)(int*, int*) = nullptr;
    size_t (*alias_map)(int**, int**) = nullptr;
    void (*release_alias_map)(int*, int*) = nullptr;
};

}  // namespace ort
