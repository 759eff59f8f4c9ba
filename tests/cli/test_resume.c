/* A run that is stopped and resumed gives the bits of one that never was; damaged checkpoints and other options are refused. */
#include "cli/cli_test.h"

#include <sys/file.h>

#define TRAIN "train -m random:tiny --data @train.jsonl -b 2 -c 32 --learning-rate 0.01 -o json -q "

struct digests {
    char params[20], state[20];
};

static void get(char text[20], const struct tp_json *json, const char *key)
{
    const char *found = NULL;
    assert_int_equal(tp_json_get_string(&found, tp_json_root(json), key), TALPA_OK);
    assert_int_equal(strlen(found), 16);
    snprintf(text, 20, "%s", found);
}

/* Runs `TRAIN format`, which has to succeed. */
static struct digests digests_of(const char *format, ...) __attribute__((format(printf, 1, 2)));
static struct digests digests_of(const char *format, ...)
{
    char line[900] = TRAIN;
    struct digests digests;
    va_list list;
    va_start(list, format);
    vsnprintf(line + strlen(line), sizeof line - strlen(line), format, list);
    va_end(list);
    expect(line, 0, NULL);
    struct tp_json *json = parse(out);
    get(digests.params, json, "digest");
    get(digests.state, json, "digest_state");
    tp_json_free(json);
    return digests;
}

static void expect_same(const char *what, struct digests a, struct digests b)
{
    if (strcmp(a.params, b.params)) fail_msg("%s: parameters %s, expected %s", what, b.params, a.params);
    if (strcmp(a.state, b.state)) fail_msg("%s: state %s, expected %s", what, b.state, a.state);
}

static struct tp_json *parse_file(const char *name)
{
    static char text[TEXT_MAX];
    if (!read_text(text, sizeof text, name)) fail_msg("%s is missing or empty", name);
    return parse(text);
}

static void test_same_bits(void **state)
{
    (void)state;
    need_device();
    enum { STEPS = 7 };
    static const char *const variants[] = {
        "--eval-data @train.jsonl --eval-steps 2", "--routing-strategy lora --weight-decay 0.1",
        "--routing-strategy topk --gradient-accumulation-steps 3 --warmup-steps 4 --seed 18446744073709551615",
        "--expert-dispatch sparse --packing"};
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        double straight[STEPS], resumed[STEPS];
        char name[64];
        const struct digests once = digests_of("%s --max-steps 7 --output-dir @straight%zu", variants[i], i);
        digests_of("%s --max-steps 2 --output-dir @parts%zu", variants[i], i);
        if (i == 0) digests_of("%s --max-steps 5 --output-dir @parts%zu --resume-from auto", variants[i], i);
        const struct digests parts =
            digests_of("%s --max-steps 7 --output-dir @parts%zu --resume-from @parts%zu/checkpoint-%d", variants[i], i, i, i ? 2 : 5);
        expect_same(variants[i], once, parts);
        snprintf(name, sizeof name, "straight%zu/trainer_log.jsonl", i);
        assert_int_equal(read_log(straight, STEPS, name), STEPS);
        snprintf(name, sizeof name, "parts%zu/trainer_log.jsonl", i);
        assert_int_equal(read_log(resumed, STEPS, name), STEPS);
        assert_memory_equal(straight, resumed, sizeof straight);
    }
    /* Another folder goes on with a copy of the log; both measurements before and after are there. */
    double loss[STEPS];
    const struct digests other = digests_of("%s --max-steps 7 --output-dir @other --resume-from @parts0/checkpoint-2", variants[0]);
    struct tp_json *json = parse(out), *once = parse_file("straight0/train_results.json");
    double a = 0, b = 1;
    assert_int_equal(tp_json_get_double(&a, tp_json_root(json), "eval_difference"), TALPA_OK);
    assert_int_equal(tp_json_get_double(&b, tp_json_root(once), "eval_difference"), TALPA_OK);
    assert_true(a == b);
    tp_json_free(json);
    tp_json_free(once);
    assert_int_equal(read_log(loss, STEPS, "other/trainer_log.jsonl"), STEPS);
    expect_same("another folder", digests_of("%s --max-steps 7 --output-dir @straight0 --resume-from auto", variants[0]), other);
    /* An earlier checkpoint of the same folder: what lay after it is set aside, rows and all. */
    const struct digests again = digests_of("%s --max-steps 4 --output-dir @parts0 --resume-from @parts0/checkpoint-2", variants[0]);
    assert_int_equal(read_log(loss, STEPS, "parts0/trainer_log.jsonl"), 4);
    assert_int_equal(access(path("parts0/previous-1/checkpoint-7"), F_OK), 0);
    assert_int_equal(access(path("parts0/checkpoint-7"), F_OK), -1);
    expect_same("an earlier checkpoint", digests_of("%s --max-steps 4 --output-dir @four", variants[0]), again);
}

