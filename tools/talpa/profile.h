/* --profile: one call before a verb opens a device, one after it has closed it. */
#ifndef PROFILE_H
#define PROFILE_H

/** Starts a profile if `path` is not NULL. Returns -1, or an exit code after a message. */
int profile_begin(const char *path);

/** Writes CSV and trace and prints the largest kinds on stderr, whatever the verb's exit code `code` is (a run that was interrupted has a
 *  profile too). Returns `code`, or that of a failure to write if `code` is 0. Nothing if no profile was begun. */
int profile_end(int code);

#endif
