/* Flags, exit codes and messages of the program, and the verbs that need no training. */
#include "cli/cli_test.h"

static void test_usage(void **state)
{
    (void)state;
    expect("--help", 0, NULL);
    assert_non_null(strstr(out, "train"));
    expect("--version", 0, NULL);
    assert_memory_equal(out, "talpa ", 6);
    expect("", 2, NULL);
    expect("trian", 2, "did you mean 'train'");
    expect("serve", 2, "not in this version");
    expect("train --lerning-rate 1", 2, "did you mean '--learning-rate'");
    expect("train", 2, "--model");
    expect("train -m random:tiny --output-dir @o", 2, "--data");
    expect("train -m random:tiny --data @a", 2, "--output-dir");
    expect("score -m random:tiny", 2, "--data");
    expect("tokenize -p a", 2, "--model");
    expect("inspect", 2, "--model");
    expect("train -m random:tiny -b 0", 2, "--batch-size");
    expect("train -m random:tiny -b 2x", 2, "'2x'");
    expect("train -m random:tiny --learning-rate nan", 2, "--learning-rate");
    expect("train -m random:tiny --lr-scheduler cubic", 2, "constant|linear|cosine");
    expect("train -m random:tiny extra", 2, "'extra'");
    expect("devices -o xml", 2, "md|csv|json|jsonl");
    const char *const verbs[] = {"train", "score", "devices", "inspect", "tokenize"};
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; ++i) {
        char line[64];
        snprintf(line, sizeof line, "%s --help", verbs[i]);
        expect(line, 0, NULL);
        assert_non_null(strstr(out, "--output-file"));
    }
    run("train --help");
    assert_non_null(strstr(out, "[0.0001]"));
}

