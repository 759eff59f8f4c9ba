/* talpa-damage: truncates and flips every file that talpa reads and looks at what happens. Most cases run through the C API in a forked
 * child without an OpenCL driver: a file is then read to the end, and "no device" (69) means that the reader took it. Some run through the
 * program with a device. The same cases every time. tools/check/damage makes the files and calls it. */
#define _XOPEN_SOURCE 700 /* nftw */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "talpa.h"

enum { N_TRUNCATIONS = 100, N_FLIPS = 1000, LIMIT_S = 10, PROGRAM_LIMIT_S = 60, HEADER_BYTES = 4096, MAX_SHOWN = 5 };
#define MEMORY_LIMIT_BYTES ((rlim_t)4 << 30)

/* What is done with a file. */
enum action { OPEN_MODEL, LOAD_LORA, LOAD_MIXTURE, RESUME, TRAIN_ROWS, EVAL_ROWS, EVAL_SUITE, EVAL_COMPARE, PROMPT_ROWS, CONFIG };

struct subject {
    const char *format;
    const char *file;  /* the damaged one, below the working folder */
    enum action action;
    const char *input; /* what is opened: the file itself, or the folder that it is in */
};

static const struct subject subjects[] = {
    {"GGUF model, f32", "model.gguf", OPEN_MODEL, "model.gguf"},
    {"GGUF model, q4_0, SentencePiece", "spm.gguf", OPEN_MODEL, "spm.gguf"},
    {"folder: config.json", "folder/config.json", OPEN_MODEL, "folder"},
    {"folder: model.safetensors", "folder/model.safetensors", OPEN_MODEL, "folder"},
    {"folder: tokenizer.json", "folder/tokenizer.json", OPEN_MODEL, "folder"},
    {"folder: tokenizer_config.json", "folder/tokenizer_config.json", OPEN_MODEL, "folder"},
    {"folder: index.json", "shards/model.safetensors.index.json", OPEN_MODEL, "shards"},
    {"folder: one of three shards", "shards/model-00002-of-00003.safetensors", OPEN_MODEL, "shards"},
    {"folder: tokenizer.model", "spm/tokenizer.model", OPEN_MODEL, "spm"},
    {"GGUF LoRA", "lora.gguf", LOAD_LORA, "lora.gguf"},
    {"LoRA: adapter_config.json", "lora/adapter_config.json", LOAD_LORA, "lora"},
    {"LoRA: adapter_model.safetensors", "lora/adapter_model.safetensors", LOAD_LORA, "lora"},
    {"LoRA: talpa_adapter.json", "lora/talpa_adapter.json", LOAD_LORA, "lora"},
    {"mixture: adapter_config.json", "mixture/adapter_config.json", LOAD_MIXTURE, "mixture"},
    {"mixture: adapter_model.safetensors", "mixture/adapter_model.safetensors", LOAD_MIXTURE, "mixture"},
    {"mixture: talpa_adapter.json", "mixture/talpa_adapter.json", LOAD_MIXTURE, "mixture"},
    {"PEFT: adapter_config.json", "peft/adapter_config.json", LOAD_LORA, "peft"},
    {"checkpoint: checkpoint.json", "checkpoint/checkpoint.json", RESUME, "checkpoint"},
    {"checkpoint: optimizer.safetensors", "checkpoint/optimizer.safetensors", RESUME, "checkpoint"},
    {"checkpoint: trainer_state.json", "checkpoint/trainer_state.json", RESUME, "checkpoint"},
    {"checkpoint: adapter_config.json", "checkpoint/adapter_config.json", RESUME, "checkpoint"},
    {"checkpoint: adapter_model.safetensors", "checkpoint/adapter_model.safetensors", RESUME, "checkpoint"},
    {"checkpoint: talpa_adapter.json", "checkpoint/talpa_adapter.json", RESUME, "checkpoint"},
    {"training rows", "rows.jsonl", TRAIN_ROWS, "rows.jsonl"},
    {"prompts", "prompts.jsonl", PROMPT_ROWS, "prompts.jsonl"},
    {"evaluation rows", "eval.jsonl", EVAL_ROWS, "eval.jsonl"},
    {"evaluation suite", "suite.json", EVAL_SUITE, "suite.json"},
    {"evaluation results", "results.json", EVAL_COMPARE, "results.json"},
    {"configuration file", "config.json", CONFIG, "config.json"},
};
enum { N_SUBJECTS = sizeof subjects / sizeof *subjects };

