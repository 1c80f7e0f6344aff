// Attention over the paged KV cache, walking the block table: decode, prefill chunks and any mix of them in one call.
//
// The batch is cut into items: some queries of one sequence, the heads of one KV head's group (so that a KV block is read once
// for the group), and a range of keys. An item keeps a running maximum and sum (online softmax, FlashAttention) over tiles of
// keys. A sequence with few queries has its keys cut into splits of a fixed length, whose partial results are merged afterwards
// (flash-decoding). The cut depends on the sequence alone, never on its neighbours: a request gets the same bits in any batch.

#include "api.h"
#include "kv_layout.h"
#include "pool.h"
#include "vector.h"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

namespace octavo {
namespace {

constexpr int VECTORS = GROUP / LANES;  // vectors in 16 floats: 1, 2 or 4

// Register tiles of rows (query times head) by groups of 16 keys or head dimensions. Accumulators and operands have to fit the
// vector registers: 32 with AVX-512, else 16.
constexpr int TILE_ROWS = LANES == 16 ? 6 : 3;
constexpr int TILE_GROUPS = LANES == 16 ? 4 : LANES == 8 ? 2 : 1;

constexpr int ITEM_ROWS = 24;  // enough to reuse a key many times, few enough for the first-level cache
constexpr int KEY_GROUPS = 8;  // groups of keys between two updates of the running maximum
constexpr int KEYS = KEY_GROUPS * GROUP;
constexpr int SPLIT = 256;     // keys of a split
constexpr int MAX_HEAD_SIZE = 256;

constexpr float NOTHING = -std::numeric_limits<float>::infinity();
constexpr int32_t NOWHERE = std::numeric_limits<int32_t>::max();

struct Item {
    int64_t sequence, kv_head;
    int64_t first_query, queries;  // within the sequence
    int64_t first_head, heads;     // within the KV head's group
    int64_t key_begin, key_end;    // positions

    int64_t rows() const { return queries * heads; }  // row = query * heads + head
};

struct Problem {
    const OctavoAttention& in;
    KVShape shape;

    int64_t group() const { return in.heads / in.kv_heads; }
    int64_t queries(int64_t sequence) const { return in.query_starts[sequence + 1] - in.query_starts[sequence]; }
    int64_t position(int64_t sequence, int64_t query) const {
        return in.context_lengths[sequence] - queries(sequence) + query;
    }
    int64_t first_key(int64_t position) const { return in.window > 0 ? std::max<int64_t>(0, position - in.window + 1) : 0; }
    int64_t token(const Item& item, int64_t row) const {
        return in.query_starts[item.sequence] + item.first_query + row / item.heads;
    }
    int64_t head(const Item& item, int64_t row) const {
        return item.kv_head * group() + item.first_head + row % item.heads;
    }
};

// The running result of an item's rows.
struct State {
    float* maximum;  // [rows]
    float* sum;      // [rows]
    float* values;   // [rows, value_stride], not yet divided by the sum

