/* Operands of `<=>`: where they begin and end, arithmetic in them, and calls with named arguments.
 *
 * `<=>` is met in the middle of an expression. Its left operand is found by walking back over
 * primaries and operators that bind tighter; from there precedence climbing reads both sides. There
 * is no grammar of SQL here: what is not known ends an operand, and SQLite judges the rest. */
#include "engine/sql_rewriter.h"

#include <string.h>

/* ---- Operands ------------------------------------------------------------------------------ */

/* True if an operand can end with token i. */
bool l2c_operand_ends(const rewriter *w, size_t i) {
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
        if (i < floor || !l2c_operand_ends(w, i)) {
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
               (i - 1 == floor || !l2c_operand_ends(w, i - 2))) {
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
    } else if (is(w, i, "EXISTS") || !l2c_operand_ends(w, i) || is(w, i, "END") ||
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

static void scan_groups(rewriter *w, size_t first, size_t last, size_t depth);
static void edit_operand(rewriter *w, const node *n, bool vector, size_t depth);

/* [first, last] as one vector expression if it is one, else as any tokens. */
static void scan_vector(rewriter *w, size_t first, size_t last, size_t depth) {
    size_t at = first;
    node *n = is(w, first, "SELECT") ? NULL : parse_operand(w, &at, last, 1, depth);
    if (n != NULL && at == last + 1) {
        edit_operand(w, n, true, depth);
    } else {
        l2c_operand_scan(w, first, last, depth);
    }
}

/* What stands in the parentheses of a primary. */
static void edit_primary(rewriter *w, const node *n, bool vector, size_t depth) {
    bool group = is_open(w, n->first) && match_of(w, n->first) == n->last;
    if (group && vector && n->first + 1 < n->last) {
        scan_vector(w, n->first + 1, n->last - 1, depth + 1);
    } else if (is(w, n->first, "CASE")) {
        l2c_operand_scan(w, n->first + 1, n->last, depth + 1);
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
            l2c_edit_close(w, n->first, n->last, ")");
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
        l2c_edit_open(w, n->first, n->last, call);
        w->slots[n->op].token_text = ",";
    }
    edit_operand(w, n->left, vector || is_distance, depth + 1);
    edit_operand(w, n->right, vector || is_distance, depth + 1);
    if (call != NULL) {
        l2c_edit_close(w, n->first, n->last, ")");
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
    l2c_edit_replace(w, open + 1, close - 1);
    for (size_t p = 0; p < wanted; p++) {
        if (p > 0) {
            l2c_edit_text(w, open + 1, ", ");
        }
        if (given[p]) {
            l2c_edit_tokens(w, open + 1, from[p], to[p]);
        } else {
            l2c_edit_text(w, open + 1, "NULL");
        }
    }
}

bool l2c_operand_takes_vectors(const rewriter *w, size_t i) {
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
        l2c_operand_scan(w, open + 1, close - 1, depth + 1);
        return;
    }
    bool vectors = l2c_operand_takes_vectors(w, name);
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
                l2c_operand_scan(w, i, end - 1, depth + 1);
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
void l2c_operand_scan(rewriter *w, size_t first, size_t last, size_t depth) {
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