static void test_schedule(void **state)
{
    (void)state;
    need_device();
    const struct digests once = digests_of("--max-steps 6 --lr-scheduler cosine --warmup-ratio 0.3 --save-steps 3 --output-dir @cosine");
    const struct digests resumed =
        digests_of("--max-steps 6 --lr-scheduler cosine --warmup-ratio 0.3 --output-dir @cosine2 --resume-from @cosine/checkpoint-3");
    expect_same("cosine", once, resumed);
    struct tp_json *json = parse_file("cosine2/checkpoint-6/checkpoint.json");
    const char *warmup = NULL;
    assert_int_equal(tp_json_get_string(&warmup, tp_json_get(tp_json_root(json), "config"), "warmup_steps"), TALPA_OK);
    assert_string_equal(warmup, "2"); /* 0.3 of 6, rounded up */
    tp_json_free(json);
    expect(TRAIN "--max-steps 7 --lr-scheduler cosine --warmup-ratio 0.3 --output-dir @cosine --resume-from auto", 65, "warmup_steps");
    expect(TRAIN "--max-steps 7 --lr-scheduler cosine --warmup-steps 2 --output-dir @cosine --resume-from auto", 65,
           "total_steps: found 6, expected 7");
    expect(TRAIN "--max-steps 7 --lr-scheduler cosine --warmup-steps 2 --output-dir @cosine --resume-from auto --allow-schedule-change", 0,
           NULL);
    /* Four rows by two and a half epochs end with half a batch: 5 steps of 4, of which a longer run would have filled the last. */
    const struct digests epochs = digests_of("-b 4 --num-train-epochs 2.5 --output-dir @epochs");
    expect(TRAIN "-b 4 --num-train-epochs 4 --output-dir @epochs --resume-from auto", 65, "data_cursor");
    expect_same("nothing to do", epochs, digests_of("-b 4 --num-train-epochs 2.5 --output-dir @epochs --resume-from auto"));
}

static void test_mismatch(void **state)
{
    (void)state;
    need_device();
    static const struct {
        const char *flags, *message;
    } cases[] = {
        {"--max-steps 4 --seed 1", "seed: found 0, expected 1"},
        {"--max-steps 4 --learning-rate 0.02", "learning_rate: found 0.01, expected 0.02"},
        {"--max-steps 4 -b 3", "batch_size: found 2, expected 3"},
        {"--max-steps 4 -c 40", "max_seq_length: found 32, expected 40"},
        {"--max-steps 4 --routing-strategy topk", "routing_strategy: found adamole, expected topk"},
        {"--max-steps 4 --expert-rank 2", "rank: found 4, expected 2"},
        {"--max-steps 4 --lora-dropout 0", "lora_dropout"},
        {"--max-steps 4 --gradient-accumulation-steps 2", "gradient_accumulation_steps"},
        {"--max-steps 4 --data @other.jsonl", "data_digest"},
        {"--max-steps 4 --eval-data @train.jsonl", "eval_data_digest: found none"},
        {"--max-steps 1", "step: found 2, expected at most 1"},
    };
    char line[700];
    write_text("other.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n");
    digests_of("--max-steps 2 --output-dir @mismatch");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(line, sizeof line, TRAIN "--output-dir @mismatch --resume-from auto %s", cases[i].flags);
        expect(line, 65, cases[i].message);
        assert_non_null(strstr(err, "checkpoint-2/checkpoint.json"));
    }
    /* Other kernels. */
    setenv("TALPA_TIER", "generic", 1);
    expect(TRAIN "--max-steps 3 --output-dir @mismatch --resume-from auto", 65, "--allow-plan-change");
    expect(TRAIN "--max-steps 3 --output-dir @mismatch --resume-from auto --allow-plan-change", 0, NULL);
    unsetenv("TALPA_TIER");
    expect(TRAIN "--max-steps 2 --output-dir @mismatch --resume-from @missing", 66, "missing");
    expect(TRAIN "--max-steps 2 --output-dir @mismatch --resume-from @.", 66, "checkpoint.json");
    expect(TRAIN "--max-steps 2 --output-dir @x --load-best-model-at-end", 2, "--eval-steps");
    expect(TRAIN "--max-steps 2 --output-dir @x --eval-steps 2", 2, "--eval-data");
    /* None yet: a fresh run. */
    expect("train -m random:tiny --data @train.jsonl -b 2 -c 32 --max-steps 1 --output-dir @none --resume-from auto", 0,
           "no checkpoint yet");
}

