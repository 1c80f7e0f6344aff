// The paged KV cache of one layer, as the kernels see it.
//
//   cache: [blocks][kv heads] of
//
//     K  [groups][head_size][16 tokens]     transposed: one vector holds one dimension of 16 tokens, so a query times 16 keys
//                                           needs no horizontal sum
//     V  [groups][16 tokens][value_stride]  plain rows, padded to whole vectors: probabilities times rows needs none either
//
// A group is 16 tokens whatever the instruction set, so a cache does not depend on it. A block holds groups = ceil(block_size / 16).
#pragma once

#include <cstdint>

namespace octavo {

constexpr int GROUP = 16;

struct KVShape {
    int64_t kv_heads;
    int64_t head_size;
    int64_t block_size;

    int64_t groups() const { return (block_size + GROUP - 1) / GROUP; }
    int64_t value_stride() const { return (head_size + GROUP - 1) / GROUP * GROUP; }
    int64_t key_group() const { return head_size * GROUP; }         // elements of K in a group
    int64_t value_group() const { return value_stride() * GROUP; }  // elements of V in a group
    int64_t head() const { return groups() * (key_group() + value_group()); }
    int64_t block() const { return kv_heads * head(); }

    // First element of the group that holds the token `offset` tokens into a block.
    int64_t key_at(int64_t block_id, int64_t kv_head, int64_t offset) const {
        return block_id * block() + kv_head * head() + offset / GROUP * key_group();
    }
    int64_t value_at(int64_t block_id, int64_t kv_head, int64_t offset) const {
        return block_id * block() + kv_head * head() + groups() * key_group() + offset / GROUP * value_group();
    }
};

}  // namespace octavo
