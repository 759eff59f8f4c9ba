#!/usr/bin/env python3
"""LoRA training steps with transformers and PEFT, as the baseline that `talpa train --routing-strategy lora` is timed against.

Base, optimizer and output as peer_adamole.py.
"""
import argparse

import peer_common as common  # before torch: it sets the allocator up
from peft import LoraConfig, get_peft_model


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_arguments(p)
    common.add_training_arguments(p)
    p.add_argument("--rank", type=int, default=32)
    args = p.parse_args()
    config = LoraConfig(r=args.rank, lora_alpha=args.alpha, lora_dropout=args.dropout, target_modules=list(common.TARGETS),
                        task_type="CAUSAL_LM")
    # PEFT makes adapters of a bf16 base fp32 unless told not to
    common.train(get_peft_model(common.begin(args), config, autocast_adapter_dtype=args.dtype != "bf16"), args)


if __name__ == "__main__":
    main()
