/* The rewriter. SQLite is the SQL engine and has no `<=>`; this file turns what users write into
 * what SQLite understands, token by token, and leaves everything else byte for byte as it was.
 *
 * What is rewritten
 *  1. `a <=> b` becomes cosine_distance(a, b). It binds as PostgreSQL binds such an operator:
 *     looser than + - * / and & |, tighter than < = LIKE AND.
 *  2. Inside an operand of `<=>`, of MATCH on an embedding, or of a vec_… function, + - * / are
 *     vec_add, vec_sub, vec_scale and vec_div. Those do plain arithmetic when both sides are
 *     numbers, so nothing has to be known about types here.
 *  3. In a SELECT whose FROM names images or captions, `embedding <=> X` asks the index when X is
 *     the same for every row (nothing random, and no columns but those of an outer SELECT) and the
 *     expression leads ORDER BY or bounds a WHERE. `images` becomes `images(X)`, the expression
 *     becomes `images.rank` in ORDER BY and `images.distance` elsewhere. The virtual table returns
 *     all rows with and without a query, so this never changes which rows an answer has, only how
 *     they are found.
 *  4. `embedding MATCH X AND k = n` in a SELECT from one such table becomes an inner SELECT with
 *     the whole WHERE, ordered by rank and limited to n, so that k counts what passed the filter.
 *  5. `name => value` arguments become positional ones.
 *  6. `INSERT INTO captions … RETURNING id`: SQLite hands out what a virtual table was given, and
 *     the id was not. It is looked up by photo and text, which no two captions share.
 *
 * `rank` is the distance with the rows that have no vector last, so ORDER BY embedding <=> X means
 * the same with and without an index; where the exact form stays, NULLS LAST is added.
 *
 * How: sql_operand.c finds 1, 2 and 5, sql_select.c 3 and 4; sql_edit.c writes what they noted. */
#include "engine/sql_rewrite.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sql_command.h"
#include "engine/sql_rewriter.h"

/* ---- Parameters ---------------------------------------------------------------------------- */

/* Notes every parameter under the number SQLite would give it in the user's order, and writes that
 * number instead, because its text may be written in another place or twice. Where all have names
 * they keep them: hosts of the extension bind by name. */
static void number_parameters(rewriter *w) {
    l2c_rewrite *r = w->out;
    const l2c_tokens *t = &w->tokens;
    for (size_t i = 0; i < t->count; i++) {
        r->renumbered = r->renumbered ||
                        (t->list[i].kind == L2C_TOKEN_PARAM && t->sql[t->list[i].start] == '?');
    }
    for (size_t i = 0; i < t->count && w->rc == L2CDB_OK; i++) {
        if (t->list[i].kind != L2C_TOKEN_PARAM) {
            continue;
        }
        const char *s = t->sql + t->list[i].start;
        size_t size = t->list[i].size;
        size_t number = r->names_count + 1;
        bool named = s[0] != '?';
        if (named) {
            for (size_t k = 0; k < r->names_count; k++) {
                if (r->names[k] != NULL && strlen(r->names[k]) == size &&
                    memcmp(r->names[k], s, size) == 0) {
                    number = k + 1;
                }
            }
        } else if (size > 1) {
            number = size < 8 ? strtoul(s + 1, NULL, 10) : 0;
            if (number == 0 || number > 32766) {
                fail_at(w, L2CDB_E_SQL, i, "parameter numbers go from ?1 to ?32766");
                return;
            }
        }
        if (number > 32766) {
            fail_at(w, L2CDB_E_SQL, i, "a statement has at most 32766 parameters");
            return;
        }
        if (number > r->names_count) {
            char **names = l2c_realloc(r->names, number, sizeof *names);
            if (names == NULL) {
                fail_memory(w);
                return;
            }
            r->names = names;
            while (r->names_count < number) {
                r->names[r->names_count++] = NULL;
            }
        }
        if ((named || size > 1) && r->names[number - 1] == NULL) {
            r->names[number - 1] = l2c_strndup(s, size);
            if (r->names[number - 1] == NULL) {
                fail_memory(w);
                return;
            }
        }
        if (r->renumbered) {
            char text[24];
            snprintf(text, sizeof text, "?%zu", number);
            w->slots[i].token_text = l2c_edit_keep(w, text);
        }
    }
}

/* ---- RETURNING ----------------------------------------------------------------------------- */

/* Names a column of the row twice, so that SQLite does not compute it once for all rows. */
#define CAPTION_ID                                                                                 \
    "coalesce((SELECT c.id FROM main.caption c WHERE c.image_id=captions.image_id AND "            \
    "c.text=captions.text),(SELECT seq+1 FROM main.sqlite_sequence WHERE name='caption' AND "      \
    "captions.text=captions.text),1)"

