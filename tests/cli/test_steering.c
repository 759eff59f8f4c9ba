/* --target-active-experts and --max-overhead: the target is reached, the bound moves as train/steer.h says, the saved adapter has it, a
 * resumed run goes on with the same bits. */
#include "cli/cli_test.h"

enum { STEPS = 48, N_MODULES = 8, N_EXPERTS = 8 };
#define TRAIN "train -m random:tiny --data @rows.jsonl -b 8 -c 32 --learning-rate 0.003 -o json -q "

/* Sums and reversed numbers: 48 rows. */
static void write_rows(void)
{
    static char text[8192];
    size_t n = 0;
    for (unsigned i = 0; i < 48; i++) {
        const unsigned a = i * 37 % 100, b = i * 53 % 97;
        n += i % 2 ? (size_t)snprintf(text + n, sizeof text - n, "{\"prompt\": \"rev %u %u: \", \"completion\": \"%u%u\"}\n", a, b, b, a)
                   : (size_t)snprintf(text + n, sizeof text - n, "{\"prompt\": \"add %u %u: \", \"completion\": \"%u\"}\n", a, b, a + b);
    }
    write_text("rows.jsonl", text);
}

struct step {
    double active, overhead, bound;
};

static double number(const struct tp_json *json, const char *key)
{
    double value = 0.0;
    if (tp_json_get_double(&value, tp_json_root(json), key) != TALPA_OK) fail_msg("%s: %s", key, talpa_error_message());
    return value;
}

static void read_steps(struct step step[STEPS], const char *name)
{
    static char text[TEXT_MAX];
    char *rest = NULL;
    int n = 0;
    assert_true(read_text(text, sizeof text, name) > 0);
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        struct tp_json *json = parse(line);
        assert_true(n < STEPS);
        step[n++] = (struct step){number(json, "active_experts"), number(json, "overhead_percent"), number(json, "max_threshold")};
        tp_json_free(json);
    }
    assert_int_equal(n, STEPS);
}

static double mean_of_last(const struct step *step, int n)
{
    double sum = 0.0;
    for (int i = STEPS - n; i < STEPS; i++) sum += step[i].active / n;
    return sum;
}

/* The bound of every step from what was measured before it, as train/steer.h describes the controller. */
static void follow(const struct step *step, double aim, double bound, double floor, bool is_overhead, double fixed)
{
    double gain = 0.3, last = 0.0;
    for (int i = 0; i + 1 < STEPS; i++) {
        const double ratio = ((is_overhead ? step[i].overhead : step[i].active) - fixed) / aim;
        double error = ratio > 0.0 ? log(ratio) : -1.0;
        error = error > 1.0 ? 1.0 : error < -1.0 ? -1.0 : error;
        if (error * last < 0.0 && fabs(error - last) > 0.1) gain = gain / 2 < 0.02 ? 0.02 : gain / 2;
        else gain = gain * 1.1 > 1.0 ? 1.0 : gain * 1.1;
        bound *= exp(gain * error);
        if (bound > 1.0) bound = 1.0;
        if (bound < floor) bound = floor;
        last = error;
        if (fabs(step[i + 1].bound - bound) > 1e-5 * bound)
            fail_msg("step %d: bound %.9g, expected %.9g", i + 2, step[i + 1].bound, bound);
    }
}

static void expect_near(double found, double wanted, double part, const char *what)
{
    if (fabs(found - wanted) > part * wanted) fail_msg("%s: %.6g, expected %.6g within %g %%", what, found, wanted, 100 * part);
}

/* Active experts of the saved adapter on the training rows: mean of the log's first summary. */
static double scored(size_t run_index)
{
    static char text[TEXT_MAX];
    char line[256], *rest = NULL;
    snprintf(line, sizeof line, "score -m random:tiny --lora @t%zu --data @rows.jsonl -q --route-log @scored.jsonl", run_index);
    expect(line, 0, NULL);
    assert_true(read_text(text, sizeof text, "scored.jsonl") > 0);
    for (char *row = strtok_r(text, "\n", &rest); row; row = strtok_r(NULL, "\n", &rest)) {
        if (!strstr(row, "\"by\":\"all\"")) continue;
        struct tp_json *json = parse(row);
        const double value = number(json, "active_experts");
        tp_json_free(json);
        return value;
    }
    fail_msg("no summary in the route log");
    return 0.0;
}

