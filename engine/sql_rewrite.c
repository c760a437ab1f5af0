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
 *     the same for every row (no columns, nothing random) and the expression leads ORDER BY or
 *     bounds a WHERE. `images` becomes `images(X)`, the expression becomes `images.rank` in ORDER
 *     BY and `images.distance` elsewhere. The virtual table returns all rows with and without a
 *     query, so this never changes which rows an answer has, only how they are found.
 *  4. `embedding MATCH X AND k = n` in a SELECT from one such table becomes an inner SELECT with
 *     the whole WHERE, ordered by rank and limited to n, so that k counts what passed the filter.
 *  5. `name => value` arguments become positional ones.
 *
 * `rank` is the distance with the rows that have no vector last, so ORDER BY embedding <=> X means
 * the same with and without an index; where the exact form stays, NULLS LAST is added.
 *
 * How. Tokens are never edited. Each token carries insertions before and after it and perhaps a
 * replacement, every one with the range of tokens it belongs to, and emit() writes a range of
 * tokens with the edits inside that range. X can therefore be written a second time, in another
 * place, with its own edits and without those around it. Every byte written is recorded in a
 * segment that points back into the user's text. */
#include "engine/sql_rewrite.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "engine/sql_command.h"
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

static const char *const target_names[] = { "images", "captions" };

static void fail_memory(rewriter *w) {
    if (w->rc == L2CDB_OK) {
        w->rc = l2c_fail_nomem(w->err, 0);
    }
}

static void fail_at(rewriter *w, l2cdb_status code, size_t token, const char *message) {
    if (w->rc == L2CDB_OK) {
        w->rc = l2c_fail(w->err, code, "%s", message);
        if (w->err != NULL) {
            w->err->offset = token < w->tokens.count ? (int64_t)w->tokens.list[token].start
                                                     : (int64_t)w->tokens.tail;
        }
    }
}

static bool is(const rewriter *w, size_t i, const char *text) {
    return l2c_token_is(&w->tokens, i, text);
}

static l2c_token_kind kind_of(const rewriter *w, size_t i) {
    return i < w->tokens.count ? w->tokens.list[i].kind : L2C_TOKEN_SEMICOLON;
}

static size_t match_of(const rewriter *w, size_t i) {
    return w->tokens.list[i].match;
}

static size_t depth_of(const rewriter *w, size_t i) {
    return w->tokens.list[i].depth;
}

static bool is_open(const rewriter *w, size_t i) {
    return kind_of(w, i) == L2C_TOKEN_OPEN && match_of(w, i) != L2C_NO_MATCH;
}

static bool is_name(const rewriter *w, size_t i) {
    return kind_of(w, i) == L2C_TOKEN_QUOTED ||
           (kind_of(w, i) == L2C_TOKEN_WORD && !l2c_token_reserved(&w->tokens, i));
}

/* ---- Edits --------------------------------------------------------------------------------- */

static const char *keep(rewriter *w, const char *s) {
    size_t size = strlen(s) + 1;
    char *copy = l2c_arena_alloc(&w->arena, size, 1);
    if (copy == NULL) {
        fail_memory(w);
        return "";
    }
    memcpy(copy, s, size);
    return copy;
}

static void add(rewriter *w, insertions *list, insertion value) {
    insertion *node = l2c_arena_alloc(&w->arena, 1, sizeof *node);
    if (node == NULL) {
        fail_memory(w);
        return;
    }
    *node = value;
    node->next = NULL;
    if (list->tail != NULL) {
        list->tail->next = node;
    } else {
        list->head = node;
    }
    list->tail = node;
}

static void open_with(rewriter *w, size_t first, size_t last, const char *text) {
    add(w, &w->slots[first].before, (insertion){ .text = text, .first = first, .last = last });
}

static void close_with(rewriter *w, size_t first, size_t last, const char *text) {
    add(w, &w->slots[last].after, (insertion){ .text = text, .first = first, .last = last });
}

static void replace_range(rewriter *w, size_t first, size_t last) {
    w->slots[first].range = (insertions){ NULL, NULL };
    w->slots[first].range_last = last;
    w->slots[first].has_range = true;
}

static void range_text(rewriter *w, size_t first, const char *text) {
    add(w, &w->slots[first].range, (insertion){ .text = text });
}

static void range_tokens(rewriter *w, size_t first, size_t from, size_t to) {
    add(w, &w->slots[first].range, (insertion){ .from = from, .to = to });
}

/* ---- Output -------------------------------------------------------------------------------- */

static bool joins(char a, char b) {
    const char *const words = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$";
    return (strchr(words, a) != NULL || (unsigned char)a >= 0x80) &&
           (strchr(words, b) != NULL || (unsigned char)b >= 0x80);
}

static void put(rewriter *w, const char *text, size_t size, size_t in, bool verbatim) {
    l2c_rewrite *r = w->out;
    if (size == 0 || w->rc != L2CDB_OK) {
        return;
    }
    if (r->text.size + size > SQL_BYTES_MAX * 4) {
        w->rc = l2c_fail(w->err, L2CDB_E_LIMIT, "the statement grows beyond %d bytes",
                         SQL_BYTES_MAX * 4);
        return;
    }
    bool seam = r->segments_count > 0 &&
                (!verbatim || !r->segments[r->segments_count - 1].verbatim) &&
                joins(r->text.data[r->text.size - 1], text[0]);
    if (seam) { // AND"a"<=>b: the call must not grow together with AND
        put(w, " ", 1, in, false);
    }
    if (r->segments_count == r->segments_capacity) {
        size_t more = r->segments_capacity == 0 ? 32 : r->segments_capacity * 2;
        l2c_segment *segments = l2c_realloc(r->segments, more, sizeof *segments);
        if (segments == NULL) {
            fail_memory(w);
            return;
        }
        r->segments = segments;
        r->segments_capacity = more;
    }
    r->segments[r->segments_count++] =
        (l2c_segment){ .out = r->text.size, .in = in, .verbatim = verbatim };
    l2c_buf_append(&r->text, text, size);
    if (r->text.failed) {
        fail_memory(w);
    }
    r->changed = r->changed || !verbatim;
}

static void emit(rewriter *w, size_t first, size_t last, size_t depth);

/* Writes the insertions whose construct lies inside [first, last] and not inside [hide_first,
 * hide_last], which a replacement covers. */