/* Filled by the child. */
struct report {
    int status;           /* enum talpa_status, the worst of all calls */
    char message[600];    /* of that status */
    char complaint[600];  /* what is wrong although no status says so; "": nothing */
};

struct counts {
    int refused, accepted, crashed, hung, bad_code, bad_output, unnamed;
    double slowest_s;
};

static struct report *report;
static struct talpa_model *base; /* intact, opened once: children share it */
static const char *program, *work;
static int n_shown;

static void fatal(const char *what)
{
    fprintf(stderr, "talpa-damage: %s: %s\n", what, errno ? strerror(errno) : talpa_error_message());
    exit(70);
}

static const char *path_of(const char *name)
{
    static char paths[8][PATH_MAX];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, PATH_MAX, "%s/%s", work, name);
    return path;
}

/* ---- files ---- */

static uint8_t *read_file(size_t *n_bytes, const char *path)
{
    FILE *file = fopen(path, "rb");
    struct stat about;
    errno = 0;
    if (!file || fstat(fileno(file), &about)) fatal(path);
    uint8_t *bytes = malloc((size_t)about.st_size + 1);
    *n_bytes = (size_t)about.st_size;
    if (!bytes || fread(bytes, 1, *n_bytes, file) != *n_bytes) fatal(path);
    fclose(file);
    return bytes;
}

static void write_file(const char *path, const uint8_t *bytes, size_t n_bytes)
{
    const int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    for (size_t at = 0; file >= 0 && at < n_bytes;) {
        const ssize_t n = write(file, bytes + at, n_bytes - at);
        if (n <= 0) fatal(path);
        at += (size_t)n;
    }
    if (file < 0 || close(file)) fatal(path);
}

static int remove_one(const char *path, const struct stat *about, int type, struct FTW *ftw)
{
    (void)about;
    (void)type;
    (void)ftw;
    return remove(path);
}

static void clear_output(void)
{
    nftw(path_of("out"), remove_one, 16, FTW_DEPTH | FTW_PHYS);
    if (mkdir(path_of("out"), 0755)) fatal("out");
}

static char left_over[PATH_MAX];

/* Locks, notes of what was asked for and files that grow row by row are no results. */
static int find_result(const char *path, const struct stat *about, int type, struct FTW *ftw)
{
    static const char *const allowed[] = {".talpa.lock", "train_config.json", "trainer_log.jsonl"};
    (void)about;
    if (type != FTW_F) return 0;
    for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++)
        if (!strcmp(path + ftw->base, allowed[i])) return 0;
    snprintf(left_over, sizeof left_over, "%s", path + strlen(work) + 1);
    return 1;
}

static bool has_result(const char *folder) { return nftw(folder, find_result, 16, FTW_PHYS) == 1; }

/* ---- the child's work ---- */

static void took(enum talpa_status status)
{
    /* Without a driver, looking for a device is what comes after reading. */
    if (status == TALPA_E_NO_DEVICE) status = TALPA_OK;
    if (status == TALPA_OK || report->status == TALPA_E_INTERNAL) return;
    report->status = status;
    snprintf(report->message, sizeof report->message, "%s", talpa_error_message());
}

static void complain(const char *text)
{
    if (!report->complaint[0]) snprintf(report->complaint, sizeof report->complaint, "%s", text);
}

static void train_options(struct talpa_train_options *o)
{
    talpa_train_default(o);
    o->data = path_of("intact.jsonl");
    o->output_dir = path_of("out/run");
    o->max_steps = 4;
    o->batch_size = 1;
    o->max_seq_length = 64;
    o->adapter.rank = 2;
    o->adapter.n_experts = 2;
}

static void train(const struct talpa_train_options *o)
{
    struct talpa_train_result result;
    mkdir(path_of("out"), 0755);
    took(talpa_train(&result, base, 0, o, NULL));
    if (has_result(path_of("out"))) complain(left_over);
}

