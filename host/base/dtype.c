#include "dtype.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 32 };

static const struct {
    const char *name;
    int block;
    size_t block_bytes;
} types[TALPA_N_DTYPES] = {
    [TALPA_F32] = {"f32", 1, 4},         [TALPA_F16] = {"f16", 1, 2},         [TALPA_BF16] = {"bf16", 1, 2},
    [TALPA_I32] = {"i32", 1, 4},         [TALPA_Q8_0] = {"q8_0", BLOCK, 34},  [TALPA_Q4_0] = {"q4_0", BLOCK, 18},
    [TALPA_Q4_1] = {"q4_1", BLOCK, 20},
};

const char *tp_dtype_name(enum talpa_dtype dtype) { return types[dtype].name; }
int tp_dtype_block(enum talpa_dtype dtype) { return types[dtype].block; }
size_t tp_dtype_block_bytes(enum talpa_dtype dtype) { return types[dtype].block_bytes; }
size_t tp_dtype_bytes(enum talpa_dtype dtype, int64_t n) { return (size_t)(n / types[dtype].block) * types[dtype].block_bytes; }
bool tp_dtype_is_quantised(enum talpa_dtype dtype) { return types[dtype].block > 1; }

static float from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static uint32_t to_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

float tp_f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t exponent = (h >> 10) & 31u;
    const uint32_t mantissa = h & 0x3ffu;
    if (exponent == 31) return from_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) return from_bits(sign | to_bits((float)mantissa * 0x1p-24f));
    return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t tp_f32_to_f16(float f)
{
    const uint32_t u = to_bits(f);
    const uint16_t sign = (uint16_t)(u >> 16 & 0x8000u);
    const uint32_t magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) return (uint16_t)(sign | (uint16_t)nearbyintf(from_bits(magnitude) * 0x1p24f));
    return (uint16_t)(sign | (uint16_t)((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13));
}

float tp_bf16_to_f32(uint16_t h) { return from_bits((uint32_t)h << 16); }

uint16_t tp_f32_to_bf16(float f)
{
    const uint32_t u = to_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

static uint16_t load_u16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

static void store_u16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static void decode_block(float *dst, const uint8_t *src, enum talpa_dtype dtype)
{
    const float d = tp_f16_to_f32(load_u16(src));
    if (dtype == TALPA_Q8_0) {
        for (int i = 0; i < BLOCK; i++) dst[i] = d * (float)(int8_t)src[2 + i];
        return;
    }
    const bool has_min = dtype == TALPA_Q4_1;
    const float offset = has_min ? tp_f16_to_f32(load_u16(src + 2)) : -8.0f * d;
    const uint8_t *q = src + (has_min ? 4 : 2);
    for (int i = 0; i < BLOCK / 2; i++) {
        /* d*(q-8) is exact either way only when written as one product, so Q4_0 keeps that form. */
        dst[i] = has_min ? d * (float)(q[i] & 15) + offset : d * (float)((q[i] & 15) - 8);
        dst[i + BLOCK / 2] = has_min ? d * (float)(q[i] >> 4) + offset : d * (float)((q[i] >> 4) - 8);
    }
}

static int clamp_int(int v, int lo, int hi) { return v < lo ? lo : v > hi ? hi : v; }

static void encode_block(uint8_t *dst, const float *src, enum talpa_dtype dtype)
{
    float lo = src[0], hi = src[0], extreme = src[0];
    for (int i = 1; i < BLOCK; i++) {
        lo = fminf(lo, src[i]);
        hi = fmaxf(hi, src[i]);
        if (fabsf(src[i]) > fabsf(extreme)) extreme = src[i];
    }
    const float d = dtype == TALPA_Q8_0 ? fabsf(extreme) / 127.0f : dtype == TALPA_Q4_0 ? extreme / -8.0f : (hi - lo) / 15.0f;
    const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
    store_u16(dst, tp_f32_to_f16(d));
    if (dtype == TALPA_Q8_0) {
        for (int i = 0; i < BLOCK; i++) dst[2 + i] = (uint8_t)(int8_t)roundf(src[i] * inverse);
        return;
    }
    const bool has_min = dtype == TALPA_Q4_1;
    if (has_min) store_u16(dst + 2, tp_f32_to_f16(lo));
    uint8_t *q = dst + (has_min ? 4 : 2);
    for (int i = 0; i < BLOCK / 2; i++) {
        int nibble[2];
        for (int half = 0; half < 2; half++) {
            const float x = src[i + half * BLOCK / 2];
            nibble[half] = clamp_int((int)(has_min ? (x - lo) * inverse + 0.5f : x * inverse + 8.5f), 0, 15);
        }
        q[i] = (uint8_t)(nibble[0] | nibble[1] << 4);
    }
}

void tp_dtype_to_f32(float *dst, const void *src, enum talpa_dtype dtype, int64_t n)
{
    const uint8_t *bytes = src;
    if (dtype == TALPA_F32) {
        memcpy(dst, src, (size_t)n * sizeof *dst);
    } else if (dtype == TALPA_F16 || dtype == TALPA_BF16) {
        for (int64_t i = 0; i < n; i++) {
            const uint16_t h = load_u16(bytes + 2 * i);
            dst[i] = dtype == TALPA_F16 ? tp_f16_to_f32(h) : tp_bf16_to_f32(h);
        }
    } else {
        for (int64_t i = 0; i < n / BLOCK; i++) decode_block(dst + i * BLOCK, bytes + (size_t)i * types[dtype].block_bytes, dtype);
    }
}

void tp_dtype_from_f32(void *dst, const float *src, enum talpa_dtype dtype, int64_t n)
{
    uint8_t *bytes = dst;
    if (dtype == TALPA_F32) {
        memcpy(dst, src, (size_t)n * sizeof *src);
    } else if (dtype == TALPA_F16 || dtype == TALPA_BF16) {
        for (int64_t i = 0; i < n; i++) store_u16(bytes + 2 * i, dtype == TALPA_F16 ? tp_f32_to_f16(src[i]) : tp_f32_to_bf16(src[i]));
    } else {
        for (int64_t i = 0; i < n / BLOCK; i++) encode_block(bytes + (size_t)i * types[dtype].block_bytes, src + i * BLOCK, dtype);
    }
}