static void emit_insertions(rewriter *w, const insertions *list, size_t first, size_t last,
                            size_t hide_first, size_t hide_last, size_t in, size_t depth) {
    for (const insertion *i = list->head; i != NULL; i = i->next) {
        bool inside = i->first >= first && i->last <= last;
        bool hidden = hide_first < hide_last && i->first >= hide_first && i->last <= hide_last;
        if (!inside || hidden) {
            continue;
        }
        if (i->text != NULL) {
            put(w, i->text, strlen(i->text), in, false);
        } else {
            emit(w, i->from, i->to, depth + 1);
        }
    }
}

static void emit(rewriter *w, size_t first, size_t last, size_t depth) {
    if (depth > DEPTH_MAX) {
        fail_at(w, L2CDB_E_LIMIT, first, "the statement is nested too deeply");
    }
    const l2c_tokens *t = &w->tokens;
    for (size_t i = first; i <= last && w->rc == L2CDB_OK; i++) {
        size_t start = t->list[i].start;
        if (i > first) {
            size_t from = t->list[i - 1].start + t->list[i - 1].size;
            put(w, t->sql + from, start - from, from, true);
        }
        slot *s = &w->slots[i];
        size_t end = s->has_range && s->range_last <= last ? s->range_last : i;
        bool ranged = s->has_range && s->range_last <= last;
        emit_insertions(w, &s->before, first, last, i, end, start, depth);
        if (ranged) {
            w->out->changed = true;
            for (const insertion *part = s->range.head; part != NULL; part = part->next) {
                if (part->text != NULL) {
                    put(w, part->text, strlen(part->text), start, false);
                } else {
                    emit(w, part->from, part->to, depth + 1);
                }
            }
        } else if (s->token_text != NULL) {
            put(w, s->token_text, strlen(s->token_text), start, false);
        } else {
            put(w, t->sql + start, t->list[i].size, start, true);
        }
        size_t behind = t->list[end].start + t->list[end].size;
        emit_insertions(w, &w->slots[end].after, first, last, i, end, behind, depth);
        i = end;
    }
}

/* ---- Operands ------------------------------------------------------------------------------ */

/* True if an operand can end with token i. */
static bool ends_operand(const rewriter *w, size_t i) {
    switch (kind_of(w, i)) {
    case L2C_TOKEN_QUOTED:
    case L2C_TOKEN_STRING:
    case L2C_TOKEN_NUMBER:
    case L2C_TOKEN_BLOB:
    case L2C_TOKEN_PARAM:
    case L2C_TOKEN_CLOSE:
        return true;
    case L2C_TOKEN_WORD:
        return !l2c_token_reserved(&w->tokens, i) || is(w, i, "END");
    default:
        return false;
    }
}

/* How tightly a binary operator binds; 0 for what ends an operand. */
static int binding(const rewriter *w, size_t i) {
    static const struct {
        const char *text;
        int strength;
    } table[] = { { "<=>", 1 }, { "&", 2 },  { "|", 2 },  { "<<", 2 }, { ">>", 2 },
                  { "+", 3 },   { "-", 3 },  { "*", 4 },  { "/", 4 },  { "%", 4 },
                  { "||", 5 },  { "->", 5 }, { "->>", 5 } };
    if (kind_of(w, i) != L2C_TOKEN_OPERATOR) {
        return 0;
    }
    for (size_t k = 0; k < sizeof table / sizeof table[0]; k++) {
        if (is(w, i, table[k].text)) {
            return table[k].strength;
        }
    }
    return 0;
}

/* The CASE that END at `i` closes, not before `floor`; L2C_NO_MATCH if there is none. */
static size_t case_of_end(const rewriter *w, size_t i, size_t floor) {
    size_t nested = 0;
    for (size_t j = i + 1; j-- > floor;) {
        if (kind_of(w, j) == L2C_TOKEN_CLOSE && match_of(w, j) != L2C_NO_MATCH) {
            j = match_of(w, j);
        } else if (is(w, j, "END")) {
            nested++;
        } else if (is(w, j, "CASE") && --nested == 0) {
            return j;
        }
    }
    return L2C_NO_MATCH;
}

/* First token of the operand that ends with token `last`, not before `floor`; L2C_NO_MATCH if no
 * operand is there. Walks back over primaries and the operators between them. */
static size_t operand_start(const rewriter *w, size_t last, size_t floor) {
    size_t start = L2C_NO_MATCH;
    size_t i = last;
    for (;;) {
        // One primary, together with what may trail it: OVER (…), FILTER (…), COLLATE name.
        if (i < floor || !ends_operand(w, i)) {
            return start;
        }
        if (kind_of(w, i) == L2C_TOKEN_CLOSE) {
            size_t open = match_of(w, i);
            if (open == L2C_NO_MATCH || open < floor) {
                return start;
            }
            i = open;
            if (i > floor && (is(w, i - 1, "OVER") || is(w, i - 1, "FILTER")) && i - 1 > floor) {
                i -= 2;
                continue;
            }
            if (i > floor && (is_name(w, i - 1) || is(w, i - 1, "EXISTS"))) {
                i--;
            }
        } else if (is(w, i, "END")) {
            i = case_of_end(w, i, floor);
            if (i == L2C_NO_MATCH) {
                return start;
            }
        } else if (i > floor + 1 && (is(w, i - 1, "COLLATE") || is(w, i - 1, "OVER"))) {
            i -= 2;
            continue;
        } else {
            while (i > floor + 1 && kind_of(w, i - 1) == L2C_TOKEN_DOT && is_name(w, i - 2)) {
                i -= 2;
            }
        }
        while (i > floor && (is(w, i - 1, "-") || is(w, i - 1, "+") || is(w, i - 1, "~")) &&
               (i - 1 == floor || !ends_operand(w, i - 2))) {
            i--;
        }
        start = i;
        if (i < floor + 2 || binding(w, i - 1) < 2) {
            return start;
        }
        i -= 2;
    }
}

/* An operand as a tree. Tokens [first, last]; op is the operator of a binary or unary node. */
typedef struct node {
    enum { NODE_PRIMARY, NODE_UNARY, NODE_BINARY } kind;
    size_t first, last, op;
    struct node *left, *right; /* right only for unary */
} node;

static node *node_new(rewriter *w, node value) {
    node *n = l2c_arena_alloc(&w->arena, 1, sizeof *n);
    if (n == NULL) {
        fail_memory(w);
        return NULL;
    }
    *n = value;
    return n;
}