static void open_model(const char *path)
{
    struct talpa_model *model;
    struct talpa_model_info info;
    struct talpa_device_caps caps;
    struct talpa_memory_plan plan;
    struct talpa_train_options options;
    static const char text[] = "The mole \xe2\x82\xac 1234 digs.\n\tAll  day";
    const struct talpa_message messages[] = {{"system", "Short."}, {"user", "Who digs?"}};
    int32_t *ids;
    size_t n_ids, n_bytes;
    const enum talpa_status status = talpa_model_open(&model, path);
    took(status);
    if (status != TALPA_OK) return;
    uint64_t digest;
    took(talpa_model_info(&info, model));
    took(talpa_model_digest(&digest, model));
    volatile size_t sum = 0;
    for (size_t i = 0; i < talpa_model_n_tensors(model); i++) sum += strlen(talpa_model_tensor(model, i).name);
    (void)sum;
    for (int parse = 0; parse < 2; parse++) {
        const enum talpa_status encoded = talpa_model_tokenize(&ids, &n_ids, model, text, sizeof text - 1, parse);
        took(encoded);
        for (size_t i = 0; encoded == TALPA_OK && i < n_ids; i++) {
            if (ids[i] < 0 || ids[i] >= info.vocab_size) complain("a token id outside the embedding table");
            else if (!talpa_model_piece(&n_bytes, model, ids[i])) complain("a token without a piece");
        }
        if (encoded == TALPA_OK) free(ids);
    }
    if (talpa_prompt_chat(&ids, &n_ids, model, messages, 2, NULL) == TALPA_OK) free(ids);
    train_options(&options);
    options.data = NULL;
    options.max_seq_length = info.context_length < 16 ? info.context_length : 16;
    if (talpa_device_fake(&caps, "cpu") == TALPA_OK) took(talpa_train_plan_memory(&plan, model, &caps, &options));
    talpa_model_close(model);
}

static void load_adapter(const char *path, bool is_lora)
{
    struct talpa_adapter_config config;
    struct talpa_train_options options;
    struct talpa_model *merged;
    struct talpa_merge_result result;
    struct talpa_export_result exported;
    char *lines;
    const enum talpa_status inspected = talpa_adapter_inspect(&config, &lines, path);
    took(inspected);
    if (inspected == TALPA_OK) free(lines);
    train_options(&options);
    options.init_lora = path;
    if (inspected == TALPA_OK) options.adapter = config;
    train(&options);
    const struct talpa_export_options to = {.lora = path, .format = TALPA_EXPORT_GGUF, .dtype = TALPA_F32,
                                            .output = path_of(is_lora ? "out/lora.gguf" : "out/experts")};
    enum talpa_status status = talpa_adapter_export(&exported, base, &to);
    took(status);
    if (status == TALPA_OK && is_lora) {
        if (talpa_adapter_inspect(&config, &lines, to.output) == TALPA_OK) free(lines);
        else complain("the exported GGUF LoRA cannot be read");
    }
    if (status != TALPA_OK && has_result(path_of("out"))) complain(left_over);
    if (!is_lora) return;
    if (status == TALPA_OK) unlink(to.output);
    const struct talpa_merge_options merge = {.lora = path, .output = path_of("out/merged.gguf"), .no_probe = true};
    status = talpa_merge(&result, base, 0, &merge);
    took(status);
    if (status == TALPA_OK) {
        if (talpa_model_open(&merged, merge.output) == TALPA_OK) talpa_model_close(merged);
        else complain("the merged model cannot be opened");
    } else if (has_result(path_of("out"))) {
        complain(left_over);
    }
}

static void parse_prompts(const char *path)
{
    struct talpa_prompt *prompts;
    size_t n_bytes, n_prompts;
    uint8_t *bytes = read_file(&n_bytes, path);
    const struct talpa_prompt_options options = {.chat_template = "chatml"};
    const enum talpa_status status = talpa_prompts_parse(&prompts, &n_prompts, base, (const char *)bytes, n_bytes, path, &options);
    took(status);
    if (status == TALPA_OK) talpa_prompts_free(prompts, n_prompts);
    free(bytes);
}

