/* Attention over pages of keys and values; of rollouts that share pages, several at once. */

#pragma once

#include "parts.h"
#include "vectors.h"

#define MAX_SHARING 8 /* rows that go through shared pages together */

#define PAGE (HEAD_DIM * LANES) /* numbers of a head in a page */
#define WIDE (HEAD_DIM % LANES == 0)

INLINE void rotate(float *x, const float *cos, const float *sin, float scale) {
    float turned[HEAD_DIM];
    for (int d = 0; d < HEAD_DIM; d++)
        turned[d] = (x[d] * cos[d] + x[(d + HEAD_DIM / 2) % HEAD_DIM] * sin[d]) * scale;
    memcpy(x, turned, sizeof turned);
}

INLINE void norm_head(float *x, const float *weight, float eps) {
    float sum = 0.0f;
    for (int d = 0; d < HEAD_DIM; d++) sum += x[d] * x[d];
    const float scale = 1.0f / sqrtf(sum / HEAD_DIM + eps);
    for (int d = 0; d < HEAD_DIM; d++) x[d] *= scale * weight[d];
}

/* Take queries, keys and values of each row's newest token out of qkv ([kv_heads, GROUP + 2, dim] features),
 * rotate them by position (Su et al., 2021), put the queries into q ([rows, kv_heads * GROUP, dim], scaled),
 * the keys and values into their pages. Norms of queries and keys where there are any. */
static void append(const float *qkv, float *q, const float *cos, const float *sin, float scale, const float *q_norm,
                      const float *k_norm, float eps, float *keys, float *values, const int32_t *pages,
                      long max_pages, const int32_t *positions, long kv_heads, long rows, int threads) {
    const long features = kv_heads * (GROUP + 2) * HEAD_DIM;
    const long tiles = (rows + TILE - 1) / TILE;
    const int split = parts_of(4.0 * features * rows, threads) > 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (split)
    for (long part = 0; part < tiles * kv_heads; part++) { /* a tile's head stays near while its rows are read */
        const long t = part / kv_heads, h = part % kv_heads;
        const float *tile = qkv + (t * features + h * (GROUP + 2) * HEAD_DIM) * TILE;
        for (long r = t * TILE; r < (t + 1) * TILE && r < rows; r++) {
            const float *from = tile + r % TILE;
            const long position = positions[r], slot = position % LANES;
            const long page = pages[r * max_pages + position / LANES] * kv_heads + h;
            const float *c = cos + position * HEAD_DIM, *s = sin + position * HEAD_DIM;
            float head[HEAD_DIM];
            for (int g = 0; g <= GROUP; g++) {
                for (int d = 0; d < HEAD_DIM; d++) head[d] = from[(long)d * TILE];
                from += HEAD_DIM * TILE;
                if (q_norm) norm_head(head, g < GROUP ? q_norm : k_norm, eps);
                rotate(head, c, s, g < GROUP ? scale : 1.0f);
                if (g < GROUP) {
                    memcpy(q + ((r * kv_heads + h) * GROUP + g) * HEAD_DIM, head, sizeof head);
                } else {
                    for (int d = 0; d < HEAD_DIM; d++) keys[page * PAGE + d * LANES + slot] = head[d];
                }
            }
            float *to = values + page * PAGE + (WIDE ? slot * HEAD_DIM : slot);
            for (int d = 0; d < HEAD_DIM; d++) to[d * (WIDE ? 1 : LANES)] = from[(long)d * TILE];
        }
    }
}

/* Scores of `n` queries (HEAD_DIM apart) with the tokens of `p` pages; n and p are constants. */
INLINE void score_pages(const int n, const int p, const float **q, const float **page, float **scores, long at) {
    vec sums[8]; /* n * p of them */
    EACH(i, n * p) sums[i] = (vec){0};
    for (int d = 0; d < HEAD_DIM; d++) {
        vec key[4];
        EACH(j, p) key[j] = *(const vec *)(page[j] + d * LANES);
        EACH(i, n) {
            const float query = q[i][d];
            EACH(j, p) sums[i * p + j] += query * key[j];
        }
    }
    EACH(i, n) EACH(j, p) *(vec *)(scores[i] + at + j * LANES) = sums[i * p + j];
}

