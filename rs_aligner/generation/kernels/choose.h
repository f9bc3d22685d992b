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

#define NOTHING 2e-38f /* weights below are none: `exp_vec` never falls below e^-87 */

/* The next token of each row, at place `lengths` of its response, and its log-probability (of the logits as they
 * are).
 *
 * kinds[v] says when token v may come: 0 never, 1 in rows of at least `least` tokens, 2 always. Greedy, or by
 * inverting the cumulative distribution of softmax(logits / temperature) over the tokens that may come at the row's
 * random number: first among blocks of the vocabulary, then within one. Weights are measured against the greatest
 * among them, since against one that may not come all of them can be too small for a float. `sums` has room for
 * (vocab / VOCAB_BLOCK + 1) * LANES numbers. */
EXPORT void rs_choose(const float *logits, long vocab, long rows, const uint64_t *seeds, const int64_t *lengths,
                      float inverse_temperature, int greedy, const uint8_t *kinds, long least, float *sums,
                      int32_t *tokens, float *log_probs) {
    const long blocks = (vocab + VOCAB_BLOCK - 1) / VOCAB_BLOCK;
    for (long r = 0; r < rows; r += LANES) {
        const float *tile = logits + r / TILE * vocab * TILE + r % TILE;
        const int lanes = rows - r < LANES ? rows - r : LANES;
        ivec grown = (ivec){0}; /* all bits where a row has `least` tokens */
        for (int lane = 0; lane < lanes; lane++) grown[lane] = -(lengths[r + lane] >= least);
        const vec lowest = splat(-INFINITY);
        vec most = *(const vec *)tile, peak = lowest; /* of all tokens; of those that may come */
        for (long v = 0; v < vocab; v++) {
            const vec logit = *(const vec *)(tile + v * TILE);
            most = max_vec(logit, most);
            if (kinds[v] == 2) peak = max_vec(logit, peak);
            else if (kinds[v] == 1) peak = max_vec((vec)(((ivec)logit & grown) | ((ivec)lowest & ~grown)), peak);
        }
        int same = inverse_temperature == 1.0f; /* both sums are of the same weights where all tokens may come */
        for (int lane = 0; lane < lanes; lane++) same &= peak[lane] == most[lane];
        double total[LANES] = {0};
        for (long b = 0; b < blocks; b++) {
            const long end = (b + 1) * VOCAB_BLOCK < vocab ? (b + 1) * VOCAB_BLOCK : vocab;
            vec plain = (vec){0}, tempered = (vec){0};
            int open = 1;
            for (long v = b * VOCAB_BLOCK; v < end; v++) {
                plain += weights_of(tile + v * TILE, most, 1.0f);
                open &= kinds[v] == 2;
            }
            for (int lane = 0; lane < LANES; lane++) total[lane] += plain[lane];
            if (greedy) continue;
            if (same && open) tempered = plain;
            else
                for (long v = b * VOCAB_BLOCK; v < end; v++) {
                    if (kinds[v] == 0) continue;
                    const vec weights = weights_of(tile + v * TILE, peak, inverse_temperature);
                    tempered += kinds[v] == 2 ? weights : (vec)((ivec)weights & grown);
                }
            *(loose_vec *)(sums + b * LANES) = tempered;
        }
        for (int lane = 0; lane < lanes; lane++) {
            const int bar = grown[lane] ? 1 : 2;
            long token = -1;
            if (greedy) {
                float top = -INFINITY;
                for (long v = 0; v < vocab; v++) {
                    const float logit = tile[v * TILE + lane];
                    if ((logit > top || token < 0) && kinds[v] >= bar) top = logit, token = v;
                }
            } else {
                /* Where rounding puts the target at the end, the last block, and token, that adds anything counts. */
                double weight = 0.0, before = 0.0, inside = 0.0;
                long last = 0, b = 0;
                for (long i = 0; i < blocks; i++) {
                    const double sum = sums[i * LANES + lane];
                    if (sum > VOCAB_BLOCK * NOTHING && weight + sum > weight) last = i, weight += sum;
                    else sums[i * LANES + lane] = 0.0f;
                }
                const double target = uniform(seeds[r + lane], lengths[r + lane]) * weight;
                for (; b < last && before + sums[b * LANES + lane] <= target; b++) before += sums[b * LANES + lane];
                const long end = (b + 1) * VOCAB_BLOCK < vocab ? (b + 1) * VOCAB_BLOCK : vocab;
                for (long v = b * VOCAB_BLOCK; v < end && !(token >= 0 && inside > target - before); v++) {
                    if (kinds[v] < bar) continue;
                    const double one = weights_of(tile + v * TILE, peak, inverse_temperature)[lane];
                    if (one > NOTHING && inside + one > inside) token = v, inside += one;
                }
            }
            if (token < 0) /* logits that are no numbers: the first token that may come */
                for (token = 0; token < vocab - 1 && kinds[token] < bar; token++) {}
            tokens[r + lane] = token;
            log_probs[r + lane] = tile[token * TILE + lane] - most[lane] - (float)log(total[lane]);
        }
    }
}
