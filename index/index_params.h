/* Parameters of an index: what `auto` chooses and why. The names are in index.h. */
#ifndef L2C_INDEX_PARAMS_H
#define L2C_INDEX_PARAMS_H

#include "index/index.h"

#define L2C_FLAT_ROWS 20000 /* auto: fewer rows than this are scanned exactly */

/* Fills every 0 and AUTO for `rows` rows; `why` says in words what was chosen and for which
 * reason. */
void l2c_index_params_choose(l2c_index_params *p, size_t rows, size_t width, char *why,
                             size_t size);
/* E_INVALID for combinations that do not exist. */
l2cdb_status l2c_index_params_check(const l2c_index_params *p, size_t width, l2cdb_error *err);

/* Resident bytes of a row in a graph. */
uint64_t l2c_graph_row_bytes(l2c_quant quant, size_t m, size_t width);

#endif
