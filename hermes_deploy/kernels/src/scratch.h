#pragma once
#include <cstddef>
#include <cstdlib>
#include <new>

namespace hermes {

// Memory that a thread keeps between calls: grows to what its largest call needed. Aligned to 64 bytes.
template <class T>
class Scratch {
public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    ~Scratch() { std::free(memory_); }

    // What was in it is lost when it grows. Throws bad_alloc.
    T* reserve(size_t count) {
        if (count > room_) {
            std::free(memory_);
            room_ = 0;
            memory_ = static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64));
            if (memory_ == nullptr) throw std::bad_alloc();
            room_ = count;
        }
        return memory_;
    }

private:
    T* memory_ = nullptr;
    size_t room_ = 0;
};

}  // namespace hermes
