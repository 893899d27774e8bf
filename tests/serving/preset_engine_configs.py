# SPDX-License-Identifier: Apache-2.0
"""Run by test_presets.py: vLLM's engine configuration for every expert of every preset, on the demo models.

Prints one line of JSON: {"preset expert": [tokens per step, tokens per KV block]}.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path

from vllm_axion.serving.config import PRESETS, MultiModelConfig
from vllm_axion.serving.engine_options import engine_options, serve_parser


def main(models: Path) -> None:
    parser = serve_parser()
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    defaults = vars(parser.parse_args([]))
    made = {}
    for name in PRESETS:
        for expert in MultiModelConfig.load(name).experts:
            values, faults = engine_options(expert.engine_args, parser, Path("/"))
            if faults:
                raise SystemExit(f"{name} {expert.expert_id}: {faults[0]}")
            folder = models / expert.expert_id
            shape = json.loads((folder / "config.json").read_text())
            longest = shape.get("text_config", shape)["max_position_embeddings"]
            values |= {
                "model": str(folder),
                "dtype": expert.dtype,
                "max_num_seqs": expert.max_num_seqs,
                "kv_cache_memory_bytes": expert.kv_cache_memory,
                # The stand-ins are trained for less than the longest preset asks.
                "max_model_len": min(expert.max_model_len or longest, longest),
            }
            args = AsyncEngineArgs.from_cli_args(argparse.Namespace(**{**copy.deepcopy(defaults), **values}))
            config = args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
            made[f"{name} {expert.expert_id}"] = [
                config.scheduler_config.max_num_batched_tokens,
                config.cache_config.block_size,
            ]
    print(json.dumps(made))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
