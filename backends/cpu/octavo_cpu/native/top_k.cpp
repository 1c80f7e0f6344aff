// The k largest of each row, the lowest index first among equals.
//
// Entries above a rising threshold are collected; when the collection is full it is cut to its best k, and the k-th of those is
// the new threshold. Almost all of a row is passed over a vector at a time.

#include "api.h"
#include "pool.h"
#include "vector.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace octavo {
namespace {

struct Entry {
    float value;
    int32_t index;
};

// NaN counts as the largest of all, as torch and NumPy have it.
inline bool above(float a, float b) { return a > b || (a != a && b == b); }

inline bool before(const Entry& a, const Entry& b) {
    if (above(a.value, b.value)) return true;
    if (above(b.value, a.value)) return false;
    return a.index < b.index;
}

inline bool any(Ints mask) {
    int32_t found = 0;
    for (int i = 0; i < LANES; i++) found |= mask[i];
    return found != 0;
}

void top_k(const float* x, int64_t n, int64_t k, float* values, int32_t* ids) {
    const size_t wanted = static_cast<size_t>(k), room = 4 * wanted + 64;
    std::vector<Entry> best;
    best.reserve(room);
    float threshold = 0;
    bool full = false;  // `best` has held k entries: what equals the threshold comes too late
    const auto cut = [&] {
        std::nth_element(best.begin(), best.begin() + (k - 1), best.end(), before);
        best.resize(wanted);
        threshold = best[wanted - 1].value;
        full = true;
    };
    const auto offer = [&](int64_t i) {
        if (full && !above(x[i], threshold)) return;
        best.push_back({x[i], static_cast<int32_t>(i)});
        if (best.size() == room) cut();
    };
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const Floats v = load(x + i);
        if (full && !any(~(v <= threshold))) continue;  // a NaN is not <= anything: looked at one by one
        for (int64_t j = i; j < i + LANES; j++) offer(j);
    }
    for (; i < n; i++) offer(i);
    if (best.size() > wanted) cut();
    std::sort(best.begin(), best.end(), before);
    for (size_t j = 0; j < wanted; j++) {
        values[j] = best[j].value;
        ids[j] = best[j].index;
    }
}

}  // namespace
}  // namespace octavo

// x [rows, n], 1 <= k <= n -> values [rows, k] in falling order, ids [rows, k].
OCTAVO_EXPORT void octavo_top_k(octavo::Pool* pool, const float* x, int64_t rows, int64_t n, int64_t k, float* values,
                                int32_t* ids) {
    pool->run(rows, [&](int64_t row) { octavo::top_k(x + row * n, n, k, values + row * k, ids + row * k); });
}
