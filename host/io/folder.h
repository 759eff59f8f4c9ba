/* Folders that appear under their name only when complete: filled under a temporary name beside it, synced, renamed. */
#ifndef TP_FOLDER_H
#define TP_FOLDER_H

#include <stdbool.h>

#include "talpa/status.h"

/** Makes a folder (its parents are not made); one that is there already is fine. TALPA_E_CREATE; TALPA_E_IO for want of room. */
enum talpa_status tp_folder_create(const char *path);

/** The same; *made says whether it was not there, so that a caller that fails later can take it back. */
enum talpa_status tp_folder_make(bool *made, const char *path);

/** Whether there is a folder of that name. */
bool tp_folder_is(const char *path);

/** TALPA_E_CREATE if files cannot be made in the folder (permissions, a file system that is mounted read-only). */
enum talpa_status tp_folder_check_writable(const char *path);

/** Syncs a folder's entries. TALPA_E_IO; file systems that cannot sync a folder are left alone. */
enum talpa_status tp_folder_sync(const char *path);

/** Renames a folder or file and syncs the folder `parent` of the new name. TALPA_E_CREATE or TALPA_E_IO. */
enum talpa_status tp_folder_rename(const char *from, const char *to, const char *parent);

/** Removes a folder with everything in it, or a file; what cannot be removed stays. Keeps the error record. */
void tp_folder_remove(const char *path);

bool tp_folder_has(const char *path, const char *name);

/** Calls visit for every name but "." and ".."; a failure of visit ends it. TALPA_E_NO_INPUT if the folder cannot be read. */
enum talpa_status tp_folder_visit(const char *path, enum talpa_status (*visit)(void *user, const char *name), void *user);

#endif
