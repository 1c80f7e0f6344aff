// Writing into the paged KV cache: keys and values of a step, rotated on the way where asked, and copies of whole blocks.

#include "api.h"
#include "kv_layout.h"
#include "pool.h"
#include "vector.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace octavo {
namespace {

constexpr int64_t TOKENS_PER_TASK = 16;

// One head, rotated (Su et al. 2021) into `to` and rounded to the activations' own type.
template <class Q>
void rotate(const OctavoWrite& in, const Q* from, int64_t position, Q* to) {
    const int64_t half = in.rotary_size / 2;
    const float* cosines = in.cos_sin + position * in.rotary_size;
    const float* sines = cosines + half;
    const int64_t step = in.interleaved ? 2 : 1, partner = in.interleaved ? 1 : half;
    for (int64_t i = 0; i < half; i++) {
        const float a = to_float(from[i * step]), b = to_float(from[i * step + partner]);
        to[i * step] = from_float<Q>(a * cosines[i] - b * sines[i]);
        to[i * step + partner] = from_float<Q>(b * cosines[i] + a * sines[i]);
    }
    std::copy(from + in.rotary_size, from + in.head_size, to + in.rotary_size);
}

template <class Q, class T>
void write_token(const OctavoWrite& in, const KVShape& shape, int64_t token) {
    T* cache = static_cast<T*>(in.cache);
    const int64_t slot = in.slots[token], block = slot / in.block_size, offset = slot % in.block_size, lane = offset % GROUP;
    std::vector<Q> turned(static_cast<size_t>(in.cos_sin ? in.head_size : 0));
    for (int64_t h = 0; h < in.kv_heads; h++) {
        const Q* k = static_cast<const Q*>(in.k) + token * in.k_stride + h * in.head_size;
        const Q* v = static_cast<const Q*>(in.v) + token * in.v_stride + h * in.head_size;
        if (in.cos_sin) {
            rotate(in, k, in.positions[token], turned.data());
            k = turned.data();
        }
        T* keys = cache + shape.key_at(block, h, offset) + lane;
        for (int64_t d = 0; d < in.head_size; d++) keys[d * GROUP] = from_float<T>(to_float(k[d]));
        T* values = cache + shape.value_at(block, h, offset) + lane * shape.value_stride();
        for (int64_t d = 0; d < in.head_size; d++) values[d] = from_float<T>(to_float(v[d]));
    }
    if (!in.cos_sin) return;
    for (int64_t h = 0; h < in.heads; h++)
        rotate(in, static_cast<const Q*>(in.q) + token * in.q_stride + h * in.head_size, in.positions[token],
               static_cast<Q*>(in.q_out) + (token * in.heads + h) * in.head_size);
}

template <class Q, class T>
void write(Pool& pool, const OctavoWrite& in) {
    const KVShape shape{in.kv_heads, in.head_size, in.block_size};
    pool.run(divide_up(in.tokens, TOKENS_PER_TASK), [&](int64_t i) {
        const int64_t end = std::min(in.tokens, (i + 1) * TOKENS_PER_TASK);
        for (int64_t token = i * TOKENS_PER_TASK; token < end; token++) write_token<Q, T>(in, shape, token);
    });
}

}  // namespace
}  // namespace octavo

OCTAVO_EXPORT void octavo_write_kv(octavo::Pool* pool, const OctavoWrite* in) {
    using namespace octavo;
    const bool wide = in->type == Type::FLOAT32, wide_cache = in->cache_type == Type::FLOAT32;
    if (wide && wide_cache) return write<float, float>(*pool, *in);
    if (wide) return write<float, Bfloat16>(*pool, *in);
    if (wide_cache) return write<Bfloat16, float>(*pool, *in);
    return write<Bfloat16, Bfloat16>(*pool, *in);
}
