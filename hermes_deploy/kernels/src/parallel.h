#pragma once
#include <cstddef>

namespace hermes {

// Calls work(argument, i) for every i < count, on whatever threads there are; returns when all have returned.
struct Parallel {
    void (*run)(void* pool, void (*work)(void* argument, size_t index), void* argument, size_t count);
    void* pool;
    int threads;

    template <class F>
    void operator()(size_t count, const F& f) const {
        if (count == 1) return f(size_t{0});
        run(pool, [](void* argument, size_t index) { (*static_cast<const F*>(argument))(index); }, const_cast<F*>(&f), count);
    }
};

}  // namespace hermes
