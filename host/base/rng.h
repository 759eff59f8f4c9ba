/* Counter-based random numbers: the same bits on host and device, in any order of evaluation. */
#ifndef TP_RNG_H
#define TP_RNG_H

#include <stdint.h>

/** Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC 2011). */
void tp_rng_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]);

/** Uniform in [0, 1): the upper 24 bits of `u` times 2^-24. */
float tp_rng_uniform(uint32_t u);

/** Two independent standard normal values from two random words (Box and Muller 1958); the radius uses (0, 1], so both are finite. */
void tp_rng_normal(float out[2], uint32_t u0, uint32_t u1);

/** Value number `n` of the SplitMix64 sequence from `state` (Steele, Lea, Flood 2014); n = 1 is the generator's first output. */
uint64_t tp_rng_splitmix64(uint64_t state, uint64_t n);

/** Deterministic initial values for parameter number `parameter`: dst[i] = scale * (2u - 1), u from the upper 53 bits of
 *  splitmix64(seed * 1000003 + parameter, i + 1), computed in double and rounded once. */
void tp_rng_fill_splitmix(float *dst, int64_t n, uint64_t seed, uint64_t parameter, double scale);

#endif
