// attend() for ctypes, over a pool of threads that spin: tests and scripts/bench/attention.py.
#include "../../hermes_deploy/kernels/src/attention.h"

#include <immintrin.h>

#include <atomic>
#include <thread>
#include <vector>

namespace {

// Whoever calls waits for the items, not for the threads: one that the system has put aside holds up nobody.
class Pool {
public:
    explicit Pool(int threads) {
        for (int i = 1; i < threads; ++i) threads_.emplace_back([this] { follow(); });
    }
    ~Pool() {
        stop_ = true;
        for (auto& thread : threads_) thread.join();
    }
    static void run(void* self, void (*work)(void*, size_t), void* argument, size_t count) {
        static_cast<Pool*>(self)->share(work, argument, count);
    }

private:
    void share(void (*work)(void*, size_t), void* argument, size_t count) {
        work_ = work, argument_ = argument, done_ = 0;
        open_ = static_cast<uint64_t>(count);
        while (take()) {}
        while (done_ < count) _mm_pause();
    }
    bool take() {
        uint64_t left = open_;
        while (left > 0)
            if (open_.compare_exchange_weak(left, left - 1)) {
                // the item is counted among those awaited: work_ stays until it is done
                work_(argument_, left - 1);
                ++done_;
                return true;
            }
        return false;
    }
    void follow() {
        for (unsigned idle = 0; !stop_;) {
            if (take()) continue;
            _mm_pause();
            if (++idle % 4096 == 0) std::this_thread::yield();
        }
    }
    void (*work_)(void*, size_t) = nullptr;
    void* argument_ = nullptr;
    std::atomic<uint64_t> open_{0};
    std::atomic<size_t> done_{0};
    std::atomic<bool> stop_{false};
    std::vector<std::thread> threads_;
};

}  // namespace

extern "C" {

void* pool_open(int threads) { return new Pool(threads); }
void pool_close(void* pool) { delete static_cast<Pool*>(pool); }

// sizes: heads, kv_heads, head_dim, context, window, cache type, batch, tokens
void attend(const int64_t* sizes, float scale, const float* qkv, const float* cos, const float* sin, const int32_t* last,
            void* keys, void* values, const float* key_scale, const float* value_scale, float* mixed, void* pool,
            int threads) {
    const hermes::AttentionShape shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], scale,
                                       static_cast<hermes::CacheType>(sizes[5])};
    const hermes::AttentionCall call{sizes[6], sizes[7], qkv, cos, sin, last, keys, values, key_scale, value_scale, mixed};
    hermes::attend(shape, call, hermes::Parallel{Pool::run, pool, threads});
}
}
