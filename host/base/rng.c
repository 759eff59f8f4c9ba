#include "rng.h"

#include <math.h>

enum { PHILOX_ROUNDS = 10 };

void tp_rng_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int i = 0; i < PHILOX_ROUNDS; i++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

float tp_rng_uniform(uint32_t u) { return (float)(u >> 8) * 0x1p-24f; }

void tp_rng_normal(float out[2], uint32_t u0, uint32_t u1)
{
    const float radius = sqrtf(-2.0f * logf((float)((u0 >> 8) + 1) * 0x1p-24f));
    const float angle = 6.28318530717958647692f * tp_rng_uniform(u1);
    out[0] = radius * cosf(angle);
    out[1] = radius * sinf(angle);
}

uint64_t tp_rng_splitmix64(uint64_t state, uint64_t n)
{
    uint64_t z = state + n * UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

void tp_rng_fill_splitmix(float *dst, int64_t n, uint64_t seed, uint64_t parameter, double scale)
{
    const uint64_t state = seed * 1000003u + parameter;
    for (int64_t i = 0; i < n; i++) {
        const double u = (double)(tp_rng_splitmix64(state, (uint64_t)i + 1) >> 11) * 0x1p-53;
        dst[i] = (float)(scale * (2.0 * u - 1.0));
    }
}
