/* Inner loops of a training step on a CPU, forward and backward; `rs_aligner/model/native.py` compiles them.
 *
 * What torch does in many passes over memory is done in one here: causal attention with rotary positions over the
 * rows of a line, the root mean square norm, and SwiGLU. All is float32. A row's numbers depend on no other row
 * and on no number of threads. Matrix products of layers are torch's.
 *
 * HEAD_DIM is given by the compiler's command line. Left out: bf16 and GPUs (torch's own), and dropout.
 */

#include <stdlib.h>
#include "vectors.h"

#define UP(n, to) (((n) + (to) - 1) / (to) * (to))
#define DIM HEAD_DIM
#define WIDE UP(DIM, WORD)  /* floats of a head's row in working memory */
#define BLOCK 32            /* queries at a time */

typedef float loose_word __attribute__((vector_size(4 * WORD), aligned(4)));
typedef int32_t iword __attribute__((vector_size(4 * WORD)));

/* ---- arithmetic of words; as that of vectors in vectors.h, which narrower machines keep in memory ---------- */

INLINE word fill(float x) { return x - (word){0}; }
INLINE word pick(iword mask, word a, word b) { return (word)((mask & (iword)a) | (~mask & (iword)b)); }
INLINE word larger(word a, word b) { return pick(a > b, a, b); }
INLINE iword places(void) {
    iword found;
    EACH(i, WORD) found[i] = i;
    return found;
}
INLINE float sum_word(word x) {
    float sum = 0;
    EACH(i, WORD) sum += x[i];
    return sum;
}
INLINE float largest(word x) {
    float top = x[0];
    EACH(i, WORD) top = x[i] > top ? x[i] : top;
    return top;
}

