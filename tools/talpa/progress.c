#include "progress.h"

#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "program.h"

enum { BAR_WIDTH = 20 };

static bool terminal, silent, shown;
static int every;

static void erase(void)
{
    if (shown) fputs("\r\033[K", stderr);
    shown = false;
}

void progress_begin(int logging_steps, bool quiet)
{
    terminal = program_is_terminal(STDERR_FILENO);
    silent = quiet;
    every = logging_steps > 0 ? logging_steps : 1;
    program_before_message = erase;
}

static void time_text(char *text, size_t size, double seconds)
{
    if (!isfinite(seconds) || seconds < 0 || seconds > 1e7) {
        snprintf(text, size, "--:--");
        return;
    }
    const long s = lround(seconds);
    if (s >= 3600)
        snprintf(text, size, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(text, size, "%02ld:%02ld", s / 60, s % 60);
}

void progress_step(const struct talpa_train_row *row)
{
    if (silent) return;
    const bool last = row->current_steps == row->total_steps;
    if (!terminal && row->current_steps % every != 0 && !last) return;
    char eta[32], bar[BAR_WIDTH + 4] = "";
    time_text(eta, sizeof eta, row->remaining_s);
    if (terminal) {
        const int full = row->total_steps > 0 ? (int)((int64_t)BAR_WIDTH * row->current_steps / row->total_steps) : 0;
        for (int i = 0; i < BAR_WIDTH; ++i) bar[i + 1] = i < full ? '#' : ' ';
        bar[0] = '[';
        bar[BAR_WIDTH + 1] = ']';
        bar[BAR_WIDTH + 2] = ' ';
        bar[BAR_WIDTH + 3] = '\0';
    }
    fprintf(stderr, "%sstep %d/%d %sloss %.4f lr %.2g |g| %.3g %.0f tok/s ETA %s%s", terminal ? "\r" : "", row->current_steps,
            row->total_steps, bar, row->loss, row->learning_rate, row->grad_norm, row->throughput, eta, terminal ? "\033[K" : "\n");
    fflush(stderr);
    shown = terminal;
}

void progress_end(void)
{
    if (shown) fputc('\n', stderr);
    shown = false;
    program_before_message = NULL;
}