/* Last token of the primary that starts at `i`, not beyond `ceiling`; L2C_NO_MATCH if none does. */
static size_t primary_end(const rewriter *w, size_t i, size_t ceiling) {
    size_t end = i;
    if (i > ceiling) {
        return L2C_NO_MATCH;
    }
    if (kind_of(w, i) == L2C_TOKEN_OPEN) {
        end = match_of(w, i);
    } else if (is(w, i, "CASE")) {
        size_t nested = 0;
        for (end = i; end <= ceiling; end++) {
            if (is_open(w, end)) {
                end = match_of(w, end);
            } else if (is(w, end, "CASE")) {
                nested++;
            } else if (is(w, end, "END") && --nested == 0) {
                break;
            }
        }
    } else if ((is_name(w, i) || is(w, i, "EXISTS")) && i < ceiling && is_open(w, i + 1)) {
        end = match_of(w, i + 1);
        if (is(w, end + 1, "FILTER") && end + 2 <= ceiling && is_open(w, end + 2)) {
            end = match_of(w, end + 2);
        }
        if (is(w, end + 1, "OVER") && end + 2 <= ceiling) {
            end = is_open(w, end + 2) ? match_of(w, end + 2) : end + 2;
        }
    } else if (is(w, i, "EXISTS") || !ends_operand(w, i) || is(w, i, "END") ||
               kind_of(w, i) == L2C_TOKEN_CLOSE) {
        return L2C_NO_MATCH;
    } else {
        while (end + 2 <= ceiling && kind_of(w, end + 1) == L2C_TOKEN_DOT && is_name(w, end + 2)) {
            end += 2;
        }
    }
    if (end == L2C_NO_MATCH || end > ceiling) {
        return L2C_NO_MATCH;
    }
    while (is(w, end + 1, "COLLATE") && end + 2 <= ceiling) {
        end += 2;
    }
    return end;
}

/* Precedence climbing over [*at, ceiling]; *at ends behind the operand. NULL if there is none. */
static node *parse_operand(rewriter *w, size_t *at, size_t ceiling, int strength_min,
                           size_t depth) {
    if (depth > DEPTH_MAX) {
        fail_at(w, L2CDB_E_LIMIT, *at, "the statement is nested too deeply");
        return NULL;
    }
    node *left;
    if (is(w, *at, "-") || is(w, *at, "+") || is(w, *at, "~")) {
        size_t op = (*at)++;
        node *operand = parse_operand(w, at, ceiling, 6, depth + 1);
        if (operand == NULL) {
            return NULL;
        }
        left = node_new(w, (node){ .kind = NODE_UNARY,
                                   .first = op,
                                   .last = operand->last,
                                   .op = op,
                                   .right = operand });
    } else {
        size_t end = primary_end(w, *at, ceiling);
        if (end == L2C_NO_MATCH) {
            return NULL;
        }
        left = node_new(w, (node){ .kind = NODE_PRIMARY, .first = *at, .last = end });
        *at = end + 1;
    }
    size_t chain = 0;
    while (left != NULL && *at <= ceiling) {
        int strength = binding(w, *at);
        if (strength == 0 || strength < strength_min) {
            break;
        }
        if (++chain > DEPTH_MAX) {
            fail_at(w, L2CDB_E_LIMIT, *at, "an operand of <=> has too many terms");
            return NULL;
        }
        size_t op = *at;
        ++*at;
        node *right = parse_operand(w, at, ceiling, strength + 1, depth + 1);
        if (right == NULL) {
            *at = op;
            break;
        }
        left = node_new(w, (node){ .kind = NODE_BINARY,
                                   .first = left->first,
                                   .last = right->last,
                                   .op = op,
                                   .left = left,
                                   .right = right });
    }
    return left;
}

static void scan(rewriter *w, size_t first, size_t last, size_t depth);
static void scan_groups(rewriter *w, size_t first, size_t last, size_t depth);
static void edit_operand(rewriter *w, const node *n, bool vector, size_t depth);

/* [first, last] as one vector expression if it is one, else as any tokens. */
static void scan_vector(rewriter *w, size_t first, size_t last, size_t depth) {
    size_t at = first;
    node *n = is(w, first, "SELECT") ? NULL : parse_operand(w, &at, last, 1, depth);
    if (n != NULL && at == last + 1) {
        edit_operand(w, n, true, depth);
    } else {
        scan(w, first, last, depth);
    }
}

/* What stands in the parentheses of a primary. */
static void edit_primary(rewriter *w, const node *n, bool vector, size_t depth) {
    bool group = is_open(w, n->first) && match_of(w, n->first) == n->last;
    if (group && vector && n->first + 1 < n->last) {
        scan_vector(w, n->first + 1, n->last - 1, depth + 1);
    } else if (is(w, n->first, "CASE")) {
        scan(w, n->first + 1, n->last, depth + 1);
    } else {
        scan_groups(w, n->first, n->last, depth);
    }
}

static void note_distance(rewriter *w, const node *n) {
    distance *d = l2c_arena_alloc(&w->arena, 1, sizeof *d);
    if (d == NULL) {
        fail_memory(w);
        return;
    }
    *d = (distance){ .next = w->distances,
                     .op = n->op,
                     .left_first = n->left->first,
                     .left_last = n->left->last,
                     .right_first = n->right->first,
                     .right_last = n->right->last };
    w->distances = d;
    if (++w->out->operators > OPERATORS_MAX) {
        fail_at(w, L2CDB_E_LIMIT, n->op, "a statement has at most 1000 <=>");
    }
}

static void edit_operand(rewriter *w, const node *n, bool vector, size_t depth) {
    if (depth > DEPTH_MAX) {
        fail_at(w, L2CDB_E_LIMIT, n->first, "the statement is nested too deeply");
    }
    if (w->rc != L2CDB_OK) {
        return;
    }
    if (n->kind == NODE_PRIMARY) {
        edit_primary(w, n, vector, depth);
        return;
    }
    if (n->kind == NODE_UNARY) {
        bool negates = vector && is(w, n->op, "-") && kind_of(w, n->op + 1) != L2C_TOKEN_NUMBER;
        if (negates) {
            w->slots[n->op].token_text = "vec_scale(-1, ";
        }
        edit_operand(w, n->right, vector, depth + 1);
        if (negates) {
            close_with(w, n->first, n->last, ")");
        }
        return;
    }
    static const struct {
        const char *op, *call;
    } calls[] = { { "<=>", "cosine_distance(" },
                  { "+", "vec_add(" },
                  { "-", "vec_sub(" },
                  { "*", "vec_scale(" },
                  { "/", "vec_div(" } };
    const char *call = NULL;
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        if (is(w, n->op, calls[i].op)) {
            call = calls[i].call;
        }
    }
    bool is_distance = is(w, n->op, "<=>");
    if (call == NULL || (!is_distance && !vector)) {
        call = NULL;
    }
    if (is_distance) {
        note_distance(w, n);
    }
    if (call != NULL) {
        open_with(w, n->first, n->last, call);
        w->slots[n->op].token_text = ",";
    }
    edit_operand(w, n->left, vector || is_distance, depth + 1);
    edit_operand(w, n->right, vector || is_distance, depth + 1);
    if (call != NULL) {
        close_with(w, n->first, n->last, ")");
    }
}