/* e^x, for x from -87 (below it counts as -87) up to 88: as `exp_vec`. */
INLINE word exp_word(word x) {
    const word shift = fill(12582912.0f), clipped = larger(x, fill(-87.0f));
    const word n = (clipped * 1.44269504088896341f + shift) - shift;
    word r = clipped - n * 0.693145751953125f;
    r = r - n * 1.42860682030941723212e-6f;
    word p = fill(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return (word)((iword)p + (__builtin_convertvector(n, iword) << 23));
}

/* ---- products of working memory ------------------------------------------------------------------------- */

/* C[r][n] (+)= sum over k of A(r, k) * B[k][n], for `rows` rows of C and `words` words of its columns. */
INLINE void tile(const int rows, const int words, long depth, const float *a, long a_row, long a_depth,
                 const float *b, long b_row, float *c, long c_row, int add) {
    word sum[4][2];
    EACH(r, rows) EACH(w, words) sum[r][w] = add ? *(loose_word *)(c + r * c_row + w * WORD) : (word){0};
    for (long k = 0; k < depth; k++) {
        word right[2];
        EACH(w, words) right[w] = *(const loose_word *)(b + k * b_row + w * WORD);
        EACH(r, rows) {
            const float left = a[r * a_row + k * a_depth];
            EACH(w, words) sum[r][w] += left * right[w];
        }
    }
    EACH(r, rows) EACH(w, words) *(loose_word *)(c + r * c_row + w * WORD) = sum[r][w];
}

INLINE void columns(const int rows, long width, long depth, const float *a, long a_row, long a_depth,
                    const float *b, long b_row, float *c, long c_row, int add) {
    long n = 0;
    for (; n + 2 * WORD <= width; n += 2 * WORD) tile(rows, 2, depth, a, a_row, a_depth, b + n, b_row, c + n, c_row, add);
    for (; n < width; n += WORD) tile(rows, 1, depth, a, a_row, a_depth, b + n, b_row, c + n, c_row, add);
}

/* `width` is a multiple of WORD. */
static void product(long rows, long width, long depth, const float *a, long a_row, long a_depth, const float *b,
                    long b_row, float *c, long c_row, int add) {
    long r = 0;
    for (; r + 4 <= rows; r += 4)
        columns(4, width, depth, a + r * a_row, a_row, a_depth, b, b_row, c + r * c_row, c_row, add);
    for (; r < rows; r++) columns(1, width, depth, a + r * a_row, a_row, a_depth, b, b_row, c + r * c_row, c_row, add);
}

/* ---- attention ------------------------------------------------------------------------------------------ */

/* Queries, keys and values, or their gradients: head h of group g at token t lies at p + t * token + g * group +
 * h * DIM. Keys and values have one head a group. */
typedef struct {
    float *q, *k, *v;
    long q_token, q_group, k_token, k_group, v_token, v_group;
} Heads;

typedef struct {
    long rows, groups, heads; /* query heads of a group */
    const long *starts, *lengths;
    long step;                   /* tokens of a row are so many places apart */
    long longest;
    const float *cos, *sin; /* [place, DIM / 2] */
    float scale;
} Batch;

/* Both halves turned by an angle, or back; multiplied by `scale`. */
INLINE void turn(const float *from, const float *cos, const float *sin, float sign, float scale, float *to) {
    for (int d = 0; d < DIM / 2; d++) {
        const float a = from[d] * scale, b = from[d + DIM / 2] * scale, s = sin[d] * sign;
        to[d] = a * cos[d] - b * s;
        to[d + DIM / 2] = b * cos[d] + a * s;
    }
}

INLINE void transpose(const float *from, long count, long padded, float *to) {
    for (int d = 0; d < DIM; d++) {
        for (long t = 0; t < count; t++) to[d * padded + t] = from[t * WIDE + d];
        for (long t = count; t < padded; t++) to[d * padded + t] = 0;
    }
}

/* Floats of working memory that a thread needs; `longest` as in a batch. */
EXPORT long rs_attention_room(long longest) {
    const long padded = UP(longest, LANES);
    return UP(2 * DIM * padded + 4 * padded * WIDE + 3 * BLOCK * WIDE + 2 * BLOCK * padded + BLOCK, LANES) + 12 * LANES;
}

typedef struct {
    float *k_across, *v_across, *k, *v, *dk, *dv, *q, *dout, *dq, *p, *ds, *delta;
    long padded;
    float nothing; /* 0; NaN where a key is not finite, which exponentials would hide */
} Room;

static Room room_of(float *at, long longest) {
    Room room;
    const long padded = room.padded = UP(longest, LANES);
#define TAKE(name, size) room.name = at, at += UP(size, LANES)
    TAKE(k_across, DIM * padded);
    TAKE(v_across, DIM * padded);
    TAKE(k, padded * WIDE);
    TAKE(v, padded * WIDE);
    TAKE(dk, padded * WIDE);
    TAKE(dv, padded * WIDE);
    TAKE(q, BLOCK * WIDE);
    TAKE(dout, BLOCK * WIDE);
    TAKE(dq, BLOCK * WIDE);
    TAKE(p, BLOCK * padded);
    TAKE(ds, BLOCK * padded);
    TAKE(delta, BLOCK);
#undef TAKE
    return room;
}

/* Keys, rotated, and values of a row's group into working memory. */
static void fetch(const Batch *b, const Heads *x, long row, long group, Room *room, int values_across) {
    const long length = b->lengths[row], padded = UP(length, LANES);
    float nothing = 0;
    for (long t = 0; t < length; t++) {
        const long at = b->starts[row] + t * b->step;
        const float *cos = b->cos + at * (DIM / 2), *sin = b->sin + at * (DIM / 2);
        float *k = room->k + t * WIDE, *v = room->v + t * WIDE;
        turn(x->k + at * x->k_token + group * x->k_group, cos, sin, 1, 1, k);
        memcpy(v, x->v + at * x->v_token + group * x->v_group, 4 * DIM);
        for (int d = 0; d < DIM; d++) nothing += 0 * k[d];
        for (int d = DIM; d < WIDE; d++) k[d] = v[d] = 0;
    }
    room->nothing = nothing;
    transpose(room->k, length, padded, room->k_across);
    if (values_across) transpose(room->v, length, padded, room->v_across);
}

INLINE void fetch_queries(const Batch *b, const Heads *x, long row, long group, long head, long first, long count,
                          Room *room) {
    for (long i = 0; i < count; i++) {
        const long at = b->starts[row] + (first + i) * b->step;
        float *q = room->q + i * WIDE;
        turn(x->q + at * x->q_token + group * x->q_group + head * DIM, b->cos + at * (DIM / 2),
             b->sin + at * (DIM / 2), 1, b->scale, q);
        for (int d = DIM; d < WIDE; d++) q[d] = 0;
    }
}

/* e^(score - top) of a query's `seen` keys, zero up to `padded`; returns their sum. */
INLINE float softmax(float *p, long seen, long padded, float top) {
    word total = (word){0};
    long j = 0;
    for (; j + WORD <= seen; j += WORD) {
        const word x = exp_word(*(word *)(p + j) - top);
        total += x;
        *(word *)(p + j) = x;
    }
    for (; j < padded; j += WORD) {
        const iword is_seen = places() < (int32_t)(seen - j);
        const word x = (word)(is_seen & (iword)exp_word(pick(is_seen, *(word *)(p + j), fill(top)) - top));
        total += x;
        *(word *)(p + j) = x;
    }
    return sum_word(total);
}

INLINE float top_of(const float *p, long seen) {
    word found = fill(-INFINITY);
    long j = 0;
    for (; j + WORD <= seen; j += WORD) found = larger(found, *(const word *)(p + j));
    if (j < seen) found = larger(found, pick(places() < (int32_t)(seen - j), *(const word *)(p + j), fill(-INFINITY)));
    return largest(found);
}

static void forward_row(const Batch *b, const Heads *x, long row, long group, float *out, float *lse, Room *room) {
    const long length = b->lengths[row], all_heads = b->groups * b->heads;
    fetch(b, x, row, group, room, 0);
    for (long head = 0; head < b->heads; head++)
        for (long first = 0; first < length; first += BLOCK) {
            const long count = length - first < BLOCK ? length - first : BLOCK;
            const long padded = UP(first + count, LANES), across = UP(length, LANES);
            fetch_queries(b, x, row, group, head, first, count, room);
            product(count, padded, DIM, room->q, WIDE, 1, room->k_across, across, room->p, room->padded, 0);
            for (long i = 0; i < count; i++) {
                float *p = room->p + i * room->padded;
                const long seen = first + i + 1, at = b->starts[row] + (first + i) * b->step;
                const float top = top_of(p, seen);
                float total = softmax(p, seen, padded, top) + room->nothing;
                for (int d = 0; d < DIM; d++) total += 0 * room->q[i * WIDE + d];
                lse[at * all_heads + group * b->heads + head] = top + logf(total);
                room->delta[i] = 1 / total;
            }
            product(count, WIDE, first + count, room->p, room->padded, 1, room->v, WIDE, room->dq, WIDE, 0);
            for (long i = 0; i < count; i++) {
                const long at = b->starts[row] + (first + i) * b->step;
                float *to = out + (at * all_heads + group * b->heads + head) * DIM;
                for (int d = 0; d < DIM; d++) to[d] = room->dq[i * WIDE + d] * room->delta[i];
            }
        }
}

static void backward_row(const Batch *b, const Heads *x, long row, long group, const float *out, const float *lse,
                         const float *dout, const Heads *dx, Room *room) {
    const long length = b->lengths[row], all_heads = b->groups * b->heads, across = UP(length, LANES);
    fetch(b, x, row, group, room, 1);
    memset(room->dk, 0, 4 * length * WIDE);
    memset(room->dv, 0, 4 * length * WIDE);
    for (long head = 0; head < b->heads; head++)
        for (long first = 0; first < length; first += BLOCK) {
            const long count = length - first < BLOCK ? length - first : BLOCK;
            const long padded = UP(first + count, LANES);
            fetch_queries(b, x, row, group, head, first, count, room);
            for (long i = 0; i < count; i++) {
                const long at = b->starts[row] + (first + i) * b->step;
                const long place = (at * all_heads + group * b->heads + head) * DIM;
                float sum = 0;
                for (int d = 0; d < DIM; d++) {
                    room->dout[i * WIDE + d] = dout[place + d];
                    sum += dout[place + d] * out[place + d];
                }
                for (int d = DIM; d < WIDE; d++) room->dout[i * WIDE + d] = 0;
                room->delta[i] = sum;
            }
            product(count, padded, DIM, room->q, WIDE, 1, room->k_across, across, room->p, room->padded, 0);
            product(count, padded, DIM, room->dout, WIDE, 1, room->v_across, across, room->ds, room->padded, 0);
            for (long i = 0; i < count; i++) {
                const long at = b->starts[row] + (first + i) * b->step;
                float *p = room->p + i * room->padded, *ds = room->ds + i * room->padded;
                softmax(p, first + i + 1, padded, lse[at * all_heads + group * b->heads + head]);
                for (long j = 0; j < padded; j += WORD)
                    *(word *)(ds + j) = *(word *)(p + j) * (*(word *)(ds + j) - room->delta[i]);
            }
            const long keys = first + count;
            product(keys, WIDE, count, room->p, 1, room->padded, room->dout, WIDE, room->dv, WIDE, 1);
            product(keys, WIDE, count, room->ds, 1, room->padded, room->q, WIDE, room->dk, WIDE, 1);
            product(count, WIDE, keys, room->ds, room->padded, 1, room->k, WIDE, room->dq, WIDE, 0);
            for (long i = 0; i < count; i++) {
                const long at = b->starts[row] + (first + i) * b->step;
                turn(room->dq + i * WIDE, b->cos + at * (DIM / 2), b->sin + at * (DIM / 2), -1, b->scale,
                     dx->q + at * dx->q_token + group * dx->q_group + head * DIM);
            }
        }
    for (long t = 0; t < length; t++) {
        const long at = b->starts[row] + t * b->step;
        turn(room->dk + t * WIDE, b->cos + at * (DIM / 2), b->sin + at * (DIM / 2), -1, 1,
             dx->k + at * dx->k_token + group * dx->k_group);
        memcpy(dx->v + at * dx->v_token + group * dx->v_group, room->dv + t * WIDE, 4 * DIM);
    }
}

/* `out` is [place, heads, DIM], `lse` [place, heads]; `room` has rs_attention_room for each thread. */
EXPORT void rs_attention(const Batch *b, const Heads *x, float *out, float *lse, float *room, int threads) {
    const long each = rs_attention_room(b->longest), items = b->rows * b->groups;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; thread++) {
        Room mine = room_of(room + thread * each, b->longest);
        for (long item = thread; item < items; item += threads)
            forward_row(b, x, item / b->groups, item % b->groups, out, lse, &mine);
    }
}

