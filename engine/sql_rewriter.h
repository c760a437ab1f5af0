/* What the files of the rewriter share: the state of one run, edits, short names for looking at
 * tokens. sql_edit.c records edits and writes the text, sql_operand.c finds operands and calls,
 * sql_select.c finds where the index can answer, sql_rewrite.c is the door. */
#ifndef L2C_SQL_REWRITER_H
#define L2C_SQL_REWRITER_H

#include "engine/sql_rewrite.h"
#include "engine/sql_token.h"

enum { DEPTH_MAX = 200, SOURCES_MAX = 64, SQL_BYTES_MAX = 1000000, OPERATORS_MAX = 1000 };

/* A piece put beside or instead of tokens: a literal text, or a range of tokens once more. */
typedef struct insertion {
    struct insertion *next;
    const char *text; /* NULL: the tokens [from, to] */
    size_t from, to;
    size_t first, last; /* the construct this belongs to */
} insertion;

typedef struct insertions {
    insertion *head, *tail;
} insertions;

typedef struct slot {
    insertions before, after;
    const char *token_text; /* instead of the token alone */
    insertions range;       /* instead of [token, range_last] */
    size_t range_last;
    bool has_range;
} slot;

/* One `<=>` with its operands, as token ranges [first, last]. */
typedef struct distance {
    struct distance *next;
    size_t op;
    size_t left_first, left_last, right_first, right_last;
} distance;

typedef struct rewriter {
    l2c_rewrite *out;
    l2c_tokens tokens;
    l2c_arena arena;
    slot *slots;
    distance *distances;
    bool shadowed[2]; /* a common table expression has the name of target_names[i] */
    l2cdb_error *err;
    l2cdb_status rc;
} rewriter;

static inline void fail_memory(rewriter *w) {
    if (w->rc == L2CDB_OK) {
        w->rc = l2c_fail_nomem(w->err, 0);
    }
}

static inline void fail_at(rewriter *w, l2cdb_status code, size_t token, const char *message) {
    if (w->rc == L2CDB_OK) {
        w->rc = l2c_fail(w->err, code, "%s", message);
        if (w->err != NULL) {
            w->err->offset = token < w->tokens.count ? (int64_t)w->tokens.list[token].start
                                                     : (int64_t)w->tokens.tail;
        }
    }
}

static inline bool is(const rewriter *w, size_t i, const char *text) {
    return l2c_token_is(&w->tokens, i, text);
}

static inline l2c_token_kind kind_of(const rewriter *w, size_t i) {
    return i < w->tokens.count ? w->tokens.list[i].kind : L2C_TOKEN_SEMICOLON;
}

static inline size_t match_of(const rewriter *w, size_t i) {
    return w->tokens.list[i].match;
}

static inline size_t depth_of(const rewriter *w, size_t i) {
    return w->tokens.list[i].depth;
}

static inline bool is_open(const rewriter *w, size_t i) {
    return kind_of(w, i) == L2C_TOKEN_OPEN && match_of(w, i) != L2C_NO_MATCH;
}

static inline bool is_name(const rewriter *w, size_t i) {
    return kind_of(w, i) == L2C_TOKEN_QUOTED ||
           (kind_of(w, i) == L2C_TOKEN_WORD && !l2c_token_reserved(&w->tokens, i));
}

/* ---- Edits (sql_edit.c); a construct is the range of tokens an edit belongs to ---- */

/* A copy in the arena; "" without memory, which is noted. */
const char *l2c_edit_keep(rewriter *w, const char *s);
/* One more entry of a list of pieces. */
void l2c_edit_add(rewriter *w, insertions *list, insertion value);
/* Text before and behind a construct. The outer construct opens first and closes last. */
void l2c_edit_open(rewriter *w, size_t first, size_t last, const char *text);
void l2c_edit_close(rewriter *w, size_t first, size_t last, const char *text);
/* Tokens [first, last] are left out; what stands instead is added piece by piece. */
void l2c_edit_replace(rewriter *w, size_t first, size_t last);
void l2c_edit_text(rewriter *w, size_t first, const char *text);
void l2c_edit_tokens(rewriter *w, size_t first, size_t from, size_t to);
/* Writes bytes that come from input byte `in`, as they are there if verbatim. */
void l2c_edit_put(rewriter *w, const char *text, size_t size, size_t in, bool verbatim);
/* Writes the tokens [first, last] with the edits inside that range. */
void l2c_edit_emit(rewriter *w, size_t first, size_t last, size_t depth);

/* ---- Operands (sql_operand.c) ---- */

/* True if an operand can end with token i. */
bool l2c_operand_ends(const rewriter *w, size_t i);
/* True if token i names a function whose arguments are vectors. */
bool l2c_operand_takes_vectors(const rewriter *w, size_t i);
/* Any tokens [first, last] of one level: finds `<=>` and vector MATCH, edits their operands and
 * named arguments; notes every `<=>` in w->distances. */
void l2c_operand_scan(rewriter *w, size_t first, size_t last, size_t depth);

/* ---- SELECT (sql_select.c) ---- */

/* Notes which of our tables' names the statement gives to common table expressions of its own. */
void l2c_select_find_shadows(rewriter *w);
/* Gives the tables of the SELECT at token `select` their query, where the index can answer. Inner
 * SELECTs must have been edited before. */
void l2c_select_edit(rewriter *w, size_t select);

#endif
