/* The plan: graph + capabilities + options -> launches, layouts and offsets. Pure: no device is touched, so a plan can be made for a record
 * that was invented. All sizes are known when it is done. */
#ifndef TP_PLAN_H
#define TP_PLAN_H

#include "graph/fusion.h"

/** Where a value (in one layout) lives. */
enum tp_place { TP_PLACE_NONE, TP_PLACE_STORE, TP_PLACE_INPUT, TP_PLACE_ARENA };

struct tp_location {
    enum tp_place place;
    talpa_value owner;   /* STORE, INPUT: version 0 of the state, the weight, or the input whose buffer it is */
    int32_t segment;     /* ARENA: which arena buffer */
    size_t offset_bytes; /* within the owner's buffer or the segment */
    size_t n_bytes;
};

/** A value in a layout other than row: frozen weights (kept in the store), or a conversion made during a run. */
struct tp_packed {
    talpa_value value;
    enum tp_layout layout;
    int phase;            /* conversions: the phase that makes it; weights: -1 */
    int32_t first, last;  /* positions of first and last use (conversions) */
    struct tp_location location;
};

/** Bytes by class, as `--dry-run` prints them. */
struct tp_plan_memory {
    size_t weight_bytes;     /* frozen weights in row layout (quantised as in the file) */
    size_t packed_bytes;     /* frozen weights in panel layouts */
    size_t state_bytes;      /* parameters, gradients, moments, counters */
    size_t input_bytes;
    size_t arena_bytes;      /* activations, saved values, gradients, scratch, conversions */
    size_t total_bytes;
    size_t largest_bytes;    /* the largest single allocation */
    size_t staging_bytes;    /* largest temporary upload while preparing; freed before the first run, not in the total */
};

struct tp_plan {
    const struct talpa_graph *graph; /* borrowed, outlives the plan */
    struct talpa_device_caps caps;
    struct tp_plan_options options;     /* options.tuning is never NULL here */
    struct tp_tuning *tuning;           /* owned; NULL if the options brought theirs */
    const struct tp_variant **variant;  /* per node; NULL for view and concat nodes, and for members of a group that run elsewhere */
    struct tp_fused **fused;            /* groups of nodes that are lowered as one */
    int n_fused;
    int32_t *fused_of;                  /* per node: its group, -1: none */
    bool *inner;                        /* per value: lives inside a group only, has no storage */
    struct tp_location *row;            /* per value: its row-layout storage */
    bool *no_row;                       /* per value: made and read in another layout only */
    bool *row_needed;                   /* per value: weights whose row layout is read by a launch */
    struct tp_packed *packed;
    int n_packed, packed_room;
    struct tp_launch_list phase[TP_N_PHASES];
    struct tp_location *scratch;        /* per node x TP_MAX_SCRATCH */
    size_t *segment_bytes;
    int n_segments;
    struct tp_plan_memory memory;
};

/** Makes a plan. The graph must have passed tp_graph_verify. The caller owns `*out`.
 *  TALPA_E_DEVICE if a single value is larger than the device allows (message: value, bytes, limit, what to reduce), TALPA_E_ARGUMENT for
 *  an unknown forced tier. With TP_BASE_AUTO weights become panels where a tier has them, unless the total then exceeds 4/5 of the device's
 *  memory: they stay as in the file, and plan->options.base_dtype is TP_BASE_NATIVE. */
enum talpa_status tp_plan_create(struct tp_plan **out, const struct talpa_graph *graph, const struct talpa_device_caps *caps,
                                 const struct tp_plan_options *options);
void tp_plan_free(struct tp_plan *plan);

/** Location of an argument's value. */
const struct tp_location *tp_plan_location(const struct tp_plan *plan, const struct tp_arg *arg, int phase, int32_t node);

/** Prints the launches as text (`inspect --plan`): per launch op, scope, kernel, options, sizes; then memory by class. */
void tp_plan_print(const struct tp_plan *plan, FILE *file);
/** The same launches as an object: {"n_groups", "batch": {"n_launches", "launches": [{"op", "scope", "kernel", "source", "options", "groups",
 *  "flops", "bytes"}]}, "update": ...}; the op of a group names its members, joined by '+'. */
void tp_plan_print_json(const struct tp_plan *plan, FILE *file);

/** XXH3-64 of all that decides the bits of a run: variants, kernels, options, sizes, device and driver (not the memory offsets). */
uint64_t tp_plan_digest(const struct tp_plan *plan);

/** Options from the environment: TALPA_TIER; TALPA_FUSION=off. The rest is zero. */
void tp_plan_options_default(struct tp_plan_options *options);

/* ---- liveness.c ---- */

/** Decides aliases, lifetimes and arena offsets: fills row, scratch, packed[].location, segments. */
enum talpa_status tp_plan_place(struct tp_plan *plan, const size_t *scratch_bytes);

/* ---- groups ---- */

/** What runs at the place of a node: the node, the group that runs there, or NULL (a member of a group that runs elsewhere). */
const struct tp_node *tp_plan_node(const struct tp_plan *plan, int32_t node);
/** The name of the node's op, or of its group. */
const char *tp_plan_node_name(const struct tp_plan *plan, int32_t node);

/** Position of a node in the order of execution (phase 0 first); members of a group have one position. */
int32_t tp_plan_position(const struct tp_plan *plan, int32_t node);

#endif