static void test_targets(void **state)
{
    (void)state;
    need_device();
    static const struct {
        const char *flags, *key;
        double target, start;
    } runs[] = {{"--target-active-experts 2.5", "max_threshold", 2.5, 0.125},
                {"--target-active-experts 6 --max-threshold 0.2", "max_threshold", 6, 0.2},
                {"--target-active-experts 1.5 --routing-strategy threshold", "threshold", 1.5, 0.125}};
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        struct step step[STEPS];
        char line[512], name[64];
        static char text[TEXT_MAX];
        snprintf(line, sizeof line, TRAIN "--max-steps %d --output-dir @t%zu %s", STEPS, i, runs[i].flags);
        expect(line, 0, NULL);
        struct tp_json *json = parse(out);
        const double measured = number(json, "steered_measured"), bound = number(json, "max_threshold");
        assert_true(number(json, "steered_target") == runs[i].target);
        tp_json_free(json);
        snprintf(name, sizeof name, "t%zu/trainer_log.jsonl", i);
        read_steps(step, name);
        follow(step, runs[i].target, runs[i].start, 1e-6, false, 0.0);
        expect_near(mean_of_last(step, 16), runs[i].target, 0.1, "the last steps");
        expect_near(measured, runs[i].target, 0.1, "steered_measured");
        /* The published configuration holds the bound; nothing else in it is new. */
        snprintf(name, sizeof name, "t%zu/adapter_config.json", i);
        read_text(text, sizeof text, name);
        json = parse(text);
        assert_true(fabs(number(json, runs[i].key) - bound) < 1e-8);
        assert_null(strstr(text, "active"));
        tp_json_free(json);
        expect_near(scored(i), runs[i].target, 0.1, "the saved adapter");
    }
}

/* Built-in tiny model, shapes by hand: d 64, keys and values 32, feed-forward 128, 2 layers; 8 experts of rank 4 on q, k, v, o. */
static double overhead_of(const double active[N_MODULES])
{
    static const double d_out[4] = {64, 32, 32, 64};
    const double frozen = 2.0 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128);
    double cost = 0.0;
    for (int m = 0; m < N_MODULES; m++) cost += 9.0 * 64 + active[m] * 4 * (64 + d_out[m % 4]);
    return 100.0 * cost / frozen;
}

static void test_overhead(void **state)
{
    (void)state;
    need_device();
    struct step step[STEPS];
    static char text[TEXT_MAX];
    char line[512], *rest = NULL;
    snprintf(line, sizeof line, TRAIN "--max-steps %d --output-dir @o --max-overhead 16 --route-log @o.routes", STEPS);
    expect(line, 0, NULL);
    read_steps(step, "o/trainer_log.jsonl");
    const double fixed = overhead_of((double[N_MODULES]){0});
    follow(step, 0.98 * 16 - fixed, 0.125, 0.125, true, fixed);
    double last = 0.0;
    for (int i = STEPS - 16; i < STEPS; i++) last += step[i].overhead / 16;
    expect_near(last, 0.98 * 16, 0.05, "overhead");
    /* Overhead and active experts of the first step, from its tokens per module and expert. */
    double selected[N_MODULES], all = 0.0;
    assert_true(read_text(text, sizeof text, "o.routes") > 0);
    char *row = strtok_r(text, "\n", &rest);
    for (int m = 0; m < N_MODULES; m++, row = strtok_r(NULL, "\n", &rest)) {
        struct tp_json *json = parse(row);
        int64_t n;
        selected[m] = 0.0;
        for (const struct tp_json_value *item = tp_json_first(tp_json_get(tp_json_root(json), "tokens")); item; item = tp_json_next(item)) {
            assert_int_equal(tp_json_as_int(&n, item, "tokens"), TALPA_OK);
            selected[m] += (double)n;
        }
        all += selected[m];
        tp_json_free(json);
    }
    const double n_tokens = all / (step[0].active * N_MODULES);
    assert_true(fabs(n_tokens - round(n_tokens)) < 1e-3);
    for (int m = 0; m < N_MODULES; m++) selected[m] /= round(n_tokens);
    expect_near(step[0].overhead, overhead_of(selected), 1e-6, "overhead of the first step");

    /* A ceiling that does not bind leaves the bound alone. */
    expect(TRAIN "--max-steps 3 --output-dir @high --max-overhead 80", 0, NULL);
    struct tp_json *json = parse(out);
    assert_true(number(json, "max_threshold") == 0.125);
    tp_json_free(json);
}

