// The thread pool: none of our own. A second OpenMP runtime would fight torch's for the cores, so the kernels run on the one
// torch has already loaded, whose GOMP_parallel is handed in as a pointer. Without it they run on the caller's thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace octavo {

using GompParallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

class Pool {
   public:
    Pool(GompParallel parallel, int threads) : parallel_(parallel), threads_(parallel ? threads : 1) {}

    // Calls body(i) for every i in [0, count). A thread takes the next index when it is done with one, so a thread that lost
    // its core to another process holds up one index and not a fixed share of them.
    template <class Body>
    void run(int64_t count, const Body& body) const {
        if (threads_ <= 1 || count <= 1) {
            for (int64_t i = 0; i < count; i++) body(i);
            return;
        }
        struct Region {
            const Body& body;
            const int64_t count;
            std::atomic<int64_t> next{0};
        } region{body, count};
        const auto enter = [](void* data) {
            Region& region = *static_cast<Region*>(data);
            for (;;) {
                const int64_t i = region.next.fetch_add(1, std::memory_order_relaxed);
                if (i >= region.count) return;
                region.body(i);
            }
        };
        parallel_(enter, &region, static_cast<unsigned>(count < threads_ ? count : threads_), 0);
    }

    // Memory that lasts until the next call of scratch: kept, since fresh pages cost more than the work done in them. A pool
    // belongs to one device, and a device is called from one thread.
    float* scratch(int64_t floats) {
        if (static_cast<int64_t>(scratch_.size()) < floats) scratch_.resize(static_cast<size_t>(floats));
        return scratch_.data();
    }

   private:
    GompParallel parallel_;
    int threads_;
    std::vector<float> scratch_;
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace octavo