static void evaluate(const char *path, enum action action)
{
    struct talpa_eval_options options;
    struct talpa_eval_score score;
    struct talpa_eval_table table;
    talpa_eval_default(&options);
    options.ctx_size = 64;
    options.max_new_tokens = 2;
    if (action == EVAL_ROWS) {
        options.data = path;
        took(talpa_eval(&score, base, 0, &options, NULL));
    } else if (action == EVAL_SUITE) {
        const enum talpa_status status = talpa_eval_suite(&table, base, 0, path, &options, NULL);
        took(status);
        if (status == TALPA_OK) talpa_eval_table_free(&table);
    } else {
        struct talpa_eval_row *row = calloc(1, sizeof *row);
        if (!row) return;
        table = (struct talpa_eval_table){.rows = row, .n_rows = 1};
        snprintf(row->score.task, sizeof row->score.task, "moles");
        row->score.metric = TALPA_METRIC_OPTION_LETTER;
        row->score.n = 2;
        took(talpa_eval_compare(&table, path, NULL));
        free(row);
    }
}

static void work_on(const struct subject *subject)
{
    struct talpa_train_options options;
    const char *path = path_of(subject->input);
    switch (subject->action) {
    case OPEN_MODEL:
        open_model(path);
        return;
    case LOAD_LORA:
    case LOAD_MIXTURE:
        load_adapter(path, subject->action == LOAD_LORA);
        return;
    case RESUME:
        train_options(&options);
        options.resume_from = path;
        options.allow_plan_change = true;
        train(&options);
        return;
    case TRAIN_ROWS:
        train_options(&options);
        options.data = path;
        train(&options);
        return;
    case PROMPT_ROWS:
        parse_prompts(path);
        return;
    default:
        evaluate(path, subject->action);
    }
}

/* ---- one case ---- */