/* Changes one byte in the middle (at = -1), or cuts the file there. */
static void damage(const char *name, bool cut)
{
    static char bytes[1 << 20];
    FILE *file = fopen(path(name), "rb");
    assert_non_null(file);
    const size_t n = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    assert_true(n > 2 && n < sizeof bytes);
    bytes[n / 2] = (char)(bytes[n / 2] ^ 1);
    file = fopen(path(name), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, cut ? n / 2 : n, file), cut ? n / 2 : n);
    assert_int_equal(fclose(file), 0);
}

static void test_damage(void **state)
{
    (void)state;
    need_device();
    static const char *const files[] = {"checkpoint.json",    "adapter_config.json",   "adapter_model.safetensors",
                                        "talpa_adapter.json", "optimizer.safetensors", "trainer_state.json"};
    digests_of("--max-steps 2 --output-dir @damage");
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        for (int cut = 0; cut < 3; cut++) {
            char name[128], command[900];
            snprintf(command, sizeof command, "rm -rf '%s' && cp -r '%s' '%s'", path("harmed"), path("damage/checkpoint-2"),
                     path("harmed"));
            assert_int_equal(system(command), 0);
            snprintf(name, sizeof name, "harmed/%s", files[i]);
            if (cut == 2) assert_int_equal(unlink(path(name)), 0);
            else damage(name, cut == 1);
            /* Without checkpoint.json the folder is no checkpoint at all. */
            expect(TRAIN "--max-steps 3 --output-dir @after --resume-from @harmed", cut == 2 && i == 0 ? 66 : 65,
                   cut == 2 && i == 0 ? "harmed" : files[i]);
        }
    /* Nothing of this touched the folder that it was to go on in. */
    assert_int_equal(access(path("after/adapter_model.safetensors"), F_OK), -1);
    /* A number in checkpoint.json, changed with care. */
    static char text[TEXT_MAX];
    read_text(text, sizeof text, "damage/checkpoint-2/checkpoint.json");
    char *cursor = strstr(text, "\"data_cursor\": 4");
    assert_non_null(cursor);
    cursor[strlen("\"data_cursor\": ")] = '2';
    write_text("damage/checkpoint-2/checkpoint.json", text);
    expect(TRAIN "--max-steps 3 --output-dir @damage --resume-from auto", 65, "seal");
}

/* A new run that fails before its first step keeps the old log; one that works sets the old run aside. */
static void test_old_run(void **state)
{
    (void)state;
    need_device();
    double loss[4];
    digests_of("--max-steps 3 --output-dir @old");
    setenv("TALPA_MAX_ALLOC_BYTES", "100", 1);
    expect(TRAIN "--max-steps 2 --output-dir @old", 71, NULL);
    unsetenv("TALPA_MAX_ALLOC_BYTES");
    assert_int_equal(read_log(loss, 4, "old/trainer_log.jsonl"), 3);
    assert_int_equal(access(path("old/checkpoint-3/checkpoint.json"), F_OK), 0);
    /* What a killed run leaves behind goes at the next start; files of others stay. */
    assert_int_equal(mkdir(path("old/.checkpoint-9.tmp-123"), 0755), 0);
    write_text("old/.checkpoint-9.tmp-123/optimizer.safetensors", "part");
    write_text("old/adapter_model.safetensors.tmp-123-0", "part");
    write_text("old/notes.tmp-123-0", "mine");
    digests_of("--max-steps 1 --output-dir @old");
    assert_int_equal(read_log(loss, 4, "old/trainer_log.jsonl"), 1);
    assert_int_equal(read_log(loss, 4, "old/previous-1/trainer_log.jsonl"), 3);
    assert_int_equal(access(path("old/previous-1/checkpoint-3/checkpoint.json"), F_OK), 0);
    assert_int_equal(access(path("old/.checkpoint-9.tmp-123"), F_OK), -1);
    assert_int_equal(access(path("old/adapter_model.safetensors.tmp-123-0"), F_OK), -1);
    assert_int_equal(access(path("old/notes.tmp-123-0"), F_OK), 0);
    /* A row that a crash cut short is written anew. */
    read_text(out, sizeof out, "old/trainer_log.jsonl");
    strcat(out, "{\"current_steps\":2,\"lo");
    write_text("old/trainer_log.jsonl", out);
    digests_of("--max-steps 3 --output-dir @old --resume-from auto");
    assert_int_equal(read_log(loss, 4, "old/trainer_log.jsonl"), 3);
}

static int n_checkpoints(const char *name)
{
    DIR *dir = opendir(path(name));
    int n = 0;
    assert_non_null(dir);
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) n += !strncmp(entry->d_name, "checkpoint-", 11);
    closedir(dir);
    return n;
}