/* How a query's output is being added up: by tokens of even and odd places where that fills the pipeline. */
#if WIDE
#define PARTS (HEAD_DIM / LANES)
#define STRANDS (PARTS < 8 ? 2 : 1)
#else
#define PARTS HEAD_DIM
#define STRANDS 1
#endif
#define SUMS (STRANDS * PARTS) /* vectors of a query */

/* Heads and pages that are gone through together, so that memory is read in long runs. */
#define HEADS (PAGE >= 1024 ? 1 : 1024 / PAGE)
#define RUN (HEADS > 1 ? 4 : 1 << 30)

/* Add the values of pages [first, last), weighted, to the outputs of `n` queries, n a constant; only the first
 * `length` tokens of the sequence count. */
INLINE void mix_pages(const int n, const float *values, long stride, const int32_t *pages, long first, long last,
                      long length, float *const *weights, vec *outputs) {
    vec sums[2 * SUMS];
    EACH(j, n * SUMS) sums[j] = outputs[j];
    for (long p = first; p < last; p++) {
        const float *page = values + pages[p] * stride;
        const long at = p * LANES;
        const int tokens = length - at < LANES ? length - at : LANES;
#if WIDE
        int s = 0;
        for (; s + STRANDS <= tokens; s += STRANDS)
            EACH(strand, STRANDS) {
                vec value[PARTS];
                EACH(j, PARTS) value[j] = *(const vec *)(page + (s + strand) * HEAD_DIM + j * LANES);
                EACH(i, n) {
                    const float weight = weights[i][at + s + strand];
                    EACH(j, PARTS) sums[i * SUMS + strand * PARTS + j] += weight * value[j];
                }
            }
        if (s < tokens)
            EACH(i, n) {
                const float weight = weights[i][at + s];
                EACH(j, PARTS) sums[i * SUMS + j] += weight * *(const vec *)(page + s * HEAD_DIM + j * LANES);
            }
#else
        EACH(j, PARTS) {
            vec value = *(const vec *)(page + j * LANES);
            if (tokens < LANES) value = first_places(tokens, value, (vec){0});
            EACH(i, n) sums[i * SUMS + j] += *(const vec *)(weights[i] + at) * value;
        }
#endif
    }
    EACH(j, n * SUMS) outputs[j] = sums[j];
}

/* Turn a query's scores into the numerators of its softmax; returns one over their sum. Of the `length` tokens
 * those before `first` are out of sight: their numerators are 0. */
static float soften(float *scores, long first, long length) {
    vec *place = (vec *)scores;
    const long num_pages = (length + LANES - 1) / LANES;
    for (long t = 0; t < first; t++) scores[t] = -INFINITY;
    place[num_pages - 1] = first_places(length - (num_pages - 1) * LANES, place[num_pages - 1], splat(-INFINITY));
    vec most = place[0];
    for (long p = 1; p < num_pages; p++) most = max_vec(place[p], most);
    most = greatest(most);
    vec sum = (vec){0};
    for (long p = 0; p < num_pages; p++) sum += place[p] = exp_vec(place[p] - most);
    return 1.0f / sum_vec(sum);
}

/* The same for a query that sees the last `window` tokens; 0 for all of them. */
INLINE float soften_seen(float *scores, long length, long window) {
    return soften(scores, window && length > window ? length - window : 0, length);
}

