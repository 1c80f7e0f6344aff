// The C interface of the kernels, loaded with ctypes by octavo_cpu/native/library.py. Raise ABI_VERSION with every change.
// Tokens of q, k and v may lie apart (`*_stride`, in elements); within a token everything is contiguous, as is all else.
#pragma once

#include <cstdint>

#define OCTAVO_EXPORT extern "C" __attribute__((visibility("default")))

namespace octavo {

constexpr int ABI_VERSION = 1;

enum class Type : int32_t { FLOAT32 = 0, BFLOAT16 = 1 };
enum class Activation : int32_t { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3 };

class Pool;

}  // namespace octavo

struct OctavoAttention {
    const void* q;                   // [tokens, heads, head_size]
    void* out;                       // [tokens, heads, head_size]
    const void* cache;               // see kv_layout.h
    const int32_t* query_starts;     // [sequences + 1]
    const int32_t* context_lengths;  // [sequences], keys including those of this step
    const int32_t* block_tables;     // [sequences, max_blocks]
    const float* sinks;              // [heads] or null
    int64_t q_stride;
    int64_t tokens, heads, kv_heads, head_size;
    int64_t sequences, max_blocks, block_size;
    float scale;
    float softcap;   // 0: none
    int32_t window;  // 0: none
    octavo::Type q_type, cache_type;
};

struct OctavoWrite {
    void* cache;
    const void* q;             // [tokens, heads, head_size]; read with a table only
    void* q_out;               // the rotated q, contiguous
    const void* k;             // [tokens, kv_heads, head_size]
    const void* v;
    const int32_t* slots;      // [tokens]
    const int32_t* positions;  // [tokens]
    const float* cos_sin;      // [positions, rotary_size], cosines first; null: no rotation
    int64_t q_stride, k_stride, v_stride;
    int64_t tokens, heads, kv_heads, head_size, block_size, rotary_size;
    int32_t interleaved;       // pairs are (2i, 2i + 1) and not (i, i + rotary_size / 2)
    octavo::Type type, cache_type;
};
