/* Vectors of 16 floats, whatever the machine's are, and the little arithmetic that is made of them. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define TILE 32

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));
typedef float loose_vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t loose_hvec __attribute__((vector_size(2 * LANES), aligned(2)));

/* As many floats as one of the machine's registers holds. Inner loops that keep sums in registers are written in
 * words: GCC keeps wider vectors in memory, which is ten times slower. */
#if defined(__AVX512F__)
#define WORD 16
#elif defined(__AVX__)
#define WORD 8
#else
#define WORD 4
#endif
typedef float word __attribute__((vector_size(4 * WORD)));

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

#define EXP_WORK 16 /* multiplications that take as long as one */

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
