/* Graphs of one's own: values and ops (talpa/ops.h), trainable parameters, and a program that runs them on a device.
 *
 * A graph has two phases. What is appended first runs per micro-batch (forward, loss, gradients, their accumulation); talpa_graph_minimise
 * appends the optimizer's update, which runs once per step. Values are typed and single-assignment; nothing touches a device before
 * talpa_program_create. See tools/example/ for a complete program. */
#ifndef TALPA_GRAPH_H
#define TALPA_GRAPH_H

#include <stdio.h>

#include "talpa/device.h"
#include "talpa/ops.h"
#include "talpa/train.h"

#ifdef __cplusplus
extern "C" {
#endif

/** How dimension 0 of an input is meant: exact, or an upper bound with the run-time number set by talpa_program_rows. */
enum talpa_rows { TALPA_ROWS_EXACT, TALPA_ROWS_TOKENS, TALPA_ROWS_LABELLED };

/** An empty graph; the caller owns it and frees it after all programs made from it. */
enum talpa_status talpa_graph_create(struct talpa_graph **out);
/** NULL is allowed. */
void talpa_graph_free(struct talpa_graph *graph);

/** A value that the host writes before a run. Names are unique in a graph and copied. */
enum talpa_status talpa_graph_input(talpa_value *out, struct talpa_graph *graph, const char *name, enum talpa_dtype dtype,
                                    struct talpa_shape shape, enum talpa_rows rows);
/** A frozen tensor; its bytes are given to talpa_program_create under the same name. Quantised types are allowed where ops take them. */
enum talpa_status talpa_graph_weight(talpa_value *out, struct talpa_graph *graph, const char *name, enum talpa_dtype dtype,
                                     struct talpa_shape shape);
/** Marks a value as read by the host after a run. */
void talpa_graph_output(struct talpa_graph *graph, talpa_value value);
/** Where the ops appended from now on belong, for messages and listings. Copied. */
void talpa_graph_scope(struct talpa_graph *graph, const char *scope);
/** One line per value and node; the same bytes on every machine. */
void talpa_graph_print(const struct talpa_graph *graph, FILE *file);

/** The trainable tensors of a graph, kept in one flat bank on the device. */
struct talpa_parameters;

/** Declares all trainable tensors (f32): values[i] has shapes[i]. At most one set per graph. The caller frees *out after the graph's
 *  programs. */
enum talpa_status talpa_parameters_create(struct talpa_parameters **out, talpa_value *values, struct talpa_graph *graph,
                                          const struct talpa_shape *shapes, int n);
void talpa_parameters_free(struct talpa_parameters *parameters);
/** Elements of the bank, and where tensor i starts in it. */
int64_t talpa_parameters_elements(const struct talpa_parameters *parameters);
int64_t talpa_parameters_offset(const struct talpa_parameters *parameters, int i);

/** AdamW's constants (Loshchilov and Hutter 2019); learning rate, decay and clipping are set per step (talpa_program_scalar). */
struct talpa_adamw_options {
    float beta1, beta2, epsilon;
};
/** Appends the gradient of loss[1] with respect to the parameters, its accumulation over micro-batches, and the update (global norm,
 *  clipping, AdamW). Call it last. *norm is the gradient norm before clipping, readable after the update. options NULL: 0.9, 0.999, 1e-8.
 *  TALPA_E_ARGUMENT if an op on the way has no gradient or none reaches a parameter. */
enum talpa_status talpa_graph_minimise(talpa_value *norm, struct talpa_graph *graph, talpa_value loss, struct talpa_parameters *parameters,
                                       const struct talpa_adamw_options *options);

/** A frozen tensor's bytes: row-major, borrowed until the program is freed. */
struct talpa_weight {
    const char *name;
    const void *data;
};

/** A graph prepared on a device. */
struct talpa_program;

/** Plans, compiles, uploads and allocates. parameters may be NULL (inference). `device` is an index of talpa_device_list.
 *  TALPA_E_ARGUMENT if a weight of the graph is missing in the list, TALPA_E_DEVICE (memory, build). The caller owns *out. */
enum talpa_status talpa_program_create(struct talpa_program **out, struct talpa_graph *graph, size_t device,
                                       const struct talpa_weight *weights, int n_weights, struct talpa_parameters *parameters,
                                       enum talpa_base_dtype base_dtype, enum talpa_compute_dtype compute_dtype,
                                       enum talpa_expert_dispatch dispatch);
void talpa_program_free(struct talpa_program *program);

/** Writes an input (n_bytes may be less than its bound). Blocks until copied. */
enum talpa_status talpa_program_write(struct talpa_program *program, talpa_value value, const void *data, size_t n_bytes);
/** Reads an output, an input or a parameter set's bank (below). Waits for what was started. */
enum talpa_status talpa_program_read(struct talpa_program *program, talpa_value value, void *data, size_t n_bytes);
/** The whole bank of parameters, f32. */
enum talpa_status talpa_program_write_parameters(struct talpa_program *program, const float *bank);
enum talpa_status talpa_program_read_parameters(struct talpa_program *program, float *bank);

/** Run-time number of rows for values declared with `rows`; the bound until set. More than that: talpa_program_run fails. */
void talpa_program_rows(struct talpa_program *program, enum talpa_rows rows, uint32_t n);
/** Per-step numbers. */
enum talpa_scalar {
    TALPA_SCALAR_LEARNING_RATE, /**< 0 until set */
    TALPA_SCALAR_WEIGHT_DECAY,  /**< 0 */
    TALPA_SCALAR_MAX_NORM,      /**< clipping; 0: none */
    TALPA_SCALAR_LOSS_SCALE     /**< factor of talpa_linear_cross_entropy's sum: 1 / labelled rows of the step; 1 until set */
};
void talpa_program_scalar(struct talpa_program *program, enum talpa_scalar scalar, float value);

/** Runs the micro-batch phase; `micro` counts micro-batches within the step from 0 (gradients of the others are added to micro 0's). */
enum talpa_status talpa_program_run(struct talpa_program *program, uint32_t micro);
/** Runs the update phase: one optimizer step. */
enum talpa_status talpa_program_update(struct talpa_program *program);

#ifdef __cplusplus
}
#endif
#endif
