/* Choosing tokens. */

#pragma once

#include "vectors.h"

#define VOCAB_BLOCK 64 /* tokens whose probabilities are summed up first */

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
