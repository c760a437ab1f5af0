/* The tokenizer. It follows "SQLite Keywords" and the token rules of SQLite's documentation
 * (lang_expr.html, lang_comment.html); what it does not know it passes on as BAD, for SQLite to
 * complain about in its own words. It never fails on input. */
#include "engine/sql_token.h"

#include <string.h>
#include <strings.h>

static bool is_word_byte(unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '$' || c >= 0x80;
}

static bool is_digit(unsigned char c) {
    return c >= '0' && c <= '9';
}

static bool is_space(unsigned char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* The end of a quoted run that starts at `i`; doubled quotes are content. */
static size_t quoted_end(const char *sql, size_t n, size_t i, bool *open) {
    char quote = sql[i] == '[' ? ']' : sql[i];
    for (size_t j = i + 1; j < n; j++) {
        if (sql[j] != quote) {
            continue;
        }
        if (quote != ']' && j + 1 < n && sql[j + 1] == quote) {
            j++;
            continue;
        }
        return j + 1;
    }
    *open = true;
    return n;
}

/* Spaces and comments from `i` on. */
static size_t skip_space(const char *sql, size_t n, size_t i, bool *open) {
    for (;;) {
        if (i < n && is_space((unsigned char)sql[i])) {
            i++;
        } else if (i + 1 < n && sql[i] == '-' && sql[i + 1] == '-') {
            while (i < n && sql[i] != '\n') {
                i++;
            }
        } else if (i + 1 < n && sql[i] == '/' && sql[i + 1] == '*') {
            i += 2;
            while (i + 1 < n && !(sql[i] == '*' && sql[i + 1] == '/')) {
                i++;
            }
            if (i + 1 >= n) {
                *open = true;
                return n;
            }
            i += 2;
        } else {
            return i;
        }
    }
}

static size_t number_end(const char *sql, size_t n, size_t i) {
    bool hex = sql[i] == '0' && i + 1 < n && (sql[i + 1] == 'x' || sql[i + 1] == 'X');
    while (i < n) {
        unsigned char c = (unsigned char)sql[i];
        if (!hex && (c == 'e' || c == 'E') && i + 2 < n &&
            (sql[i + 1] == '+' || sql[i + 1] == '-') && is_digit((unsigned char)sql[i + 2])) {
            i += 2;
        } else if (!is_word_byte(c) && c != '.') {
            break;
        }
        i++;
    }
    return i;
}

/* `$name`, with the `::` and `(…)` that Tcl variables may carry. */
static size_t param_end(const char *sql, size_t n, size_t i) {
    if (sql[i] == '?') {
        i++;
        while (i < n && is_digit((unsigned char)sql[i])) {
            i++;
        }
        return i;
    }
    bool tcl = sql[i] == '$';
    size_t names = 0;
    i++;
    while (i < n) {
        if (is_word_byte((unsigned char)sql[i])) {
            names++;
            i++;
        } else if (tcl && names > 0 && sql[i] == '(') {
            size_t j = i + 1;
            while (j < n && !is_space((unsigned char)sql[j]) && sql[j] != ')') {
                j++;
            }
            return j < n && sql[j] == ')' ? j + 1 : i;
        } else if (tcl && sql[i] == ':' && i + 1 < n && sql[i + 1] == ':') {
            i += 2;
        } else {
            break;
        }
    }
    return i;
}

static size_t operator_size(const char *sql, size_t n, size_t i) {
    static const char *const longest_first[] = { "<=>", "->>", "<=", ">=", "<>", "<<", ">>",
                                                 "==",  "!=",  "=>", "||", "->", NULL };
    for (size_t k = 0; longest_first[k] != NULL; k++) {
        size_t size = strlen(longest_first[k]);
        if (n - i >= size && memcmp(sql + i, longest_first[k], size) == 0) {
            return size;
        }
    }
    return strchr("<>=+-*/%&|~", sql[i]) != NULL ? 1 : 0;
}

/* Kind and end of the token at `i`. */
static l2c_token_kind read_token(const char *sql, size_t n, size_t i, size_t *end, bool *open) {
    unsigned char c = (unsigned char)sql[i];
    *end = i + 1;
    switch (c) {
    case '(':
        return L2C_TOKEN_OPEN;
    case ')':
        return L2C_TOKEN_CLOSE;
    case ',':
        return L2C_TOKEN_COMMA;
    case ';':
        return L2C_TOKEN_SEMICOLON;
    case '\'':
    case '"':
    case '`':
    case '[': {
        bool unclosed = false;
        *end = quoted_end(sql, n, i, &unclosed);
        *open = *open || unclosed;
        return unclosed ? L2C_TOKEN_BAD : c == '\'' ? L2C_TOKEN_STRING : L2C_TOKEN_QUOTED;
    }
    case '?':
    case ':':
    case '@':
    case '$':
        *end = param_end(sql, n, i);
        return *end == i + 1 && c != '?' ? L2C_TOKEN_BAD : L2C_TOKEN_PARAM;
    default:
        break;
    }
    if (is_digit(c) || (c == '.' && i + 1 < n && is_digit((unsigned char)sql[i + 1]))) {
        *end = number_end(sql, n, i);
        return L2C_TOKEN_NUMBER;
    }
    if (c == '.') {
        return L2C_TOKEN_DOT;
    }
    if ((c == 'x' || c == 'X') && i + 1 < n && sql[i + 1] == '\'') {
        bool unclosed = false;
        *end = quoted_end(sql, n, i + 1, &unclosed);
        *open = *open || unclosed;
        return unclosed ? L2C_TOKEN_BAD : L2C_TOKEN_BLOB;
    }
    if (is_word_byte(c)) {
        while (*end < n && is_word_byte((unsigned char)sql[*end])) {
            ++*end;
        }
        return L2C_TOKEN_WORD;
    }
    size_t size = c != 0 ? operator_size(sql, n, i) : 0;
    if (size > 0) {
        *end = i + size;
        return L2C_TOKEN_OPERATOR;
    }
    return L2C_TOKEN_BAD;
}

static bool is_trigger(const l2c_tokens *t) {
    size_t i = 0;
    if (l2c_token_is(t, 0, "EXPLAIN")) {
        i = l2c_token_is(t, 1, "QUERY") && l2c_token_is(t, 2, "PLAN") ? 3 : 1;
    }
    if (!l2c_token_is(t, i, "CREATE")) {
        return false;
    }
    if (l2c_token_is(t, i + 1, "TEMP") || l2c_token_is(t, i + 1, "TEMPORARY")) {
        i++;
    }
    return l2c_token_is(t, i + 1, "TRIGGER");
}

/* A semicolon ends a statement; inside a trigger only the one behind "; END" does. */
static bool semicolon_ends(const l2c_tokens *t) {
    if (!is_trigger(t)) {
        return true;
    }
    size_t n = t->count;
    return n >= 2 && l2c_token_is(t, n - 1, "END") && t->list[n - 2].kind == L2C_TOKEN_SEMICOLON;
}

static void match_parentheses(l2c_tokens *t) {
    size_t top =
        L2C_NO_MATCH; // the innermost open one; `match` links to the next outer until closed
    size_t depth = 0;
    for (size_t i = 0; i < t->count; i++) {
        l2c_token *token = &t->list[i];
        token->match = L2C_NO_MATCH;
        if (token->kind == L2C_TOKEN_OPEN) {
            token->depth = depth++;
            token->match = top;
            top = i;
        } else if (token->kind == L2C_TOKEN_CLOSE && top != L2C_NO_MATCH) {
            token->depth = --depth;
            size_t outer = t->list[top].match;
            token->match = top;
            t->list[top].match = i;
            top = outer;
        } else {
            token->depth = depth;
        }
    }
    while (top != L2C_NO_MATCH) {
        size_t outer = t->list[top].match;
        t->list[top].match = L2C_NO_MATCH;
        top = outer;
    }
}

bool l2c_tokens_read(l2c_tokens *t, const char *sql, size_t n) {
    *t = (l2c_tokens){ .sql = sql };
    size_t capacity = 0;
    size_t i = 0;
    for (;;) {
        i = skip_space(sql, n, i, &t->open);
        t->tail = i;
        if (i >= n) {
            break;
        }
        size_t end;
        l2c_token_kind kind = read_token(sql, n, i, &end, &t->open);
        if (kind == L2C_TOKEN_SEMICOLON && semicolon_ends(t)) {
            t->tail = end;
            t->ended = true;
            break;
        }
        if (t->count == capacity) {
            size_t more = capacity == 0 ? 64 : capacity * 2;
            l2c_token *list = l2c_realloc(t->list, more, sizeof *list);
            if (list == NULL) {
                l2c_tokens_fini(t);
                return false;
            }
            t->list = list;
            capacity = more;
        }
        t->list[t->count++] = (l2c_token){ .kind = kind, .start = i, .size = end - i };
        i = end;
    }
    match_parentheses(t);
    return true;
}

void l2c_tokens_fini(l2c_tokens *t) {
    l2c_free(t->list);
    t->list = NULL;
    t->count = 0;
}

bool l2c_token_is(const l2c_tokens *t, size_t i, const char *text) {
    if (i >= t->count) {
        return false;
    }
    const l2c_token *token = &t->list[i];
    return (token->kind == L2C_TOKEN_WORD || token->kind == L2C_TOKEN_OPERATOR) &&
           strlen(text) == token->size &&
           strncasecmp(t->sql + token->start, text, token->size) == 0;
}

/* Letters of a name without its quotes. Doubled quotes inside are rare and never in our names. */
static void bare_name(const l2c_tokens *t, size_t i, const char **name, size_t *size) {
    const l2c_token *token = &t->list[i];
    size_t cut = token->kind == L2C_TOKEN_QUOTED ? 1 : 0;
    *name = t->sql + token->start + cut;
    *size = token->size - 2 * cut;
}

bool l2c_token_names(const l2c_tokens *t, size_t i, const char *name) {
    if (i >= t->count ||
        (t->list[i].kind != L2C_TOKEN_WORD && t->list[i].kind != L2C_TOKEN_QUOTED)) {
        return false;
    }
    const char *found;
    size_t size;
    bare_name(t, i, &found, &size);
    return strlen(name) == size && strncasecmp(found, name, size) == 0;
}

bool l2c_token_same_name(const l2c_tokens *t, size_t i, size_t j) {
    if (i >= t->count || j >= t->count) {
        return false;
    }
    const char *a, *b;
    size_t a_size, b_size;
    bare_name(t, i, &a, &a_size);
    bare_name(t, j, &b, &b_size);
    return a_size == b_size && strncasecmp(a, b, a_size) == 0;
}

bool l2c_token_in(const l2c_tokens *t, size_t i, const char *const *words) {
    for (size_t k = 0; words[k] != NULL; k++) {
        if (l2c_token_is(t, i, words[k])) {
            return true;
        }
    }
    return false;
}

bool l2c_token_reserved(const l2c_tokens *t, size_t i) {
    /* SQLite's reserved words; those it lets stand as names too (ASC, KEY, REPLACE, …) are left
     * out, except the ones that follow an expression (ASC, DESC, END, …). */
    static const char *const words[] = {
        "ADD",       "ALL",      "ALTER",   "AND",       "AS",      "ASC",    "BETWEEN", "BY",
        "CASE",      "CHECK",    "COLLATE", "COMMIT",    "CREATE",  "CROSS",  "DEFAULT", "DELETE",
        "DESC",      "DISTINCT", "DROP",    "ELSE",      "END",     "ESCAPE", "EXCEPT",  "EXISTS",
        "FILTER",    "FROM",     "FULL",    "GLOB",      "GROUP",   "HAVING", "IN",      "INDEX",
        "INDEXED",   "INNER",    "INSERT",  "INTERSECT", "INTO",    "IS",     "ISNULL",  "JOIN",
        "LEFT",      "LIKE",     "LIMIT",   "MATCH",     "NATURAL", "NOT",    "NOTHING", "NOTNULL",
        "NULLS",     "OFFSET",   "ON",      "OR",        "ORDER",   "OUTER",  "OVER",    "REGEXP",
        "RETURNING", "RIGHT",    "SELECT",  "SET",       "TABLE",   "THEN",   "TO",      "UNION",
        "UPDATE",    "USING",    "VALUES",  "WHEN",      "WHERE",   "WINDOW", "WITH",    NULL,
    };
    return l2c_token_in(t, i, words);
}

char *l2c_token_text(const l2c_tokens *t, size_t i) {
    const l2c_token *token = &t->list[i];
    const char *s = t->sql + token->start;
    if (token->kind != L2C_TOKEN_STRING && token->kind != L2C_TOKEN_QUOTED) {
        return l2c_strndup(s, token->size);
    }
    char *out = l2c_alloc(token->size, 1);
    if (out == NULL) {
        return NULL;
    }
    size_t size = 0;
    for (size_t j = 1; j + 1 < token->size; j++) {
        out[size++] = s[j];
        if (s[j] == s[0] && s[j + 1] == s[0]) {
            j++;
        }
    }
    out[size] = 0;
    return out;
}
