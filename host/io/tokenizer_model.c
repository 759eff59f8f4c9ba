/* SentencePiece model files: protocol buffers, the message ModelProto (specification: sentencepiece_model.proto; encoding: protobuf.dev,
 * "Encoding"). Fields that do not bear on encoding are stepped over. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/status.h"
#include "tokenizer.h"
#include "tokenizer_vocab.h"

enum { MAX_PIECES = 1 << 24, WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };
enum { MODEL_UNIGRAM = 1, MODEL_BPE = 2, MODEL_WORD = 3, MODEL_CHAR = 4 };

/* What is left of a message. */
struct reader {
    const uint8_t *bytes;
    size_t n;
};

struct field {
    uint64_t number;
    int wire;
    uint64_t integer;
    struct reader body; /* wire 2 */
};

/* What of the file counts, with the defaults of the specification. */
struct model {
    struct tp_vocab vocab;
    uint64_t model_type;
    bool has_byte_fallback, is_suffix;
    int64_t unk_id, bos_id, eos_id, pad_id;
    struct tp_normalizer_rules rules;
};

static enum talpa_status malformed(const char *what)
{
    return tp_fail(TALPA_E_DATA, "%s: the protocol buffer is cut off or malformed", what);
}

static bool read_varint(uint64_t *out, struct reader *r)
{
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && r->n > 0; shift += 7) {
        const uint8_t byte = *r->bytes++;
        r->n--;
        value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) {
            *out = value;
            return true;
        }
    }
    return false;
}

static bool read_fixed(uint64_t *out, struct reader *r, size_t n_bytes)
{
    if (r->n < n_bytes) return false;
    uint64_t value = 0;
    for (size_t i = 0; i < n_bytes; i++) value |= (uint64_t)r->bytes[i] << 8 * i;
    r->bytes += n_bytes;
    r->n -= n_bytes;
    *out = value;
    return true;
}

/* The next field; false if the bytes are no field. */
static bool read_field(struct field *f, struct reader *r)
{
    uint64_t key, n;
    if (!read_varint(&key, r)) return false;
    *f = (struct field){.number = key >> 3, .wire = (int)(key & 7)};
    if (f->wire == WIRE_VARINT) return read_varint(&f->integer, r);
    if (f->wire == WIRE_64) return read_fixed(&f->integer, r, 8);
    if (f->wire == WIRE_32) return read_fixed(&f->integer, r, 4);
    if (f->wire != WIRE_BYTES || !read_varint(&n, r) || n > r->n) return false;
    f->body = (struct reader){r->bytes, (size_t)n};
    r->bytes += n;
    r->n -= (size_t)n;
    return true;
}

static enum talpa_status read_piece(struct model *m, struct reader r)
{
    struct field f;
    struct reader text = {(const uint8_t *)"", 0};
    float score = 0.0f;
    uint64_t type = TP_TOKEN_NORMAL;
    while (r.n > 0) {
        if (!read_field(&f, &r)) return malformed("pieces");
        if (f.number == 1 && f.wire == WIRE_BYTES) text = f.body;
        if (f.number == 2 && f.wire == WIRE_32) {
            const uint32_t bits = (uint32_t)f.integer;
            memcpy(&score, &bits, sizeof score);
        }
        if (f.number == 3 && f.wire == WIRE_VARINT) type = f.integer;
    }
    if (type < TP_TOKEN_NORMAL || type > TP_TOKEN_BYTE)
        return tp_fail(TALPA_E_DATA, "pieces[%zu].type is %llu, expected 1..6", m->vocab.n, (unsigned long long)type);
    const size_t id = m->vocab.n;
    TP_TRY(tp_tokenizer_vocab_put(&m->vocab, (int64_t)id, (const char *)text.bytes, text.n, (int32_t)type, MAX_PIECES));
    m->vocab.scores[id] = score;
    return TALPA_OK;
}

static enum talpa_status read_trainer(struct model *m, struct reader r)
{
    struct field f;
    while (r.n > 0) {
        if (!read_field(&f, &r)) return malformed("trainer_spec");
        if (f.wire != WIRE_VARINT) continue;
        const int64_t id = (int32_t)(uint32_t)f.integer;
        if (f.number == 3) m->model_type = f.integer;
        if (f.number == 24) m->is_suffix = f.integer != 0;
        if (f.number == 35) m->has_byte_fallback = f.integer != 0;
        if (f.number == 40) m->unk_id = id;
        if (f.number == 41) m->bos_id = id;
        if (f.number == 42) m->eos_id = id;
        if (f.number == 43) m->pad_id = id;
    }
    return TALPA_OK;
}

static enum talpa_status read_normalizer(struct model *m, struct reader r)
{
    struct field f;
    while (r.n > 0) {
        if (!read_field(&f, &r)) return malformed("normalizer_spec");
        if (f.number == 2 && f.wire == WIRE_BYTES) {
            m->rules.charsmap = f.body.bytes;
            m->rules.n_charsmap_bytes = f.body.n;
        }
        if (f.wire != WIRE_VARINT) continue;
        if (f.number == 3) m->rules.prefix = f.integer ? TP_PREFIX_EACH : TP_PREFIX_NONE;
        if (f.number == 4) m->rules.removes_extra_whitespace = f.integer != 0;
        if (f.number == 5) m->rules.escapes_spaces = f.integer != 0;
    }
    return TALPA_OK;
}

