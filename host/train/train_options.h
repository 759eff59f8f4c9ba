/* Checks of talpa_train_options, and what follows from them. */
#ifndef TP_TRAIN_OPTIONS_H
#define TP_TRAIN_OPTIONS_H

#include "models/model.h"
#include "train/feed.h"
#include "train/train_graph.h"
#include "talpa/train.h"

/** TALPA_E_ARGUMENT naming the flag, what was found and what is expected. */
enum talpa_status tp_train_options_check(const struct talpa_train_options *options, const struct talpa_model *model);

/** What the options decide about an adapter that was loaded to start from: dropout, and whether a top-k mixture is trained with moelora's
 *  contrastive loss (moelora: with it; topk: without; any other word: as the adapter was). TALPA_E_ARGUMENT for moelora from an adapter of
 *  another kind. */
enum talpa_status tp_train_options_apply(struct tp_adapter *adapter, const struct talpa_train_options *options);

/** Rows of a micro-batch at most. */
uint32_t tp_train_options_max_tokens(const struct talpa_train_options *options);

struct tp_train_graph_options tp_train_options_graph(const struct talpa_train_options *options);

/** How the data is laid into micro-batches. */
struct tp_feed_options tp_train_options_feed(const struct talpa_train_options *options, const struct talpa_model *model);

#endif
