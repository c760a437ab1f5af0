/* Tokens of SQL as SQLite cuts them, with two more: `<=>` and `=>`. Neither can occur in a
 * statement that SQLite accepts, so finding one is never an accident. */
#ifndef L2C_SQL_TOKEN_H
#define L2C_SQL_TOKEN_H

#include "engine/base/mem.h"

typedef enum l2c_token_kind {
    L2C_TOKEN_WORD,   /* bare identifier or keyword */
    L2C_TOKEN_QUOTED, /* "x", `x`, [x] */
    L2C_TOKEN_STRING, /* 'x' */
    L2C_TOKEN_NUMBER,
    L2C_TOKEN_BLOB, /* x'00' */
    L2C_TOKEN_PARAM,
    L2C_TOKEN_OPERATOR,
    L2C_TOKEN_OPEN,
    L2C_TOKEN_CLOSE,
    L2C_TOKEN_COMMA,
    L2C_TOKEN_DOT,
    L2C_TOKEN_SEMICOLON,
    L2C_TOKEN_BAD, /* a byte SQLite knows no token for, or a quote that never closes */
} l2c_token_kind;

#define L2C_NO_MATCH SIZE_MAX

typedef struct l2c_token {
    l2c_token_kind kind;
    size_t start, size; /* bytes of the input */
    size_t match;       /* of a parenthesis: the index of its partner, or L2C_NO_MATCH */
    size_t depth;       /* parentheses around it; a parenthesis has the depth outside itself */
} l2c_token;

typedef struct l2c_tokens {
    const char *sql;
    l2c_token *list;
    size_t count;
    bool open;   /* a quote or a block comment was still open at the end */
    bool ended;  /* by a semicolon */
    size_t tail; /* first byte that no longer belongs to the statement */
} l2c_tokens;

/* Tokens of the first statement of sql[0..n): up to the semicolon that ends it, which is counted
 * in `tail` and not in the list. A semicolon inside CREATE TRIGGER … END does not end it. False
 * without memory. Freed with l2c_tokens_fini. */
bool l2c_tokens_read(l2c_tokens *t, const char *sql, size_t n);
void l2c_tokens_fini(l2c_tokens *t);

/* True if token i exists and is the bare word or the operator `text`, letters in any case. */
bool l2c_token_is(const l2c_tokens *t, size_t i, const char *text);
/* The same for an identifier, bare or quoted. */
bool l2c_token_names(const l2c_tokens *t, size_t i, const char *name);
/* True if token i is a bare word found in `words` (ended by NULL). */
bool l2c_token_in(const l2c_tokens *t, size_t i, const char *const *words);
/* True for a bare word that SQL reserves, so that it can be neither a column nor an alias. */
bool l2c_token_reserved(const l2c_tokens *t, size_t i);
/* True if both are the same identifier, quotes and case aside. */
bool l2c_token_same_name(const l2c_tokens *t, size_t i, size_t j);
/* The token's text, without quotes for strings and quoted identifiers; NULL without memory. Freed
 * with l2c_free. */
char *l2c_token_text(const l2c_tokens *t, size_t i);

#endif