EXPORT void rs_attention_backward(const Batch *b, const Heads *x, const float *out, const float *lse,
                                  const float *dout, const Heads *dx, float *room, int threads) {
    const long each = rs_attention_room(b->longest), items = b->rows * b->groups;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; thread++) {
        Room mine = room_of(room + thread * each, b->longest);
        for (long item = thread; item < items; item += threads)
            backward_row(b, x, item / b->groups, item % b->groups, out, lse, dout, dx, &mine);
    }
}

/* ---- norm and activation -------------------------------------------------------------------------------- */

/* Rows are [width], one behind the other; `inverse` keeps one over the root mean square of each. */
EXPORT void rs_norm(const float *x, const float *weight, float *out, float *inverse, long rows, long width, float eps,
                    int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++) {
        const float *from = x + r * width;
        float *to = out + r * width;
        word sum = (word){0};
        float rest = 0;
        long f = 0;
        for (; f + WORD <= width; f += WORD) {
            const word a = *(const loose_word *)(from + f);
            sum += a * a;
        }
        for (; f < width; f++) rest += from[f] * from[f];
        const float scale = inverse[r] = 1.0f / sqrtf((sum_word(sum) + rest) / (float)width + eps);
        for (f = 0; f < width; f++) to[f] = from[f] * scale * weight[f];
    }
}

