/* The decoder's inner loops on a CPU; `native.py` compiles this file for the machine and the model's heads.
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

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define TILE 32
#define BLOCK_K 1024 /* products are added up in blocks of so many inputs, which stay in the near cache */
#define BLOCK_BYTES (512 * 1024) /* of a block's activations that are kept near */
#define VOCAB_BLOCK 64
#define MAX_SHARING 8 /* queries that go through shared pages together */

#ifdef __AVX512F__
#define UNROLL 12
#else
#define UNROLL 4
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));
typedef float loose_vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t loose_hvec __attribute__((vector_size(2 * LANES), aligned(2)));

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
#define EACH(i, n) _Pragma("GCC unroll 64") for (int i = 0; i < (n); i++)

INLINE vec splat(float x) { return x - (vec){0}; }

/* GCC's generic vectors have no fast choice between two in C; the 512-bit instructions for it are named. */
#ifdef __AVX512F__
#include <immintrin.h>
INLINE vec max_vec(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vec first_places(int count, vec a, vec b) {
    return (vec)_mm512_mask_blend_ps((__mmask16)((1u << count) - 1), (__m512)b, (__m512)a);
}
INLINE vec times_power(vec x, vec n) { return (vec)_mm512_scalef_ps((__m512)x, (__m512)n); }
#else
INLINE vec choose_vec(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }
INLINE vec max_vec(vec a, vec b) { return choose_vec(a > b, a, b); }
/* The first `count` places of a, the others of b. */
INLINE vec first_places(int count, vec a, vec b) {
    const ivec places = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return choose_vec(places < (count - (ivec){0}), a, b);
}
/* x times 2^n, for whole n. */
INLINE vec times_power(vec x, vec n) { return (vec)((ivec)x + (__builtin_convertvector(n, ivec) << 23)); }
#endif

INLINE float widen(uint16_t bf16) {
    uint32_t bits = (uint32_t)bf16 << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* e^x to about two units in the last place, for x up to 88; what is below -87 counts as -87, some 1e-38.
 * Range reduction and a polynomial of degree 6. */
INLINE vec exp_vec(vec x) {
    const vec shift = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to whole numbers */
    const vec clipped = max_vec(x, splat(-87.0f));
    const vec n = (clipped * 1.44269504088896341f + shift) - shift;
    vec r = clipped - n * 0.693145751953125f;
    r = r - n * 1.42860682030941723212e-6f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return times_power(p, n);
}

/* The greatest lane, in every lane. */
INLINE vec greatest(vec x) {
    const ivec lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    _Pragma("GCC unroll 4") for (int half = LANES / 2; half; half /= 2)
        x = max_vec(x, __builtin_shuffle(x, lanes ^ half));
    return x;
}

/* Each lane of the result is the sum over the lanes of one vector. */
INLINE vec sum_each(vec *x) {
    const ivec even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30}, odd = even + 1;
    _Pragma("GCC unroll 4") for (int half = LANES / 2; half; half /= 2)
        EACH(i, half) x[i] = __builtin_shuffle(x[2 * i], x[2 * i + 1], even) + __builtin_shuffle(x[2 * i], x[2 * i + 1], odd);
    return x[0];
}

INLINE float sum_vec(vec x) {
    typedef float v8 __attribute__((vector_size(32)));
    typedef float v4 __attribute__((vector_size(16)));
    union { vec v; v8 h[2]; } a = {x};
    union { v8 v; v4 h[2]; } b = {a.h[0] + a.h[1]};
    v4 c = b.h[0] + b.h[1];
    return (c[0] + c[2]) + (c[1] + c[3]);
}

/* ---- products ---- */

/* out[i] (+)= sum over k of w[i][k] x[k], for m outputs and t vectors of rows; m and t are constants. */
INLINE void product(const int m, const int t, const float *w, long ldw, long width, const float *x, float *out,
                    const float *bias, int add) {
    vec sums[UNROLL * 2];
    EACH(i, m * t) sums[i] = (vec){0};
    for (long k = 0; k < width; k++) {
        vec column[2];
        EACH(j, t) column[j] = *(const vec *)(x + k * TILE + j * LANES);
        EACH(i, m) {
            const float weight = w[i * ldw + k];
            EACH(j, t) sums[i * t + j] += weight * column[j];
        }
    }
    EACH(i, m) EACH(j, t) {
        vec *place = (vec *)(out + i * TILE + j * LANES);
        vec sum = bias ? sums[i * t + j] + bias[i] : sums[i * t + j];
        *place = add ? *place + sum : sum;
    }
}

static void widen_rows(const uint16_t *from, long stride, int rows, long width, float *to) {
    for (int i = 0; i < rows; i++) {
        const uint16_t *row = from + i * stride;
        long k = 0;
        for (; k + LANES <= width; k += LANES) {
            hvec half = *(const loose_hvec *)(row + k);
            *(loose_vec *)(to + i * width + k) = (vec)(__builtin_convertvector(half, ivec) << 16);
        }
        for (; k < width; k++) to[i * width + k] = widen(row[k]);
    }
}

/* out[N] = weight[N, K] x[K] + bias, or added to what is in out. weight is float32, or bf16 if `half`. */
EXPORT void rs_linear(const void *weight, int half, const float *bias, long n_out, long n_in, const float *x,
                      float *out, long rows, int add, int threads) {
    const long tiles = (rows + TILE - 1) / TILE;
    const long block = half ? BLOCK_K / 2 : BLOCK_K;
    const long near = BLOCK_BYTES / (4 * TILE * (n_in < block ? n_in : block));
    const long together = near < 1 ? 1 : near;
    const long units = (n_out + UNROLL - 1) / UNROLL;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        float wide[UNROLL * BLOCK_K / 2] __attribute__((aligned(64)));
        const long begin = units * part / threads * UNROLL;
        long end = units * (part + 1) / threads * UNROLL;
        if (end > n_out) end = n_out;
        for (long first = 0; first < tiles; first += together) {
            const long last = first + together < tiles ? first + together : tiles;
            for (long k = 0; k < n_in; k += block) {
                const long width = n_in - k < block ? n_in - k : block;
                int step;
                for (long n = begin; n < end; n += step) {
                    step = end - n >= UNROLL ? UNROLL : end - n >= 4 ? 4 : 1;
                    const float *w;
                    long ldw = n_in;
                    if (half) {
                        widen_rows((const uint16_t *)weight + n * n_in + k, n_in, step, width, wide);
                        w = wide;
                        ldw = width;
                    } else {
                        w = (const float *)weight + n * n_in + k;
                    }
                    const float *b = bias && k == 0 ? bias + n : 0;
                    const int more = add || k > 0;
                    for (long t = first; t < last; t++) {
                        const float *from = x + (t * n_in + k) * TILE;
                        float *to = out + (t * n_out + n) * TILE;
                        const int full = rows - t * TILE > LANES;
                        if (step == UNROLL && full) product(UNROLL, 2, w, ldw, width, from, to, b, more);
                        else if (step == UNROLL) product(UNROLL, 1, w, ldw, width, from, to, b, more);
                        else if (step == 4 && full) product(4, 2, w, ldw, width, from, to, b, more);
                        else if (step == 4) product(4, 1, w, ldw, width, from, to, b, more);
                        else if (full) product(1, 2, w, ldw, width, from, to, b, more);
                        else product(1, 1, w, ldw, width, from, to, b, more);
                    }
                }
            }
        }
    }
}

