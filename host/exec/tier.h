/* The tiers of kernels: their names and which of them a plan may use on a device. The one list of tiers. */
#ifndef TP_TIER_H
#define TP_TIER_H

#include "graph/launch.h"

struct tp_device;

/** "generic" is complete and always allowed. "cpu": CPU devices that give one work-item the whole vector unit. Matrix tiers (bf16 products
 *  of frozen weights, in inline assembly): "x86_bf16" (AVX512-BF16), "x86_amx" (AMX tiles). "x86_vnni": products of few rows with quantised
 *  weights by dot products of integers (AVX512-VNNI), as accurate as f32 and used under both compute dtypes; "x86_avx2": the same with the same
 *  bits (AVX2, FMA, F16C), where x86_vnni does not work or if forced; both kept among the matrix tiers here, as they are found like them. "clblast": a library, only if forced. */
extern const char *const tp_tiers[];
enum { TP_N_TIERS = 7 };
/** "generic, cpu, ...": for messages. */
const char *tp_tier_names(void);
/** Whether `name` is one of tp_tiers. */
bool tp_tier_is_known(const char *name);
/** Bit of a matrix tier in tp_plan_options.matrix_tiers; 0 for the others. */
unsigned tp_tier_bit(const char *name);
/** Whether it is a matrix tier that rounds operands to bf16. */
bool tp_tier_rounds(const char *name);

/** Whether a plan with these options uses the tier on this device. Pure. A matrix tier needs its bit in options->matrix_tiers; one that
 *  rounds, bf16 as compute dtype or to be forced. */
bool tp_tier_allowed(const struct talpa_device_caps *caps, const struct tp_plan_options *options, const char *tier);

/** The matrix tiers that the record says the device has: a CPU whose kernels run in this process, and CPUID. For plans that never run.
 *  TALPA_AMX_EMULATE=1 in the environment (tests) counts x86_amx on any CPU whose kernels run in this process, TALPA_VNNI_EMULATE=1
 *  x86_vnni. */
unsigned tp_tier_expected(const struct talpa_device_caps *caps);

/** Sets options->matrix_tiers (and the emulations) to what works on this device of what the options ask for. A tier
 *  that is expected has to be permitted by the operating system (AMX) and then to give the right answer to a small product; one that does
 *  not is left out with a warning in the log, once per device. Compiles and runs kernels the first time.
 *  With bf16 as compute dtype and no such tier left, a warning says that f32 is used. TALPA_E_DEVICE only for want of memory. */
enum talpa_status tp_tier_find(struct tp_plan_options *options, struct tp_device *device);

#endif
