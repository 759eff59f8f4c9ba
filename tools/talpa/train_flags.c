#include "train_flags.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "flags_common.h"
#include "program.h"

enum { LORA_RANK_DEFAULT = 32 }; /* as many columns as 8 experts of rank 4: the baseline of arXiv 2405.00361 */

void train_flags_add(struct options *options, struct train_flags *f)
{
    *f = (struct train_flags){.lora_rank = LORA_RANK_DEFAULT, .modules = "q,k,v,o", .contrastive_samples = "32"};
    talpa_train_default(&f->options);
    struct talpa_train_options *o = &f->options;
    f->routing = talpa_routing_name(o->adapter.routing);
    f->expert_rank = o->adapter.rank;
    f->schedule = (int)o->schedule;
    f->aux_on = o->aux_on_probability;
    f->base_dtype = (int)o->base_dtype;
    f->compute_dtype = (int)o->compute_dtype;
    f->dispatch = (int)o->dispatch;
    struct talpa_contrastive_config *k = &o->adapter.contrastive;
    f->contrastive_normalise = !k->normalise;
    const double big = INT_MAX;
    const struct option table[] = {
        {.kind = OPTION_GROUP, .help = "Adapter"},
        {OPTION_TEXT, "routing-strategy", 0, NULL, &f->routing, "NAME", "lora, topk, threshold, adamole or moelora", 0, 0, false, 0},
        {OPTION_INT, "lora-rank", 'r', NULL, &f->lora_rank, "N", "rank; lora only", 1, 4096, false, 0},
        {OPTION_INT, "expert-rank", 0, NULL, &f->expert_rank, "N", "rank of each expert; mixtures only", 1, 4096, false, 0},
        {OPTION_INT, "num-experts", 0, NULL, &o->adapter.n_experts, "N", "experts per linear; mixtures only", 1, 1024, false, 0},
        {OPTION_INT, "router-top-k", 0, "top-k", &o->adapter.top_k, "N", "experts per token; topk and moelora only", 1, 1024, false, 0},
        {OPTION_REAL, "router-threshold", 0, "threshold", &o->adapter.threshold, "P",
         "least probability of an expert; threshold only; 0: 1/experts", 0, 1, false, 0},
        {OPTION_REAL, "max-threshold", 0, NULL, &o->adapter.max_threshold, "P",
         "upper end of the learned threshold; adamole only; 0: 1/experts", 0, 1, false, 0},
        {OPTION_REAL, "target-active-experts", 0, NULL, &o->target_active_experts, "N",
         "steer the threshold so that tokens use N experts in the mean (2.5, say); adamole and threshold", 0, 1024, false, 0},
        {OPTION_REAL, "max-overhead", 0, NULL, &o->max_overhead, "PERCENT",
         "steer it so that routers and active experts cost at most so much of the frozen layers; the same", 0, 1e6, false, 0},
        {OPTION_REAL, "lora-alpha", 0, NULL, &o->adapter.alpha, "X", "an expert is scaled by alpha / rank", 0, 1e9, false, 0},
        {OPTION_REAL, "lora-dropout", 0, NULL, &o->adapter.dropout, "P", "dropout on the adapter's input", 0, 0.999, false, 0},
        {OPTION_CHOICE, "expert-dropout-mask", 0, NULL, &f->dropout_mask, "shared|independent",
         "one mask for all experts of a linear, or one each (experts then run one by one)", 0, 0, false, 0},
        {OPTION_TEXT, "lora-modules", 0, "target-modules", &f->modules, "LIST",
         "of q,k,v,o,gate,up,down, or all; moelora: q,v by itself", 0, 0, false, 0},
        {OPTION_REAL, "router-aux-loss-coef", 0, NULL, &o->aux_coef, "X",
         "weight of the load-balancing loss; moelora: 0.01 by itself, of the mean over linears", 0, 1e9, false, 0},
        {OPTION_CHOICE, "aux-on", 0, NULL, &f->aux_on, "shifted|probability", "adamole: balance p - threshold, or p", 0, 0, false, 0},
        {OPTION_FLAG, "aux-include-pads", 0, NULL, &o->aux_include_pads, NULL, "count pads in that loss, as the published code does", 0, 0,
         false, 0},
        flag_expert_dispatch(&f->dispatch),
        {.kind = OPTION_GROUP, .help = "Contrastive loss among expert outputs (moelora only; our reconstruction, the paper gives no formula)"},
        {OPTION_REAL, "contrastive-coef", 0, NULL, &k->coef, "X", "its weight; 0: not computed", 0, 1e9, false, 0},
        {OPTION_REAL, "contrastive-temperature", 0, NULL, &k->temperature, "X", "similarities are divided by it", 0.001, 1000, false, 0},
        {OPTION_TEXT, "contrastive-samples", 0, NULL, &f->contrastive_samples, "N|all",
         "expert outputs compared, per expert and linear", 0, 0, false, 0},
        {OPTION_CHOICE, "contrastive-normalise", 0, NULL, &f->contrastive_normalise, "on|off",
         "compare directions, or outputs as they are", 0, 0, false, 0},
        {OPTION_FLAG, "contrastive-gated", 0, NULL, &k->gated, NULL,
         "compare outputs times their gate weight: the gate learns from it too", 0, 0, false, 0},
        {OPTION_INT, "contrastive-warmup-steps", 0, "contrastive-warmup", &k->warmup_steps, "N",
         "steps over which its weight rises from 0; -1: as the learning rate's", -1, big, false, 0},
        {.kind = OPTION_GROUP, .help = "Batch"},
        {OPTION_INT, "batch-size", 'b', NULL, &o->batch_size, "N", "examples, or packed rows, per micro-batch", 1, 65536, false, 0},
        {OPTION_INT, "max-seq-length", 'c', "ctx-size", &o->max_seq_length, "N", "tokens per example or packed row", 2, 1 << 20, false, 0},
        {OPTION_INT, "gradient-accumulation-steps", 0, NULL, &o->accumulation, "N", "micro-batches per optimizer step", 1, 1 << 20, false,
         0},
        {OPTION_FLAG, "no-shuffle", 0, NULL, &o->no_shuffle, NULL, "take the examples in file order", 0, 0, false, 0},
        flag_base_dtype(&f->base_dtype),
        flag_compute_dtype(&f->compute_dtype),
        {OPTION_FLAG, "packing", 0, NULL, &o->packing, NULL, "several examples per row of --max-seq-length; they do not see each other", 0,
         0, false, 0},
        {OPTION_FLAG, "gradient-checkpointing", 0, NULL, &o->gradient_checkpointing, NULL,
         "compute each layer twice instead of keeping its values: less memory, same result", 0, 0, false, 0},
        {OPTION_LATER, "ubatch-size", 0, "-ub", NULL, "N", "use --batch-size", 0, 0, false, 0},
        {.kind = OPTION_GROUP, .help = "Optimizer (AdamW, betas 0.9 and 0.999, eps 1e-8)"},
        {OPTION_INT, "max-steps", 0, NULL, &o->max_steps, "N", "optimizer steps; 0: as the epochs say", 0, big, false, 0},
        {OPTION_REAL, "num-train-epochs", 0, NULL, &o->num_epochs, "X", "passes over the data", 0, 1e6, false, 0},
        {OPTION_REAL, "learning-rate", 0, "lr", &o->learning_rate, "X", "after the warm-up", 0, 1e3, false, 0},
        {OPTION_CHOICE, "lr-scheduler", 0, NULL, &f->schedule, "constant|linear|cosine|constant_with_warmup",
         "learning rate after the warm-up", 0, 0, false, 0},
        {OPTION_INT, "warmup-steps", 0, NULL, &o->warmup_steps, "N", "steps of linear rise", 0, big, false, 0},
        {OPTION_REAL, "warmup-ratio", 0, NULL, &o->warmup_ratio, "X", "the same as a part of all steps; if --warmup-steps is 0", 0, 1,
         false, 0},
        {OPTION_REAL, "weight-decay", 0, NULL, &o->weight_decay, "X", "decoupled", 0, 1e3, false, 0},
        {OPTION_REAL, "max-grad-norm", 0, NULL, &o->max_grad_norm, "X", "clip the gradient's norm; 0: no clipping", 0, 1e9, false, 0},
        {OPTION_SEED, "seed", 's', NULL, &o->seed, "N", "same seed, device and flags: same digests", 0, 0, false, 0},
    };
    options_add(options, table, sizeof table / sizeof *table);
}