static double now_s(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* The program's words for a subject. */
static void execute(const struct subject *subject)
{
    const char *path = path_of(subject->input), *model = path_of("model.gguf"), *rows = path_of("intact.jsonl");
    const char *result = path_of("out/result"), *run = path_of("out/run");
    const int log = open(path_of("log"), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    dup2(log, 1);
    dup2(log, 2);
    switch (subject->action) {
    case OPEN_MODEL:
        execl(program, program, "score", "-m", path, "--data", path_of("short.jsonl"), "--output-file", result, (char *)NULL);
        break;
    case LOAD_LORA:
    case LOAD_MIXTURE:
        execl(program, program, "score", "-m", model, "--lora", path, "--data", rows, "--output-file", result, (char *)NULL);
        break;
    case RESUME:
        execl(program, program, "train", "-m", model, "--data", rows, "--max-steps", "4", "-b", "1", "-c", "64", "--expert-rank", "2",
              "--num-experts", "2", "--resume-from", path, "--output-dir", run, (char *)NULL);
        break;
    case TRAIN_ROWS:
        execl(program, program, "train", "-m", model, "--data", path, "--max-steps", "1", "-b", "1", "-c", "64",
              "--output-dir", run, (char *)NULL);
        break;
    case PROMPT_ROWS:
        execl(program, program, "generate", "-m", path_of("spm.gguf"), "--jsonl", "-f", path, "-n", "2", "--chat-template", "chatml",
              "--output-file", result, (char *)NULL);
        break;
    case EVAL_ROWS:
        execl(program, program, "eval", "-m", model, "--data", path, "-c", "64", "-n", "2", "--output-file", result, (char *)NULL);
        break;
    case EVAL_SUITE:
        execl(program, program, "eval", "-m", model, "--suite", path, "-c", "64", "-n", "2", "--output-file", result, (char *)NULL);
        break;
    case EVAL_COMPARE:
        execl(program, program, "eval", "-m", model, "--data", path_of("eval.jsonl"), "--task", "moles", "--baseline", path, "-c",
              "64", "-n", "2", "--output-file", result, (char *)NULL);
        break;
    case CONFIG:
        execl(program, program, "train", "-m", model, "--data", rows, "--config", path, "--dump-config", (char *)NULL);
        break;
    }
    _exit(70);
}

static void child(const struct subject *subject, bool by_program)
{
    const struct rlimit core = {0, 0};
    const bool without_device = !by_program || subject->action == CONFIG;
#ifndef __SANITIZE_ADDRESS__ /* whose shadow memory counts */
    const struct rlimit data = {MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES};
    setrlimit(RLIMIT_DATA, &data);
#endif
    setrlimit(RLIMIT_CORE, &core);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (without_device) setenv("OCL_ICD_VENDORS", path_of("no-driver"), 1);
    if (by_program || subject->action == CONFIG) execute(subject);
    work_on(subject);
    _exit(0);
}

static void show(const struct subject *subject, const char *damage, const char *what, const char *detail)
{
    if (n_shown++ < MAX_SHOWN) printf("    %s, %s: %s: %s\n", subject->file, damage, what, detail);
}

static bool is_known_code(int code)
{
    static const int known[] = {0, 2, 3, 65, 66, 71, 73, 74};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (code == known[i]) return true;
    return false;
}

/* The end of what the program said, on one line. */
static void program_said(char *out, size_t size)
{
    size_t n_bytes;
    char *text = (char *)read_file(&n_bytes, path_of("log"));
    text[n_bytes] = '\0';
    for (size_t i = 0; i < n_bytes; i++)
        if (text[i] == '\n') text[i] = ' ';
    snprintf(out, size, "%s", n_bytes < size ? text : text + n_bytes - size + 1);
    free(text);
}

static void judge(struct counts *counts, const struct subject *subject, const char *damage, int wait_status, bool hung, bool by_program)
{
    char text[700];
    if (hung) {
        counts->hung++;
        show(subject, damage, "hung", "");
        return;
    }
    if (WIFSIGNALED(wait_status)) {
        counts->crashed++;
        show(subject, damage, "crashed", strsignal(WTERMSIG(wait_status)));
        return;
    }
    int code = WEXITSTATUS(wait_status);
    if (code && !by_program && subject->action != CONFIG) { /* the library ended the process, or a sanitizer did */
        counts->crashed++;
        snprintf(text, sizeof text, "exit code %d", code);
        show(subject, damage, "ended", text);
        return;
    }
    if (by_program || subject->action == CONFIG) program_said(report->message, sizeof report->message);
    if (!by_program && subject->action != CONFIG) code = talpa_exit_code((enum talpa_status)report->status);
    if (!is_known_code(code)) {
        counts->bad_code++;
        snprintf(text, sizeof text, "%d %s", code, report->message);
        show(subject, damage, "exit code", text);
    } else if (code) {
        counts->refused++;
    } else {
        counts->accepted++;
    }
    if (by_program && code && has_result(path_of("out"))) snprintf(report->complaint, sizeof report->complaint, "%.500s", left_over);
    if (report->complaint[0]) {
        counts->bad_output++;
        show(subject, damage, "left behind or wrong", report->complaint);
    }
    const char *name = strrchr(subject->file, '/');
    name = name ? name + 1 : subject->file;
    if (code && !strstr(report->message, name)) {
        if (!counts->unnamed++ && getenv("DAMAGE_VERBOSE"))
            printf("    %s, %s: names no file: %s\n", subject->file, damage, report->message);
    }
}

static void run_case(struct counts *counts, const struct subject *subject, const char *damage, bool by_program)
{
    const struct timespec limit = {by_program ? PROGRAM_LIMIT_S : LIMIT_S, 0};
    const double begin = now_s();
    sigset_t children;
    int status = 0;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    clear_output();
    memset(report, 0, sizeof *report);
    fflush(NULL);
    const pid_t pid = fork();
    if (pid < 0) fatal("fork");
    if (pid == 0) child(subject, by_program);
    bool hung = false;
    while (waitpid(pid, &status, WNOHANG) == 0)
        if (sigtimedwait(&children, NULL, &limit) < 0 && errno == EAGAIN) {
            hung = true;
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            break;
        }
    const double seconds = now_s() - begin;
    if (seconds > counts->slowest_s) counts->slowest_s = seconds;
    judge(counts, subject, damage, status, hung, by_program);
}

/* ---- damage ---- */

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* Half of the flips are of one bit, half of a byte; half are anywhere, half near the beginning, where files say what they are. */
static void flip_case(struct counts *counts, const struct subject *subject, uint8_t *bytes, size_t n_bytes, int i, bool by_program)
{
    const uint64_t random = mix((uint64_t)i * UINT64_C(0x9e3779b97f4a7c15) + n_bytes);
    const size_t range = i / 2 % 2 && n_bytes > HEADER_BYTES ? HEADER_BYTES : n_bytes, at = (size_t)(random >> 16) % range;
    const uint8_t old = bytes[at];
    char damage[64];
    bytes[at] = i % 2 ? (uint8_t)(old ^ 1u << random % 8) : (uint8_t)(old + 1 + random % 255);
    snprintf(damage, sizeof damage, "byte %zu %02x instead of %02x", at, (unsigned)bytes[at], (unsigned)old);
    write_file(path_of(subject->file), bytes, n_bytes);
    run_case(counts, subject, damage, by_program);
    bytes[at] = old;
}

static void print_counts(const char *format, const struct counts *c)
{
    printf("%-40s %8d %8d %7d %5d %8d %10d %8d %7.2f\n", format, c->refused, c->accepted, c->crashed, c->hung, c->bad_code, c->bad_output,
           c->unnamed, c->slowest_s);
    fflush(stdout);
}

static struct counts examine(const struct subject *subject, int n_truncations, int n_flips, bool by_program)
{
    struct counts counts = {0};
    size_t n_bytes;
    const char *path = path_of(subject->file);
    char own[PATH_MAX], damage[64];
    snprintf(own, sizeof own, "%s", path);
    uint8_t *bytes = read_file(&n_bytes, own);
    n_shown = 0;
    run_case(&counts, subject, "undamaged", by_program);
    if (counts.accepted != 1) {
        show(subject, "undamaged", "refused", report->message);
        counts.bad_code++;
    }
    counts.accepted = counts.refused = 0;
    for (int i = 0; i < n_truncations; i++) {
        const size_t kept = n_bytes * (size_t)i / (size_t)n_truncations;
        snprintf(damage, sizeof damage, "cut to %zu of %zu bytes", kept, n_bytes);
        write_file(own, bytes, kept);
        run_case(&counts, subject, damage, by_program);
    }
    for (int i = 0; i < n_flips; i++) flip_case(&counts, subject, bytes, n_bytes, i, by_program);
    write_file(own, bytes, n_bytes);
    free(bytes);
    print_counts(subject->format, &counts);
    return counts;
}

static int usage(void)
{
    fputs("Usage: talpa-damage FOLDER TALPA [SCALE [ONLY]]\n"
          "FOLDER as tools/check/damage makes it; TALPA: the program; SCALE: per cent of the cases [100]; ONLY: formats with this text\n",
          stderr);
    return 2;
}

int main(int argc, char **argv)
{
    if (argc < 3 || argc > 5) return usage();
    const int scale = argc > 3 ? atoi(argv[3]) : 100;
    const char *only = argc > 4 ? argv[4] : "";
    struct counts all = {0};
    sigset_t children;
    work = argv[1];
    program = argv[2];
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    sigprocmask(SIG_BLOCK, &children, NULL);
    talpa_log_level_set(TALPA_LOG_ERROR);
    report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (report == MAP_FAILED) fatal("mmap");
    mkdir(path_of("no-driver"), 0755);
    errno = 0;
    if (talpa_model_open(&base, path_of("base.gguf")) != TALPA_OK) fatal("base.gguf");
    const double begin = now_s();
    for (int by_program = 0; by_program < 2; by_program++) {
        printf("%s\n%-40s %8s %8s %7s %5s %8s %10s %8s %7s\n", by_program ? "\nby the program, with a device" : "by the C API, without a device", "format", "refused",
               "accepted", "crashed", "hung", "bad code", "bad output", "unnamed", "slowest");
        for (size_t i = 0; i < N_SUBJECTS; i++) {
            if (!strstr(subjects[i].format, only) || (by_program && subjects[i].action == CONFIG)) continue;
            const struct counts c = by_program ? examine(&subjects[i], 4 * scale / 100, 10 * scale / 100, true)
                                               : examine(&subjects[i], N_TRUNCATIONS * scale / 100, N_FLIPS * scale / 100, false);
            all.crashed += c.crashed;
            all.hung += c.hung;
            all.bad_code += c.bad_code;
            all.bad_output += c.bad_output;
            all.accepted += c.accepted;
            all.refused += c.refused;
        }
    }
    talpa_model_close(base);
    const int n_bad = all.crashed + all.hung + all.bad_code + all.bad_output;
    printf("\n%d cases in %.0f s: %d refused, %d accepted, %d crashed, %d hung, %d bad codes, %d bad outputs\n", all.refused + all.accepted + all.crashed + all.hung,
           now_s() - begin, all.refused, all.accepted, all.crashed, all.hung, all.bad_code, all.bad_output);
    return n_bad ? 1 : 0;
}
