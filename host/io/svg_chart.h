/* Charts as SVG texts. */
#ifndef TP_SVG_CHART_H
#define TP_SVG_CHART_H

#include <stddef.h>

#include "talpa/status.h"

enum tp_svg_style { TP_SVG_THIN, TP_SVG_THICK, TP_SVG_POINTS };

/** One series; values that are not finite are left out. Everything is borrowed for the call. */
struct tp_svg_series {
    const char *label; /* for the legend */
    const double *x, *y;
    int n;
    enum tp_svg_style style;
    int colour;        /* 0 .. TP_SVG_N_COLOURS - 1 */
};

struct tp_svg_chart {
    const char *title, *x_label, *y_label;
    const struct tp_svg_series *series;
    int n_series;
    double width, height; /* user units (pixels) */
};

/** A line chart with axes, ticks at round numbers, grid and legend. Long series are drawn as the least and the greatest value of each pixel
 *  column. *text (free()) has *n_bytes and a NUL. TALPA_E_DEVICE if memory is short. */
enum talpa_status tp_svg_chart_render(char **text, size_t *n_bytes, const struct tp_svg_chart *chart);

/** A step of 1, 2 or 5 times a power of ten that divides `range` into about `n` parts. */
double tp_svg_chart_step(double range, int n);

#endif