/* ---- Calls with named arguments ------------------------------------------------------------ */

typedef struct signature {
    const char *name;
    const char *params[5];
} signature;

static const signature signatures[] = {
    { "similar", { "id", "k", NULL } },
    { "hybrid", { "text", "k", "rrf_k", "w_text", NULL } },
    { "nearest_duplicates", { "threshold", "k", NULL } },
    { "images", { "query", "k", NULL } },
    { "captions", { "query", "k", NULL } },
};

/* Rearranges f(a, name => b) into the order of its signature; gaps become NULL. */
static void place_arguments(rewriter *w, const signature *s, size_t open) {
    size_t close = match_of(w, open);
    size_t from[5], to[5];
    bool given[5] = { false };
    size_t position = 0, params = 0, wanted = 0;
    bool named = false;
    while (s->params[params] != NULL) {
        params++;
    }
    for (size_t i = open + 1; i < close;) {
        size_t end = i;
        while (end < close && kind_of(w, end) != L2C_TOKEN_COMMA) {
            end = is_open(w, end) ? match_of(w, end) + 1 : end + 1;
        }
        size_t place = position++;
        if (is_name(w, i) && is(w, i + 1, "=>")) {
            named = true;
            for (place = 0; place < params && !l2c_token_names(&w->tokens, i, s->params[place]);) {
                place++;
            }
            i += 2;
        } else if (named) {
            fail_at(w, L2CDB_E_SQL, i, "an argument without a name follows one with a name");
            return;
        }
        if (place >= params) {
            fail_at(w, L2CDB_E_SQL, named ? i - 2 : i,
                    named ? "there is no argument of this name" : "too many arguments");
            return;
        }
        if (given[place]) {
            fail_at(w, L2CDB_E_SQL, i, "this argument is given twice");
            return;
        }
        if (i >= end) {
            fail_at(w, L2CDB_E_SQL, i, "a value is expected here");
            return;
        }
        given[place] = true;
        from[place] = i;
        to[place] = end - 1;
        wanted = place >= wanted ? place + 1 : wanted;
        i = end + 1;
    }
    if (!named || w->rc != L2CDB_OK) {
        return;
    }
    replace_range(w, open + 1, close - 1);
    for (size_t p = 0; p < wanted; p++) {
        if (p > 0) {
            range_text(w, open + 1, ", ");
        }
        if (given[p]) {
            range_tokens(w, open + 1, from[p], to[p]);
        } else {
            range_text(w, open + 1, "NULL");
        }
    }
}

static bool takes_vectors(const rewriter *w, size_t i) {
    static const char *const names[] = { "cosine_distance", "vec_add", "vec_sub",
                                         "vec_scale",       "vec_div", "vec_normalize",
                                         "vec_to_json",     NULL };
    return l2c_token_in(&w->tokens, i, names);
}

/* The parentheses at `open`, `name` the word before them or L2C_NO_MATCH. */
static void scan_group(rewriter *w, size_t name, size_t open, size_t depth) {
    size_t close = match_of(w, open);
    if (close == open + 1) {
        return;
    }
    if (name == L2C_NO_MATCH) {
        scan(w, open + 1, close - 1, depth + 1);
        return;
    }
    bool vectors = takes_vectors(w, name);
    bool named = false;
    for (size_t i = open + 1; i < close;) {
        size_t end = i;
        while (end < close && kind_of(w, end) != L2C_TOKEN_COMMA) {
            named = named || is(w, end, "=>");
            end = is_open(w, end) ? match_of(w, end) + 1 : end + 1;
        }
        if (end > i) {
            if (vectors) {
                scan_vector(w, i, end - 1, depth + 1);
            } else {
                scan(w, i, end - 1, depth + 1);
            }
        }
        i = end + 1;
    }
    for (size_t k = 0; named && k < sizeof signatures / sizeof signatures[0]; k++) {
        if (l2c_token_names(&w->tokens, name, signatures[k].name)) {
            place_arguments(w, &signatures[k], open);
            return;
        }
    }
}

/* Every parenthesis of this level in [first, last]. */
static void scan_groups(rewriter *w, size_t first, size_t last, size_t depth) {
    if (depth > DEPTH_MAX) {
        fail_at(w, L2CDB_E_LIMIT, first, "the statement is nested too deeply");
        return;
    }
    for (size_t i = first; i <= last && w->rc == L2CDB_OK; i++) {
        if (is_open(w, i)) {
            size_t name = i > first && is_name(w, i - 1) ? i - 1 : L2C_NO_MATCH;
            scan_group(w, name, i, depth);
            i = match_of(w, i);
        }
    }
}

/* Any tokens [first, last] of one level: finds `<=>` and vector MATCH, edits their operands. */
static void scan(rewriter *w, size_t first, size_t last, size_t depth) {
    size_t done = first; // everything before it has been looked into
    for (size_t i = first; i <= last && w->rc == L2CDB_OK; i++) {
        if (is_open(w, i)) {
            i = match_of(w, i);
            continue;
        }
        size_t start = L2C_NO_MATCH;
        if (is(w, i, "<=>")) {
            start = i > done ? operand_start(w, i - 1, done) : L2C_NO_MATCH;
            if (start == L2C_NO_MATCH) {
                fail_at(w, L2CDB_E_SQL, i, "a vector is expected before <=>");
                return;
            }
        } else if (is(w, i, "MATCH") && i > first &&
                   l2c_token_names(&w->tokens, i - 1, "embedding")) {
            start = i + 1;
        } else {
            continue;
        }
        size_t at = start;
        node *n = parse_operand(w, &at, last, 1, depth);
        if (is(w, i, "<=>") && (n == NULL || at <= i + 1)) {
            fail_at(w, L2CDB_E_SQL, i + 1, "a vector is expected after <=>");
            return;
        }
        if (n == NULL) {
            continue;
        }
        if (start > done) {
            scan_groups(w, done, start - 1, depth);
        }
        edit_operand(w, n, !is(w, i, "<=>"), depth);
        done = at;
        i = at - 1;
    }
    if (done <= last) {
        scan_groups(w, done, last, depth);
    }
}

