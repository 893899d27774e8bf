# SPDX-License-Identifier: Apache-2.0
"""vLLM's CPU worker, as it runs in an expert's engine process (vLLM's ``worker_cls`` hook)."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from vllm_axion.serving.engine_process import ADDITIONAL_CONFIG_KEY, prepare_engine_process


class ExpertWorker(CPUWorker):
    """A CPU worker that shares the machine with other engines."""

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        settings = (vllm_config.additional_config or {}).get(ADDITIONAL_CONFIG_KEY, {})
        prepare_engine_process(settings)
        super().__init__(vllm_config, *args, **kwargs)
