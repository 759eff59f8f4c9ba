/* Grids of heat maps as SVG texts: small panels of equal shape with one colour scale, beside each up to four lanes of bars, one bar per row.
 */
#ifndef TP_SVG_HEATMAP_H
#define TP_SVG_HEATMAP_H

#include <stddef.h>

#include "talpa/status.h"

enum { TP_SVG_HEATMAP_LANES = 4 };

/** One panel. Values that are not finite leave their cell or bar out. Borrowed. */
struct tp_svg_heatmap_panel {
    const double *cells;                        /* [n_rows, n_columns] in [0, 1]; NULL: no panel here */
    const double *lanes[TP_SVG_HEATMAP_LANES];  /* [n_rows]; NULL: no bars */
};

struct tp_svg_heatmap {
    const char *title, *subtitle;
    const char *row_label, *column_label, *scale_label;
    int n_rows, n_columns;                      /* cells of a panel */
    const struct tp_svg_heatmap_panel *panels;  /* [n_down, n_across] */
    int n_down, n_across;
    const char *const *down_titles, *const *across_titles;
    const char *lane_labels[TP_SVG_HEATMAP_LANES]; /* NULL: no such lane anywhere */
    double lane_max[TP_SVG_HEATMAP_LANES];         /* bars go from 0 to this */
};

/** Colours are viridis (S. van der Walt, N. Smith, matplotlib, CC0): even steps of lightness, readable with colour-blindness and in grey.
 *  *text (free()) has *n_bytes and a NUL. TALPA_E_DEVICE if memory is short. */
enum talpa_status tp_svg_heatmap_render(char **text, size_t *n_bytes, const struct tp_svg_heatmap *map);

/** The scale's colour 0xRRGGBB at `x` in [0, 1] (clamped). */
unsigned tp_svg_heatmap_colour(double x);

#endif