/* ---- SELECT cores: where the index can answer ------------------------------------------------ */

/* A table of a FROM clause. */
typedef struct source {
    size_t name;                    /* token of the table's name; L2C_NO_MATCH for a subquery */
    size_t alias;                   /* token it is known by: its alias or its name */
    bool is_target;                 /* images or captions, without arguments yet */
    size_t query_first, query_last; /* X; query_first L2C_NO_MATCH while none is chosen */
} source;

typedef struct core {
    size_t select, end;                              /* tokens [select, end) */
    size_t from, where, where_end, order, order_end; /* L2C_NO_MATCH where absent */
    size_t depth;
    bool compound, distinct, grouped;
    source sources[SOURCES_MAX];
    size_t sources_count;
} core;

static bool ends_core(const rewriter *w, size_t i, const core *c) {
    static const char *const words[] = { "UNION", "INTERSECT", "EXCEPT", "RETURNING", NULL };
    if (depth_of(w, i) < c->depth || kind_of(w, i) == L2C_TOKEN_SEMICOLON) {
        return true;
    }
    if (depth_of(w, i) > c->depth) {
        return false;
    }
    bool stray = kind_of(w, i) == L2C_TOKEN_CLOSE && match_of(w, i) == L2C_NO_MATCH;
    return stray || l2c_token_in(&w->tokens, i, words) ||
           (is(w, i, "ON") && is(w, i + 1, "CONFLICT"));
}

static bool starts_clause(const rewriter *w, size_t i) {
    static const char *const words[] = { "FROM",   "WHERE", "GROUP", "HAVING",
                                         "WINDOW", "ORDER", "LIMIT", NULL };
    return l2c_token_in(&w->tokens, i, words) &&
           !(is(w, i, "FROM") && i > 0 && is(w, i - 1, "DISTINCT")); // IS DISTINCT FROM
}

static void find_clauses(const rewriter *w, core *c) {
    static const char *const set_words[] = { "UNION", "INTERSECT", "EXCEPT", "ALL", NULL };
    c->depth = depth_of(w, c->select);
    c->from = c->where = c->order = L2C_NO_MATCH;
    c->compound = c->select > 0 && l2c_token_in(&w->tokens, c->select - 1, set_words);
    c->distinct = is(w, c->select + 1, "DISTINCT");
    size_t *open_end = NULL;
    size_t i = c->select + 1;
    for (; i < w->tokens.count && !ends_core(w, i, c); i++) {
        if (depth_of(w, i) != c->depth || !starts_clause(w, i)) {
            continue;
        }
        if (open_end != NULL) {
            *open_end = i;
            open_end = NULL;
        }
        if (is(w, i, "FROM") && c->from == L2C_NO_MATCH) {
            c->from = i;
        } else if (is(w, i, "WHERE") && c->where == L2C_NO_MATCH) {
            c->where = i;
            open_end = &c->where_end;
        } else if (is(w, i, "GROUP") || is(w, i, "HAVING")) {
            c->grouped = true;
        } else if (is(w, i, "ORDER") && is(w, i + 1, "BY") && c->order == L2C_NO_MATCH) {
            c->order = i;
            open_end = &c->order_end;
        }
    }
    if (open_end != NULL) {
        *open_end = i;
    }
    c->end = i;
    static const char *const set_operators[] = { "UNION", "INTERSECT", "EXCEPT", NULL };
    c->compound = c->compound || (i < w->tokens.count && depth_of(w, i) == c->depth &&
                                  l2c_token_in(&w->tokens, i, set_operators));
}

/* Notes which of our tables' names the statement gives to common table expressions of its own. */
static void find_shadows(rewriter *w) {
    for (size_t j = 1; j + 1 < w->tokens.count; j++) {
        bool leads = is(w, j - 1, "WITH") || is(w, j - 1, "RECURSIVE") ||
                     kind_of(w, j - 1) == L2C_TOKEN_COMMA;
        if (!leads) {
            continue;
        }
        size_t as = is_open(w, j + 1) ? match_of(w, j + 1) + 1 : j + 1;
        bool common = is(w, as, "AS") && (is_open(w, as + 1) || is(w, as + 1, "MATERIALIZED") ||
                                          (is(w, as + 1, "NOT") && is(w, as + 2, "MATERIALIZED")));
        for (size_t k = 0; common && k < 2; k++) {
            w->shadowed[k] = w->shadowed[k] || l2c_token_names(&w->tokens, j, target_names[k]);
        }
    }
}

static bool names_target(const rewriter *w, size_t i) {
    return (l2c_token_names(&w->tokens, i, target_names[0]) && !w->shadowed[0]) ||
           (l2c_token_names(&w->tokens, i, target_names[1]) && !w->shadowed[1]);
}

static void find_sources(const rewriter *w, core *c) {
    static const char *const joins[] = { "JOIN", NULL };
    size_t end = c->from + 1;
    while (end < c->end && !(depth_of(w, end) == c->depth && starts_clause(w, end))) {
        end++;
    }
    bool expects = true;
    for (size_t i = c->from + 1; i < end; i++) {
        if (depth_of(w, i) != c->depth) {
            continue;
        }
        if (kind_of(w, i) == L2C_TOKEN_COMMA || l2c_token_in(&w->tokens, i, joins)) {
            expects = true;
            continue;
        }
        if (!expects || c->sources_count == SOURCES_MAX) {
            continue;
        }
        expects = false;
        source s = { .name = L2C_NO_MATCH, .alias = L2C_NO_MATCH, .query_first = L2C_NO_MATCH };
        if (is_open(w, i)) {
            i = match_of(w, i);
        } else if (is_name(w, i)) {
            bool schema = kind_of(w, i + 1) == L2C_TOKEN_DOT;
            bool foreign = schema && !l2c_token_names(&w->tokens, i, "main");
            i = schema ? i + 2 : i;
            s.name = s.alias = i;
            s.is_target = !foreign && names_target(w, i);
            if (i + 1 < end && is_open(w, i + 1)) {
                s.is_target = false;
                i = match_of(w, i + 1);
            }
        } else {
            continue;
        }
        if (is(w, i + 1, "AS") && i + 2 < end) {
            i += 2;
            s.alias = i;
        } else if (i + 1 < end && is_name(w, i + 1)) {
            i++;
            s.alias = i;
        }
        c->sources[c->sources_count++] = s;
    }
}