static enum talpa_status read_model(struct model *m, struct reader r)
{
    struct field f;
    while (r.n > 0) {
        if (!read_field(&f, &r)) return malformed("ModelProto");
        if (f.wire != WIRE_BYTES) continue;
        if (f.number == 1) TP_TRY(read_piece(m, f.body));
        if (f.number == 2) TP_TRY(read_trainer(m, f.body));
        if (f.number == 3) TP_TRY(read_normalizer(m, f.body));
    }
    return TALPA_OK;
}

static enum talpa_status check_model(const struct model *m)
{
    static const char *const types[] = {"an unknown one", "UNIGRAM", "BPE", "WORD", "CHAR"};
    if (m->vocab.n == 0) return tp_fail(TALPA_E_DATA, "pieces: found none; is this a SentencePiece model?");
    if (m->model_type != MODEL_BPE)
        return tp_fail(TALPA_E_DATA, "trainer_spec.model_type is %s (%llu), expected BPE (2), the only one supported",
                       types[m->model_type <= MODEL_CHAR ? m->model_type : 0], (unsigned long long)m->model_type);
    if (m->is_suffix)
        return tp_fail(TALPA_E_DATA, "trainer_spec.treat_whitespace_as_suffix is true, expected false: words that end with their space "
                                     "are not supported");
    size_t n_byte_tokens = 0;
    for (size_t i = 0; i < m->vocab.n; i++) n_byte_tokens += m->vocab.types[i] == TP_TOKEN_BYTE;
    if (m->has_byte_fallback != (n_byte_tokens > 0))
        return tp_fail(TALPA_E_DATA, "trainer_spec.byte_fallback is %s, but pieces holds %zu byte tokens",
                       m->has_byte_fallback ? "true" : "false", n_byte_tokens);
    return TALPA_OK;
}

/* Tokens that tokenizer_config.json adds behind the model's, or gives another kind. */
static enum talpa_status add_config_tokens(struct model *m, const struct tp_json_value *config)
{
    const size_t n_pieces = m->vocab.n;
    const struct tp_json_value *decoder = tp_json_get(config, "added_tokens_decoder");
    for (const struct tp_json_value *v = tp_json_first(decoder); v; v = tp_json_next(v)) {
        char *end;
        const char *text;
        const long long id = strtoll(tp_json_key(v), &end, 10);
        if (*end != '\0' || end == tp_json_key(v))
            return tp_fail(TALPA_E_DATA, "added_tokens_decoder: key \"%.60s\", expected an id", tp_json_key(v));
        TP_TRY(tp_json_get_string(&text, v, "content"));
        if (id >= 0 && (size_t)id < n_pieces &&
            (m->vocab.tokens[id].n_bytes != strlen(text) || memcmp(m->vocab.tokens[id].bytes, text, strlen(text)) != 0))
            return tp_fail(TALPA_E_DATA, "added_tokens_decoder: token %lld is \"%.60s\", expected \"%.*s\" as in tokenizer.model", id, text,
                           m->vocab.tokens[id].n_bytes < 60 ? (int)m->vocab.tokens[id].n_bytes : 60, m->vocab.tokens[id].bytes);
        TP_TRY(tp_tokenizer_vocab_add(&m->vocab, id, v, n_pieces + 65536, false));
    }
    return TALPA_OK;
}

static int64_t id_in_range(int64_t id, const struct model *m) { return id >= 0 && (uint64_t)id < m->vocab.n ? id : -1; }

static enum talpa_status load(struct tp_tokenizer **out, struct model *m, struct reader r, const struct tp_tokenizer_extras *extras,
                              const char *label)
{
    TP_TRY(read_model(m, r));
    TP_TRY(check_model(m));
    TP_TRY(add_config_tokens(m, extras->config));
    struct tp_tokenizer_source source = {.label = label,
                                         .model = "llama",
                                         .scores = m->vocab.scores,
                                         .rules = m->rules,
                                         .bos_id = id_in_range(m->bos_id, m),
                                         .eos_id = id_in_range(m->eos_id, m),
                                         .unk_id = id_in_range(m->unk_id, m),
                                         .pad_id = id_in_range(m->pad_id, m)};
    source.add_bos = source.bos_id >= 0;
    TP_TRY(tp_tokenizer_vocab_finish(&source, &m->vocab, extras));
    source.scores = m->vocab.scores;
    return tp_tokenizer_create(out, &source);
}

enum talpa_status tp_tokenizer_from_model(struct tp_tokenizer **out, const void *bytes, size_t n_bytes,
                                          const struct tp_tokenizer_extras *extras, const char *label)
{
    static const struct tp_tokenizer_extras none = {.bos_id = -1, .eos_id = -1, .pad_id = -1};
    struct model m = {.model_type = MODEL_UNIGRAM, .unk_id = 0, .bos_id = 1, .eos_id = 2, .pad_id = -1};
    m.rules = (struct tp_normalizer_rules){.escapes_spaces = true, .removes_extra_whitespace = true, .prefix = TP_PREFIX_EACH};
    struct tp_tokenizer *built = NULL;
    const enum talpa_status status = load(&built, &m, (struct reader){bytes, n_bytes}, extras ? extras : &none, label);
    tp_tokenizer_vocab_free(&m.vocab);
    if (status == TALPA_OK) {
        *out = built;
        return TALPA_OK;
    }
    return strncmp(talpa_error_message(), label, strlen(label)) == 0 ? status : tp_context(status, "%s", label);
}
