/* talpa bench: every format parses by programs that know nothing of it, the numbers fit together, wrong flags are refused. */
#include "cli/cli_test.h"

#define TINY "-m random:tiny --no-peaks -r 3 "
#define GENERATE "bench generate " TINY "-p 8-16+8 -n 4 "

static bool has_python;

static double real(const struct tp_json_value *row, const char *key)
{
    double value;
    if (tp_json_get_double(&value, row, key) != TALPA_OK) fail_msg("%s", talpa_error_message());
    return value;
}

static const char *text(const struct tp_json_value *row, const char *key)
{
    const char *value;
    if (tp_json_get_string(&value, row, key) != TALPA_OK) fail_msg("%s", talpa_error_message());
    return value;
}

/* Runs a Python program with the folder as its argument; what it asserts is what is tested. */
static void python(const char *program)
{
    char line[1024];
    write_text("check.py", program);
    if (!has_python) return;
    snprintf(line, sizeof line, "python3 %s %s > %s 2>&1", path("check.py"), folder, path("python_out"));
    if (system(line) != 0) {
        read_text(out, sizeof out, "python_out");
        fail_msg("%s", out);
    }
}

/* The statistics of a row again, from its samples. */
static void check_statistics(const struct tp_json_value *row, int n_wanted, bool has_tokens)
{
    double x[16], ts[16], sum = 0, squares = 0, least = INFINITY;
    int n = 0;
    for (const struct tp_json_value *v = tp_json_first(tp_json_get(row, "samples_ns")); v && n < 16; v = tp_json_next(v)) {
        assert_int_equal(tp_json_as_double(&x[n], v, "sample"), TALPA_OK);
        assert_true(x[n] > 0);
        sum += x[n];
        least = fmin(least, x[n]);
        n++;
    }
    assert_int_equal(n, n_wanted);
    const double mean = sum / n;
    for (int i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
    assert_true(fabs(real(row, "avg_ns") - mean) <= 1.0);
    assert_true(fabs(real(row, "stddev_ns") - sqrt(squares / (n - 1))) <= 1.0);
    assert_true(fabs(real(row, "min_ns") - least) <= 1.0);
    assert_true(real(row, "median_ns") >= least);
    if (!has_tokens) return;
    n = 0;
    sum = 0;
    for (const struct tp_json_value *v = tp_json_first(tp_json_get(row, "samples_ts")); v && n < 16; v = tp_json_next(v)) {
        assert_int_equal(tp_json_as_double(&ts[n], v, "sample"), TALPA_OK);
        sum += ts[n++];
    }
    assert_int_equal(n, n_wanted);
    assert_true(fabs(real(row, "avg_ts") - sum / n) < 1e-6 * sum);
}

static void test_formats(void **state)
{
    (void)state;
    need_device();
    expect(GENERATE "-o json --output-file @b.json", 0, NULL);
    expect(GENERATE "-o jsonl --output-file @b.jsonl", 0, NULL);
    expect(GENERATE "-o csv --output-file @b.csv", 0, NULL);
    expect(GENERATE "-o sql --output-file @b.sql", 0, NULL);
    expect(GENERATE "-o md", 0, NULL);
    assert_non_null(strstr(out, "| random:tiny | pp8 | "));
    assert_non_null(strstr(out, "| random:tiny | tg4 | "));
    python("import csv, json, sqlite3, sys, datetime\n"
           "d = sys.argv[1] + '/'\n"
           "rows = {'json': json.load(open(d + 'b.json')), 'jsonl': [json.loads(l) for l in open(d + 'b.jsonl')],\n"
           "        'csv': list(csv.DictReader(open(d + 'b.csv')))}\n"
           "db = sqlite3.connect(':memory:')\n"
           "db.executescript(open(d + 'b.sql').read())\n"
           "db.row_factory = sqlite3.Row\n"
           "rows['sql'] = [dict(r) for r in db.execute('SELECT * FROM llama_bench')]\n"
           "for name, list_ in rows.items():\n"
           "    assert [r['test'] for r in list_] == ['pp8', 'pp16', 'tg4'], (name, list_)\n"
           "    for r in list_:\n"
           "        for key in ('build_commit', 'model_type', 'model_filename', 'backends', 'platform', 'vendor', 'driver_version', 'cl_version'):\n"
           "            assert r[key], (name, key)\n"
           "        assert datetime.datetime.fromisoformat(r['test_time'].replace('Z', '+00:00')).tzinfo\n"
           "        assert float(r['avg_ns']) > 0 and float(r['avg_ts']) > 0 and int(r['n_launches']) > 0\n"
           "    assert [int(r['n_prompt']) for r in list_] == [8, 16, 0] and [int(r['n_gen']) for r in list_] == [0, 0, 4]\n"
           "assert len(rows['json'][0]['samples_ns']) == 3 and len(rows['jsonl'][0]['samples_ts']) == 3\n"
           "keys = [k for k in rows['json'][0] if not k.startswith('samples')]\n"
           "assert list(rows['csv'][0]) == keys and list(rows['sql'][0]) == keys\n");
}

static void test_numbers(void **state)
{
    (void)state;
    need_device();
    expect("bench train " TINY "-b 2 -c 24 --gradient-accumulation-steps 2 --routing-strategy adamole --num-experts 4 -o json", 0, NULL);
    struct tp_json *json = parse(out);
    const struct tp_json_value *row = tp_json_at(tp_json_root(json), 0);
    assert_string_equal(text(row, "test"), "tr2x2x24");
    assert_string_equal(text(row, "routing"), "adamole");
    check_statistics(row, 3, true);
    double samples = 0;
    assert_int_equal(tp_json_as_double(&samples, tp_json_at(tp_json_get(row, "samples_ns"), 0), ""), TALPA_OK);
    double ts = 0;
    assert_int_equal(tp_json_as_double(&ts, tp_json_at(tp_json_get(row, "samples_ts"), 0), ""), TALPA_OK);
    assert_true(fabs(ts * samples * 1e-9 - 2 * 2 * 24) < 1e-3); /* tokens of a step */
    const double parts = real(row, "forward_ns") + real(row, "backward_ns") + real(row, "update_ns");
    assert_true(parts > 0 && fabs(parts - real(row, "kernel_ns")) < 10);
    /* A step holds on the device what a dry run of the same training says. */
    const double device_bytes = real(row, "device_bytes");
    tp_json_free(json);
    expect("train -m random:tiny --dry-run -b 2 -c 24 --routing-strategy adamole --num-experts 4 --expert-dispatch dense -o json", 0, NULL);
    json = parse(out);
    assert_true(real(tp_json_root(json), "total_bytes") == device_bytes);
    tp_json_free(json);

    expect("bench gemm --no-peaks -r 3 --gemm 40x64x96,1x64x32 --weights q8_0 -o json", 0, NULL);
    json = parse(out);
    row = tp_json_at(tp_json_root(json), 0);
    assert_string_equal(text(row, "test"), "gemm 40x64x96 q8_0");
    check_statistics(row, 3, false);
    assert_true(real(row, "flops") == 2.0 * 40 * 64 * 96);
    assert_true(real(row, "max_rel_err") < 1e-5);
    assert_int_equal(tp_json_length(tp_json_root(json)), 2);
    tp_json_free(json);

    expect("bench ops " TINY "-b 2 -c 24 --num-experts 4 --op rms_norm -o json", 0, NULL);
    json = parse(out);
    row = tp_json_first(tp_json_root(json));
    int launches = 0;
    for (; row; row = tp_json_next(row)) {
        assert_int_equal(strncmp(text(row, "test"), "rms_norm ", 9), 0);
        check_statistics(row, 3, false);
        assert_true(real(row, "max_rel_err") < 1e-4);
        if (strstr(text(row, "test"), " forward ")) launches += (int)real(row, "n_launches");
    }
    assert_int_equal(launches, 2 * 2 + 1); /* layers, and the last */
    tp_json_free(json);
}

static void test_peaks(void **state)
{
    (void)state;
    need_device();
    expect("bench peaks -r 2 -o json", 0, NULL);
    struct tp_json *json = parse(out);
    double gflops = 0, gbs = 0;
    int n = 0;
    for (const struct tp_json_value *row = tp_json_first(tp_json_root(json)); row; row = tp_json_next(row), n++) {
        if (!strcmp(text(row, "test"), "peak f32 fma")) gflops = real(row, "gflops");
        if (!strncmp(text(row, "test"), "peak read", 9)) gbs = real(row, "gbs");
    }
    /* No device is slower than a tenth of a GFLOP/s or faster than a thousand of the fastest of today. */
    assert_true(gflops > 0.1 && gflops < 1e8 && gbs > 0.01 && gbs < 1e7 && n >= 6);
    tp_json_free(json);
}

static void test_compare(void **state)
{
    (void)state;
    static char rows[TEXT_MAX];
    need_device();
    expect(GENERATE "-o json --output-file @base.json", 0, NULL);
    expect(GENERATE "-o md --threshold 1e9 --compare @base.json", 0, "pp8: ");
    assert_non_null(strstr(out, "vs baseline"));
    /* A baseline that took no time: everything is slower. */
    snprintf(rows, sizeof rows,
             "[{\"test\": \"pp8\", \"model_type\": \"random:tiny\", \"dtype\": \"f32\", \"base_dtype\": \"auto\", \"n_batch\": 1, \"avg_ns\": 10, \"stddev_ns\": 0}]");
    write_text("fast.json", rows);
    expect(GENERATE "--threshold 0 --compare @fast.json -o csv", 3, "1 of the measurements are slower");
    assert_non_null(strstr(err, "pp16: not in "));
    write_text("fast.json", "{\"test\": 1}");
    expect(GENERATE "--compare @fast.json", 65, "an object");
    write_text("fast.json", "[{\"test\": \"pp8\", \"avg_ns\": \"long\"}]");
    expect(GENERATE "--compare @fast.json", 65, "row 0");
    expect(GENERATE "--compare @none.json", 66, "none.json");
}

static void test_refusals(void **state)
{
    (void)state;
    static const char *const wrong[][2] = {
        {"bench", "gemm, ops, train, generate"},
        {"bench trian", "did you mean 'train'"},
        {"bench generate -p 12,x", "--n-prompt"},
        {"bench generate -n 5-2", "--n-gen"},
        {"bench generate -p 1-9*1", "--n-prompt"},
        {"bench gemm --gemm 12x12", "--gemm"},
        {"bench gemm --weights q9", "--weights"},
        {"bench train -p 12", "--n-prompt belongs to 'talpa bench generate'"},
        {"bench generate --op add", "--op belongs to 'talpa bench ops'"},
        {"bench train -r 0", "--repetitions"},
        {"bench train --routing-strategy lora --num-experts 4", "--num-experts"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) expect(wrong[i][0], 2, wrong[i][1]);
    need_device();
    expect("bench gemm --no-peaks --gemm 4x48x32 --weights q4_1", 2, "K a multiple of 32");
    expect("bench ops " TINY "--op nothing", 2, "no op is called so");
    expect("bench ops " TINY "--routing-strategy lora -b 1 -c 8 --op topk_gate", 2, "has no such op");
    expect("bench generate " TINY "-p 600", 2, "context of 512");
}

int main(void)
{
    has_python = system("python3 -c 'import sqlite3' > /dev/null 2>&1") == 0;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_formats), cmocka_unit_test(test_numbers), cmocka_unit_test(test_peaks),
                                       cmocka_unit_test(test_compare), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