/* `partial` is [PARTS, width], the weight's gradient of every PARTS-th row: their sum is for the caller. */
#define PARTS 8
EXPORT void rs_norm_backward(const float *x, const float *weight, const float *inverse, const float *dout, float *dx,
                             float *partial, long rows, long width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < PARTS; part++) {
        float *dweight = partial + part * width;
        memset(dweight, 0, 4 * width);
        for (long r = part; r < rows; r += PARTS) {
            const float *from = x + r * width, *grad = dout + r * width, scale = inverse[r];
            float *to = dx + r * width;
            word sum = (word){0};
            float rest = 0;
            long f = 0;
            for (; f + WORD <= width; f += WORD) {
                const word a = *(const loose_word *)(from + f), g = *(const loose_word *)(grad + f);
                *(loose_word *)(dweight + f) += g * a * scale;
                sum += g * *(const loose_word *)(weight + f) * a;
            }
            for (; f < width; f++) {
                dweight[f] += grad[f] * from[f] * scale;
                rest += grad[f] * weight[f] * from[f];
            }
            const float mean = (sum_word(sum) + rest) / (float)width * scale * scale;
            for (f = 0; f < width; f++) to[f] = scale * (grad[f] * weight[f] - from[f] * mean);
        }
    }
}

/* silu(gate) * up, of rows [gate, up] of 2 * width: Shazeer, "GLU variants improve transformer" (2020). */
EXPORT void rs_swiglu(const float *x, float *out, long rows, long width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++) {
        const float *gate = x + r * 2 * width, *up = gate + width;
        float *to = out + r * width;
        long f = 0;
        for (; f + WORD <= width; f += WORD) {
            const word g = *(const loose_word *)(gate + f);
            *(loose_word *)(to + f) = g / (1.0f + exp_word(-larger(g, fill(-87.0f)))) * *(const loose_word *)(up + f);
        }
        for (; f < width; f++) to[f] = gate[f] / (1.0f + expf(-gate[f])) * up[f];
    }
}

EXPORT void rs_swiglu_backward(const float *x, const float *dout, float *dx, long rows, long width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++) {
        const float *gate = x + r * 2 * width, *up = gate + width, *grad = dout + r * width;
        float *dgate = dx + r * 2 * width, *dup = dgate + width;
        long f = 0;
        for (; f + WORD <= width; f += WORD) {
            const word g = *(const loose_word *)(gate + f), d = *(const loose_word *)(grad + f);
            const word s = 1.0f / (1.0f + exp_word(-larger(g, fill(-87.0f))));
            *(loose_word *)(dgate + f) = d * *(const loose_word *)(up + f) * s * (1.0f + g * (1.0f - s));
            *(loose_word *)(dup + f) = d * g * s;
        }
        for (; f < width; f++) {
            const float s = 1.0f / (1.0f + expf(-gate[f]));
            dgate[f] = grad[f] * up[f] * s * (1.0f + gate[f] * (1.0f - s));
            dup[f] = grad[f] * gate[f] * s;
        }
    }
}
