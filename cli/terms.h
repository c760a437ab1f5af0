/* A query as it is written on the command line: "q" + "x" - "y" 2:"z" ./img.jpg. */
#ifndef L2C_TERMS_H
#define L2C_TERMS_H

#include <stdbool.h>
#include <stddef.h>

#include "cli/options.h"
#include "engine/l2cdb.h"

/* True if a word means a picture rather than a text: it begins with /, ./ or ../, or it is an
 * existing file whose name ends as photos' names do. */
bool l2c_terms_is_image(const char *word);

typedef struct l2c_terms {
    l2cdb_term *list; /* room for two more than were parsed */
    size_t count;
    char *text; /* what the terms point into */
} l2c_terms;

/* Makes args[0..count) into terms. "+" and "-" set the sign of the next word, "0.5:word" its
 * weight; texts that follow each other without either are one text ("red boat" without its quotes).
 * Returns an exit status; errors are printed. l2c_terms_fini releases *out on every outcome. */
int l2c_terms_parse(const l2c_command *command, l2c_terms *out, const char *const *args,
                    size_t count);
void l2c_terms_fini(l2c_terms *t);

#endif
