#include "dtype.h"

#include <math.h>
#include <string.h>

#include "quant.h"

static const struct {
    const char *name;
    int block;
    size_t block_bytes;
} types[TALPA_N_DTYPES] = {
    [TALPA_F32] = {"f32", 1, 4},         [TALPA_F16] = {"f16", 1, 2},         [TALPA_BF16] = {"bf16", 1, 2},
    [TALPA_I32] = {"i32", 1, 4},         [TALPA_Q8_0] = {"q8_0", 32, 34},     [TALPA_Q4_0] = {"q4_0", 32, 18},
    [TALPA_Q4_1] = {"q4_1", 32, 20},     [TALPA_Q5_0] = {"q5_0", 32, 22},     [TALPA_Q5_1] = {"q5_1", 32, 24},
    [TALPA_Q4_K] = {"q4_k", 256, 144},   [TALPA_Q5_K] = {"q5_k", 256, 176},   [TALPA_Q6_K] = {"q6_k", 256, 210},
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
        const int block = types[dtype].block;
        for (int64_t i = 0; i < n / block; i++) tp_quant_decode(dst + i * block, bytes + (size_t)i * types[dtype].block_bytes, dtype);
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
        const int block = types[dtype].block;
        for (int64_t i = 0; i < n / block; i++) tp_quant_encode(bytes + (size_t)i * types[dtype].block_bytes, src + i * block, dtype);
    }
}
