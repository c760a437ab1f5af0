/* Where the index can answer: SELECTs whose FROM names images or captions, and in them the
 * distances that lead ORDER BY or bound WHERE. What may be replaced by what, and why it means the
 * same, is in the opening of sql_rewrite.c. */
#include "engine/sql_rewriter.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const target_names[] = { "images", "captions" };

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
void l2c_select_find_shadows(rewriter *w) {
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

/* True if token i begins `x.column` and x is a table of an outer SELECT: then it has one value each
 * time the subquery c runs. (In ORDER BY, SQLite itself looks at no table of an outer SELECT.) */
static bool is_outer_column(const rewriter *w, const core *c, size_t i) {
    bool inner = c->select > 0 && is_open(w, c->select - 1) && c->sources_count < SOURCES_MAX &&
                 is_name(w, i) && kind_of(w, i + 1) == L2C_TOKEN_DOT && is_name(w, i + 2) &&
                 kind_of(w, i + 3) != L2C_TOKEN_DOT;
    for (size_t k = 0; inner && k < c->sources_count; k++) {
        const source *s = &c->sources[k];
        inner = s->alias == L2C_NO_MATCH || !l2c_token_same_name(&w->tokens, i, s->alias);
    }
    return inner;
}

/* True if the tokens have one value for the whole statement or, if c is not NULL, for one run of
 * that subquery. */
static bool is_constant(const rewriter *w, const core *c, size_t first, size_t last) {
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
        if (c != NULL && i + 2 <= last && is_outer_column(w, c, i)) {
            i += 2;
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
    if (s != NULL && is_constant(w, c, d->right_first, d->right_last)) {
        *first = d->right_first;
        *last = d->right_last;
        return s;
    }
    s = embedding_of(w, c, d->right_first, d->right_last);
    if (s != NULL && is_constant(w, c, d->left_first, d->left_last)) {
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
        } else if (end - i >= 2 && is_name(w, end - 1) && l2c_operand_ends(w, end - 2)) {
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
            if (found_match || !is_constant(w, c, name + 2, i - 1)) {
                return false;
            }
            found_match = true;
            match_first = start;
            match_end = i;
            s->query_first = name + 2;
            s->query_last = i - 1;
        } else if (ours && l2c_token_names(&w->tokens, name, "k") &&
                   (is(w, name + 1, "=") || is(w, name + 1, "==")) && name + 2 < i) {
            if (found_k || !is_constant(w, NULL, name + 2, i - 1)) {
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
    l2c_edit_open(w, table, last, "(SELECT * FROM ");
    l2c_edit_replace(w, match_first, match_end - 1);
    l2c_edit_text(w, match_first, qualified(w, s, "embedding IS NOT NULL"));
    l2c_edit_replace(w, k_first, k_end - 1);
    l2c_edit_text(w, k_first, "1");
    l2c_edit_close(w, table, last, " ORDER BY ");
    l2c_edit_close(w, table, last, qualified(w, s, "rank LIMIT ("));
    l2c_edit_add(w, &w->slots[last].after,
                 (insertion){ .from = n_first, .to = n_last, .first = table, .last = last });
    l2c_edit_close(w, table, last, ")) AS ");
    l2c_edit_close(w, table, last, token_copy(w, s->alias));
    return true;
}

static void give_query(rewriter *w, const source *s) {
    l2c_edit_close(w, s->name, s->name, "(");
    l2c_edit_add(
        w, &w->slots[s->name].after,
        (insertion){
            .from = s->query_first, .to = s->query_last, .first = s->name, .last = s->name });
    l2c_edit_close(w, s->name, s->name, ")");
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
    l2c_edit_replace(w, t.first, t.last);
    l2c_edit_text(w, t.first, qualified(w, s, "rank"));
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
            l2c_edit_replace(w, d->left_first, d->right_last);
            l2c_edit_text(w, d->left_first, qualified(w, s, "distance"));
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
            l2c_edit_close(w, t.first, t.end - 1, " NULLS LAST");
        }
    }
}

void l2c_select_edit(rewriter *w, size_t select) {
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
