/* A parser by hand for the statements that are ours. Each is short and has one form:
 *
 *   CREATE INDEX [IF NOT EXISTS] [name] ON images|captions [USING hnsw|ivf|flat|auto]
 *       (embedding [vector_cosine_ops]) [WITH (m = 32, …)]
 *   DROP INDEX [IF EXISTS] name                 SET name = value | SET name TO value
 *   TUNE [ADAPTER] [FROM 'file'] [WITH (…)]     REINDEX [images|captions|GENERATION n]
 *   ROLLBACK GENERATION                         DROP GENERATION n
 *   VACUUM
 *
 * DROP INDEX and REINDEX are also SQLite's: the names decide when the statement runs. */
#include "engine/sql_command.h"

#include <string.h>

typedef struct parser {
    l2c_rewrite *r;
    const l2c_tokens *t;
    size_t at;
    l2cdb_error *err;
} parser;

static l2cdb_status fail_here(const parser *p, const char *expected) {
    bool more = p->at < p->t->count;
    const l2c_token *token = more ? &p->t->list[p->at] : NULL;
    l2cdb_status rc =
        more ? l2c_fail(p->err, L2CDB_E_SQL, "near \"%.*s\": %s expected", (int)token->size,
                        p->t->sql + token->start, expected)
             : l2c_fail(p->err, L2CDB_E_SQL, "the statement ends where %s is expected", expected);
    if (p->err != NULL) {
        p->err->offset = (int64_t)(more ? token->start : p->t->tail);
    }
    return rc;
}

static bool take(parser *p, const char *word) {
    bool found = l2c_token_is(p->t, p->at, word);
    p->at += found ? 1 : 0;
    return found;
}

static bool take_kind(parser *p, l2c_token_kind kind) {
    bool found = p->at < p->t->count && p->t->list[p->at].kind == kind;
    p->at += found ? 1 : 0;
    return found;
}

static bool at_name(const parser *p) {
    return p->at < p->t->count &&
           (p->t->list[p->at].kind == L2C_TOKEN_QUOTED ||
            (p->t->list[p->at].kind == L2C_TOKEN_WORD && !l2c_token_reserved(p->t, p->at)));
}

static l2cdb_status take_text(parser *p, char **out) {
    l2c_free(*out);
    *out = l2c_token_text(p->t, p->at++);
    return *out != NULL ? L2CDB_OK : l2c_fail_nomem(p->err, 0);
}

static l2cdb_status at_end(const parser *p) {
    return p->at == p->t->count ? L2CDB_OK : fail_here(p, "the end of the statement");
}

static bool at_target(const parser *p) {
    return l2c_token_names(p->t, p->at, "images") || l2c_token_names(p->t, p->at, "captions");
}

/* `WITH (name = value, …)` as "name=value …" behind what `b` holds. */
static l2cdb_status take_options(parser *p, l2c_buf *b) {
    if (!take(p, "WITH")) {
        return L2CDB_OK;
    }
    if (!take_kind(p, L2C_TOKEN_OPEN)) {
        return fail_here(p, "(");
    }
    do {
        if (p->at >= p->t->count || p->t->list[p->at].kind != L2C_TOKEN_WORD) {
            return fail_here(p, "the name of an option");
        }
        char *name = NULL, *value = NULL;
        l2cdb_status rc = take_text(p, &name);
        if (rc == L2CDB_OK && !take(p, "=")) {
            rc = fail_here(p, "=");
        }
        if (rc == L2CDB_OK && p->at < p->t->count &&
            (p->t->list[p->at].kind == L2C_TOKEN_WORD ||
             p->t->list[p->at].kind == L2C_TOKEN_NUMBER ||
             p->t->list[p->at].kind == L2C_TOKEN_STRING)) {
            rc = take_text(p, &value);
        } else if (rc == L2CDB_OK) {
            rc = fail_here(p, "a number, a word or a string");
        }
        if (rc == L2CDB_OK) {
            l2c_buf_printf(b, "%s%s=%s", b->size > 0 ? " " : "", name, value);
        }
        l2c_free(name);
        l2c_free(value);
        if (rc != L2CDB_OK) {
            return rc;
        }
    } while (take_kind(p, L2C_TOKEN_COMMA));
    return take_kind(p, L2C_TOKEN_CLOSE) ? L2CDB_OK : fail_here(p, ", or )");
}

