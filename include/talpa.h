/* talpa: fine-tuning and running language models with mixtures of LoRA experts through OpenCL. This header includes all others. */
#ifndef TALPA_H
#define TALPA_H

#include "talpa/adapter.h"
#include "talpa/device.h"
#include "talpa/eval.h"
#include "talpa/graph.h"
#include "talpa/infer.h"
#include "talpa/log.h"
#include "talpa/model.h"
#include "talpa/ops.h"
#include "talpa/route.h"
#include "talpa/status.h"
#include "talpa/train.h"
#include "talpa/tune.h"
#include "talpa/types.h"
#include "talpa/verify.h"

#endif