/* Write the outputs of `n` neighbouring queries of a row, feature by feature. */
INLINE void put_outputs(const int n, vec *sums, const float *shares, float *out) {
#if WIDE
    EACH(i, n) EACH(j, PARTS) {
        const vec sum = (STRANDS == 2 ? sums[i * SUMS + j] + sums[i * SUMS + PARTS + j] : sums[i * SUMS + j]) * shares[i];
        EACH(lane, LANES) out[(i * HEAD_DIM + j * LANES + lane) * TILE] = sum[lane];
    }
#else
    for (int first = 0; first < n * PARTS; first += LANES) {
        vec some[LANES];
        EACH(j, LANES) some[j] = first + j < n * PARTS ? sums[first + j] : (vec){0};
        const vec sum = sum_each(some);
        EACH(j, LANES) if (first + j < n * PARTS) out[(first + j) * TILE] = sum[j] * shares[(first + j) / PARTS];
    }
#endif
}

typedef struct {
    const float *q, *keys, *values;
    float *out, *scores;
    const int32_t *pages, *positions;
    long max_pages, kv_heads, window;
} Attention;

/* Attention of `rows` neighbours from row `first` on, which share their first `common` pages, all full. */
static void attend_item(const Attention *a, long first, int rows, long common) {
    const int n = rows * GROUP;
    const long room = (a->max_pages + 4) * LANES, stride = a->kv_heads * PAGE;
    const long features = a->kv_heads * GROUP * HEAD_DIM;
    const int32_t *shared = a->pages + first * a->max_pages;
    for (long begin = 0; begin < a->kv_heads; begin += HEADS) {
        const int heads = a->kv_heads - begin < HEADS ? a->kv_heads - begin : HEADS;
        /* By head and query; dense, since parts a power of two apart would share places of the near cache. */
        const float *query[HEADS * MAX_SHARING * GROUP];
        float *score[HEADS * MAX_SHARING * GROUP], share[HEADS * MAX_SHARING * GROUP];
        vec sums[HEADS * MAX_SHARING * GROUP * SUMS];
        for (int h = 0; h < heads; h++)
            for (int row = 0; row < rows; row++)
                for (int g = 0; g < GROUP; g++) {
                    const int i = h * n + row * GROUP + g;
                    query[i] = a->q + (((first + row) * a->kv_heads + begin + h) * GROUP + g) * HEAD_DIM;
                    score[i] = a->scores + i * room;
                }
        for (long p = 0; p < common; p++)
            for (int h = 0; h < heads; h++) {
                const float *page[1] = {a->keys + shared[p] * stride + (begin + h) * PAGE};
                int i = 0;
                for (; i + 8 <= n; i += 8) score_pages(8, 1, query + h * n + i, page, score + h * n + i, p * LANES);
                for (; i + 2 <= n; i += 2) score_pages(2, 1, query + h * n + i, page, score + h * n + i, p * LANES);
                for (; i < n; i++) score_pages(1, 1, query + h * n + i, page, score + h * n + i, p * LANES);
            }
        for (int row = 0; row < rows; row++) {
            const int32_t *own = a->pages + (first + row) * a->max_pages;
            const long num_pages = a->positions[first + row] / LANES + 1;
            long p = common;
            for (; p + 4 <= num_pages; p += 4)
                for (int h = 0; h < heads; h++) {
                    const float *page[4];
                    EACH(j, 4) page[j] = a->keys + own[p + j] * stride + (begin + h) * PAGE;
                    int i = row * GROUP;
                    for (; i + 2 <= (row + 1) * GROUP; i += 2)
                        score_pages(2, 4, query + h * n + i, page, score + h * n + i, p * LANES);
                    for (; i < (row + 1) * GROUP; i++)
                        score_pages(1, 4, query + h * n + i, page, score + h * n + i, p * LANES);
                }
            for (; p < num_pages; p++)
                for (int h = 0; h < heads; h++) {
                    const float *page[1] = {a->keys + own[p] * stride + (begin + h) * PAGE};
                    int i = row * GROUP;
                    for (; i + 2 <= (row + 1) * GROUP; i += 2)
                        score_pages(2, 1, query + h * n + i, page, score + h * n + i, p * LANES);
                    for (; i < (row + 1) * GROUP; i++)
                        score_pages(1, 1, query + h * n + i, page, score + h * n + i, p * LANES);
                }
        }
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < n; i++)
                share[h * n + i] = soften_seen(score[h * n + i], a->positions[first + i / GROUP] + 1, a->window);
        memset(sums, 0, sizeof(vec) * heads * n * SUMS);
        for (long p = 0; p < common; p += RUN)
            for (int h = 0; h < heads; h++) {
                const float *values = a->values + (begin + h) * PAGE;
                const long end = common - p < RUN ? common : p + RUN;
                int i = 0;
                for (; i + 2 <= n; i += 2)
                    mix_pages(2, values, stride, shared, p, end, end * LANES, score + h * n + i, sums + (h * n + i) * SUMS);
                for (; i < n; i++)
                    mix_pages(1, values, stride, shared, p, end, end * LANES, score + h * n + i, sums + (h * n + i) * SUMS);
            }
        for (int row = 0; row < rows; row++) {
            const int32_t *own = a->pages + (first + row) * a->max_pages;
            const long length = a->positions[first + row] + 1, num_pages = (length + LANES - 1) / LANES;
            for (long p = common; p < num_pages; p += RUN)
                for (int h = 0; h < heads; h++) {
                    const float *values = a->values + (begin + h) * PAGE;
                    const long end = num_pages - p < RUN ? num_pages : p + RUN;
                    int i = row * GROUP;
                    for (; i + 2 <= (row + 1) * GROUP; i += 2)
                        mix_pages(2, values, stride, own, p, end, length, score + h * n + i, sums + (h * n + i) * SUMS);
                    for (; i < (row + 1) * GROUP; i++)
                        mix_pages(1, values, stride, own, p, end, length, score + h * n + i, sums + (h * n + i) * SUMS);
                }
        }
        for (int row = 0; row < rows; row++) {
            const long r = first + row, i = row * GROUP;
            float *out = a->out + r / TILE * features * TILE + r % TILE;
            for (int h = 0; h < heads; h++)
                put_outputs(GROUP, sums + (h * n + i) * SUMS, share + h * n + i, out + (begin + h) * GROUP * HEAD_DIM * TILE);
        }
    }
}

