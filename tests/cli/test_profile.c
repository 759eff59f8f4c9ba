/* --profile: what the CSV and the trace hold, compared with each other, with the training log and with the model's arithmetic. */
#include "cli/cli_test.h"

#define TRAIN "train -m random:tiny --data @train.jsonl -b 4 -c 32 --logging-steps 1 "

struct sums {
    double ms, share, count, launches; /* launches: without packing and transfers */
    double up_flops;                   /* the forward product of up_proj */
    int n_rows;
};

/* Cell `column` of a line without quotes. */
static double cell(const char *line, int column)
{
    for (int i = 0; i < column; ++i) {
        line = strchr(line, ',');
        assert_non_null(line);
        ++line;
    }
    return strtod(line, NULL);
}

static struct sums sum_csv(char *text)
{
    struct sums sums = {0};
    char *rest = NULL;
    double before = INFINITY;
    const char *head = strtok_r(text, "\n", &rest);
    assert_string_equal(head, "op,pass,kernel,scope,count,total_ms,mean_us,share_pct,flops,bytes,gflops,gbs,peak_pct");
    for (char *line = strtok_r(NULL, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        const double ms = cell(line, 5);
        assert_true(ms <= before); /* the longest first */
        before = ms;
        assert_true(fabs(cell(line, 6) * cell(line, 4) - ms * 1e3) < 0.01 + 1e-3 * cell(line, 4));
        sums.ms += ms;
        sums.share += cell(line, 7);
        sums.count += cell(line, 4);
        const bool in_step = strstr(line, ",forward,") || strstr(line, ",backward,") || strstr(line, ",update,");
        if (in_step && !strstr(line, ",tier probe,")) sums.launches += cell(line, 4);
        if (!strncmp(line, "matmul,forward,", 15) && strstr(line, ",layers.*.mlp.up_proj,")) sums.up_flops += cell(line, 8);
        sums.n_rows++;
    }
    assert_true(sums.n_rows > 10); /* a decoder has more kinds of launches than that */
    assert_true(fabs(sums.share - 100.0) < 0.1);
    return sums;
}

static double real(const struct tp_json_value *object, const char *key)
{
    double value;
    assert_int_equal(tp_json_get_double(&value, object, key), TALPA_OK);
    return value;
}

/* Sum of the times on the devices' tracks in ms; every event lies within the run, and launches follow each other. */
static double sum_trace(const char *text, double *n_events, int *n_phases)
{
    struct tp_json *json = parse(text);
    const struct tp_json_value *event = tp_json_first(tp_json_get(tp_json_root(json), "traceEvents"));
    double sum = 0.0, end = 0.0;
    *n_events = 0.0;
    *n_phases = 0;
    for (; event; event = tp_json_next(event)) {
        const char *phase;
        assert_int_equal(tp_json_get_string(&phase, event, "ph"), TALPA_OK);
        if (strcmp(phase, "X")) continue;
        assert_true(real(event, "ts") >= 0.0 && real(event, "dur") >= 0.0);
        if (real(event, "pid") == 2.0) {
            ++*n_phases;
            continue;
        }
        assert_true(real(event, "ts") >= end - 0.002); /* an in-order queue; times are printed in nanoseconds */
        end = real(event, "ts") + real(event, "dur");
        sum += real(event, "dur") * 1e-3;
        ++*n_events;
    }
    assert_true(real(tp_json_get(tp_json_root(json), "otherData"), "traced") == *n_events);
    tp_json_free(json);
    return sum;
}

static void test_train(void **state)
{
    (void)state;
    static char csv[TEXT_MAX], trace[4 * TEXT_MAX], log[TEXT_MAX];
    double n_events;
    int n_phases;
    need_device();
    expect(TRAIN "--max-steps 2 --output-dir @run --profile @p.csv", 0, "% of ");
    assert_non_null(strstr(err, "GFLOP/s")); /* the head of the ten largest */
    assert_true(read_text(csv, sizeof csv, "p.csv") > 0);
    const struct sums sums = sum_csv(csv);
    assert_true(read_text(trace, sizeof trace, "p.trace.json") > 0);
    assert_true(fabs(sum_trace(trace, &n_events, &n_phases) - sums.ms) < 1e-3 * sums.ms + 1e-3);
    assert_true(n_events == sums.count);
    assert_true(n_phases >= 4); /* two steps of one micro-batch each */

    assert_true(read_text(log, sizeof log, "run/trainer_log.jsonl") > 0);
    char *rest = NULL;
    double launches = 0.0, tokens = 0.0;
    for (char *row = strtok_r(log, "\n", &rest); row; row = strtok_r(NULL, "\n", &rest)) {
        struct tp_json *json = parse(row);
        launches += real(tp_json_root(json), "launches");
        tokens = real(tp_json_root(json), "total_tokens");
        tp_json_free(json);
    }
    assert_true(sums.launches == launches);
    assert_true(sums.up_flops == 2.0 * tokens * 64 * 128 * 2); /* d_model, d_ff, layers of random:tiny */
    /* The saved settings do not ask for a profile. */
    assert_true(read_text(log, sizeof log, "run/train_config.json") > 0);
    assert_null(strstr(log, "profile"));
}

static void test_interrupted(void **state)
{
    (void)state;
    static char progress[TEXT_MAX];
    need_device();
    const pid_t pid = start(TRAIN "--max-steps 1000000 --output-dir @long --profile @long.csv", "out1", "err1");
    progress[0] = '\0';
    for (int i = 0; i < 600 && !strstr(progress, "step 2/"); ++i) {
        pause_ms(100);
        read_text(progress, sizeof progress, "err1");
    }
    kill(pid, SIGINT);
    assert_int_equal(finish(pid), 75);
    assert_true(read_text(progress, sizeof progress, "long.csv") > 0);
    assert_true(sum_csv(progress).launches > 0.0);
}

static void test_other_verbs(void **state)
{
    (void)state;
    static char csv[TEXT_MAX];
    need_device();
    expect("generate -m random:tiny -p abc -n 4 -o json --profile @g.csv", 0, "profile:");
    assert_true(read_text(csv, sizeof csv, "g.csv") > 0);
    assert_true(sum_csv(csv).launches > 0.0);
    /* The result comes first, then the CSV. */
    expect("score -m random:tiny --data @train.jsonl --profile -", 0, "profile:");
    char *begin = strstr(out, "op,pass,");
    assert_non_null(begin);
    assert_true(sum_csv(begin).launches > 0.0);
    expect("verify --op add --tier generic --quick -o csv --profile @v.csv", 0, "profile:");
    assert_true(read_text(csv, sizeof csv, "v.csv") > 0);
    assert_non_null(strstr(csv, "\nadd,forward,generic/"));
    write_text("text.txt", "abcabcabcabcabcabc");
    expect("eval -m random:tiny -f @text.txt --profile @e.csv", 0, "profile:");
    assert_true(read_text(csv, sizeof csv, "e.csv") > 0);
    assert_true(sum_csv(csv).launches > 0.0);
}

static void test_refusals(void **state)
{
    (void)state;
    /* Before anything is computed. */
    expect("generate -m random:tiny -p abc -n 4 --profile @no/such/folder/p.csv", 73, "--profile");
    assert_string_equal(out, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_train), cmocka_unit_test(test_interrupted), cmocka_unit_test(test_other_verbs),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
