/* Drawings: escaping, gaps, ticks, and that a long series keeps its extremes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/svg.h"
#include "io/svg_chart.h"

static int count(const char *text, const char *word)
{
    int n = 0;
    for (const char *at = strstr(text, word); at; at = strstr(at + 1, word)) n++;
    return n;
}

/* Every element that is opened is closed, in order. */
static void check_nesting(const char *text)
{
    char open[16][16];
    int depth = 0;
    for (const char *at = strchr(text, '<'); at; at = strchr(at + 1, '<')) {
        char name[16] = "";
        const char *end = strchr(at, '>');
        assert_non_null(end);
        sscanf(at + (at[1] == '/' ? 2 : 1), "%15[a-z]", name);
        if (at[1] == '/') {
            assert_true(depth > 0);
            assert_string_equal(open[--depth], name);
        } else if (end[-1] != '/')
            strcpy(open[depth++], name);
    }
    assert_int_equal(depth, 0);
}

static void test_primitives(void **state)
{
    (void)state;
    struct tp_svg *svg;
    char *text;
    size_t n;
    const double xy[] = {0, 1, 2, 3, NAN, 4, 5, 6, 7, 8, 9, INFINITY};
    assert_int_equal(tp_svg_begin(&svg, 100, 50, "a < b & c"), TALPA_OK);
    tp_svg_polyline(svg, xy, 6, "s0 thin");
    tp_svg_text(svg, 1, 2, TP_SVG_END, -90, "ink", "\"x\" <y>\n&z \xC3\xA9");
    tp_svg_cell(svg, 1, 2, 3, 4, 0xff8000);
    tp_svg_circle(svg, 1, 2, 3, "f1");
    tp_svg_line(svg, 1, 2, 3, 4, "grid");
    assert_int_equal(tp_svg_end(&text, &n, svg), TALPA_OK);
    assert_int_equal(strlen(text), n);
    assert_non_null(strstr(text, "<title>a &lt; b &amp; c</title>"));
    assert_non_null(strstr(text, ">&quot;x&quot; &lt;y&gt; &amp;z \xC3\xA9</text>"));
    assert_non_null(strstr(text, "fill=\"#ff8000\""));
    assert_int_equal(count(text, "<polyline"), 2); /* the gap */
    assert_null(strstr(text, "nan"));
    assert_null(strstr(text, "inf"));
    check_nesting(text);
    free(text);
}

static void test_steps(void **state)
{
    (void)state;
    assert_true(fabs(tp_svg_chart_step(10, 5) - 2) < 1e-12);
    assert_true(fabs(tp_svg_chart_step(0.7, 7) - 0.1) < 1e-12);
    assert_true(fabs(tp_svg_chart_step(4800, 10) - 500) < 1e-9);
    assert_true(fabs(tp_svg_chart_step(95, 10) - 10) < 1e-12);
}

static void test_chart(void **state)
{
    (void)state;
    enum { N = 10000 };
    static double x[N], y[N];
    for (int i = 0; i < N; i++) {
        x[i] = i;
        y[i] = 1.0;
    }
    y[4321] = 9.0; /* one peak, one gap */
    y[17] = NAN;
    const double ex[] = {100, 5000}, ey[] = {2.0, 3.0};
    const struct tp_svg_series series[] = {{.label = "a&b", .x = x, .y = y, .n = N, .style = TP_SVG_THIN},
                                           {.label = "points", .x = ex, .y = ey, .n = 2, .style = TP_SVG_POINTS, .colour = 1}};
    struct tp_svg_chart chart = {
        .title = "t", .x_label = "x", .y_label = "y", .series = series, .n_series = 2, .width = 800, .height = 450};
    char *text;
    size_t n;
    assert_int_equal(tp_svg_chart_render(&text, &n, &chart), TALPA_OK);
    check_nesting(text);
    assert_true(n < 100000); /* thinned out */
    assert_int_equal(count(text, "<circle"), 3); /* two points, one in the legend */
    assert_non_null(strstr(text, ">a&amp;b<"));
    assert_non_null(strstr(text, ",64.00 ")); /* the peak of 9 lies at the top tick, 9: the upper edge of the plot */
    free(text);
    /* Nothing finite, one point: no division by zero shows. */
    const double none[] = {NAN};
    const struct tp_svg_series empty[] = {{.label = "none", .x = none, .y = none, .n = 1, .style = TP_SVG_THICK},
                                          {.label = "one", .x = ex, .y = ey, .n = 1}};
    for (int i = 0; i < 2; i++) {
        chart.series = &empty[i];
        chart.n_series = 1;
        assert_int_equal(tp_svg_chart_render(&text, &n, &chart), TALPA_OK);
        check_nesting(text);
        assert_null(strstr(text, "nan"));
        assert_null(strstr(text, "inf"));
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_primitives), cmocka_unit_test(test_steps), cmocka_unit_test(test_chart)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