static l2cdb_status take_value(parser *p, l2c_buf *b) {
    l2c_rewrite *r = p->r;
    r->value = l2c_buf_take(b);
    if (r->value == NULL) {
        r->value = l2c_strdup("");
    }
    return r->value != NULL ? L2CDB_OK : l2c_fail_nomem(p->err, 0);
}

/* Behind CREATE INDEX. Leaves the statement to SQLite when the table is not one of ours. */
static l2cdb_status create_index(parser *p) {
    l2c_rewrite *r = p->r;
    if (take(p, "IF")) {
        if (!take(p, "NOT") || !take(p, "EXISTS")) {
            return L2CDB_OK;
        }
        r->if_exists = true;
    }
    l2cdb_status rc = L2CDB_OK;
    if (at_name(p)) {
        rc = take_text(p, &r->name);
    }
    if (rc != L2CDB_OK || !take(p, "ON")) {
        return rc;
    }
    if (!at_target(p)) {
        return L2CDB_OK;
    }
    rc = take_text(p, &r->table);
    if (rc != L2CDB_OK) {
        return rc;
    }
    r->verb = L2C_VERB_CREATE_INDEX;
    l2c_buf options;
    l2c_buf_init(&options);
    if (take(p, "USING")) {
        static const char *const kinds[] = { "hnsw", "ivf", "ivfflat", "flat", "auto", NULL };
        if (!l2c_token_in(p->t, p->at, kinds)) {
            return fail_here(p, "hnsw, ivf, flat or auto");
        }
        char *kind = NULL;
        rc = take_text(p, &kind);
        if (rc != L2CDB_OK) {
            return rc;
        }
        for (char *c = kind; *c != 0; c++) {
            *c = (char)(*c >= 'A' && *c <= 'Z' ? *c + 32 : *c);
        }
        l2c_buf_printf(&options, "kind=%s", strcmp(kind, "ivfflat") == 0 ? "ivf" : kind);
        l2c_free(kind);
    }
    if (take_kind(p, L2C_TOKEN_OPEN)) {
        if (!l2c_token_names(p->t, p->at, "embedding")) {
            rc = fail_here(p, "embedding, the one column an index is for,");
        } else {
            p->at++;
            take(p, "vector_cosine_ops");
            rc = take_kind(p, L2C_TOKEN_CLOSE) ? L2CDB_OK : fail_here(p, ")");
        }
    }
    if (rc == L2CDB_OK) {
        rc = take_options(p, &options);
    }
    if (rc == L2CDB_OK) {
        rc = at_end(p);
    }
    if (rc == L2CDB_OK) {
        rc = take_value(p, &options);
    }
    l2c_buf_fini(&options);
    return rc;
}

static l2cdb_status drop_index(parser *p) {
    l2c_rewrite *r = p->r;
    if (take(p, "IF") && take(p, "EXISTS")) {
        r->if_exists = true;
    }
    if (!at_name(p) || p->at + 1 != p->t->count) {
        return L2CDB_OK;
    }
    r->verb = L2C_VERB_DROP_INDEX;
    return take_text(p, &r->name);
}

static l2cdb_status drop_generation(parser *p) {
    if (p->at >= p->t->count || p->t->list[p->at].kind != L2C_TOKEN_NUMBER) {
        return fail_here(p, "the number of a generation");
    }
    p->r->verb = L2C_VERB_DROP_GENERATION;
    l2cdb_status rc = take_text(p, &p->r->name);
    return rc == L2CDB_OK ? at_end(p) : rc;
}