    static int64_t size(int64_t rows, int64_t stride) { return rows * (stride + 2); }
    static State in(float* memory, int64_t rows) { return {memory, memory + rows, memory + 2 * rows}; }
};

// Up to KEYS keys of one sequence and KV head, as groups of 16 tokens found through the block table.
template <class T>
struct Tile {
    int groups;
    const T* keys[KEY_GROUPS + TILE_GROUPS];  // and what will be read after them, to be fetched early
    const T* values[KEY_GROUPS + 1];
    int begin[KEY_GROUPS], end[KEY_GROUPS];  // the tokens of a group that the item may see
    int32_t positions[KEYS];                 // of each lane; NOWHERE where a block is shorter than its groups
};

// scores[r][g * 16 + t] = q[r] . keys[g][:, t]. Blocks lie anywhere and the hardware's prefetcher stops at the end of each, so
// the lines of the `next` groups are asked for on the way.
template <int ROWS, int GROUPS, class T>
OCTAVO_INLINE void multiply_keys(const float* q, const T* const* keys, const T* const* next, int64_t head_size, float* scores) {
    Floats acc[ROWS][GROUPS][VECTORS];
    OCTAVO_UNROLL
    for (int r = 0; r < ROWS; r++) {
        OCTAVO_UNROLL
        for (int g = 0; g < GROUPS; g++) {
            OCTAVO_UNROLL
            for (int v = 0; v < VECTORS; v++) acc[r][g][v] = Floats{};
        }
    }
    for (int64_t d = 0; d < head_size; d++) {
        OCTAVO_UNROLL
        for (int g = 0; g < GROUPS; g++) {
            __builtin_prefetch(next[g] + d * GROUP, 0, 2);
            OCTAVO_UNROLL
            for (int v = 0; v < VECTORS; v++) {
                const Floats k = load(keys[g] + d * GROUP + v * LANES);
                OCTAVO_UNROLL
                for (int r = 0; r < ROWS; r++) acc[r][g][v] += broadcast(q[r * MAX_HEAD_SIZE + d]) * k;
            }
        }
    }
    OCTAVO_UNROLL
    for (int r = 0; r < ROWS; r++) {
        OCTAVO_UNROLL
        for (int g = 0; g < GROUPS; g++) {
            OCTAVO_UNROLL
            for (int v = 0; v < VECTORS; v++) store(scores + r * KEYS + g * GROUP + v * LANES, acc[r][g][v]);
        }
    }
}

// values[r][column ...] += the sum over the tile's tokens t of weights[r][t] * tile.values[t], for CHUNKS times 16 dimensions.
template <int ROWS, int CHUNKS, class T>
OCTAVO_INLINE void add_values(const float* weights, const Tile<T>& tile, int64_t column, int64_t stride, float* values) {
    Floats acc[ROWS][CHUNKS * VECTORS];
    OCTAVO_UNROLL
    for (int r = 0; r < ROWS; r++) {
        OCTAVO_UNROLL
        for (int c = 0; c < CHUNKS * VECTORS; c++) acc[r][c] = load(values + r * stride + column + c * LANES);
    }
    for (int g = 0; g < tile.groups; g++) {
        const T* v = tile.values[g] + column;
        const T* next = tile.values[g + 1] + column;
        for (int t = tile.begin[g]; t < tile.end[g]; t++) {
            OCTAVO_UNROLL
            for (int c = 0; c < CHUNKS; c++) __builtin_prefetch(next + t * stride + c * GROUP, 0, 2);
            Floats weight[ROWS];
            OCTAVO_UNROLL
            for (int r = 0; r < ROWS; r++) weight[r] = broadcast(weights[r * KEYS + g * GROUP + t]);
            OCTAVO_UNROLL
            for (int c = 0; c < CHUNKS * VECTORS; c++) {
                const Floats x = load(v + t * stride + c * LANES);
                OCTAVO_UNROLL
                for (int r = 0; r < ROWS; r++) acc[r][c] += weight[r] * x;
            }
        }
    }
    OCTAVO_UNROLL
    for (int r = 0; r < ROWS; r++) {
        OCTAVO_UNROLL
        for (int c = 0; c < CHUNKS * VECTORS; c++) store(values + r * stride + column + c * LANES, acc[r][c]);
    }
}

// These turn run-time numbers of groups, columns and rows into compiled register tiles.
template <int ROWS, class T>
void score_keys(const float* q, const Tile<T>& tile, int64_t head_size, float* scores) {
    int g = 0;
    for (; g + TILE_GROUPS <= tile.groups; g += TILE_GROUPS)
        multiply_keys<ROWS, TILE_GROUPS>(q, tile.keys + g, tile.keys + g + TILE_GROUPS, head_size, scores + g * GROUP);
    for (; g < tile.groups; g++)
        multiply_keys<ROWS, 1>(q, tile.keys + g, tile.keys + g + 1, head_size, scores + g * GROUP);
}

template <int ROWS, class T>
void weigh_values(const float* weights, const Tile<T>& tile, int64_t stride, float* values) {
    int64_t column = 0;
    for (; column + TILE_GROUPS * GROUP <= stride; column += TILE_GROUPS * GROUP)
        add_values<ROWS, TILE_GROUPS>(weights, tile, column, stride, values);
    for (; column < stride; column += GROUP) add_values<ROWS, 1>(weights, tile, column, stride, values);
}

template <class Body>
OCTAVO_INLINE void for_row_tiles(int64_t rows, const Body& body) {
    for (int64_t r = 0; r < rows; r += TILE_ROWS) {
        switch (std::min<int64_t>(TILE_ROWS, rows - r)) {
            case 1: body(std::integral_constant<int, 1>{}, r); break;
            case 2: body(std::integral_constant<int, 2>{}, r); break;
            case 3: body(std::integral_constant<int, 3>{}, r); break;
            case 4: body(std::integral_constant<int, std::min(4, TILE_ROWS)>{}, r); break;
            case 5: body(std::integral_constant<int, std::min(5, TILE_ROWS)>{}, r); break;
            default: body(std::integral_constant<int, TILE_ROWS>{}, r); break;
        }
    }
}

// Turns a row of products into exp(score - maximum), updating the running maximum and sum. Keys at positions outside [from, to)
// get exactly 0 by selection: their slots may hold anything, NaN included. Returns the factor by which what was summed before
// has to shrink.
float soften(float* row, const int32_t* positions, int groups, int32_t from, int32_t to, float scale, float softcap,
             float& maximum, float& sum) {
    Floats highest = broadcast(NOTHING);
    for (int i = 0; i < groups * GROUP; i += LANES) {
        Floats s = load(row + i) * scale;
        if (softcap > 0) s = softcap * tanh(s * (1.0f / softcap));
        const Ints at = load(positions + i);
        s = ((at >= from) & (at < to)) ? s : broadcast(NOTHING);
        highest = larger(s, highest);
        store(row + i, s);
    }
    const float new_maximum = std::max(maximum, largest(highest));
    if (new_maximum == NOTHING) {  // no key of this tile is for this row, and none was before
        std::fill(row, row + groups * GROUP, 0.0f);
        return 1;
    }
    Floats total{};
    for (int i = 0; i < groups * GROUP; i += LANES) {
        const Floats s = load(row + i);
        const Floats p = s == NOTHING ? Floats{} : exp(s - new_maximum);
        total += p;
        store(row + i, p);
    }
    const float shrink = maximum == NOTHING ? 0.0f : std::exp(maximum - new_maximum);
    maximum = new_maximum;
    sum = sum * shrink + octavo::sum(total);
    return shrink;
}

// Fills the tile with the groups from `position` on and returns the position after them.
template <class T>
int64_t walk(const Problem& problem, const Item& item, int64_t position, Tile<T>& tile) {
    const KVShape& shape = problem.shape;
    const T* cache = static_cast<const T*>(problem.in.cache);
    const int32_t* table = problem.in.block_tables + item.sequence * problem.in.max_blocks;
    const auto keys_at = [&](int64_t p) {
        return cache + shape.key_at(table[p / shape.block_size], item.kv_head, p % shape.block_size);
    };
    tile.groups = 0;
    while (tile.groups < KEY_GROUPS && position < item.key_end) {
        const int g = tile.groups++;
        const int64_t offset = position % shape.block_size;
        tile.keys[g] = keys_at(position);
        tile.values[g] = cache + shape.value_at(table[position / shape.block_size], item.kv_head, offset);
        const int64_t tokens = std::min<int64_t>(GROUP, shape.block_size - offset);
        for (int t = 0; t < GROUP; t++)
            tile.positions[g * GROUP + t] = t < tokens ? static_cast<int32_t>(position) + t : NOWHERE;
        tile.begin[g] = static_cast<int>(std::clamp<int64_t>(item.key_begin - position, 0, tokens));
        tile.end[g] = static_cast<int>(std::clamp<int64_t>(item.key_end - position, 0, tokens));
        position += tokens;
    }
    // After the keys the values are read, and after those the next tile's keys.
    for (int g = 0; g < TILE_GROUPS; g++) tile.keys[tile.groups + g] = tile.values[std::min(g, tile.groups - 1)];
    tile.values[tile.groups] = position < item.key_end ? keys_at(position) : tile.values[tile.groups - 1];
    return position;
}

template <class Q, class T>
void attend(const Problem& problem, const Item& item, State state) {
    const OctavoAttention& in = problem.in;
    const int64_t rows = item.rows(), head_size = in.head_size, stride = problem.shape.value_stride();

    alignas(64) float q[ITEM_ROWS * MAX_HEAD_SIZE];  // [rows, MAX_HEAD_SIZE]
    for (int64_t r = 0; r < rows; r++) {
        const Q* from = static_cast<const Q*>(in.q) + problem.token(item, r) * in.q_stride + problem.head(item, r) * head_size;
        for (int64_t d = 0; d < head_size; d++) q[r * MAX_HEAD_SIZE + d] = to_float(from[d]);
    }
    std::fill(state.maximum, state.maximum + rows, NOTHING);
    std::fill(state.sum, state.sum + rows, 0.0f);
    std::fill(state.values, state.values + rows * stride, 0.0f);

    alignas(64) float scores[ITEM_ROWS * KEYS];
    Tile<T> tile;
    // A tile starts where a group starts.
    int64_t position = item.key_begin - item.key_begin % problem.shape.block_size % GROUP;
    while (position < item.key_end) {
        position = walk(problem, item, position, tile);
        for_row_tiles(rows, [&](auto count, int64_t r) {
            score_keys<count.value>(q + r * MAX_HEAD_SIZE, tile, head_size, scores + r * KEYS);
        });
        for (int64_t r = 0; r < rows; r++) {
            const int64_t at = problem.position(item.sequence, item.first_query + r / item.heads);
            const int32_t from = static_cast<int32_t>(std::max<int64_t>(item.key_begin, problem.first_key(at)));
            const int32_t to = static_cast<int32_t>(std::min<int64_t>(item.key_end, at + 1));
            const float shrink = soften(scores + r * KEYS, tile.positions, tile.groups, from, to, in.scale, in.softcap,
                                        state.maximum[r], state.sum[r]);
            float* values = state.values + r * stride;
            if (shrink != 1.0f)
                for (int64_t d = 0; d < stride; d += LANES) store(values + d, load(values + d) * shrink);
        }
        for_row_tiles(rows, [&](auto count, int64_t r) {
            weigh_values<count.value>(scores + r * KEYS, tile, stride, state.values + r * stride);
        });
    }
}

// Writes a finished row: values / sum, with the head's sink as one more term of the sum that brings no value. A row that saw no
// key at all (padding) becomes zeros.
template <class Q>
void finish(const Problem& problem, const Item& item, int64_t row, float maximum, float sum, const float* values) {
    const OctavoAttention& in = problem.in;
    const int64_t head = problem.head(item, row);
    Q* out = static_cast<Q*>(in.out) + (problem.token(item, row) * in.heads + head) * in.head_size;
    if (maximum == NOTHING) {
        std::fill(out, out + in.head_size, from_float<Q>(0.0f));
        return;
    }
    float scale = 1.0f / sum;
    if (in.sinks) {
        const float highest = std::max(maximum, in.sinks[head]);
        const float shrink = std::exp(maximum - highest);
        scale = shrink / (sum * shrink + std::exp(in.sinks[head] - highest));
    }
    for (int64_t d = 0; d < in.head_size; d++) out[d] = from_float<Q>(values[d] * scale);
}

// Merges the partial results of an item's splits and writes its rows.
template <class Q>
void merge(const Problem& problem, const Item& item, float* partials, int64_t splits) {
    const int64_t rows = item.rows(), stride = problem.shape.value_stride();
    const auto split = [&](int64_t i) { return State::in(partials + i * State::size(rows, stride), rows); };
    for (int64_t r = 0; r < rows; r++) {
        float maximum = NOTHING, sum = 0;
        for (int64_t i = 0; i < splits; i++) maximum = std::max(maximum, split(i).maximum[r]);
        alignas(64) float values[MAX_HEAD_SIZE] = {};
        for (int64_t i = 0; i < splits && maximum != NOTHING; i++) {
            const State part = split(i);
            const float weight = std::exp(part.maximum[r] - maximum);
            sum += part.sum[r] * weight;
            for (int64_t d = 0; d < stride; d += LANES)
                store(values + d, load(values + d) + weight * load(part.values + r * stride + d));
        }
        finish<Q>(problem, item, r, maximum, sum, values);
    }
}

// An item and the splits of its keys; one split means that it needs no merging.
struct Job {
    Item item;
    int64_t splits;
    int64_t partials;  // offset of its partial results
};

std::vector<Job> plan(const Problem& problem) {
    const OctavoAttention& in = problem.in;
    const int64_t group = problem.group(), heads = std::min<int64_t>(group, ITEM_ROWS);
    const int64_t tile = std::max<int64_t>(1, ITEM_ROWS / heads);  // queries of an item
    int64_t partials = 0;
    std::vector<Job> jobs;
    for (int64_t s = 0; s < in.sequences; s++) {
        const int64_t queries = problem.queries(s);
        for (int64_t q = 0; q < queries; q += tile) {
            const int64_t count = std::min(tile, queries - q);
            const int64_t first = std::max<int64_t>(0, problem.position(s, q));
            const int64_t begin = problem.first_key(first), end = std::max<int64_t>(0, problem.position(s, q + count - 1) + 1);
            const int64_t splits = queries <= tile ? std::max<int64_t>(1, divide_up(end - begin, SPLIT)) : 1;
            for (int64_t h = 0; h < in.kv_heads; h++)
                for (int64_t head = 0; head < group; head += heads) {
                    const Item item{s, h, q, count, head, std::min(heads, group - head), begin, end};
                    jobs.push_back({item, splits, partials});
                    if (splits > 1) partials += splits * State::size(item.rows(), problem.shape.value_stride());
                }
        }
    }
    return jobs;
}

template <class Q, class T>
void paged_attention(Pool& pool, const OctavoAttention& in) {
    const Problem problem{in, {in.kv_heads, in.head_size, in.block_size}};
    const int64_t stride = problem.shape.value_stride();
    const std::vector<Job> jobs = plan(problem);

    struct Work {
        const Job* job;
        int64_t split;
    };
    std::vector<Work> work;
    std::vector<const Job*> merges;
    int64_t partials_size = 0;
    for (const Job& job : jobs) {
        for (int64_t i = 0; i < job.splits; i++) work.push_back({&job, i});
        if (job.splits == 1) continue;
        merges.push_back(&job);
        partials_size = job.partials + job.splits * State::size(job.item.rows(), stride);
    }
    float* partials = pool.scratch(partials_size);

    pool.run(static_cast<int64_t>(work.size()), [&](int64_t i) {
        const auto [job, split] = work[static_cast<size_t>(i)];
        Item item = job->item;
        const int64_t rows = item.rows();
        if (job->splits > 1) {
            item.key_begin += split * SPLIT;
            item.key_end = std::min(item.key_end, item.key_begin + SPLIT);
            attend<Q, T>(problem, item, State::in(partials + job->partials + split * State::size(rows, stride), rows));
            return;
        }
        alignas(64) float memory[ITEM_ROWS * (MAX_HEAD_SIZE + 2)];
        const State state = State::in(memory, rows);
        attend<Q, T>(problem, item, state);
        for (int64_t r = 0; r < rows; r++) finish<Q>(problem, item, r, state.maximum[r], state.sum[r], state.values + r * stride);
    });
    pool.run(static_cast<int64_t>(merges.size()), [&](int64_t i) {
        const Job& job = *merges[static_cast<size_t>(i)];
        merge<Q>(problem, job.item, partials + job.partials, job.splits);
    });
    // Rows that belong to no sequence pad the batch; zeros keep whatever is computed from them finite.
    const int64_t used = in.sequences > 0 ? in.query_starts[in.sequences] : 0, row = in.heads * in.head_size;
    std::fill(static_cast<Q*>(in.out) + used * row, static_cast<Q*>(in.out) + in.tokens * row, from_float<Q>(0.0f));
}

}  // namespace
}  // namespace octavo

OCTAVO_EXPORT void octavo_paged_attention(octavo::Pool* pool, const OctavoAttention* in) {
    using namespace octavo;
    const bool wide_q = in->q_type == Type::FLOAT32, wide_cache = in->cache_type == Type::FLOAT32;
    if (wide_q && wide_cache) return paged_attention<float, float>(*pool, *in);
    if (wide_q) return paged_attention<float, Bfloat16>(*pool, *in);
    if (wide_cache) return paged_attention<Bfloat16, float>(*pool, *in);
    return paged_attention<Bfloat16, Bfloat16>(*pool, *in);
}