static void test_adapter_flags(void **state)
{
    (void)state;
    const char *const base = "train -m random:tiny --data @a --output-dir @o";
    const struct {
        const char *flags, *message;
    } cases[] = {
        {"--routing-strategy mole", "not in this version"},
        {"--routing-strategy nosuch", "adamole"},
        {"--routing-strategy lora --expert-rank 4", "--lora-rank"},
        {"--routing-strategy topk --lora-rank 4", "--expert-rank"},
        {"--lora-rank 4", "--expert-rank"},
        {"--routing-strategy topk --num-experts 2 --router-top-k 3", "--router-top-k"},
        {"--lora-modules q,x", "--lora-modules"},
        {"--packing --aux-include-pads", "--packing"},
        {"--compute-dtype f16", "--compute-dtype"},
        {"--fake-device amd", "--dry-run"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        char line[256];
        snprintf(line, sizeof line, "%s %s", base, cases[i].flags);
        expect(line, 2, cases[i].message);
    }
}

static void test_environment(void **state)
{
    (void)state;
    setenv("TALPA_ARG_MODEL", "random:tiny", 1);
    expect("inspect", 0, NULL);
    setenv("TALPA_ARG_BATCH_SIZE", "none", 1);
    expect("train --dry-run --fake-device cpu", 2, "TALPA_ARG_BATCH_SIZE");
    unsetenv("TALPA_ARG_BATCH_SIZE");
    expect("inspect -m @missing.gguf", 66, "missing.gguf"); /* the command line wins */
    unsetenv("TALPA_ARG_MODEL");
}

static void test_missing_files(void **state)
{
    (void)state;
    expect("tokenize -m @missing.gguf -p a", 66, "missing.gguf");
    expect("tokenize -m random:tiny -f @missing.txt", 66, "missing.txt");
    write_text("bad.gguf", "this is no model");
    expect("inspect -m @bad.gguf", 65, "bad.gguf");
    expect("devices --output-file @no/such/file", 73, "--output-file");
}

static void test_tokenize(void **state)
{
    (void)state;
    expect("tokenize -m random:tiny -p abc", 0, NULL);
    struct tp_json *json = parse(out);
    const struct tp_json_value *ids = tp_json_get(tp_json_root(json), "ids"), *pieces = tp_json_get(tp_json_root(json), "pieces");
    assert_int_equal(tp_json_length(ids), 3);
    char text[16] = "";
    for (int64_t i = 0; i < tp_json_length(pieces); ++i) {
        const char *piece = NULL;
        assert_int_equal(tp_json_as_string(&piece, tp_json_at(pieces, i), "piece"), TALPA_OK);
        strncat(text, piece, sizeof text - strlen(text) - 1);
    }
    assert_string_equal(text, "abc");
    tp_json_free(json);

    /* A byte tokenizer cuts the two bytes of U+00E9 apart. */
    write_text("text.jsonl", "{\"text\": \"\\u00e9\"}\n\n{\"n\": [1, {}], \"text\": \"a\"}\n");
    expect("tokenize -m random:tiny --jsonl -f @text.jsonl", 0, NULL);
    assert_non_null(strstr(out, "[\"<0xC3>\", \"<0xA9>\"]"));
    assert_non_null(strstr(out, "[\"a\"]"));
    expect("tokenize -m random:tiny --jsonl -f @text.jsonl -o json --output-file @tokens.json", 0, NULL);
    read_text(out, sizeof out, "tokens.json");
    json = parse(out);
    assert_int_equal(tp_json_length(tp_json_root(json)), 2);
    tp_json_free(json);

    /* A byte order mark is skipped, as in training data. */
    write_text("bom.jsonl", "\xEF\xBB\xBF{\"text\": \"a\"}\n");
    expect("tokenize -m random:tiny --jsonl -f @bom.jsonl", 0, NULL);
    assert_non_null(strstr(out, "[\"a\"]"));

    write_text("bad.jsonl", "{\"text\": \"a\"}\n{\"text\": 3}\n");
    expect("tokenize -m random:tiny --jsonl -f @bad.jsonl --output-file @tokens2.json", 65, "bad.jsonl:2");
    assert_int_equal(access(path("tokens2.json"), F_OK), -1);
}

/* Only plain files are replaced: devices, pipes and links are written through. */
static void test_output_file(void **state)
{
    (void)state;
    char text[256];
    struct stat info;
    write_text("result.json", "old");
    assert_int_equal(symlink("result.json", path("link.json")), 0);
    expect("tokenize -m random:tiny -p abc --output-file @link.json", 0, NULL);
    assert_int_equal(lstat(path("link.json"), &info), 0);
    assert_true(S_ISLNK(info.st_mode));
    read_text(text, sizeof text, "result.json");
    assert_non_null(strstr(text, "\"ids\""));

    assert_int_equal(mkfifo(path("pipe"), 0600), 0);
    const int reader = open(path("pipe"), O_RDONLY | O_NONBLOCK);
    assert_true(reader >= 0);
    expect("tokenize -m random:tiny -p abc --output-file @pipe", 0, NULL);
    const ssize_t n = read(reader, text, sizeof text - 1);
    assert_true(n > 0);
    text[n] = '\0';
    assert_non_null(strstr(text, "\"ids\""));
    close(reader);
    assert_int_equal(lstat(path("pipe"), &info), 0);
    assert_true(S_ISFIFO(info.st_mode));

    expect("tokenize -m random:tiny -p abc --output-file /dev/stdout", 0, NULL);
    assert_non_null(strstr(out, "\"ids\""));
    if (access("/dev/full", W_OK) == 0) {
        expect("tokenize -m random:tiny -p abc --output-file /dev/full", 74, "--output-file /dev/full");
        assert_int_equal(stat("/dev/full", &info), 0);
        assert_true(S_ISCHR(info.st_mode));
    }
    expect("tokenize -m random:tiny -p abc --output-file @.", 73, "--output-file");
}

static void test_inspect(void **state)
{
    (void)state;
    expect("inspect -m random:tiny --tensors -o json", 0, NULL);
    struct tp_json *json = parse(out);
    const struct tp_json_value *root = tp_json_root(json);
    int64_t n_tensors = 0, n_layers = 0;
    assert_int_equal(tp_json_get_int(&n_tensors, root, "n_tensors"), TALPA_OK);
    assert_int_equal(tp_json_get_int(&n_layers, tp_json_get(root, "model"), "n_layers"), TALPA_OK);
    assert_int_equal(tp_json_length(tp_json_get(root, "tensors")), n_tensors);
    assert_int_equal(n_layers, 2);
    tp_json_free(json);

    /* The graph does not depend on the device. */
    static char first[TEXT_MAX];
    expect("inspect -m random:tiny --graph --fake-device amd", 0, NULL);
    assert_true(strlen(out) > 500);
    memcpy(first, out, sizeof first);
    expect("inspect -m random:tiny --graph --fake-device cpu", 0, NULL);
    assert_string_equal(first, out);
    expect("inspect -m random:tiny --plan --fake-device nvidia", 0, NULL);
    assert_non_null(strstr(out, "largest buffer"));
    expect("inspect -m random:tiny --plan --fake-device cpu -o json", 0, NULL);
    expect("inspect -m random:tiny --graph --fake-device cpu -o json", 2, "graph is text");
    expect("inspect -m random:tiny --plan --fake-device toaster", 2, "toaster");
    expect("inspect -m random:tiny --lora @missing", 66, "missing");
}

static void test_dry_run(void **state)
{
    (void)state;
    expect("train -m random:tiny --dry-run --fake-device intel -o json", 0, NULL);
    struct tp_json *json = parse(out);
    int64_t total = 0, trainable = 0, modules = 0, possible = 0;
    assert_int_equal(tp_json_get_int(&total, tp_json_root(json), "total_bytes"), TALPA_OK);
    assert_int_equal(tp_json_get_int(&trainable, tp_json_root(json), "n_trainable"), TALPA_OK);
    assert_int_equal(tp_json_get_int(&modules, tp_json_root(json), "n_modules"), TALPA_OK);
    assert_int_equal(tp_json_get_int(&possible, tp_json_root(json), "n_modules_possible"), TALPA_OK);
    assert_true(total > 0);
    assert_int_equal(modules, 8); /* q, k, v, o of two layers */
    assert_int_equal(possible, 8);
    tp_json_free(json);

    /* LoRA of rank 3 on q and o: d_model 64, 4 heads of 16: 2 layers * 2 modules * 3 * (64 + 64). */
    expect("train -m random:tiny --dry-run --fake-device intel -o json --routing-strategy lora --lora-rank 3 --lora-modules q,o", 0, NULL);
    json = parse(out);
    assert_int_equal(tp_json_get_int(&trainable, tp_json_root(json), "n_trainable"), TALPA_OK);
    assert_int_equal(trainable, 2 * 2 * 3 * (64 + 64));
    tp_json_free(json);
    assert_int_equal(access(path("o"), F_OK), -1);
}

static void test_devices(void **state)
{
    (void)state;
    need_device();
    expect("devices", 0, NULL);
    assert_non_null(strstr(out, "platform"));
    expect("devices -o json", 0, NULL);
    struct tp_json *json = parse(out);
    const int64_t n = tp_json_length(tp_json_root(json));
    assert_true(n >= 1);
    for (int64_t i = 0; i < n; ++i) {
        int64_t index = -1, bytes = 0;
        const struct tp_json_value *record = tp_json_at(tp_json_root(json), i);
        assert_int_equal(tp_json_get_int(&index, record, "index"), TALPA_OK);
        assert_int_equal(tp_json_get_int(&bytes, record, "max_alloc_bytes"), TALPA_OK);
        assert_int_equal(index, i);
        assert_true(bytes > 0);
        assert_int_equal(tp_json_type(tp_json_get(record, "has_fp16")), tp_json_type(tp_json_get(record, "little_endian")));
    }
    tp_json_free(json);
    expect("train -m random:tiny --dry-run -dev nosuchdevice", 69, "nosuchdevice");
    if (access("/dev/full", W_OK) == 0) {
        char command[600];
        snprintf(command, sizeof command, "'%s' devices >/dev/full 2>/dev/null", TALPA_PROGRAM);
        const int status = system(command);
        assert_int_equal(WEXITSTATUS(status), 74);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_usage),         cmocka_unit_test(test_adapter_flags), cmocka_unit_test(test_environment),
        cmocka_unit_test(test_missing_files), cmocka_unit_test(test_tokenize),      cmocka_unit_test(test_output_file),
        cmocka_unit_test(test_inspect),
        cmocka_unit_test(test_dry_run),       cmocka_unit_test(test_devices),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