static bool known_column(const rewriter *w, size_t i) {
    static const char *const names[] = {
        "id",    "path",     "width",     "height",     "format",      "taken_at", "camera",
        "score", "latitude", "longitude", "size_bytes", "orientation", "status",   "error",
        "tags",  "meta",     "embedding", "distance",   "rank",        "rowid",    "image_id",
        "text",  "language", "source",    "hash",       "modified_at", NULL
    };
    for (size_t k = 0; names[k] != NULL; k++) {
        if (l2c_token_names(&w->tokens, i, names[k])) {
            return true;
        }
    }
    return false;
}

/* True if the parenthesised SELECT at `open` reads one of our tables and nothing from outside. */
static bool is_closed_select(const rewriter *w, size_t open) {
    core c = { .select = open + 1 };
    find_clauses(w, &c);
    if (c.from == L2C_NO_MATCH || c.end != match_of(w, open)) {
        return false;
    }
    find_sources(w, &c);
    if (c.sources_count != 1 || c.sources[0].name == L2C_NO_MATCH ||
        !names_target(w, c.sources[0].name)) {
        return false;
    }
    for (size_t i = open + 2; i < match_of(w, open); i++) {
        if (is(w, i, "SELECT")) {
            return false;
        }
        if (!is_name(w, i) || i == c.sources[0].name || i == c.sources[0].alias ||
            is_open(w, i + 1)) {
            continue;
        }
        bool qualifies = kind_of(w, i + 1) == L2C_TOKEN_DOT;
        if (qualifies ? !l2c_token_same_name(&w->tokens, i, c.sources[0].alias)
                      : !known_column(w, i)) {
            return false;
        }
    }
    return true;
}

/* True if the tokens have one value for the whole statement. */
static bool is_constant(const rewriter *w, size_t first, size_t last) {
    static const char *const changing[] = { "random",        "randomblob",        "changes",
                                            "total_changes", "last_insert_rowid", NULL };
    static const char *const words[] = { "NULL", "TRUE", "FALSE", "CASE",    "WHEN", "THEN",
                                         "ELSE", "END",  "AND",   "OR",      "NOT",  "IS",
                                         "IN",   "LIKE", "AS",    "BETWEEN", "CAST", NULL };
    for (size_t i = first; i <= last; i++) {
        if (is_open(w, i) && is(w, i + 1, "SELECT")) {
            if (!is_closed_select(w, i)) {
                return false;
            }
            i = match_of(w, i);
            continue;
        }
        l2c_token_kind kind = kind_of(w, i);
        if (kind == L2C_TOKEN_QUOTED || kind == L2C_TOKEN_BAD || kind == L2C_TOKEN_SEMICOLON ||
            is(w, i, "<=>") || is(w, i, "=>")) {
            return false;
        }
        if (kind != L2C_TOKEN_WORD || l2c_token_in(&w->tokens, i, words)) {
            continue;
        }
        bool type_name = i > first && is(w, i - 1, "AS");
        bool call = is_name(w, i) && i < last && is_open(w, i + 1);
        if (type_name) {
            continue;
        }
        if (!call || l2c_token_in(&w->tokens, i, changing)) {
            return false;
        }
    }
    return true;
}

/* The source whose embedding the tokens [first, last] name; NULL if they do not name one. */
static source *embedding_of(const rewriter *w, core *c, size_t first, size_t last) {
    if (!l2c_token_names(&w->tokens, last, "embedding")) {
        return NULL;
    }
    source *found = NULL;
    for (size_t i = 0; i < c->sources_count; i++) {
        source *s = &c->sources[i];
        bool here = last == first ? s->is_target
                                  : last == first + 2 && kind_of(w, first + 1) == L2C_TOKEN_DOT &&
                                        s->alias != L2C_NO_MATCH &&
                                        l2c_token_same_name(&w->tokens, first, s->alias);
        if (here && found != NULL) {
            return NULL; // ambiguous; SQLite says so
        }
        found = here ? s : found;
    }
    return found != NULL && found->is_target ? found : NULL;
}

/* If d compares a source's embedding with a constant, that source and the constant's tokens. */
static source *indexable(const rewriter *w, core *c, const distance *d, size_t *first,
                         size_t *last) {
    source *s = embedding_of(w, c, d->left_first, d->left_last);
    if (s != NULL && is_constant(w, d->right_first, d->right_last)) {
        *first = d->right_first;
        *last = d->right_last;
        return s;
    }
    s = embedding_of(w, c, d->right_first, d->right_last);
    if (s != NULL && is_constant(w, d->left_first, d->left_last)) {
        *first = d->left_first;
        *last = d->left_last;
        return s;
    }
    return NULL;
}

static bool same_tokens(const rewriter *w, size_t a, size_t a_last, size_t b, size_t b_last) {
    if (a_last - a != b_last - b) {
        return false;
    }
    for (size_t i = 0; i <= a_last - a; i++) {
        const l2c_token *x = &w->tokens.list[a + i], *y = &w->tokens.list[b + i];
        const char *x_new = w->slots[a + i].token_text, *y_new = w->slots[b + i].token_text;
        if (x->kind == L2C_TOKEN_PARAM && x_new != NULL && y_new != NULL) {
            if (strcmp(x_new, y_new) != 0) { // a bare ? is another parameter each time
                return false;
            }
        } else if (x->kind != y->kind || x->size != y->size ||
                   memcmp(w->tokens.sql + x->start, w->tokens.sql + y->start, x->size) != 0) {
            return false;
        }
    }
    return true;
}

/* The `<=>` that is exactly the tokens [first, last], or NULL. */
static distance *distance_at(const rewriter *w, size_t first, size_t last) {
    for (distance *d = w->distances; d != NULL; d = d->next) {
        if (d->left_first == first && d->right_last == last) {
            return d;
        }
    }
    return NULL;
}

/* One column of the result: tokens [first, last] without its alias; alias L2C_NO_MATCH if none. */
typedef struct column {
    size_t first, last, alias;
} column;