static bool on_command_line(const struct options *options, const char *name)
{
    return options_source(options, name) == OPTION_COMMAND_LINE;
}

int train_flags_finish(struct train_flags *f, const struct options *options)
{
    struct talpa_train_options *o = &f->options;
    static const char *const later[] = {"mole", "tokenlevel", "mixlora"};
    for (size_t i = 0; i < sizeof later / sizeof *later; ++i)
        if (!strcmp(f->routing, later[i]))
            return options_fail(options, "--routing-strategy %s is not in this version; known: lora, topk, threshold, adamole, moelora", f->routing);
    if (talpa_routing_parse(&o->adapter.routing, f->routing) != TALPA_OK)
        return options_fail(options, "--routing-strategy: found '%s', expected one of lora, topk, threshold, adamole, moelora", f->routing);
    if (o->adapter.routing == TALPA_ROUTING_MOELORA) {
        struct talpa_train_options own;
        talpa_train_default_for(&own, o->adapter.routing);
        if (options_source(options, "lora-modules") == OPTION_DEFAULT) f->modules = "q,v";
        if (options_source(options, "router-aux-loss-coef") == OPTION_DEFAULT) o->aux_coef = own.aux_coef;
    }
    if (talpa_modules_parse(&o->adapter.modules, f->modules) != TALPA_OK)
        return options_fail(options, "--lora-modules: %s", talpa_error_message());

    const bool lora = o->adapter.routing == TALPA_ROUTING_LORA;
    if (lora && on_command_line(options, "expert-rank"))
        return options_fail(options, "--expert-rank belongs to mixtures; --routing-strategy lora uses --lora-rank");
    if (!lora && on_command_line(options, "lora-rank"))
        return options_fail(options, "--lora-rank belongs to --routing-strategy lora; %s uses --expert-rank (per expert)", f->routing);
    const struct {
        const char *flag;
        enum talpa_routing routing;
    } owned[] = {{"router-top-k", o->adapter.routing == TALPA_ROUTING_MOELORA ? TALPA_ROUTING_MOELORA : TALPA_ROUTING_TOPK},
                 {"router-threshold", TALPA_ROUTING_THRESHOLD},
                 {"max-threshold", TALPA_ROUTING_ADAMOLE},
                 {"aux-on", TALPA_ROUTING_ADAMOLE},
                 {"contrastive-coef", TALPA_ROUTING_MOELORA},
                 {"contrastive-temperature", TALPA_ROUTING_MOELORA},
                 {"contrastive-samples", TALPA_ROUTING_MOELORA},
                 {"contrastive-normalise", TALPA_ROUTING_MOELORA},
                 {"contrastive-gated", TALPA_ROUTING_MOELORA},
                 {"contrastive-warmup-steps", TALPA_ROUTING_MOELORA}};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; ++i)
        if (o->adapter.routing != owned[i].routing && on_command_line(options, owned[i].flag))
            return options_fail(options, "--%s belongs to --routing-strategy %s, not to %s", owned[i].flag,
                                talpa_routing_name(owned[i].routing), f->routing);
    const bool has_threshold = o->adapter.routing == TALPA_ROUTING_ADAMOLE || o->adapter.routing == TALPA_ROUTING_THRESHOLD;
    if (o->target_active_experts != 0.0 && o->max_overhead != 0.0)
        return options_fail(options, "--target-active-experts and --max-overhead both steer the threshold: give one of them");
    if (!has_threshold && (on_command_line(options, "target-active-experts") || on_command_line(options, "max-overhead")))
        return options_fail(options, "--%s steers a threshold; --routing-strategy %s has none: choose adamole or threshold",
                            on_command_line(options, "max-overhead") ? "max-overhead" : "target-active-experts", f->routing);
    if (on_command_line(options, "target-active-experts") && !(o->target_active_experts > 0.0))
        return options_fail(options, "--target-active-experts is %g, expected above 0, at most --num-experts %d", o->target_active_experts,
                            o->adapter.n_experts);
    if (on_command_line(options, "max-overhead") && !(o->max_overhead > 0.0))
        return options_fail(options, "--max-overhead is %g percent, expected above 0", o->max_overhead);
    if (!has_threshold) o->target_active_experts = o->max_overhead = 0.0;
    if (o->target_active_experts > o->adapter.n_experts)
        return options_fail(options, "--target-active-experts %g is more than --num-experts %d", o->target_active_experts,
                            o->adapter.n_experts);
    if (lora && on_command_line(options, "num-experts") && o->adapter.n_experts != 1)
        return options_fail(options, "--num-experts %d: --routing-strategy lora has one expert; choose topk, threshold, adamole or moelora",
                            o->adapter.n_experts);
    o->adapter.rank = lora ? f->lora_rank : f->expert_rank;
    if (lora) o->adapter.n_experts = 1;
    const bool top_k = o->adapter.routing == TALPA_ROUTING_TOPK || o->adapter.routing == TALPA_ROUTING_MOELORA;
    if (top_k && o->adapter.top_k > o->adapter.n_experts)
        return options_fail(options, "--router-top-k %d is more than --num-experts %d", o->adapter.top_k, o->adapter.n_experts);
    char *end;
    const long samples = strtol(f->contrastive_samples, &end, 10);
    const bool all = !strcmp(f->contrastive_samples, "all");
    if (!all && (end == f->contrastive_samples || *end || samples < 1 || samples > INT_MAX))
        return options_fail(options, "--contrastive-samples: found '%s', expected a whole number from 1 on, or all",
                            f->contrastive_samples);
    o->adapter.contrastive.n_samples = all ? 0 : (int)samples;
    o->adapter.contrastive.normalise = f->contrastive_normalise == 0;
    if (o->adapter.routing == TALPA_ROUTING_MOELORA && o->aux_include_pads)
        return options_fail(options, "--aux-include-pads does not go with --routing-strategy moelora: pads are no items of its losses");
    if (o->max_steps == 0 && o->num_epochs <= 0)
        return options_fail(options, "--max-steps and --num-train-epochs are both 0; one has to be above");
    /* Every schedule here has a warm-up; the longer name of "constant" is transformers'. */
    o->schedule = f->schedule == 3 ? TALPA_SCHEDULE_CONSTANT : (enum talpa_schedule)f->schedule;
    o->base_dtype = (enum talpa_base_dtype)f->base_dtype;
    o->compute_dtype = (enum talpa_compute_dtype)f->compute_dtype;
    o->dispatch = (enum talpa_expert_dispatch)f->dispatch;
    o->aux_on_probability = f->aux_on == 1;
    o->adapter.independent_dropout = f->dropout_mask == 1;
    return -1;
}