static void test_resume(void **state)
{
    (void)state;
    need_device();
    char once[3][24];
    static const char *const keys[] = {"digest", "digest_state"};
    for (int part = 0; part < 2; part++) {
        if (part) expect(TRAIN "--target-active-experts 2.5 --max-steps 5 --output-dir @parts", 0, NULL);
        expect(part ? TRAIN "--target-active-experts 2.5 --max-steps 9 --output-dir @parts --resume-from auto"
                    : TRAIN "--target-active-experts 2.5 --max-steps 9 --output-dir @once",
               0, NULL);
        struct tp_json *json = parse(out);
        for (int i = 0; i < 2; i++) {
            const char *text;
            assert_int_equal(tp_json_get_string(&text, tp_json_root(json), keys[i]), TALPA_OK);
            if (!part) snprintf(once[i], sizeof once[i], "%s", text);
            else assert_string_equal(text, once[i]);
        }
        char bound[24];
        snprintf(bound, sizeof bound, "%.9g", number(json, "max_threshold"));
        if (!part) snprintf(once[2], sizeof once[2], "%s", bound);
        else assert_string_equal(bound, once[2]);
        tp_json_free(json);
    }
    expect(TRAIN "--target-active-experts 2 --max-steps 10 --output-dir @parts --resume-from auto", 65, "target_active_experts: found 2.5");
    expect(TRAIN "--max-steps 10 --output-dir @parts --resume-from auto", 65, "target_active_experts");
    /* The best adapter is saved and loaded with the bound of its own step. */
    expect(TRAIN "--target-active-experts 2.5 --max-steps 6 --eval-data @rows.jsonl --eval-steps 2 --load-best-model-at-end --output-dir @best", 0,
           NULL);
    static char best[TEXT_MAX], end[TEXT_MAX];
    read_text(best, sizeof best, "best/best/adapter_config.json");
    read_text(end, sizeof end, "best/adapter_config.json");
    assert_string_equal(best, end);
}

/* Another bound for a trained adapter: what the configuration with that bound computes, and fewer experts the higher it is. */
static void test_override(void **state)
{
    (void)state;
    need_device();
    static char text[TEXT_MAX], config[TEXT_MAX], own[TEXT_MAX];
    double active[3];
    static const char *const flags[3] = {"--max-threshold 0.05", "", "--max-threshold 0.4"};
    expect(TRAIN "--max-steps 12 --output-dir @any", 0, NULL);
    for (int i = 0; i < 3; i++) {
        char line[256], *rest = NULL;
        snprintf(line, sizeof line, "score -m random:tiny --lora @any --data @rows.jsonl -q --route-log @any.jsonl %s", flags[i]);
        expect(line, 0, NULL);
        if (i == 2) snprintf(own, sizeof own, "%s", out);
        read_text(text, sizeof text, "any.jsonl");
        active[i] = NAN;
        for (char *row = strtok_r(text, "\n", &rest); row; row = strtok_r(NULL, "\n", &rest)) {
            if (!strstr(row, "\"by\":\"all\"")) continue;
            struct tp_json *json = parse(row);
            active[i] = number(json, "active_experts");
            tp_json_free(json);
        }
    }
    assert_true(active[0] > active[1] && active[1] > active[2]);
    static const char answer[] = "generate -m random:tiny --lora @any -p abc -n 12 --temp 0 --ignore-eos -q";
    char line[256];
    static char generated[TEXT_MAX];
    snprintf(line, sizeof line, "%s --max-threshold 0.4", answer);
    expect(line, 0, NULL);
    snprintf(generated, sizeof generated, "%s", out);
    read_text(config, sizeof config, "any/adapter_config.json");
    char *at = strstr(config, "\"max_threshold\": null");
    assert_non_null(at);
    memcpy(at, "\"max_threshold\": 0.4 ", 21);
    write_text("any/adapter_config.json", config);
    expect("score -m random:tiny --lora @any --data @rows.jsonl -q", 0, NULL);
    assert_string_equal(out, own);
    expect(answer, 0, NULL);
    assert_string_equal(out, generated);
    expect(TRAIN "--routing-strategy topk --max-steps 1 --output-dir @top", 0, NULL);
    expect("score -m random:tiny --lora @top --data @rows.jsonl --max-threshold 0.2", 2, "topk has no threshold");
    expect("score -m random:tiny --data @rows.jsonl --max-threshold 0.2", 2, "no adapter");
    expect("eval -m random:tiny --lora @any --data @rows.jsonl --metric token_nll --max-threshold 1.5", 2, "max-threshold");
    expect("eval -m random:tiny --lora @any --data @rows.jsonl --metric token_nll --max-threshold 0.3 -q", 0, NULL);
}

static void test_refused(void **state)
{
    (void)state;
    need_device();
    static const struct {
        const char *flags, *message;
    } bad[] = {{"--target-active-experts 0", "above 0"},
               {"--target-active-experts -2", "target-active-experts"},
               {"--target-active-experts 8.5", "more than --num-experts 8"},
               {"--target-active-experts 2 --max-overhead 9", "give one of them"},
               {"--target-active-experts 1 --routing-strategy lora", "adamole or threshold"},
               {"--max-overhead 9 --routing-strategy topk", "adamole or threshold"},
               {"--max-overhead 0", "above 0"},
               {"--max-overhead 6", "routers cost"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char line[512];
        snprintf(line, sizeof line, TRAIN "--max-steps 1 --output-dir @bad %s", bad[i].flags);
        expect(line, 2, bad[i].message);
    }
    assert_true(access(path("bad/adapter_config.json"), F_OK) != 0);
}

static int begin(void **state)
{
    const int code = set_up(state);
    write_rows();
    return code;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_targets), cmocka_unit_test(test_overhead), cmocka_unit_test(test_resume), cmocka_unit_test(test_override),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, begin, tear_down);
}
