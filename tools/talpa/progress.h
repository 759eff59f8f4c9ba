/* The progress of a training run on stderr: one line that is redrawn on a terminal, one line per logged step elsewhere. */
#ifndef PROGRESS_H
#define PROGRESS_H

#include <stdbool.h>

#include "talpa/train.h"

/** Begins; `logging_steps` is the distance of lines when stderr is no terminal. */
void progress_begin(int logging_steps, bool quiet);
void progress_step(const struct talpa_train_row *row);
/** Leaves the last line standing. */
void progress_end(void);

#endif