/* ---- what stands between the products ---- */

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
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
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

/* ---- attention ---- */

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
static void append(const float *qkv, float *q, const float *cos, const float *sin, const float *q_norm,
                      const float *k_norm, float eps, float *keys, float *values, const int32_t *pages,
                      long max_pages, const int32_t *positions, long kv_heads, long rows, int threads) {
    const long features = kv_heads * (GROUP + 2) * HEAD_DIM;
    const float scale = 1.0f / sqrtf((float)HEAD_DIM);
    const long tiles = (rows + TILE - 1) / TILE;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
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

/* Turn a query's scores into the numerators of its softmax; returns one over their sum. */
static float soften(float *scores, long length) {
    vec *place = (vec *)scores;
    const long num_pages = (length + LANES - 1) / LANES;
    place[num_pages - 1] = first_places(length - (num_pages - 1) * LANES, place[num_pages - 1], splat(-INFINITY));
    vec most = place[0];
    for (long p = 1; p < num_pages; p++) most = max_vec(place[p], most);
    most = greatest(most);
    vec sum = (vec){0};
    for (long p = 0; p < num_pages; p++) sum += place[p] = exp_vec(place[p] - most);
    return 1.0f / sum_vec(sum);
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
    long max_pages, kv_heads;
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
                share[h * n + i] = soften(score[h * n + i], a->positions[first + i / GROUP] + 1);
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

/* Attention of each row over its pages up to its position. Rows [begin[i], begin[i + 1]) form item i: they share
 * their first common[i] pages, all full. out is feature-major. */
static void attend(const float *q, float *out, const float *keys, const float *values, const int32_t *pages,
                      long max_pages, const int32_t *positions, long kv_heads, const int32_t *begin,
                      const int32_t *common, long items, float *scores, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        const Attention a = {q, keys, values, out, scores + part * rs_attend_room(max_pages),
                             pages, positions, max_pages, kv_heads};
        for (long i = items * part / threads; i < items * (part + 1) / threads; i++) {
            /* Where little is shared, fewer rows at once keep their scores near. */
            const int most = common[i] < 4 ? 2 : MAX_SHARING;
            for (long first = begin[i]; first < begin[i + 1]; first += most)
                attend_item(&a, first, begin[i + 1] - first < most ? begin[i + 1] - first : most, common[i]);
        }
    }
}

/* ---- layers ---- */

/* A layer's weights, all of `Model.half`'s type but norms and bias, and its keys and values. */
typedef struct {
    const float *attention_norm;
    const void *qkv;
    const float *qkv_bias, *q_norm, *k_norm;
    const void *projection;
    const float *mlp_norm;
    const void *gate_up, *down;
    float *keys, *values;
} Layer;

/* What layers have in common, and their working memory; the names say what is in it. */
typedef struct {
    long width, kv_heads, mlp_width, max_pages;
    int half, threads, sum; /* sum: add products to hidden; else leave them in partial, a rank's part of a sum */
    float eps;
    const float *cos, *sin;
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
            append(m->qkv, m->queries, m->cos, m->sin, l->q_norm, l->k_norm, m->eps, l->keys, l->values, b->pages,
                   m->max_pages, b->positions, m->kv_heads, rows, m->threads);
            attend(m->queries, m->mixed, l->keys, l->values, b->pages, m->max_pages, b->positions, m->kv_heads,
                   b->begin, b->common, b->items, m->scores, m->threads);
            rs_linear(l->projection, m->half, 0, m->width, mixed, m->mixed, out, rows, m->sum, m->threads);
        } else {
            rs_norm(m->hidden, l->mlp_norm, m->normed, m->width, rows, m->eps);
            rs_linear(l->gate_up, m->half, 0, 2 * m->mlp_width, m->width, m->normed, m->gate_up, rows, 0, m->threads);
            swiglu(m->gate_up, m->active, m->mlp_width, rows, m->threads);
            rs_linear(l->down, m->half, 0, m->width, m->mlp_width, m->active, out, rows, m->sum, m->threads);
        }
    }
}