static void test_best(void **state)
{
    (void)state;
    need_device();
    char first[20], last[20];
    /* A rate at which the loss first falls, then rises: the best measurement is not the last. */
    const char *const flags =
        "train -m random:tiny --data @train.jsonl --eval-data @heldout.jsonl -b 2 -c 32 --learning-rate 0.02 -o json -q --eval-steps 2";
    char line[700];
    write_text("heldout.jsonl", "{\"prompt\": \"one: \", \"completion\": \"dddd\"}\n{\"prompt\": \"xyz: \", \"completion\": \"abdd\"}\n");
    snprintf(
        line, sizeof line,
        "%s --max-steps 40 --output-dir @best --early-stopping-patience 2 --save-steps 3 --save-total-limit 2 --load-best-model-at-end",
        flags);
    expect(line, 0, NULL);
    struct tp_json *json = parse(out), *log;
    bool early = false;
    int64_t steps = 0, best_step = 0;
    double least = INFINITY, best_loss = 0;
    assert_int_equal(tp_json_get_bool(&early, tp_json_root(json), "stopped_early"), TALPA_OK);
    assert_int_equal(tp_json_get_int(&steps, tp_json_root(json), "steps"), TALPA_OK);
    assert_int_equal(tp_json_get_int(&best_step, tp_json_root(json), "best_step"), TALPA_OK);
    assert_int_equal(tp_json_get_double(&best_loss, tp_json_root(json), "best_loss"), TALPA_OK);
    get(first, json, "digest");
    tp_json_free(json);
    assert_true(early && steps < 40);
    assert_int_equal(steps, best_step + 4); /* two measurements, two steps apart, without a new best */
    assert_int_equal(n_checkpoints("best"), 2);
    /* The log's least held-out loss is that step's. */
    static char text[TEXT_MAX];
    char *rest = NULL;
    int64_t least_step = 0;
    int n_eval = 0;
    read_text(text, sizeof text, "best/trainer_log.jsonl");
    for (char *row = strtok_r(text, "\n", &rest); row; row = strtok_r(NULL, "\n", &rest)) {
        log = parse(row);
        double loss = INFINITY;
        int64_t step = 0;
        if (tp_json_get(tp_json_root(log), "eval_loss")) {
            assert_int_equal(tp_json_get_double(&loss, tp_json_root(log), "eval_loss"), TALPA_OK);
            assert_non_null(tp_json_get(tp_json_root(log), "eval_stderr"));
            n_eval++;
        }
        assert_int_equal(tp_json_get_int(&step, tp_json_root(log), "current_steps"), TALPA_OK);
        if (loss < least) {
            least = loss;
            least_step = step;
        }
        tp_json_free(log);
    }
    assert_int_equal(n_eval, steps / 2);
    assert_int_equal(least_step, best_step);
    assert_true(least == best_loss);
    snprintf(line, sizeof line, "best/checkpoint-%lld/trainer_state.json", (long long)steps);
    json = parse_file(line);
    int64_t saved_best = 0;
    assert_int_equal(tp_json_get_int(&saved_best, tp_json_root(json), "best_global_step"), TALPA_OK);
    assert_int_equal(saved_best, best_step);
    assert_int_equal(tp_json_length(tp_json_get(tp_json_root(json), "log_history")), steps);
    tp_json_free(json);
    /* best/ and the output folder are the adapter of a run that ended there; the log row says its digest. */
    snprintf(line, sizeof line, "%s --max-steps %lld --output-dir @until", flags, (long long)best_step);
    expect(line, 0, NULL);
    json = parse(out);
    get(last, json, "digest");
    tp_json_free(json);
    assert_string_equal(first, last);
    static char a[1 << 18], b[1 << 18];
    const size_t n = read_text(a, sizeof a, "best/best/adapter_model.safetensors");
    assert_true(n > 1000 && n < sizeof a - 1);
    assert_int_equal(read_text(b, sizeof b, "until/adapter_model.safetensors"), n);
    assert_memory_equal(a, b, n);
    assert_int_equal(read_text(b, sizeof b, "best/adapter_model.safetensors"), n);
    assert_memory_equal(a, b, n);
    /* A stopped run stays stopped; more patience goes on. */
    snprintf(line, sizeof line, "%s --max-steps 40 --output-dir @best --early-stopping-patience 2 --resume-from auto", flags);
    expect(line, 0, NULL);
    json = parse(out);
    int64_t again = 0;
    assert_int_equal(tp_json_get_int(&again, tp_json_root(json), "steps"), TALPA_OK);
    assert_int_equal(again, steps);
    tp_json_free(json);
    read_text(a, sizeof a, "best/training_loss.svg");
    assert_non_null(strstr(a, "<svg "));
    assert_non_null(strstr(a, "held-out loss"));
    assert_non_null(strstr(a, "</svg>"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits), cmocka_unit_test(test_schedule), cmocka_unit_test(test_mismatch),
        cmocka_unit_test(test_damage),    cmocka_unit_test(test_old_run),  cmocka_unit_test(test_best),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
