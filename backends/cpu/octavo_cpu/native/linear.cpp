// Dense linear layers: y = x W^T + b, for every number of rows.
//
// W [out, in] is packed once into panels of PANEL output columns, [panels][in][PANEL], so that a product reads memory in one
// straight line. A register tile of up to ROWS rows by one panel stays in registers over a run of the input axis (the
// micro-kernel of Goto and van de Geijn 2008). Each output is one chain of fused multiply-adds in the order of the input axis,
// however many rows there are: a row gets the same bits alone and in any batch.

#include "api.h"
#include "pool.h"
#include "vector.h"

#include <algorithm>
#include <type_traits>

namespace octavo {
namespace {

// Accumulators, one row of a panel and a broadcast have to fit the registers: 32 with AVX-512, else 16.
constexpr int VECTORS = LANES == 16 ? 3 : 2;
constexpr int ROWS = LANES == 16 ? 8 : 6;
constexpr int PANEL = VECTORS * LANES;

constexpr int64_t DEPTH = 1024;       // inputs in one pass: that much of a panel stays in the second-level cache
constexpr int64_t CHUNK = 24 * ROWS;  // rows in one pass over a panel: their part of x stays there too
constexpr int64_t TILES_PER_PACK = 4;  // tiles packed by one task

// x, cut into tiles of at most ROWS rows, each [in][rows of the tile].
struct Tiles {
    const float* packed;
    int64_t rows, in;
    int64_t tile_rows;  // of every tile but the last

    int64_t count() const { return divide_up(rows, tile_rows); }
    int64_t height(int64_t tile) const { return std::min(tile_rows, rows - tile * tile_rows); }
    const float* tile(int64_t tile) const { return packed + tile * tile_rows * in; }
};

// Adds to sums [HEIGHT, PANEL] the product of a tile and a panel over `depth` inputs; starts from zero where `fresh`.
template <int HEIGHT, class W>
OCTAVO_INLINE void multiply(const float* x, const W* panel, int64_t depth, bool fresh, float* sums) {
    Floats acc[HEIGHT][VECTORS];
    OCTAVO_UNROLL
    for (int r = 0; r < HEIGHT; r++) {
        OCTAVO_UNROLL
        for (int v = 0; v < VECTORS; v++) acc[r][v] = fresh ? Floats{} : load(sums + r * PANEL + v * LANES);
    }
    for (int64_t k = 0; k < depth; k++, x += HEIGHT, panel += PANEL) {
        Floats w[VECTORS];
        OCTAVO_UNROLL
        for (int v = 0; v < VECTORS; v++) w[v] = load(panel + v * LANES);
        OCTAVO_UNROLL
        for (int r = 0; r < HEIGHT; r++) {
            const Floats a = broadcast(x[r]);
            OCTAVO_UNROLL
            for (int v = 0; v < VECTORS; v++) acc[r][v] += a * w[v];
        }
    }
    OCTAVO_UNROLL
    for (int r = 0; r < HEIGHT; r++) {
        OCTAVO_UNROLL
        for (int v = 0; v < VECTORS; v++) store(sums + r * PANEL + v * LANES, acc[r][v]);
    }
}

// Turns a run-time number of rows into a compiled register tile.
template <class W>
void multiply_tile(int64_t height, const float* x, const W* panel, int64_t depth, bool fresh, float* sums) {
    switch (height) {
        case 1: return multiply<1>(x, panel, depth, fresh, sums);
        case 2: return multiply<2>(x, panel, depth, fresh, sums);
        case 3: return multiply<3>(x, panel, depth, fresh, sums);
        case 4: return multiply<4>(x, panel, depth, fresh, sums);
        case 5: return multiply<5>(x, panel, depth, fresh, sums);
        case 6: return multiply<6>(x, panel, depth, fresh, sums);
        case 7: return multiply<std::min(7, ROWS)>(x, panel, depth, fresh, sums);
        default: return multiply<ROWS>(x, panel, depth, fresh, sums);
    }
}

template <class Q>
void store_row(const float* sums, const float* bias, int64_t columns, Q* to) {
    if (columns == PANEL) {
        for (int v = 0; v < VECTORS; v++) {
            const Floats x = load(sums + v * LANES);
            store(to + v * LANES, bias ? x + load(bias + v * LANES) : x);
        }
        return;
    }
    for (int64_t c = 0; c < columns; c++) to[c] = from_float<Q>(bias ? sums[c] + bias[c] : sums[c]);
}

template <class Q>
Tiles pack_rows(Pool& pool, const Q* x, int64_t rows, int64_t in) {
    // Tiles of even height: 9 rows are cheaper as 5 + 4 than as 8 + 1.
    const int64_t tile_rows = divide_up(rows, divide_up(rows, ROWS));
    if constexpr (std::is_same_v<Q, float>)
        if (rows == 1) return {x, rows, in, tile_rows};
    float* packed = pool.scratch(rows * in);
    const Tiles tiles{packed, rows, in, tile_rows};
    pool.run(divide_up(tiles.count(), TILES_PER_PACK), [&](int64_t task) {
        const int64_t end = std::min(tiles.count(), (task + 1) * TILES_PER_PACK);
        for (int64_t tile = task * TILES_PER_PACK; tile < end; tile++) {
            float* to = packed + tile * tile_rows * in;
            const int64_t height = tiles.height(tile);
            for (int64_t r = 0; r < height; r++) {
                const Q* row = x + (tile * tile_rows + r) * in;
                for (int64_t k = 0; k < in; k++) to[k * height + r] = to_float(row[k]);
            }
        }
    });
    return tiles;
}

template <class Q, class W>
void linear(Pool& pool, const Q* x, int64_t rows, int64_t in, const W* weight, const float* bias, int64_t out, Q* y) {
    const Tiles tiles = pack_rows(pool, x, rows, in);
    const int64_t panels = divide_up(out, PANEL);
    const int64_t chunk = std::max<int64_t>(1, CHUNK / tiles.tile_rows);  // tiles
    // Passes of even depth; one tile needs no cutting, since nothing of the panel is read twice.
    const int64_t depth = tiles.count() == 1 ? in : divide_up(in, divide_up(in, DEPTH));
    pool.run(divide_up(tiles.count(), chunk) * panels, [&](int64_t task) {
        const int64_t first = task / panels * chunk, end = std::min(tiles.count(), first + chunk);
        const int64_t panel = task % panels, column = panel * PANEL;
        alignas(64) float sums[CHUNK * PANEL];
        for (int64_t k = 0; k < in; k += depth) {
            const int64_t here = std::min(depth, in - k);
            for (int64_t tile = first; tile < end; tile++) {
                const int64_t height = tiles.height(tile);
                multiply_tile(height, tiles.tile(tile) + k * height, weight + (panel * in + k) * PANEL, here, k == 0,
                              sums + (tile - first) * tiles.tile_rows * PANEL);
            }
        }
        const int64_t first_row = first * tiles.tile_rows, last_row = std::min(rows, end * tiles.tile_rows);
        for (int64_t row = first_row; row < last_row; row++)
            store_row(sums + (row - first_row) * PANEL, bias ? bias + column : nullptr, std::min<int64_t>(PANEL, out - column),
                      y + row * out + column);
    });
}

template <class W>
void pack(Pool& pool, const W* weight, int64_t out, int64_t in, W* packed) {
    pool.run(divide_up(out, PANEL), [&](int64_t panel) {
        W* to = packed + panel * in * PANEL;
        for (int64_t k = 0; k < in; k++)
            for (int64_t c = 0; c < PANEL; c++) {
                const int64_t row = panel * PANEL + c;
                to[k * PANEL + c] = row < out ? weight[row * in + k] : from_float<W>(0.0f);
            }
    });
}

template <class W>
void unpack_rows(Pool& pool, const W* packed, const int32_t* ids, int64_t rows, int64_t in, W* to) {
    pool.run(rows, [&](int64_t row) {
        const W* from = packed + ids[row] / PANEL * in * PANEL + ids[row] % PANEL;
        for (int64_t k = 0; k < in; k++) to[row * in + k] = from[k * PANEL];
    });
}

}  // namespace
}  // namespace octavo