/* ---- choosing tokens ---- */

INLINE vec weights_of(const float *logits, vec most, float inverse_temperature) {
    return exp_vec((*(const vec *)logits - most) * inverse_temperature);
}

/* The finaliser of SplitMix64 (Steele, Lea and Flood, 2014). */
INLINE uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/* The random number of a token, as `sampling.uniforms`. */
INLINE double uniform(uint64_t seed, uint64_t position) {
    return (double)(mix(mix(seed + 0x9E3779B97F4A7C15u * (position + 1))) >> 11) * 0x1p-53;
}

/* The next token of each row, at place `lengths` of its response, and its log-probability (of the logits as they
 * are).
 *
 * Greedy, or by inverting the cumulative distribution of softmax(logits / temperature) at the token's random
 * number: first among blocks of the vocabulary, then within one. In rows shorter than `least` the tokens in
 * `banned` have no weight. `sums` has room for (vocab / VOCAB_BLOCK + 1) * LANES numbers. */
EXPORT void rs_choose(const float *logits, long vocab, long rows, const uint64_t *seeds, const int64_t *lengths,
                      float inverse_temperature, int greedy, const int32_t *banned, long num_banned, long least,
                      float *sums, int32_t *tokens, float *log_probs) {
    const long blocks = (vocab + VOCAB_BLOCK - 1) / VOCAB_BLOCK;
    for (long r = 0; r < rows; r += LANES) {
        const float *tile = logits + r / TILE * vocab * TILE + r % TILE;
        const int lanes = rows - r < LANES ? rows - r : LANES;
        vec most = *(const vec *)tile;
        for (long v = 1; v < vocab; v++) most = max_vec(*(const vec *)(tile + v * TILE), most);
        double total[LANES] = {0}, weight[LANES] = {0};
        for (long b = 0; b < blocks; b++) {
            const long end = (b + 1) * VOCAB_BLOCK < vocab ? (b + 1) * VOCAB_BLOCK : vocab;
            vec plain = (vec){0}, tempered = (vec){0};
            for (long v = b * VOCAB_BLOCK; v < end; v++) plain += weights_of(tile + v * TILE, most, 1.0f);
            if (inverse_temperature == 1.0f) tempered = plain;
            else
                for (long v = b * VOCAB_BLOCK; v < end; v++)
                    tempered += weights_of(tile + v * TILE, most, inverse_temperature);
            *(loose_vec *)(sums + b * LANES) = tempered;
            for (int lane = 0; lane < LANES; lane++) total[lane] += plain[lane];
        }
        for (int lane = 0; lane < lanes; lane++) {
            const int limited = lengths[r + lane] < least;
            long token = -1;
#define IS_BANNED(v)                                                                                          \
    ({                                                                                                        \
        int found = 0;                                                                                        \
        if (limited)                                                                                          \
            for (long i = 0; i < num_banned; i++) found |= banned[i] == (v);                                  \
        found;                                                                                                \
    })
            if (greedy) {
                float top = -INFINITY;
                for (long v = 0; v < vocab; v++) {
                    const float logit = tile[v * TILE + lane];
                    if ((logit > top || token < 0) && !IS_BANNED(v)) top = logit, token = v;
                }
            } else {
                for (long i = 0; limited && i < num_banned; i++) { /* add their blocks up again without them */
                    const long b = banned[i] / VOCAB_BLOCK;
                    const long end = (b + 1) * VOCAB_BLOCK < vocab ? (b + 1) * VOCAB_BLOCK : vocab;
                    float sum = 0.0f;
                    for (long v = b * VOCAB_BLOCK; v < end; v++)
                        if (!IS_BANNED(v)) sum += weights_of(tile + v * TILE, most, inverse_temperature)[lane];
                    sums[b * LANES + lane] = sum;
                }
                for (long b = 0; b < blocks; b++) weight[lane] += sums[b * LANES + lane];
                const double target = uniform(seeds[r + lane], lengths[r + lane]) * weight[lane];
                double before = 0.0;
                long b = 0, last = 0;
                for (long i = 0; i < blocks; i++) /* the last block with any weight, for rounding at the end */
                    if (sums[i * LANES + lane] > 0.0f) last = i;
                for (; b < last && before + sums[b * LANES + lane] <= target; b++) before += sums[b * LANES + lane];
                const long end = (b + 1) * VOCAB_BLOCK < vocab ? (b + 1) * VOCAB_BLOCK : vocab;
                for (long v = b * VOCAB_BLOCK; v < end; v++) {
                    const float one = IS_BANNED(v) ? 0.0f : weights_of(tile + v * TILE, most, inverse_temperature)[lane];
                    if (one > 0.0f) token = v;
                    before += one;
                    if (before > target && one > 0.0f) break;
                }
            }
            if (token < 0) token = 0; /* logits that are no numbers */
            tokens[r + lane] = token;
            log_probs[r + lane] = tile[token * TILE + lane] - most[lane] - (float)log(total[lane]);
        }
    }
}
