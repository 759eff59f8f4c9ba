#include "quant.h"

#include <math.h>
#include <string.h>

#include "dtype.h"

enum { SMALL = 32, LARGE = 256, GROUP = 32, N_GROUPS = LARGE / GROUP };

/* Offsets inside a block of 256: [f16 d][f16 dmin][12 bytes of scales][qh 32, Q5_K only][qs 128], and Q6_K's [ql 128][qh 64][scales 16][f16
 * d]. */
enum { K_SCALES = 4, K_BITS = 16, Q4_K_NIBBLES = 16, Q5_K_NIBBLES = 48, Q6_K_HIGH = 128, Q6_K_SCALES = 192, Q6_K_D = 208 };

static uint16_t load_u16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static float load_f16(const uint8_t *p) { return tp_f16_to_f32(load_u16(p)); }

static float store_f16(uint8_t *p, float f)
{
    const uint16_t h = tp_f32_to_f16(f);
    p[0] = (uint8_t)h;
    p[1] = (uint8_t)(h >> 8);
    return tp_f16_to_f32(h);
}

static int clamp_int(int v, int lo, int hi) { return v < lo ? lo : v > hi ? hi : v; }

/* ---- blocks of 32 ---- */

/* How a block of 32 is laid out: [f16 d][f16 m, if has_min][32 high bits, if has_high][nibbles]; low nibbles are elements 0..15. */
struct small {
    bool has_min, has_high;
    int nibbles; /* offset */
};

static struct small small_of(enum talpa_dtype dtype)
{
    const bool has_min = dtype == TALPA_Q4_1 || dtype == TALPA_Q5_1, has_high = dtype == TALPA_Q5_0 || dtype == TALPA_Q5_1;
    return (struct small){has_min, has_high, 2 + (has_min ? 2 : 0) + (has_high ? 4 : 0)};
}

static void decode_small(float *dst, const uint8_t *block, enum talpa_dtype dtype)
{
    const struct small s = small_of(dtype);
    const float d = load_f16(block), m = s.has_min ? load_f16(block + 2) : 0.0f;
    const uint8_t *high = block + s.nibbles - 4;
    const int centre = s.has_high ? 16 : 8;
    for (int i = 0; i < SMALL; i++) {
        const uint8_t byte = block[s.nibbles + i % 16];
        int q = i < 16 ? byte & 15 : byte >> 4;
        if (s.has_high) q |= (high[i / 8] >> i % 8 & 1) << 4;
        /* d*(q-centre) is exact either way only when written as one product, so the types without a minimum keep that form. */
        dst[i] = s.has_min ? d * (float)q + m : d * (float)(q - centre);
    }
}

static void encode_small(uint8_t *block, const float *src, enum talpa_dtype dtype)
{
    const struct small s = small_of(dtype);
    float lo = src[0], hi = src[0], extreme = src[0];
    for (int i = 1; i < SMALL; i++) {
        if (src[i] < lo) lo = src[i]; /* not fminf: of two zeros it may give either */
        if (src[i] > hi) hi = src[i];
        if (fabsf(src[i]) > fabsf(extreme)) extreme = src[i];
    }
    const int top = s.has_high ? 31 : 15, centre = (top + 1) / 2;
    const float d = s.has_min ? (hi - lo) / (float)top : extreme / (float)-centre;
    const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
    memset(block, 0, tp_dtype_block_bytes(dtype));
    store_f16(block, d);
    if (s.has_min) store_f16(block + 2, lo);
    for (int i = 0; i < SMALL; i++) {
        const int q = clamp_int((int)(s.has_min ? (src[i] - lo) * inverse + 0.5f : src[i] * inverse + ((float)centre + 0.5f)), 0, top);
        block[s.nibbles + i % 16] |= (uint8_t)((q & 15) << (i < 16 ? 0 : 4));
        if (s.has_high) block[s.nibbles - 4 + i / 8] |= (uint8_t)(q >> 4 << i % 8);
    }
}

