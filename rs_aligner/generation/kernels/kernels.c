/* The decoder's inner loops on a CPU; `native.py` compiles them for the machine and the model's heads.
 *
 * Activations are feature-major, in tiles of TILE rows: element (feature f, row r) of an array with F features
 * is x[(r / TILE) * F * TILE + f * TILE + r % TILE]. So a vector holds the same feature of neighbouring rows,
 * weights are read as they lie in the training model ([out, in], one scalar at a time, broadcast), nothing is
 * packed or transposed, and a row's numbers are the same to the last bit whichever rows stand beside it: every
 * lane adds up in the same order. What follows the last row in its tile is computed and never read.
 *
 * Keys and values lie in pages of LANES tokens, all heads of a layer together: keys as [head, dim, token],
 * values as [head, token, dim], or [head, dim, token] where a head is narrower than a vector. A row finds its
 * pages in its line of a table; rollouts of a prompt share the prompt's full pages.
 *
 * Left out: what a GPU does (it has the torch path), and tuning for each processor: the vectors are GCC's
 * generic ones, and narrower machines get them in pieces.
 *
 * HEAD_DIM and GROUP (query heads for each key's head) are given by the compiler's command line.
 */

#include "attention.h"
#include "choose.h"
#include "linear.h"
#include "parts.h"
#include "vectors.h"

/* RMSNorm (Zhang and Sennrich, 2019) of each row. */
EXPORT void rs_norm(const float *x, const float *weight, float *out, long width, long rows, float eps) {
    for (long t = 0; t * TILE < rows; t++) {
        EACH(j, TILE / LANES) {
            const float *from = x + t * width * TILE + j * LANES;
            float *to = out + t * width * TILE + j * LANES;
            vec even = (vec){0}, odd = (vec){0};
            long f = 0;
            for (; f + 1 < width; f += 2) {
                vec a = *(const vec *)(from + f * TILE), b = *(const vec *)(from + (f + 1) * TILE);
                even += a * a;
                odd += b * b;
            }
            if (f < width) even += *(const vec *)(from + f * TILE) * *(const vec *)(from + f * TILE);
            vec mean = (even + odd) / (float)width + eps, scale;
            for (int lane = 0; lane < LANES; lane++) scale[lane] = 1.0f / sqrtf(mean[lane]);
            for (f = 0; f < width; f++) *(vec *)(to + f * TILE) = *(const vec *)(from + f * TILE) * scale * weight[f];
        }
    }
}

/* SwiGLU (Shazeer, 2020): out[f] = silu(x[f]) x[width + f]. */
static void swiglu(const float *x, float *out, long width, long rows, int threads) {
    const long tiles = (rows + TILE - 1) / TILE;
    const int split = parts_of((double)EXP_WORK * width * rows, threads) > 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (split)
    for (long t = 0; t < tiles; t++) {
        const float *from = x + t * 2 * width * TILE;
        float *to = out + t * width * TILE;
        for (long i = 0; i < width * TILE; i += LANES) {
            vec gate = *(const vec *)(from + i), up = *(const vec *)(from + width * TILE + i);
            *(vec *)(to + i) = gate / (1.0f + exp_vec(-max_vec(gate, splat(-87.0f)))) * up;
        }
    }
}

/* Rows of the embedding table that begins with token `first`; zeros for tokens that other ranks hold. */
EXPORT void rs_embed(const void *table, int half, const int32_t *tokens, int32_t first, int32_t count, float *out,
                     long width, long rows) {
    for (long r = 0; r < rows; r++) {
        const long token = (long)tokens[r] - first;
        float *to = out + r / TILE * width * TILE + r % TILE;
        const int here = token >= 0 && token < count;
        for (long f = 0; f < width; f++)
            to[f * TILE] = !here  ? 0.0f
                           : half ? widen(((const uint16_t *)table)[token * width + f])
                                  : ((const float *)table)[token * width + f];
    }
}

