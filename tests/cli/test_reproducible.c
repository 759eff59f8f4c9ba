/* The same numbers whatever the threads, the micro-batching and the device a plan is made for. */
#define _GNU_SOURCE
#include "cli/cli_test.h"

#include <sched.h>

#define TRAIN "train -m random:tiny --data @train.jsonl -c 32 --learning-rate 0.01 -o json "

static void digest_of(char digest[20], const char *line)
{
    const char *text = NULL;
    expect(line, 0, NULL);
    struct tp_json *json = parse(out);
    assert_int_equal(tp_json_get_string(&text, tp_json_root(json), "digest"), TALPA_OK);
    snprintf(digest, 20, "%s", text);
    tp_json_free(json);
}

/* One processor and one thread for the runs in between; what the driver calls its thread count differs, the mask holds for all. */
static void single_thread(bool on)
{
    static cpu_set_t all;
    cpu_set_t one;
    CPU_ZERO(&one);
    if (on) {
        sched_getaffinity(0, sizeof all, &all);
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
            if (CPU_ISSET(cpu, &all)) {
                CPU_SET(cpu, &one);
                break;
            }
        setenv("POCL_MAX_PTHREAD_COUNT", "1", 1);
        sched_setaffinity(0, sizeof one, &one);
    } else {
        unsetenv("POCL_MAX_PTHREAD_COUNT");
        sched_setaffinity(0, sizeof all, &all);
    }
}

static void test_threads(void **state)
{
    (void)state;
    need_device();
    static const char *const variants[] = {"--expert-dispatch dense", "--expert-dispatch sparse", "--routing-strategy topk",
                                           "--routing-strategy lora"};
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        char line[512], many[20], one[20];
        snprintf(line, sizeof line, TRAIN "-b 4 --max-steps 4 %s --output-dir @many%zu", variants[i], i);
        digest_of(many, line);
        snprintf(line, sizeof line, TRAIN "-b 4 --max-steps 4 %s --output-dir @one%zu", variants[i], i);
        single_thread(true);
        digest_of(one, line);
        single_thread(false);
        if (strcmp(many, one)) fail_msg("%s: digest %s with all threads, %s with one", variants[i], many, one);
    }
}

static void test_micro_batches(void **state)
{
    (void)state;
    need_device();
    enum { STEPS = 6 };
    double big[STEPS], small[STEPS];
    expect(TRAIN "-b 4 --max-steps 6 --router-aux-loss-coef 0 --lora-dropout 0 --output-dir @big", 0, NULL);
    expect(TRAIN "-b 1 --gradient-accumulation-steps 4 --max-steps 6 --router-aux-loss-coef 0 --lora-dropout 0 --output-dir @small", 0,
           NULL);
    assert_int_equal(read_log(big, STEPS, "big/trainer_log.jsonl"), STEPS);
    assert_int_equal(read_log(small, STEPS, "small/trainer_log.jsonl"), STEPS);
    for (int s = 0; s < STEPS; s++)
        if (!(fabs(big[s] - small[s]) < 1e-6)) fail_msg("step %d: loss %.9g with 4 x 1, %.9g with 1 x 4", s + 1, big[s], small[s]);
    assert_true(big[STEPS - 1] < big[0]);
}

/* A mask per expert runs the experts one by one; with a rate that drops nothing the sums are those of the shared path, with a real one not.
 */
static void test_independent_masks(void **state)
{
    (void)state;
    need_device();
    enum { STEPS = 4 };
    static const char *const routings[] = {"adamole --expert-dispatch dense", "adamole --expert-dispatch sparse", "topk"};
    for (size_t i = 0; i < sizeof routings / sizeof *routings; i++) {
        char line[512];
        double none[STEPS], tiny[STEPS], shared[STEPS], independent[STEPS];
        const struct {
            const char *flags;
            double *loss;
        } runs[] = {{"--lora-dropout 0", none},
                    {"--lora-dropout 1e-12 --expert-dropout-mask independent", tiny},
                    {"--lora-dropout 0.3", shared},
                    {"--lora-dropout 0.3 --expert-dropout-mask independent", independent}};
        for (size_t r = 0; r < sizeof runs / sizeof *runs; r++) {
            snprintf(line, sizeof line, TRAIN "-b 4 --max-steps 4 --routing-strategy %s %s --output-dir @masks", routings[i],
                     runs[r].flags);
            expect(line, 0, NULL);
            assert_int_equal(read_log(runs[r].loss, STEPS, "masks/trainer_log.jsonl"), STEPS);
        }
        for (int s = 0; s < STEPS; s++)
            if (!(fabs(none[s] - tiny[s]) < 1e-5))
                fail_msg("%s, step %d: loss %.9g, one by one %.9g", routings[i], s + 1, none[s], tiny[s]);
        assert_true(fabs(shared[STEPS - 1] - independent[STEPS - 1]) > 1e-6);
        assert_true(fabs(none[STEPS - 1] - shared[STEPS - 1]) > 1e-6);
    }
}

static void test_one_graph(void **state)
{
    (void)state;
    static char graph[TEXT_MAX], plan[TEXT_MAX];
    static const char *const devices[] = {"amd", "intel", "nvidia", "cpu"};
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
        char line[256];
        snprintf(line, sizeof line, "inspect -m random:tiny --graph --fake-device %s", devices[i]);
        expect(line, 0, NULL);
        assert_true(strlen(out) > 10000);
        if (i) assert_string_equal(graph, out);
        snprintf(graph, sizeof graph, "%s", out);
        snprintf(line, sizeof line, "inspect -m random:tiny --plan --fake-device %s", devices[i]);
        expect(line, 0, NULL);
        assert_non_null(strstr(out, "launches"));
        if (i) assert_string_not_equal(plan, out);
        snprintf(plan, sizeof plan, "%s", out);
    }
    if (!has_device) return;
    expect("inspect -m random:tiny --graph", 0, NULL);
    assert_string_equal(graph, out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_threads), cmocka_unit_test(test_micro_batches),
                                       cmocka_unit_test(test_independent_masks), cmocka_unit_test(test_one_graph)};
    return cmocka_run_group_tests_name("reproducible", tests, set_up, tear_down);
}
