/* Ops: constructors that append nodes to a graph. Shapes are outermost first; [T, n] means T rows of a micro-batch (an upper bound; the
 * run-time count is a step word). A linear weight is [d_out, d_in]. Everything is f32 unless said otherwise; accumulation is f32.
 *
 * Every constructor writes its outputs only on success and fails with TALPA_E_ARGUMENT (shapes or types, the message names the op, the
 * scope and the operand) or TALPA_E_DEVICE (out of host memory). None touches a device. TALPA_NONE stands for an omitted optional operand.
 */
#ifndef TALPA_OPS_H
#define TALPA_OPS_H

#include "talpa/status.h"
#include "talpa/types.h"

#ifdef __cplusplus
extern "C" {
#endif

struct talpa_graph;
typedef int32_t talpa_value; /**< index of a value in its graph */
enum { TALPA_NONE = -1 };

/* ---- products ---- */

/** out[M, N] = (c +) op(a) op(b). a is [M, K], or [K, M] if transpose_a; b is [K, N], or [N, K] if transpose_b. c [M, N] is optional.
 *  b may be a frozen f16, bf16 or quantised weight (blocks along its last dimension): transpose_b gives x W^T, no transpose gives dy W. */
enum talpa_status talpa_matmul(talpa_value *out, struct talpa_graph *graph, talpa_value a, talpa_value b, talpa_value c, bool transpose_a,
                               bool transpose_b);

/** y[T, N] = y0 + sum_e weight[t, e] * scale * (x A_e^T) B_e: LoRA (n_experts 1, weight TALPA_NONE) or a mixture of LoRA experts, evaluated
 *  without any expert's own output (methods: stacked experts). x [T, K]; lora_a [n_experts*rank, K]; lora_bt [n_experts*rank, N], the
 *  transposed B matrices; weight [T, n_experts] is 0 where sel is 0; sel [T, n_experts] i32, counts [n_experts] i32 and list [n_experts, T]
 *  i32 as from talpa_dispatch. weight, sel, counts, list are all given or all TALPA_NONE. Differentiable in y0, x, lora_a, lora_bt and
 *  weight (dweight is exact where sel is 1, 0 elsewhere). Runs dense or sparse as the plan says, with the same result. */
enum talpa_status talpa_lora_expert(talpa_value *y, struct talpa_graph *graph, talpa_value y0, talpa_value x, talpa_value lora_a,
                                    talpa_value lora_bt, talpa_value weight, talpa_value sel, talpa_value counts, talpa_value list,
                                    int n_experts, int rank, float scale);

/** The same on dropout(x) with probability p (inverted: kept elements count 1 / (1 - p)): `keep` is the mask of talpa_dropout_mask for the
 *  width of x. No dropped copy of x is made. */
enum talpa_status talpa_lora_expert_dropped(talpa_value *y, struct talpa_graph *graph, talpa_value y0, talpa_value x, talpa_value lora_a,
                                            talpa_value lora_bt, talpa_value weight, talpa_value sel, talpa_value counts, talpa_value list,
                                            talpa_value keep, int n_experts, int rank, float scale, float p);

/* ---- routing ---- */

/** p[T, E] = softmax of every row of x[T, E]. */
enum talpa_status talpa_softmax(talpa_value *p, struct talpa_graph *graph, talpa_value x);

/** A router's scores: p[T, E] = softmax(x[T, d] gating[E, d]^T) and, with a direction [1, d] and its bias [1], raw[T, 1] = x direction^T + bias.
 *  Without: both TALPA_NONE, and so is *raw. The same as talpa_matmul, talpa_bias_add and talpa_softmax, reading x once. */
enum talpa_status talpa_router_scores(talpa_value *p, talpa_value *raw, struct talpa_graph *graph, talpa_value x, talpa_value gating,
                                      talpa_value direction, talpa_value bias);

/** The k largest of every row of p[T, E] (ties: lower index), renormalised: weight[T, E] (0 elsewhere), sel[T, E] i32 (1 for the chosen).
 */
enum talpa_status talpa_topk_gate(talpa_value *weight, talpa_value *sel, struct talpa_graph *graph, talpa_value p, int k);

/** AdaMoLE's gate (arXiv 2405.00361, equations 5-7): tau[t] = max_threshold * sigmoid(raw[t]), score = p - tau, sel = score >= 0,
 *  weight = sel*score / sum (sum 0 counts as 1). raw [T, 1]. With raw TALPA_NONE, the fixed threshold of the same paper's equation 4:
 *  sel = p >= max_threshold, weight = sel*p / sum, score = p. */
enum talpa_status talpa_threshold_gate(talpa_value *weight, talpa_value *sel, talpa_value *score, struct talpa_graph *graph, talpa_value p,
                                       talpa_value raw, float max_threshold);
/** The same with max_threshold times the f32 step word `word` (host/graph/step.h; 0: 1), which may change from run to run. */
enum talpa_status talpa_threshold_gate_step(talpa_value *weight, talpa_value *sel, talpa_value *score, struct talpa_graph *graph,
                                            talpa_value p, talpa_value raw, float max_threshold, int word);

/** out[t, j] = x[t, j] in one column, 0 in the others: one expert's part of the gate weights or of the selection. x [T, n] f32 or i32. */
enum talpa_status talpa_keep_column(talpa_value *out, struct talpa_graph *graph, talpa_value x, int column);

/** Work lists: counts[E] i32 = tokens that chose e; list[E, T] i32 = their rows, ascending (entries past the count are undefined). */
enum talpa_status talpa_dispatch(talpa_value *counts, talpa_value *list, struct talpa_graph *graph, talpa_value sel);

/** aux[1] = E * sum_e (counts[e] / T) * mean_t score[t, e] (counts carries no gradient); total[1] = previous + aux, previous [1] optional.
 */
enum talpa_status talpa_balance_loss(talpa_value *aux, talpa_value *total, struct talpa_graph *graph, talpa_value score, talpa_value counts,
                                     talpa_value previous);

/** What talpa_contrastive_loss compares. */
struct talpa_contrast {
    int n_experts, rank;
    float scale;         /**< of the experts: alpha / rank */
    float temperature;   /**< above 0 */
    int n_samples;       /**< items of an expert at most, drawn uniformly without replacement; 0: all */
    bool normalise;      /**< outputs of length 1 (outputs not longer than 1e-8 take no part), else as they are */
    int max_per_token;   /**< experts of a token at most, which bounds memory; 0: n_experts */
    uint64_t stream;     /**< hash of a stable module name: the draw depends on it, on seed, step, example and position, not on the batch's order */
};

/** Contrastive loss among expert outputs o = scale * B_e A_e x_t, an item for every token t that chose expert e. For an anchor a, with its
 *  expert's other items as positives P and all items of other experts as negatives N, and s = <o_a, o_b> / temperature (of length 1 if
 *  normalise): loss[1] = mean over anchors with both of 1/|P| sum_p [-s_ap + log(exp(s_ap) + sum_n exp(s_an))], 0 if there is none. This is
 *  our reconstruction of MoELoRA's loss (arXiv 2402.12851), whose formula is not public. x [T, K]; lora_a [n_experts*rank, K]; lora_bt
 *  [n_experts*rank, N]; counts, list from talpa_dispatch; examples, positions [T] i32; weight [T, n_experts] or TALPA_NONE: if given, an
 *  item is weight * o and the gradient reaches weight. Differentiable in x, lora_a, lora_bt. The cost depends on N only through the
 *  n_experts*rank squared products of lora_bt's rows. */
enum talpa_status talpa_contrastive_loss(talpa_value *loss, struct talpa_graph *graph, talpa_value x, talpa_value lora_a, talpa_value lora_bt,
                                         talpa_value counts, talpa_value list, talpa_value examples, talpa_value positions,
                                         talpa_value weight, const struct talpa_contrast *contrast);

/** out[R, d] = rows rows[r] of x[T, d]; rows [R] i32, a number outside x gives a row of zeros. */
enum talpa_status talpa_gather_rows(talpa_value *out, struct talpa_graph *graph, talpa_value x, talpa_value rows);

/** out[n_rows, d] = for every row t the sum of x[r, :] over all r with rows[r] == t, in ascending r (deterministic); rows [R] i32, numbers
 *  outside out are left out. The gradient of gather_rows. n_rows is the bound; row_word the step word that counts the run-time rows, 0:
 *  exact. */
enum talpa_status talpa_scatter_add_rows(talpa_value *out, struct talpa_graph *graph, talpa_value x, talpa_value rows, int64_t n_rows,
                                         int row_word);

/* ---- transformer ---- */

/** y[T, d] = x * rstd * weight, rstd[t] = 1 / sqrt(mean(x[t]^2) + eps). The weight [d] is frozen. A weight of width d / n normalises each
 *  of the n parts of a row by itself: one norm per head. */
enum talpa_status talpa_rms_norm(talpa_value *y, struct talpa_graph *graph, talpa_value x, talpa_value weight, float eps);

/** Rotary embedding, rotate-half form: in every head of width head_dim, element i < head_dim/2 pairs with i + head_dim/2, angle
 *  positions[t] * theta^(-2i/head_dim). x [T, n_heads*head_dim], positions [T] i32. */
enum talpa_status talpa_rope(talpa_value *y, struct talpa_graph *graph, talpa_value x, talpa_value positions, int n_heads, int head_dim,
                             float theta);

/** The same with frequencies of any kind: frequencies [head_dim/2, 2] i32, frozen, holds for every pair the turns per position times 2^64
 *  as an upper and a lower 32-bit word (bits, not signed numbers). */
enum talpa_status talpa_rope_table(talpa_value *y, struct talpa_graph *graph, talpa_value x, talpa_value positions, talpa_value frequencies,
                                   int n_heads, int head_dim);

/** Causal attention inside segments: row t attends rows segments[t][0] .. t. q [T, n_heads*head_dim], k and v [T, n_kv_heads*head_dim],
 *  segments [T, 2] i32 (first row, end row exclusive); query head h reads kv head h / (n_heads/n_kv_heads). out [T, n_heads*head_dim]. No T
 *  x T matrix exists in memory, forward or backward. */
enum talpa_status talpa_attention(talpa_value *out, struct talpa_graph *graph, talpa_value q, talpa_value k, talpa_value v,
                                  talpa_value segments, int n_heads, int n_kv_heads, int head_dim, float scale);

/** Attention over a cache: row t attends the slots spans[t][0] .. spans[t][1] - 1 (cut to the cache; none gives a row of zeros). q [T,
 *  n_heads*head_dim]; k_cache and v_cache [n_slots, n_kv_heads*head_dim]; spans [T, 2] i32; query heads as in talpa_attention. A row's
 *  result does not depend, bit for bit, on the other rows or their number. Not differentiable. */
enum talpa_status talpa_cached_attention(talpa_value *out, struct talpa_graph *graph, talpa_value q, talpa_value k_cache,
                                         talpa_value v_cache, talpa_value spans, int n_heads, int n_kv_heads, int head_dim, float scale);

/** h = silu(gate) * up, all [T, n]. */
enum talpa_status talpa_swiglu(talpa_value *h, struct talpa_graph *graph, talpa_value gate, talpa_value up);

/** h = gelu(gate) * up, all [T, n], with gelu(g) = g/2 (1 + tanh(sqrt(2/pi) (g + 0.044715 g^3))). */
enum talpa_status talpa_geglu(talpa_value *h, struct talpa_graph *graph, talpa_value gate, talpa_value up);

/** x[T, d] = rows ids[t] of table [V, d] (any dtype). ids [T] i32 in [0, V). */
enum talpa_status talpa_embedding(talpa_value *x, struct talpa_graph *graph, talpa_value ids, talpa_value table);

/** Inverted dropout: y = x * mask / (1 - p); the mask is Philox4x32-10 keyed by (seed, stream) with counter (feature / 4, position,
 *  example, step), so it does not depend on the micro-batching. x [T, n]; examples [T], positions [T] i32. stream: hash of a stable module
 *  name. */
enum talpa_status talpa_dropout(talpa_value *y, struct talpa_graph *graph, talpa_value x, talpa_value examples, talpa_value positions,
                                float p, uint64_t stream);

/** The mask of talpa_dropout for rows of `width` elements, as bits: keep [T, 16 * ceil(width / 512)] i32; bit i of word 16 b + l is for
 *  element 512 b + 16 i + l. */
enum talpa_status talpa_dropout_mask(talpa_value *keep, struct talpa_graph *graph, talpa_value examples, talpa_value positions, int64_t width,
                                     float p, uint64_t stream);

/** Cross entropy of log_softmax(hidden[rows[r]] weight^T) at labels[r], the T x V matrix never in memory: loss[1] = sum_r nll[r] * (step
 *  word loss_scale); nll[R], and lse[R] = the log-sum-exp. hidden [T, d]; weight [V, d], frozen, any dtype; rows, labels [R] i32, rows
 *  ascending. */
enum talpa_status talpa_linear_cross_entropy(talpa_value *loss, talpa_value *nll, struct talpa_graph *graph, talpa_value hidden,
                                             talpa_value weight, talpa_value rows, talpa_value labels);

/* ---- elementwise and plumbing ---- */

/** a + b, same type. */
enum talpa_status talpa_add(talpa_value *out, struct talpa_graph *graph, talpa_value a, talpa_value b);
/** factor * x. */
enum talpa_status talpa_scale(talpa_value *out, struct talpa_graph *graph, talpa_value x, float factor);
/** x[T, n] + bias[n]. */
enum talpa_status talpa_bias_add(talpa_value *out, struct talpa_graph *graph, talpa_value x, talpa_value bias);
/** out[n] = sum over the rows of x[T, n], in a fixed order. */
enum talpa_status talpa_reduce_rows(talpa_value *out, struct talpa_graph *graph, talpa_value x);
/** out[1] = factor * (f32 step word `word`). */
enum talpa_status talpa_step_scalar(talpa_value *out, struct talpa_graph *graph, int word, float factor);
/** Part of a flat bank [n] starting at `offset` elements, with a shape of its own; shares the bank's storage. offset is a multiple of 256.
 */
enum talpa_status talpa_slice(talpa_value *out, struct talpa_graph *graph, talpa_value bank, int64_t offset, struct talpa_shape shape);
/** All inputs (same dtype, exact sizes) one after the other in a flat bank [n], each at the next multiple of 256 elements. */
enum talpa_status talpa_concat(talpa_value *out, struct talpa_graph *graph, const talpa_value *in, int n_in);

/* ---- updates of states (phase update, or accumulation per micro-batch) ---- */

/** state' = (first micro-batch ? 0 : state) + x; f32 or i32, same type. */
enum talpa_status talpa_accumulate(talpa_value *state_next, struct talpa_graph *graph, talpa_value state, talpa_value x);
/** cache'[slots[t], :] = x[t, :] for the run-time rows t, all else unchanged. cache [n_slots, d], x [T, d], slots [T] i32, distinct; those
 *  outside the cache are left out. */
enum talpa_status talpa_cache_write(talpa_value *next, struct talpa_graph *graph, talpa_value cache, talpa_value x, talpa_value slots);
/** norm[1] = sqrt(sum of squares of the tensors of bank grads[n]), clip[1] = min(1, max_norm / (norm + 1e-6)), 1 if max_norm (step word) is
 * 0, NaN if norm is not finite. tensors [n_tensors, 4] i32: offset, elements, flag (index into `selected`, or -1: always), first chunk; see
 *  talpa_adamw. */
enum talpa_status talpa_grad_norm(talpa_value *norm, talpa_value *clip, struct talpa_graph *graph, talpa_value grads, talpa_value tensors);
/** counts'[i] = counts[i] + 1 for tensors whose flag is -1 or selects something (selected[flag] > 0). counts [n_tensors] i32, selected [n]
 *  i32. */
enum talpa_status talpa_step_counts(talpa_value *counts_next, struct talpa_graph *graph, talpa_value counts, talpa_value selected,
                                    talpa_value tensors);
/** AdamW (Loshchilov and Hutter 2019, decoupled decay) of all tensors of a bank in one launch; tensors whose flag selects nothing are left
 *  alone, moments included. params, grads, m, v [n]; counts [n_tensors] i32 as after talpa_step_counts; clip [1]; if it is
 *  not finite nothing changes. Learning rate and decay are step words. next receives params', m', v'. */
enum talpa_status talpa_adamw(talpa_value next[3], struct talpa_graph *graph, talpa_value params, talpa_value grads, talpa_value m,
                              talpa_value v, talpa_value counts, talpa_value selected, talpa_value tensors, talpa_value clip, float beta1,
                              float beta2, float eps);

#ifdef __cplusplus
}
#endif
#endif