using namespace octavo;

OCTAVO_EXPORT int64_t octavo_panel() { return PANEL; }

// weight [out, in] -> packed [ceil(out / PANEL), in, PANEL], of the same type.
OCTAVO_EXPORT void octavo_pack(Pool* pool, const void* weight, int64_t out, int64_t in, void* packed, Type type) {
    if (type == Type::FLOAT32) return pack(*pool, static_cast<const float*>(weight), out, in, static_cast<float*>(packed));
    pack(*pool, static_cast<const Bfloat16*>(weight), out, in, static_cast<Bfloat16*>(packed));
}

// x [rows, in], packed weight, bias float32 [out] or null -> y [rows, out]; x, weight and y of one type, sums in float32.
OCTAVO_EXPORT void octavo_linear(Pool* pool, const void* x, int64_t rows, int64_t in, const void* weight, const float* bias,
                                 int64_t out, void* y, Type type) {
    if (type == Type::FLOAT32)
        return linear(*pool, static_cast<const float*>(x), rows, in, static_cast<const float*>(weight), bias, out,
                      static_cast<float*>(y));
    linear(*pool, static_cast<const Bfloat16*>(x), rows, in, static_cast<const Bfloat16*>(weight), bias, out,
           static_cast<Bfloat16*>(y));
}

// Rows `ids` of a packed weight -> [rows, in]: a tied embedding needs no second copy.
OCTAVO_EXPORT void octavo_embedding(Pool* pool, const void* packed, const int32_t* ids, int64_t rows, int64_t in, void* to,
                                    Type type) {
    if (type == Type::FLOAT32)
        return unpack_rows(*pool, static_cast<const float*>(packed), ids, rows, in, static_cast<float*>(to));
    unpack_rows(*pool, static_cast<const Bfloat16*>(packed), ids, rows, in, static_cast<Bfloat16*>(to));
}
