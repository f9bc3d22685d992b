/* Products of weights, as the training model holds them, with activations. */

#pragma once

#include "parts.h"
#include "vectors.h"

#define BLOCK_K 1024 /* sums are taken in blocks of so many inputs, which stay in the near cache */
#define BLOCK_BYTES (512 * 1024) /* of a block's activations that are kept near */

#ifdef __AVX512F__
#define UNROLL 12
#else
#define UNROLL 6
#endif

/* out[i] (+)= sum over k of w[i][k] x[k], for m outputs and t words of rows; m and t are constants. If `ahead`,
 * the weights of the next m outputs are called for, since they may be far away. */
INLINE void product(const int m, const int t, const float *w, long ldw, long width, const float *x, float *out,
                    const float *bias, int add, int ahead) {
    word sums[UNROLL * 2];
    EACH(i, m * t) sums[i] = (word){0};
    for (long k = 0; k < width; k++) {
        if (ahead && k % LANES == 0) EACH(i, m) __builtin_prefetch(w + (m + i) * ldw + k);
        word column[2];
        EACH(j, t) column[j] = *(const word *)(x + k * TILE + j * WORD);
        EACH(i, m) {
            const float weight = w[i * ldw + k];
            EACH(j, t) sums[i * t + j] += weight * column[j];
        }
    }
    EACH(i, m) EACH(j, t) {
        word *place = (word *)(out + i * TILE + j * WORD);
        word sum = bias ? sums[i * t + j] + bias[i] : sums[i * t + j];
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
    const int parts = parts_of((double)n_out * n_in * rows, threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (parts > 1)
    for (int part = 0; part < parts; part++) {
        float wide[UNROLL * BLOCK_K / 2] __attribute__((aligned(64)));
        const long begin = units * part / parts * UNROLL;
        long end = units * (part + 1) / parts * UNROLL;
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
                        const int used = rows - t * TILE > LANES ? TILE : LANES;
                        for (int r = 0; r < used; r += 2 * WORD) {
                            const int two = used - r > WORD, ahead = t == first && r == 0 && !half;
                            if (step == UNROLL && two) product(UNROLL, 2, w, ldw, width, from + r, to + r, b, more, ahead);
                            else if (step == UNROLL) product(UNROLL, 1, w, ldw, width, from + r, to + r, b, more, ahead);
                            else if (step == 4 && two) product(4, 2, w, ldw, width, from + r, to + r, b, more, ahead);
                            else if (step == 4) product(4, 1, w, ldw, width, from + r, to + r, b, more, ahead);
                            else if (two) product(1, 2, w, ldw, width, from + r, to + r, b, more, ahead);
                            else product(1, 1, w, ldw, width, from + r, to + r, b, more, ahead);
                        }
                    }
                }
            }
        }
    }
}
