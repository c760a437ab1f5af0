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

/* Makes args[0..count) into terms, at most `count` of them, appended at out[*terms_count]. "+" and
 * "-" set the sign of the next word, "0.5:word" its weight; texts that follow each other without
 * either are one text ("red boat" without its quotes). Strings are borrowed from args, or joined
 * and owned by the program until it ends. Returns an exit status; errors are printed. */
int l2c_terms_parse(const l2c_command *command, l2cdb_term *out, size_t *terms_count,
                    const char *const *args, size_t count);

#endif
