/* The task suite of a mole colony: rows of eight skills, made from word lists and rules. Every convention is invented, so that a model
 * cannot know it before it has been trained on it. Included by the files of tools/suite only. */
#ifndef TALPA_SUITE_H
#define TALPA_SUITE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { N_SKILLS = 8, N_CHOICES = 4, PROMPT_MAX = 320, ANSWER_MAX = 48 };

/* A stream of numbers (splitmix64): integer arithmetic only, hence the same on every machine. */
struct random {
    uint64_t state;
};

/* Next number in 0 .. n - 1; n > 0. */
unsigned random_below(struct random *random, unsigned n);

struct row {
    char prompt[PROMPT_MAX];
    char completion[ANSWER_MAX + 8]; /* with the space in front */
    char answer[ANSWER_MAX];
    int difficulty; /* number of steps, 1 .. 3; 0 where a skill has no such measure */
};

struct skill {
    const char *name, *metric;
    const char *choices[N_CHOICES]; /* the same in every row; choices[0] is NULL where an answer is free */
    /* Draws one row. `held` takes the wordings, names and numbers that are kept for the test; no row of the one kind can be one of the
     * other. */
    void (*make)(struct random *random, bool held, struct row *row);
};

extern const struct skill skills[N_SKILLS];

#endif