/* Copy rows: row r of out is row from[r] of x. */
EXPORT void rs_take(const float *x, const int32_t *from, float *out, long width, long rows) {
    for (long r = 0; r < rows; r++) {
        const float *source = x + from[r] / TILE * width * TILE + from[r] % TILE;
        float *to = out + r / TILE * width * TILE + r % TILE;
        for (long f = 0; f < width; f++) to[f * TILE] = source[f * TILE];
    }
}

/* Rows one after the other, [rows, width], for whoever wants them so. */
EXPORT void rs_rows(const float *x, float *out, long width, long rows) {
    for (long r = 0; r < rows; r++) {
        const float *source = x + r / TILE * width * TILE + r % TILE;
        for (long f = 0; f < width; f++) out[r * width + f] = source[f * TILE];
    }
}

/* A layer's weights, all of `Model.half`'s type but norms and bias; its keys and values; angles, and how many
 * tokens it sees (0: all). */
typedef struct {
    const float *attention_norm;
    const void *qkv;
    const float *qkv_bias, *q_norm, *k_norm;
    const void *projection;
    const float *mlp_norm;
    const void *gate_up, *down;
    float *keys, *values;
    const float *cos, *sin;
    long window;
} Layer;

/* What layers have in common, and their working memory; the names say what is in it. */
typedef struct {
    long width, kv_heads, mlp_width, max_pages;
    int half, threads, sum; /* sum: add products to hidden; else leave them in partial, a rank's part of a sum */
    float eps, scale; /* scale: of scores */
    float *hidden, *partial, *normed, *qkv, *queries, *mixed, *gate_up, *active, *scores;
} Model;

/* The tokens of a run: see `TokenBatch`. */
typedef struct {
    long rows, items;
    const int32_t *positions, *pages, *begin, *common;
} Batch;

/* Sizes of the three, to be compared with the caller's. */
EXPORT long rs_sizes(long which) { return which == 0 ? sizeof(Layer) : which == 1 ? sizeof(Model) : sizeof(Batch); }

/* Run halves [first, last) of layers: half 2i is the attention of layer i, half 2i + 1 its MLP. */
EXPORT void rs_run(const Layer *layers, const Model *m, const Batch *b, long first, long last) {
    const long mixed = m->kv_heads * GROUP * HEAD_DIM, rows = b->rows;
    float *out = m->sum ? m->hidden : m->partial;
    for (long half = first; half < last; half++) {
        const Layer *l = layers + half / 2;
        if (half % 2 == 0) {
            rs_norm(m->hidden, l->attention_norm, m->normed, m->width, rows, m->eps);
            rs_linear(l->qkv, m->half, l->qkv_bias, m->kv_heads * (GROUP + 2) * HEAD_DIM, m->width, m->normed, m->qkv,
                      rows, 0, m->threads);
            append(m->qkv, m->queries, l->cos, l->sin, m->scale, l->q_norm, l->k_norm, m->eps, l->keys, l->values,
                   b->pages, m->max_pages, b->positions, m->kv_heads, rows, m->threads);
            attend(m->queries, m->mixed, l->keys, l->values, b->pages, m->max_pages, b->positions, m->kv_heads,
                   l->window, b->begin, b->common, b->items, m->scores, m->threads);
            rs_linear(l->projection, m->half, 0, m->width, mixed, m->mixed, out, rows, m->sum, m->threads);
        } else {
            rs_norm(m->hidden, l->mlp_norm, m->normed, m->width, rows, m->eps);
            rs_linear(l->gate_up, m->half, 0, 2 * m->mlp_width, m->width, m->normed, m->gate_up, rows, 0, m->threads);
            swiglu(m->gate_up, m->active, m->mlp_width, rows, m->threads);
            rs_linear(l->down, m->half, 0, m->width, m->mlp_width, m->active, out, rows, m->sum, m->threads);
        }
    }
}