/* The token RETURNING of an INSERT INTO captions, or the number of tokens. */
static size_t find_returning(const rewriter *w, size_t first) {
    bool inserts = false;
    for (size_t i = first; i < w->tokens.count; i++) {
        if (depth_of(w, i) > 0) {
            continue;
        }
        size_t name = kind_of(w, i + 2) == L2C_TOKEN_DOT ? i + 3 : i + 1;
        inserts = inserts || (is(w, i, "INTO") && l2c_token_names(&w->tokens, name, "captions"));
        if (inserts && is(w, i, "RETURNING")) {
            return i;
        }
    }
    return w->tokens.count;
}

static bool names_id(const rewriter *w, size_t i) {
    return (l2c_token_names(&w->tokens, i, "id") || l2c_token_names(&w->tokens, i, "rowid")) &&
           kind_of(w, i + 1) != L2C_TOKEN_OPEN && kind_of(w, i + 1) != L2C_TOKEN_DOT;
}

static void return_ids(rewriter *w, size_t first) {
    size_t returning = find_returning(w, first);
    for (size_t i = returning + 1; i < w->tokens.count; i++) {
        if (is_open(w, i) && is(w, i + 1, "SELECT")) {
            i = match_of(w, i); // its ids are those of its own tables
            continue;
        }
        bool begins = i == returning + 1 || kind_of(w, i - 1) == L2C_TOKEN_COMMA;
        bool qualified = l2c_token_names(&w->tokens, i, "captions") &&
                         kind_of(w, i + 1) == L2C_TOKEN_DOT && names_id(w, i + 2);
        size_t last = qualified ? i + 2 : i;
        bool alone = begins && depth_of(w, i) == 0 &&
                     (last + 1 == w->tokens.count || kind_of(w, last + 1) == L2C_TOKEN_COMMA);
        bool alias = !begins && (is(w, i - 1, "AS") || l2c_operand_ends(w, i - 1));
        if (alone && is(w, i, "*")) {
            w->slots[i].token_text = CAPTION_ID " AS id,image_id,text,language,source,added_at,"
                                                "embedding,score,distance";
        } else if (!alias && kind_of(w, i - 1) != L2C_TOKEN_DOT && (qualified || names_id(w, i))) {
            l2c_edit_replace(w, i, last);
            l2c_edit_text(w, i, alone ? CAPTION_ID " AS id" : CAPTION_ID);
            i = last;
        }
    }
}

/* ---- The door ------------------------------------------------------------------------------ */

static bool needs_rewriting(const rewriter *w) {
    for (size_t i = 0; i < w->tokens.count; i++) {
        if (is(w, i, "<=>") || is(w, i, "=>") || is(w, i, "MATCH") ||
            l2c_operand_takes_vectors(w, i)) {
            return true;
        }
    }
    return false;
}

static void rewrite_statement(rewriter *w, size_t first) {
    size_t last = w->tokens.count - 1;
    size_t begin = w->tokens.list[first].start;
    size_t lead = first > 0 ? w->tokens.list[first - 1].start + w->tokens.list[first - 1].size : 0;
    l2c_edit_put(w, w->tokens.sql + lead, begin - lead, lead,
                 true); // keeps a comment before the statement
    if (needs_rewriting(w)) {
        number_parameters(w);
        l2c_select_find_shadows(w);
        if (w->rc == L2CDB_OK) {
            l2c_operand_scan(w, first, last, 0);
        }
        for (size_t i = last + 1; i-- > first && w->rc == L2CDB_OK;) {
            if (is(w, i, "SELECT")) {
                l2c_select_edit(w, i); // inner ones come first: they stand later in the text
            }
        }
    }
    return_ids(w, first);
    l2c_edit_emit(w, first, last, 0);
    if (w->rc == L2CDB_OK && w->tokens.ended) {
        size_t end = w->tokens.list[last].start + w->tokens.list[last].size;
        l2c_edit_put(w, w->tokens.sql + end, w->tokens.tail - end, end, true);
    }
}

static bool adjoin(const rewriter *w, size_t i, size_t j) {
    const l2c_token *list = w->tokens.list;
    return j < w->tokens.count && list[i].start + list[i].size == list[j].start;
}

/* pgvector's other operators: <->, <#> and <+>. To SQLite each is a syntax error somewhere in its
 * middle. */
static void refuse_other_distances(rewriter *w) {
    for (size_t i = 0; i + 1 < w->tokens.count; i++) {
        if (!is(w, i, "<") || !adjoin(w, i, i + 1)) {
            continue;
        }
        char middle = w->tokens.sql[w->tokens.list[i + 1].start];
        bool parted = (middle == '#' || middle == '+') && adjoin(w, i + 1, i + 2) &&
                      w->tokens.list[i + 1].size == 1 && is(w, i + 2, ">");
        if (parted || is(w, i + 1, "->")) {
            fail_at(w, L2CDB_E_SQL, i, "the one distance here is <=>, the cosine distance");
            return;
        }
    }
}