void train_modules_text(char *text, size_t size, unsigned modules)
{
    static const char *const names[TALPA_N_MODULES] = {"q", "k", "v", "o", "gate", "up", "down"};
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < TALPA_N_MODULES; ++i)
        if (modules & (1u << i) && used < size) used += (size_t)snprintf(text + used, size - used, "%s%s", used ? "," : "", names[i]);
}

size_t train_adapter_fields(struct field *fields, const struct talpa_adapter_config *config, char *text, size_t size)
{
    size_t n = 0;
    train_modules_text(text, size, config->modules);
    fields[n++] = field_text("routing", talpa_routing_name(config->routing));
    fields[n++] = field_int("rank", config->rank);
    fields[n++] = field_int("n_experts", config->n_experts);
    if (config->routing == TALPA_ROUTING_TOPK || config->routing == TALPA_ROUTING_MOELORA) fields[n++] = field_int("top_k", config->top_k);
    if (config->routing == TALPA_ROUTING_MOELORA) {
        const struct talpa_contrastive_config *k = &config->contrastive;
        fields[n++] = field_real("contrastive_coef", k->coef);
        fields[n++] = field_real("contrastive_temperature", k->temperature);
        fields[n++] = k->n_samples ? field_int("contrastive_samples", k->n_samples) : field_text("contrastive_samples", "all");
        fields[n++] = field_bool("contrastive_normalise", k->normalise);
        fields[n++] = field_bool("contrastive_gated", k->gated);
    }
    if (config->routing == TALPA_ROUTING_THRESHOLD) fields[n++] = field_real("threshold", config->threshold);
    if (config->routing == TALPA_ROUTING_ADAMOLE) fields[n++] = field_real("max_threshold", config->max_threshold);
    fields[n++] = field_real("alpha", config->alpha);
    fields[n++] = field_real("dropout", config->dropout);
    fields[n++] = field_text("modules", text);
    return n;
}

