// Row-wise operations: root-mean-square norm with the residual addition, and gated activations.

#include "api.h"
#include "pool.h"
#include "vector.h"

#include <algorithm>
#include <cmath>

namespace octavo {
namespace {

constexpr int64_t ELEMENTS_PER_TASK = 16384;  // less than this is not worth waking a thread for

template <class Body>
void for_rows(Pool& pool, int64_t rows, int64_t width, const Body& body) {
    const int64_t step = std::max<int64_t>(1, ELEMENTS_PER_TASK / width);
    pool.run(divide_up(rows, step), [&](int64_t task) {
        for (int64_t row = task * step; row < std::min(rows, (task + 1) * step); row++) body(row);
    });
}

template <class Q>
void rms_norm(Pool& pool, const Q* x, const Q* residual, const Q* weight, float eps, int64_t rows, int64_t width, Q* normed,
              Q* total) {
    for_rows(pool, rows, width, [&](int64_t row) {
        const Q* from = x + row * width;
        if (residual) {
            const Q* other = residual + row * width;
            Q* to = total + row * width;
            for (int64_t i = 0; i < width; i++) to[i] = from_float<Q>(to_float(from[i]) + to_float(other[i]));
            from = to;
        }
        Floats squares{};
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) {
            const Floats v = load(from + i);
            squares += v * v;
        }
        float sum = octavo::sum(squares);
        for (; i < width; i++) sum += to_float(from[i]) * to_float(from[i]);
        const float scale = 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
        Q* to = normed + row * width;
        for (int64_t j = 0; j < width; j++) to[j] = from_float<Q>(to_float(from[j]) * scale * to_float(weight[j]));
    });
}

template <Activation KIND>
OCTAVO_INLINE Floats activate(Floats x) {
    if constexpr (KIND == Activation::SILU) return x / (1.0f + exp(-x));
    if constexpr (KIND == Activation::GELU_TANH)
        return 0.5f * x * (1.0f + tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
    if constexpr (KIND == Activation::GELU) {
        Floats y;
        for (int i = 0; i < LANES; i++) y[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678f));
        return y;
    }
    return x < Floats{} ? Floats{} : x;
}

template <Activation KIND, class Q>
void gate(Pool& pool, const Q* x, int64_t rows, int64_t width, Q* to) {
    for_rows(pool, rows, width, [&](int64_t row) {
        const Q *gates = x + row * 2 * width, *ups = gates + width;
        Q* out = to + row * width;
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) store(out + i, activate<KIND>(load(gates + i)) * load(ups + i));
        for (; i < width; i++)
            out[i] = from_float<Q>(activate<KIND>(broadcast(to_float(gates[i])))[0] * to_float(ups[i]));
    });
}

template <class Q>
void gate(Pool& pool, const Q* x, int64_t rows, int64_t width, Activation kind, Q* to) {
    switch (kind) {
        case Activation::SILU: return gate<Activation::SILU>(pool, x, rows, width, to);
        case Activation::GELU: return gate<Activation::GELU>(pool, x, rows, width, to);
        case Activation::GELU_TANH: return gate<Activation::GELU_TANH>(pool, x, rows, width, to);
        case Activation::RELU: return gate<Activation::RELU>(pool, x, rows, width, to);
    }
}

}  // namespace
}  // namespace octavo

using namespace octavo;

// x [rows, width], residual like x or null, weight [width] -> normed, and total = x + residual where there is a residual.
OCTAVO_EXPORT void octavo_rms_norm(Pool* pool, const void* x, const void* residual, const void* weight, float eps, int64_t rows,
                                   int64_t width, void* normed, void* total, Type type) {
    if (type == Type::FLOAT32)
        return rms_norm(*pool, static_cast<const float*>(x), static_cast<const float*>(residual),
                        static_cast<const float*>(weight), eps, rows, width, static_cast<float*>(normed),
                        static_cast<float*>(total));
    rms_norm(*pool, static_cast<const Bfloat16*>(x), static_cast<const Bfloat16*>(residual),
             static_cast<const Bfloat16*>(weight), eps, rows, width, static_cast<Bfloat16*>(normed),
             static_cast<Bfloat16*>(total));
}

// x [rows, 2 * width], the gate first -> [rows, width].
OCTAVO_EXPORT void octavo_gated_activation(Pool* pool, const void* x, int64_t rows, int64_t width, Activation kind, void* to,
                                           Type type) {
    if (type == Type::FLOAT32)
        return gate(*pool, static_cast<const float*>(x), rows, width, kind, static_cast<float*>(to));
    gate(*pool, static_cast<const Bfloat16*>(x), rows, width, kind, static_cast<Bfloat16*>(to));
}