static void encode_q8_0(uint8_t *block, const float *src)
{
    float largest = 0.0f;
    for (int i = 0; i < SMALL; i++) largest = fmaxf(largest, fabsf(src[i]));
    const float d = largest / 127.0f, inverse = d != 0.0f ? 1.0f / d : 0.0f;
    store_f16(block, d);
    for (int i = 0; i < SMALL; i++) block[2 + i] = (uint8_t)(int8_t)roundf(src[i] * inverse);
}

/* ---- blocks of 256 with 6-bit scales and minima per 32 elements: Q4_K, Q5_K ---- */

/* Twelve bytes hold eight 6-bit scales and eight 6-bit minima: the first four of each in the low bits, the rest in nibbles and top bits. */
static void scale_and_min(int *scale, int *min, const uint8_t *packed, int group)
{
    if (group < 4) {
        *scale = packed[group] & 63;
        *min = packed[group + 4] & 63;
    } else {
        *scale = (packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4;
        *min = packed[group + 4] >> 4 | (packed[group] >> 6) << 4;
    }
}

static void put_scale_and_min(uint8_t *packed, int group, int scale, int min)
{
    if (group < 4) {
        packed[group] |= (uint8_t)scale;
        packed[group + 4] |= (uint8_t)min;
    } else {
        packed[group + 4] |= (uint8_t)((scale & 15) | (min & 15) << 4);
        packed[group - 4] |= (uint8_t)(scale >> 4 << 6);
        packed[group] |= (uint8_t)(min >> 4 << 6);
    }
}

static void decode_k(float *dst, const uint8_t *block, bool has_high)
{
    const float d = load_f16(block), dmin = load_f16(block + 2);
    const uint8_t *nibbles = block + (has_high ? Q5_K_NIBBLES : Q4_K_NIBBLES), *high = block + K_BITS;
    for (int g = 0; g < N_GROUPS; g++) {
        int scale, min;
        scale_and_min(&scale, &min, block + K_SCALES, g);
        const float ds = d * (float)scale, m = dmin * (float)min;
        for (int i = 0; i < GROUP; i++) {
            const uint8_t byte = nibbles[g / 2 * GROUP + i];
            int q = g % 2 ? byte >> 4 : byte & 15;
            if (has_high) q |= (high[i] >> g & 1) << 4;
            dst[g * GROUP + i] = ds * (float)q - m;
        }
    }
}

static void encode_k(uint8_t *block, const float *src, bool has_high)
{
    const int top = has_high ? 31 : 15;
    uint8_t *nibbles = block + (has_high ? Q5_K_NIBBLES : Q4_K_NIBBLES), *high = block + K_BITS;
    float scale[N_GROUPS], min[N_GROUPS], largest_scale = 0.0f, largest_min = 0.0f;
    for (int g = 0; g < N_GROUPS; g++) {
        float lo = 0.0f, hi = 0.0f; /* the minimum is subtracted and unsigned: groups above 0 get none */
        for (int i = 0; i < GROUP; i++) {
            lo = fminf(lo, src[g * GROUP + i]);
            hi = fmaxf(hi, src[g * GROUP + i]);
        }
        min[g] = -lo;
        scale[g] = (hi - lo) / (float)top;
        largest_scale = fmaxf(largest_scale, scale[g]);
        largest_min = fmaxf(largest_min, min[g]);
    }
    memset(block, 0, tp_dtype_block_bytes(has_high ? TALPA_Q5_K : TALPA_Q4_K));
    const float d = store_f16(block, largest_scale / 63.0f), dmin = store_f16(block + 2, largest_min / 63.0f);
    for (int g = 0; g < N_GROUPS; g++) {
        const int s = d > 0.0f ? clamp_int((int)lrintf(scale[g] / d), 0, 63) : 0,
                  m = dmin > 0.0f ? clamp_int((int)lrintf(min[g] / dmin), 0, 63) : 0;
        const float ds = d * (float)s, shift = dmin * (float)m;
        put_scale_and_min(block + K_SCALES, g, s, m);
        for (int i = 0; i < GROUP; i++) {
            const int q = ds > 0.0f ? clamp_int((int)lrintf((src[g * GROUP + i] + shift) / ds), 0, top) : 0;
            nibbles[g / 2 * GROUP + i] |= (uint8_t)((q & 15) << (g % 2 ? 4 : 0));
            if (has_high) high[i] |= (uint8_t)(q >> 4 << g);
        }
    }
}

/* ---- Q6_K: signed 8-bit scales per 16 elements ---- */

static void decode_q6_k(float *dst, const uint8_t *block)
{
    const float d = load_f16(block + Q6_K_D);
    for (int i = 0; i < LARGE; i++) {
        const int half = i / 128, quarter = i % 128 / 32, lane = i % 32;
        const uint8_t low = block[half * 64 + quarter % 2 * 32 + lane], high = block[Q6_K_HIGH + half * 32 + lane];
        const int q = (quarter < 2 ? low & 15 : low >> 4) | (high >> 2 * quarter & 3) << 4;
        dst[i] = d * (float)(int8_t)block[Q6_K_SCALES + i / 16] * (float)(q - 32);
    }
}

static void encode_q6_k(uint8_t *block, const float *src)
{
    float scale[LARGE / 16], largest = 0.0f;
    for (int g = 0; g < LARGE / 16; g++) {
        float extreme = 0.0f;
        for (int i = 0; i < 16; i++)
            if (fabsf(src[g * 16 + i]) > fabsf(extreme)) extreme = src[g * 16 + i];
        scale[g] = extreme / -32.0f;
        largest = fmaxf(largest, fabsf(scale[g]));
    }
    memset(block, 0, tp_dtype_block_bytes(TALPA_Q6_K));
    const float d = store_f16(block + Q6_K_D, largest / 127.0f);
    for (int i = 0; i < LARGE; i++) {
        const int s = d > 0.0f ? clamp_int((int)lrintf(scale[i / 16] / d), -128, 127) : 0;
        const float ds = d * (float)s;
        const int q = ds != 0.0f ? clamp_int((int)lrintf(src[i] / ds) + 32, 0, 63) : 32;
        const int half = i / 128, quarter = i % 128 / 32, lane = i % 32;
        block[Q6_K_SCALES + i / 16] = (uint8_t)(int8_t)s;
        block[half * 64 + quarter % 2 * 32 + lane] |= (uint8_t)((q & 15) << (quarter < 2 ? 0 : 4));
        block[Q6_K_HIGH + half * 32 + lane] |= (uint8_t)(q >> 4 << 2 * quarter);
    }
}

/* ---- any ---- */

void tp_quant_decode(float *dst, const uint8_t *block, enum talpa_dtype dtype)
{
    switch (dtype) {
    case TALPA_Q8_0:
        for (int i = 0; i < SMALL; i++) dst[i] = load_f16(block) * (float)(int8_t)block[2 + i];
        break;
    case TALPA_Q4_K:
    case TALPA_Q5_K: decode_k(dst, block, dtype == TALPA_Q5_K); break;
    case TALPA_Q6_K: decode_q6_k(dst, block); break;
    default: decode_small(dst, block, dtype); break;
    }
}

void tp_quant_encode(uint8_t *block, const float *src, enum talpa_dtype dtype)
{
    switch (dtype) {
    case TALPA_Q8_0: encode_q8_0(block, src); break;
    case TALPA_Q4_K:
    case TALPA_Q5_K: encode_k(block, src, dtype == TALPA_Q5_K); break;
    case TALPA_Q6_K: encode_q6_k(block, src); break;
    default: encode_small(block, src, dtype); break;
    }
}
