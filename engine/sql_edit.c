/* Edits beside the tokens, and the text that comes of them. Tokens are never changed: each carries
 * insertions before and after it and perhaps a replacement, every one with the range of tokens it
 * belongs to. Emitting a range writes the edits inside it and no others, so a range can be written
 * a second time, in another place, without what surrounds it. Every byte written is recorded in a
 * segment that leads back into the user's text. */
#include "engine/sql_rewriter.h"

#include <string.h>

/* ---- Edits --------------------------------------------------------------------------------- */

const char *l2c_edit_keep(rewriter *w, const char *s) {
    size_t size = strlen(s) + 1;
    char *copy = l2c_arena_alloc(&w->arena, size, 1);
    if (copy == NULL) {
        fail_memory(w);
        return "";
    }
    memcpy(copy, s, size);
    return copy;
}

void l2c_edit_add(rewriter *w, insertions *list, insertion value) {
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

void l2c_edit_open(rewriter *w, size_t first, size_t last, const char *text) {
    l2c_edit_add(w, &w->slots[first].before,
                 (insertion){ .text = text, .first = first, .last = last });
}

void l2c_edit_close(rewriter *w, size_t first, size_t last, const char *text) {
    l2c_edit_add(w, &w->slots[last].after,
                 (insertion){ .text = text, .first = first, .last = last });
}

void l2c_edit_replace(rewriter *w, size_t first, size_t last) {
    w->slots[first].range = (insertions){ NULL, NULL };
    w->slots[first].range_last = last;
    w->slots[first].has_range = true;
}

void l2c_edit_text(rewriter *w, size_t first, const char *text) {
    l2c_edit_add(w, &w->slots[first].range, (insertion){ .text = text });
}

void l2c_edit_tokens(rewriter *w, size_t first, size_t from, size_t to) {
    l2c_edit_add(w, &w->slots[first].range, (insertion){ .from = from, .to = to });
}

/* ---- Output -------------------------------------------------------------------------------- */

static bool joins(char a, char b) {
    const char *const words = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$";
    return (strchr(words, a) != NULL || (unsigned char)a >= 0x80) &&
           (strchr(words, b) != NULL || (unsigned char)b >= 0x80);
}

void l2c_edit_put(rewriter *w, const char *text, size_t size, size_t in, bool verbatim) {
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
        l2c_edit_put(w, " ", 1, in, false);
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
            l2c_edit_put(w, i->text, strlen(i->text), in, false);
        } else {
            l2c_edit_emit(w, i->from, i->to, depth + 1);
        }
    }
}

void l2c_edit_emit(rewriter *w, size_t first, size_t last, size_t depth) {
    if (depth > DEPTH_MAX) {
        fail_at(w, L2CDB_E_LIMIT, first, "the statement is nested too deeply");
    }
    const l2c_tokens *t = &w->tokens;
    for (size_t i = first; i <= last && w->rc == L2CDB_OK; i++) {
        size_t start = t->list[i].start;
        if (i > first) {
            size_t from = t->list[i - 1].start + t->list[i - 1].size;
            l2c_edit_put(w, t->sql + from, start - from, from, true);
        }
        slot *s = &w->slots[i];
        size_t end = s->has_range && s->range_last <= last ? s->range_last : i;
        bool ranged = s->has_range && s->range_last <= last;
        emit_insertions(w, &s->before, first, last, i, end, start, depth);
        if (ranged) {
            w->out->changed = true;
            for (const insertion *part = s->range.head; part != NULL; part = part->next) {
                if (part->text != NULL) {
                    l2c_edit_put(w, part->text, strlen(part->text), start, false);
                } else {
                    l2c_edit_emit(w, part->from, part->to, depth + 1);
                }
            }
        } else if (s->token_text != NULL) {
            l2c_edit_put(w, s->token_text, strlen(s->token_text), start, false);
        } else {
            l2c_edit_put(w, t->sql + start, t->list[i].size, start, true);
        }
        size_t behind = t->list[end].start + t->list[end].size;
        emit_insertions(w, &w->slots[end].after, first, last, i, end, behind, depth);
        i = end;
    }
}
