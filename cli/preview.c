#include "cli/preview.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <chafa.h>

#include "cli/term.h"

static const struct {
    const char *name;
    l2c_preview_mode mode;
} modes[] = {
    { "off", L2C_PREVIEW_OFF },     { "auto", L2C_PREVIEW_AUTO },
    { "kitty", L2C_PREVIEW_KITTY }, { "iterm", L2C_PREVIEW_ITERM },
    { "sixel", L2C_PREVIEW_SIXEL }, { "blocks", L2C_PREVIEW_BLOCKS },
};

bool l2c_preview_mode_parse(l2c_preview_mode *out, const char *name) {
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        if (strcmp(modes[i].name, name) == 0) {
            *out = modes[i].mode;
            return true;
        }
    }
    return false;
}

static ChafaTermInfo *terminal_info(void) {
    gchar **environment = g_get_environ();
    ChafaTermInfo *info = chafa_term_db_detect(chafa_term_db_get_default(), environment);
    g_strfreev(environment);
    return info;
}

// What the terminal can do best, by its environment variables.
static ChafaPixelMode best_mode(const ChafaTermInfo *info) {
    if (chafa_term_info_have_seq(info, CHAFA_TERM_SEQ_BEGIN_KITTY_IMMEDIATE_IMAGE_V1)) {
        return CHAFA_PIXEL_MODE_KITTY;
    }
    if (chafa_term_info_have_seq(info, CHAFA_TERM_SEQ_BEGIN_ITERM2_IMAGE)) {
        return CHAFA_PIXEL_MODE_ITERM2;
    }
    if (chafa_term_info_have_seq(info, CHAFA_TERM_SEQ_BEGIN_SIXELS)) {
        return CHAFA_PIXEL_MODE_SIXELS;
    }
    return CHAFA_PIXEL_MODE_SYMBOLS;
}

static ChafaPixelMode pixel_mode(l2c_preview_mode mode, const ChafaTermInfo *info) {
    switch (mode) {
    case L2C_PREVIEW_KITTY:
        return CHAFA_PIXEL_MODE_KITTY;
    case L2C_PREVIEW_ITERM:
        return CHAFA_PIXEL_MODE_ITERM2;
    case L2C_PREVIEW_SIXEL:
        return CHAFA_PIXEL_MODE_SIXELS;
    case L2C_PREVIEW_BLOCKS:
        return CHAFA_PIXEL_MODE_SYMBOLS;
    case L2C_PREVIEW_OFF:
    case L2C_PREVIEW_AUTO:
        break;
    }
    return best_mode(info);
}

// 24-bit colour where the terminal says so; 256 colours are understood everywhere else.
static ChafaCanvasMode canvas_mode(void) {
    const char *depth = getenv("COLORTERM");
    bool true_colour =
        depth != NULL && (strcmp(depth, "truecolor") == 0 || strcmp(depth, "24bit") == 0);
    return true_colour ? CHAFA_CANVAS_MODE_TRUECOLOR : CHAFA_CANVAS_MODE_INDEXED_240;
}

static ChafaCanvas *new_canvas(ChafaPixelMode mode, gint columns, gint rows) {
    enum { CELL_WIDTH = 10, CELL_HEIGHT = 20 }; // pixels; the usual shape of a character
    ChafaCanvasConfig *config = chafa_canvas_config_new();
    ChafaSymbolMap *symbols = chafa_symbol_map_new();
    chafa_symbol_map_add_by_tags(symbols, CHAFA_SYMBOL_TAG_BLOCK | CHAFA_SYMBOL_TAG_SPACE |
                                              CHAFA_SYMBOL_TAG_BORDER);
    chafa_canvas_config_set_symbol_map(config, symbols);
    chafa_canvas_config_set_pixel_mode(config, mode);
    chafa_canvas_config_set_canvas_mode(
        config, mode == CHAFA_PIXEL_MODE_SYMBOLS ? canvas_mode() : CHAFA_CANVAS_MODE_TRUECOLOR);
    chafa_canvas_config_set_cell_geometry(config, CELL_WIDTH, CELL_HEIGHT);
    chafa_canvas_config_set_geometry(config, columns, rows);
    ChafaCanvas *canvas = chafa_canvas_new(config);
    chafa_symbol_map_unref(symbols);
    chafa_canvas_config_unref(config);
    return canvas;
}

bool l2c_preview_print(FILE *out, l2c_preview_mode mode, const uint8_t *rgb, uint32_t width,
                       uint32_t height, size_t columns, size_t rows) {
    if (mode == L2C_PREVIEW_OFF || (mode == L2C_PREVIEW_AUTO && isatty(fileno(out)) == 0)) {
        return true;
    }
    gint wide = (gint)columns, high = (gint)rows;
    chafa_calc_canvas_geometry((gint)width, (gint)height, &wide, &high, 0.5F, TRUE, FALSE);
    ChafaTermInfo *info = terminal_info();
    ChafaPixelMode pixels = pixel_mode(mode, info);
    // A mode the user insists on works although the terminal did not announce it.
    ChafaTermInfo *fallback = chafa_term_db_get_fallback_info(chafa_term_db_get_default());
    chafa_term_info_supplement(info, fallback);
    chafa_term_info_unref(fallback);
    ChafaCanvas *canvas = new_canvas(pixels, wide, high);
    chafa_canvas_draw_all_pixels(canvas, CHAFA_PIXEL_RGB8, rgb, (gint)width, (gint)height,
                                 (gint)(width * 3));
    GString *text = chafa_canvas_print(canvas, info);
    bool ok = fwrite(text->str, 1, text->len, out) == text->len && fputc('\n', out) != EOF;
    g_string_free(text, TRUE);
    chafa_canvas_unref(canvas);
    chafa_term_info_unref(info);
    return ok;
}