/* Column `number` (from 1) of the result, or the one whose alias is token `name`. */
static bool find_column(const rewriter *w, const core *c, size_t number, size_t name, column *out) {
    size_t i = c->select + 1;
    if (is(w, i, "DISTINCT") || is(w, i, "ALL")) {
        i++;
    }
    size_t stop = c->from != L2C_NO_MATCH ? c->from : c->end;
    for (size_t at = 1; i < stop; at++) {
        size_t end = i;
        while (end < stop &&
               !(kind_of(w, end) == L2C_TOKEN_COMMA && depth_of(w, end) == c->depth)) {
            end++;
        }
        if (end == i) {
            return false;
        }
        *out = (column){ .first = i, .last = end - 1, .alias = L2C_NO_MATCH };
        if (end - i >= 3 && is(w, end - 2, "AS")) {
            out->alias = end - 1;
            out->last = end - 3;
        } else if (end - i >= 2 && is_name(w, end - 1) && ends_operand(w, end - 2)) {
            out->alias = end - 1;
            out->last = end - 2;
        } else if (is(w, end - 1, "*") && (end - 1 == i || kind_of(w, end - 2) == L2C_TOKEN_DOT)) {
            number = 0; // the columns behind a star cannot be counted here
        }
        if (name != L2C_NO_MATCH
                ? out->alias != L2C_NO_MATCH && l2c_token_same_name(&w->tokens, name, out->alias)
                : at == number) {
            return true;
        }
        i = end + 1;
    }
    return false;
}

/* The first term of ORDER BY: [first, last] without direction. */
typedef struct term {
    size_t first, last;
    bool descending, nulls;
    size_t end; /* the comma behind it, or the clause's end */
} term;

static bool read_term(const rewriter *w, const core *c, size_t first, term *out) {
    size_t end = first;
    while (end < c->order_end &&
           !(kind_of(w, end) == L2C_TOKEN_COMMA && depth_of(w, end) == c->depth)) {
        end++;
    }
    *out = (term){ .first = first, .end = end };
    size_t last = end;
    if (last >= first + 3 && is(w, last - 2, "NULLS")) {
        out->nulls = true;
        last -= 2;
    }
    if (last >= first + 2 && (is(w, last - 1, "ASC") || is(w, last - 1, "DESC"))) {
        out->descending = is(w, last - 1, "DESC");
        last--;
    }
    out->last = last - 1;
    return last > first;
}

static const char *token_copy(rewriter *w, size_t i) {
    const l2c_token *token = &w->tokens.list[i];
    char *text = l2c_arena_alloc(&w->arena, token->size + 1, 1);
    if (text == NULL) {
        fail_memory(w);
        return "";
    }
    memcpy(text, w->tokens.sql + token->start, token->size);
    text[token->size] = 0;
    return text;
}

static const char *qualified(rewriter *w, const source *s, const char *column_name) {
    const char *alias = token_copy(w, s->alias);
    size_t size = strlen(alias) + 1 + strlen(column_name) + 1;
    char *text = l2c_arena_alloc(&w->arena, size, 1);
    if (text == NULL) {
        fail_memory(w);
        return "";
    }
    snprintf(text, size, "%s.%s", alias, column_name);
    return text;
}

/* Where d stands in this core itself (not in a SELECT inside it, which was done before). */
static bool in_core(const rewriter *w, const core *c, const distance *d) {
    if (d->op < c->select || d->op >= c->end) {
        return false;
    }
    for (size_t i = d->op; i > c->select; i--) {
        if (kind_of(w, i) == L2C_TOKEN_CLOSE && match_of(w, i) != L2C_NO_MATCH) {
            i = match_of(w, i);
        } else if (is(w, i, "SELECT")) {
            return false;
        }
    }
    return true;
}

/* True if d is bounded in WHERE: `d < r`, `d <= r`, `r > d`, `r >= d`, `d BETWEEN`. */
static bool is_bounded(const rewriter *w, const core *c, const distance *d) {
    if (c->where == L2C_NO_MATCH || d->op < c->where || d->op >= c->where_end ||
        depth_of(w, d->op) != c->depth) {
        return false;
    }
    static const char *const behind[] = { "<", "<=", "BETWEEN", NULL };
    static const char *const before[] = { ">", ">=", NULL };
    return l2c_token_in(&w->tokens, d->right_last + 1, behind) ||
           (d->left_first > 0 && l2c_token_in(&w->tokens, d->left_first - 1, before));
}

/* `embedding MATCH X AND k = n` over a single table: the WHERE moves inside, limited to n. True if
 * done. */
static bool wrap_match(rewriter *w, core *c) {
    if (c->sources_count != 1 || !c->sources[0].is_target || c->where == L2C_NO_MATCH) {
        return false;
    }
    source *s = &c->sources[0];
    size_t match_first = 0, match_end = 0, k_first = 0, k_end = 0;
    size_t n_first = 0, n_last = 0;
    bool found_match = false, found_k = false, between = false;
    size_t start = c->where + 1;
    for (size_t i = start; i <= c->where_end; i++) {
        if (i < c->where_end && depth_of(w, i) == c->depth && is(w, i, "OR")) {
            return false;
        }
        if (i < c->where_end && depth_of(w, i) == c->depth && is(w, i, "BETWEEN")) {
            between = true;
        }
        bool joint = i == c->where_end || (depth_of(w, i) == c->depth && is(w, i, "AND"));
        if (!joint) {
            continue;
        }
        if (between && i < c->where_end) {
            between = false;
            continue;
        }
        // The conjunct [start, i).
        size_t name = i > start + 2 && kind_of(w, start + 1) == L2C_TOKEN_DOT ? start + 2 : start;
        bool ours = name == start || l2c_token_same_name(&w->tokens, start, s->alias);
        if (ours && l2c_token_names(&w->tokens, name, "embedding") && is(w, name + 1, "MATCH") &&
            name + 2 < i) {
            if (found_match || !is_constant(w, name + 2, i - 1)) {
                return false;
            }
            found_match = true;
            match_first = start;
            match_end = i;
            s->query_first = name + 2;
            s->query_last = i - 1;
        } else if (ours && l2c_token_names(&w->tokens, name, "k") &&
                   (is(w, name + 1, "=") || is(w, name + 1, "==")) && name + 2 < i) {
            if (found_k || !is_constant(w, name + 2, i - 1)) {
                return false;
            }
            found_k = true;
            k_first = start;
            k_end = i;
            n_first = name + 2;
            n_last = i - 1;
        }
        start = i + 1;
    }
    if (!found_match || !found_k) {
        s->query_first = L2C_NO_MATCH;
        return false;
    }
    size_t table = s->name;
    if (table >= 2 && kind_of(w, table - 1) == L2C_TOKEN_DOT) {
        table -= 2;
    }
    size_t last = c->where_end - 1;
    open_with(w, table, last, "(SELECT * FROM ");
    replace_range(w, match_first, match_end - 1);
    range_text(w, match_first, qualified(w, s, "embedding IS NOT NULL"));
    replace_range(w, k_first, k_end - 1);
    range_text(w, k_first, "1");
    close_with(w, table, last, " ORDER BY ");
    close_with(w, table, last, qualified(w, s, "rank LIMIT ("));
    add(w, &w->slots[last].after,
        (insertion){ .from = n_first, .to = n_last, .first = table, .last = last });
    close_with(w, table, last, ")) AS ");
    close_with(w, table, last, token_copy(w, s->alias));
    return true;
}