static const char *main_dtype(struct talpa_model *model)
{
    size_t bytes[TALPA_N_DTYPES] = {0};
    enum talpa_dtype most = TALPA_F32;
    for (size_t i = 0; i < talpa_model_n_tensors(model); ++i) {
        const struct talpa_tensor_info tensor = talpa_model_tensor(model, i);
        bytes[tensor.dtype] += tensor.n_bytes;
        if (bytes[tensor.dtype] > bytes[most]) most = tensor.dtype;
    }
    return talpa_dtype_name(most);
}

static void count_text(char *text, size_t size, double n)
{
    if (n >= 1e6)
        snprintf(text, size, "%.2f M", n / 1e6);
    else
        snprintf(text, size, "%.1f K", n / 1e3);
}

void train_memory_print(struct output *output, enum output_format format, struct talpa_model *model, const struct talpa_device_caps *caps,
                        const struct talpa_memory_plan *plan)
{
    if (format != OUTPUT_MD) {
        const struct field fields[] = {
            field_text("device", caps->name),
            field_int("weight_bytes", (int64_t)plan->weight_bytes),
            field_int("packed_bytes", (int64_t)plan->packed_bytes),
            field_int("adapter_bytes", (int64_t)plan->adapter_bytes),
            field_int("gradient_bytes", (int64_t)plan->gradient_bytes),
            field_int("optimizer_bytes", (int64_t)plan->optimizer_bytes),
            field_int("input_bytes", (int64_t)plan->input_bytes),
            field_int("activation_bytes", (int64_t)plan->activation_bytes),
            field_int("total_bytes", (int64_t)plan->total_bytes),
            field_int("peak_bytes", (int64_t)plan->peak_bytes),
            field_int("largest_bytes", (int64_t)plan->largest_bytes),
            field_int("max_alloc_bytes", (int64_t)plan->max_alloc_bytes),
            field_int("global_mem_bytes", (int64_t)caps->global_mem_bytes),
            field_int("n_trainable", plan->n_trainable),
            field_int("n_parameters", plan->n_parameters),
            field_int("n_modules", plan->n_modules),
            field_int("n_modules_possible", plan->n_modules_possible),
            field_int("n_launches_batch", plan->n_launches_batch),
            field_int("n_launches_update", plan->n_launches_update),
            field_int("n_steps", plan->n_steps),
        };
        output_begin(output, format, true);
        output_record(output, format, fields, sizeof fields / sizeof *fields);
        output_end(output, format, true);
        return;
    }
    const double mib = 1024.0 * 1024.0, gib = 1024.0 * mib;
    fprintf(output->file, "base %.1f MiB (frozen, %s", (double)(plan->weight_bytes + plan->packed_bytes) / mib, main_dtype(model));
    if (plan->packed_bytes) fprintf(output->file, "; %.1f of it in panels", (double)plan->packed_bytes / mib);
    fprintf(output->file, ")  adapters %.1f  gradients %.1f  optimizer %.1f  inputs %.1f  activations %.1f  total %.1f MiB of %.1f GiB\n",
            (double)plan->adapter_bytes / mib, (double)plan->gradient_bytes / mib, (double)plan->optimizer_bytes / mib,
            (double)plan->input_bytes / mib, (double)plan->activation_bytes / mib, (double)plan->total_bytes / mib,
            (double)caps->global_mem_bytes / gib);
    const double all = (double)plan->n_parameters;
    char trainable[32], parameters[32];
    count_text(trainable, sizeof trainable, (double)plan->n_trainable);
    count_text(parameters, sizeof parameters, all);
    fprintf(output->file, "trainable %s of %s (%.2f%%)   target match: %d/%d modules   largest buffer %.1f MiB (limit %.1f GiB)\n",
            trainable, parameters, all > 0 ? 100.0 * (double)plan->n_trainable / all : 0.0, plan->n_modules, plan->n_modules_possible,
            (double)plan->largest_bytes / mib, (double)plan->max_alloc_bytes / gib);
    fprintf(output->file, "launches %d per micro-batch, %d per update\n", plan->n_launches_batch, plan->n_launches_update);
    if (plan->n_steps) fprintf(output->file, "steps %d\n", plan->n_steps);
    if (plan->total_bytes > caps->global_mem_bytes) fprintf(output->file, "does not fit: use a smaller --batch-size or --max-seq-length\n");
}