static l2cdb_status set(parser *p) {
    l2c_rewrite *r = p->r;
    l2c_buf text;
    l2c_buf_init(&text);
    r->verb = L2C_VERB_SET;
    do {
        if (p->at >= p->t->count || p->t->list[p->at].kind != L2C_TOKEN_WORD) {
            l2c_buf_fini(&text);
            return fail_here(p, "the name of a setting");
        }
        const l2c_token *token = &p->t->list[p->at++];
        l2c_buf_printf(&text, "%s%.*s", text.size > 0 ? "." : "", (int)token->size,
                       p->t->sql + token->start);
    } while (take_kind(p, L2C_TOKEN_DOT));
    r->name = l2c_buf_take(&text);
    if (r->name == NULL) {
        return l2c_fail_nomem(p->err, 0);
    }
    if (!take(p, "=") && !take(p, "TO")) {
        return fail_here(p, "=");
    }
    if (p->at >= p->t->count) {
        return fail_here(p, "a value");
    }
    if (p->at + 1 < p->t->count) {
        p->at++;
        return at_end(p);
    }
    return take_text(p, &r->value);
}

static l2cdb_status tune(parser *p) {
    l2c_rewrite *r = p->r;
    r->verb = L2C_VERB_TUNE;
    take(p, "ADAPTER");
    l2cdb_status rc = L2CDB_OK;
    if (take(p, "FROM")) {
        if (p->at >= p->t->count || p->t->list[p->at].kind != L2C_TOKEN_STRING) {
            return fail_here(p, "a file name in quotes");
        }
        rc = take_text(p, &r->name);
    }
    l2c_buf options;
    l2c_buf_init(&options);
    if (rc == L2CDB_OK) {
        rc = take_options(p, &options);
    }
    if (rc == L2CDB_OK) {
        rc = at_end(p);
    }
    if (rc == L2CDB_OK) {
        rc = take_value(p, &options);
    }
    l2c_buf_fini(&options);
    return rc;
}

static l2cdb_status reindex(parser *p) {
    l2c_rewrite *r = p->r;
    if (p->at == p->t->count) {
        r->verb = L2C_VERB_REINDEX;
        return L2CDB_OK;
    }
    if (at_target(p) && p->at + 1 == p->t->count) {
        r->verb = L2C_VERB_REINDEX;
        return take_text(p, &r->table);
    }
    if (take(p, "GENERATION")) {
        if (p->at >= p->t->count || p->t->list[p->at].kind != L2C_TOKEN_NUMBER) {
            return fail_here(p, "the number of a generation");
        }
        r->verb = L2C_VERB_REINDEX;
        l2cdb_status rc = take_text(p, &r->name);
        return rc == L2CDB_OK ? at_end(p) : rc;
    }
    return L2CDB_OK;
}

l2cdb_status l2c_command_parse(l2c_rewrite *r, const l2c_tokens *t, l2cdb_error *err) {
    parser p = { .r = r, .t = t, .err = err };
    if (take(&p, "CREATE")) {
        return take(&p, "INDEX") ? create_index(&p) : L2CDB_OK;
    }
    if (take(&p, "DROP")) {
        if (take(&p, "GENERATION")) {
            return drop_generation(&p);
        }
        return take(&p, "INDEX") ? drop_index(&p) : L2CDB_OK;
    }
    if (take(&p, "SET")) {
        return set(&p);
    }
    if (take(&p, "TUNE")) {
        return tune(&p);
    }
    if (take(&p, "REINDEX")) {
        return reindex(&p);
    }
    if (take(&p, "ROLLBACK") && take(&p, "GENERATION")) {
        r->verb = L2C_VERB_ROLLBACK_GENERATION;
        return at_end(&p);
    }
    if (t->count == 1 && l2c_token_is(t, 0, "VACUUM")) {
        r->verb = L2C_VERB_VACUUM;
    }
    return L2CDB_OK;
}