/* Numbers of working memory that a thread needs for `rs_attend`. */
EXPORT long rs_attend_room(long max_pages) { return HEADS * MAX_SHARING * GROUP * (max_pages + 4) * LANES; }

/* Attention of each row over its pages up to its position, or the last `window` tokens (0: all). Rows [begin[i],
 * begin[i + 1]) form item i: they share their first common[i] pages, all full. out is feature-major. */
static void attend(const float *q, float *out, const float *keys, const float *values, const int32_t *pages,
                      long max_pages, const int32_t *positions, long kv_heads, long window, const int32_t *begin,
                      const int32_t *common, long items, float *scores, int threads) {
    double work = 0.0; /* scores, their softmax, and what is mixed by them */
    for (long r = 0; r < begin[items]; r++) work += positions[r] + 1;
    work *= (double)kv_heads * GROUP * (2 * HEAD_DIM + EXP_WORK);
    const int parts = parts_of(work, threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (parts > 1)
    for (int part = 0; part < parts; part++) {
        const Attention a = {q, keys, values, out, scores + part * rs_attend_room(max_pages),
                             pages, positions, max_pages, kv_heads, window};
        for (long i = items * part / parts; i < items * (part + 1) / parts; i++) {
            /* Where little is shared, fewer rows at once keep their scores near. */
            const int most = common[i] < 4 ? 2 : MAX_SHARING;
            for (long first = begin[i]; first < begin[i + 1]; first += most)
                attend_item(&a, first, begin[i + 1] - first < most ? begin[i + 1] - first : most, common[i]);
        }
    }
}