static void give_query(rewriter *w, const source *s) {
    close_with(w, s->name, s->name, "(");
    add(w, &w->slots[s->name].after,
        (insertion){
            .from = s->query_first, .to = s->query_last, .first = s->name, .last = s->name });
    close_with(w, s->name, s->name, ")");
    w->out->indexed++;
}

/* Chooses X by the first term of ORDER BY, written there or in the result column it names. */
static void choose_by_order(rewriter *w, core *c) {
    term t;
    if (c->order == L2C_NO_MATCH || c->compound || !read_term(w, c, c->order + 2, &t) ||
        t.descending || t.nulls) {
        return;
    }
    distance *d = distance_at(w, t.first, t.last);
    column col;
    if (d == NULL && t.first == t.last && !c->distinct && !c->grouped) {
        size_t number = kind_of(w, t.first) == L2C_TOKEN_NUMBER
                            ? strtoul(w->tokens.sql + w->tokens.list[t.first].start, NULL, 10)
                            : 0;
        size_t name = is_name(w, t.first) ? t.first : L2C_NO_MATCH;
        if ((number > 0 || name != L2C_NO_MATCH) && find_column(w, c, number, name, &col)) {
            d = distance_at(w, col.first, col.last);
        }
    }
    size_t first, last;
    source *s = d != NULL ? indexable(w, c, d, &first, &last) : NULL;
    if (s == NULL) {
        return;
    }
    s->query_first = first;
    s->query_last = last;
    replace_range(w, t.first, t.last);
    range_text(w, t.first, qualified(w, s, "rank"));
}

static void choose_by_where(rewriter *w, core *c) {
    for (distance *d = w->distances; d != NULL; d = d->next) {
        size_t first, last;
        if (!in_core(w, c, d) || !is_bounded(w, c, d)) {
            continue;
        }
        source *s = indexable(w, c, d, &first, &last);
        if (s != NULL && s->query_first == L2C_NO_MATCH) {
            s->query_first = first;
            s->query_last = last;
        }
    }
}

/* Every `embedding <=> X` of the core with the X that was chosen becomes the table's distance. */
static void use_distance(rewriter *w, core *c) {
    for (distance *d = w->distances; d != NULL; d = d->next) {
        size_t first, last;
        if (!in_core(w, c, d) || w->slots[d->left_first].has_range) {
            continue;
        }
        source *s = indexable(w, c, d, &first, &last);
        if (s != NULL && s->query_first != L2C_NO_MATCH &&
            same_tokens(w, first, last, s->query_first, s->query_last)) {
            replace_range(w, d->left_first, d->right_last);
            range_text(w, d->left_first, qualified(w, s, "distance"));
        }
    }
}

/* Where the exact form orders, the rows without a vector come last too. */
static void put_nulls_last(rewriter *w, core *c) {
    if (c->order == L2C_NO_MATCH || c->compound) {
        return;
    }
    term t;
    for (size_t at = c->order + 2; at < c->order_end && read_term(w, c, at, &t); at = t.end + 1) {
        if (!t.descending && !t.nulls && distance_at(w, t.first, t.last) != NULL &&
            !w->slots[t.first].has_range) {
            close_with(w, t.first, t.end - 1, " NULLS LAST");
        }
    }
}

static void edit_core(rewriter *w, size_t select) {
    core *c = l2c_arena_alloc(&w->arena, 1, sizeof *c);
    if (c == NULL) {
        fail_memory(w);
        return;
    }
    *c = (core){ .select = select };
    find_clauses(w, c);
    if (c->from != L2C_NO_MATCH) {
        find_sources(w, c);
        if (wrap_match(w, c)) {
            give_query(w, &c->sources[0]);
            c->sources[0].is_target = false;
        } else {
            choose_by_order(w, c);
            choose_by_where(w, c);
            use_distance(w, c);
            for (size_t i = 0; i < c->sources_count; i++) {
                if (c->sources[i].query_first != L2C_NO_MATCH) {
                    give_query(w, &c->sources[i]);
                }
            }
        }
    }
    put_nulls_last(w, c);
}

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
            w->slots[i].token_text = keep(w, text);
        }
    }
}

/* ---- The door ------------------------------------------------------------------------------ */

static bool needs_rewriting(const rewriter *w) {
    for (size_t i = 0; i < w->tokens.count; i++) {
        if (is(w, i, "<=>") || is(w, i, "=>") || is(w, i, "MATCH") || takes_vectors(w, i)) {
            return true;
        }
    }
    return false;
}

static void rewrite_statement(rewriter *w, size_t first) {
    size_t last = w->tokens.count - 1;
    size_t begin = w->tokens.list[first].start;
    size_t lead = first > 0 ? w->tokens.list[first - 1].start + w->tokens.list[first - 1].size : 0;
    put(w, w->tokens.sql + lead, begin - lead, lead, true); // keeps a comment before the statement
    if (needs_rewriting(w)) {
        number_parameters(w);
        find_shadows(w);
        if (w->rc == L2CDB_OK) {
            scan(w, first, last, 0);
        }
        for (size_t i = last + 1; i-- > first && w->rc == L2CDB_OK;) {
            if (is(w, i, "SELECT")) {
                edit_core(w, i); // inner ones come first: they stand later in the text
            }
        }
    }
    emit(w, first, last, 0);
    if (w->rc == L2CDB_OK && w->tokens.ended) {
        size_t end = w->tokens.list[last].start + w->tokens.list[last].size;
        put(w, w->tokens.sql + end, w->tokens.tail - end, end, true);
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