static l2cdb_status run(rewriter *w) {
    l2c_rewrite *r = w->out;
    const l2c_tokens *t = &w->tokens;
    r->tail = t->tail;
    if (t->count == 0) {
        r->verb = L2C_VERB_EMPTY;
        return L2CDB_OK;
    }
    for (size_t i = 0; i < t->count; i++) {
        if (t->list[i].depth > DEPTH_MAX) {
            fail_at(w, L2CDB_E_LIMIT, i, "the statement is nested too deeply");
            return w->rc;
        }
    }
    refuse_other_distances(w);
    if (w->rc != L2CDB_OK) {
        return w->rc;
    }
    w->slots = l2c_arena_alloc(&w->arena, t->count, sizeof *w->slots);
    if (w->slots == NULL) {
        fail_memory(w);
        return w->rc;
    }
    memset(w->slots, 0, t->count * sizeof *w->slots);
    r->verb = L2C_VERB_PLAIN;
    size_t first = 0;
    if (is(w, 0, "EXPLAIN") && t->count > 1 && !is(w, 1, "QUERY")) {
        r->verb = L2C_VERB_EXPLAIN;
        first = 1;
    } else {
        w->rc = l2c_command_parse(r, t, w->err);
    }
    if (w->rc == L2CDB_OK) {
        rewrite_statement(w, first);
    }
    return w->rc;
}

l2cdb_status l2c_rewrite_run(l2c_rewrite *r, const char *sql, size_t n, l2cdb_error *err) {
    *r = (l2c_rewrite){ .verb = L2C_VERB_EMPTY };
    l2c_buf_init(&r->text);
    if (n > SQL_BYTES_MAX) {
        return l2c_fail(err, L2CDB_E_LIMIT, "the SQL text has %zu bytes, at most %d are allowed", n,
                        SQL_BYTES_MAX);
    }
    rewriter w = { .out = r, .err = err, .rc = L2CDB_OK };
    l2c_arena_init(&w.arena, 65536);
    if (l2c_tokens_read(&w.tokens, sql, n)) {
        run(&w);
    } else {
        fail_memory(&w);
    }
    l2c_tokens_fini(&w.tokens);
    l2c_arena_fini(&w.arena);
    if (w.rc != L2CDB_OK) {
        l2c_rewrite_fini(r);
    }
    return w.rc;
}

void l2c_rewrite_fini(l2c_rewrite *r) {
    l2c_buf_fini(&r->text);
    for (size_t i = 0; i < r->names_count; i++) {
        l2c_free(r->names[i]);
    }
    l2c_free(r->names);
    l2c_free(r->name);
    l2c_free(r->table);
    l2c_free(r->value);
    l2c_free(r->segments);
    *r = (l2c_rewrite){ .verb = L2C_VERB_EMPTY };
    l2c_buf_init(&r->text);
}

static const l2c_segment *segment_at(const l2c_rewrite *r, size_t offset) {
    size_t low = 0, high = r->segments_count;
    while (low + 1 < high) {
        size_t middle = low + (high - low) / 2;
        if (r->segments[middle].out <= offset) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return r->segments_count > 0 ? &r->segments[low] : NULL;
}

size_t l2c_rewrite_offset(const l2c_rewrite *r, size_t offset) {
    const l2c_segment *s = segment_at(r, offset);
    if (s == NULL) {
        return offset;
    }
    return s->verbatim ? s->in + (offset - s->out) : s->in;
}

bool l2c_rewrite_span(const l2c_rewrite *r, size_t offset, size_t size, size_t *from, size_t *to) {
    if (size == 0 || offset + size > r->text.size) {
        return false;
    }
    *from = l2c_rewrite_offset(r, offset);
    const l2c_segment *last = segment_at(r, offset + size - 1);
    // Text put in behind an operand points at the first byte after that operand.
    *to = l2c_rewrite_offset(r, offset + size - 1) + (last->verbatim ? 1 : 0);
    return *from < *to;
}

bool l2c_rewrite_complete(const char *sql, size_t n) {
    while (n > 0) {
        l2c_tokens t;
        if (!l2c_tokens_read(&t, sql, n)) {
            return true; // the statement itself will report the lack of memory
        }
        bool ended = t.ended;
        bool blank = t.count == 0 && !t.open;
        size_t tail = t.tail;
        bool more = ended && tail < n;
        l2c_tokens_fini(&t);
        if (!more) {
            return ended || blank;
        }
        sql += tail;
        n -= tail;
    }
    return true;
}
