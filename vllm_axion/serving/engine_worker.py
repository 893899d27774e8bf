# SPDX-License-Identifier: Apache-2.0
"""vLLM's CPU worker, as it runs in an expert's engine process (vLLM's ``worker_cls`` hook)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from vllm.v1.worker.cpu_worker import CPUWorker

from vllm_axion.serving.engine_process import ADDITIONAL_CONFIG_KEY, prepare_engine_process


class ExpertWorker(CPUWorker):
    """A CPU worker that shares the machine with other engines."""

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        settings = (vllm_config.additional_config or {}).get(ADDITIONAL_CONFIG_KEY, {})
        prepare_engine_process(settings)
        # `init_device` replaces it by a function that does nothing.
        self._set_num_threads = torch.set_num_threads
        super().__init__(vllm_config, *args, **kwargs)

    def set_cores(self, cores: Sequence[int]) -> None:
        """Run on these cores, one OpenMP thread each. Called by the server between two steps of the
        engine.
        """
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # a thread that has just ended
                os.sched_setaffinity(int(task.name), cores)
        self._set_num_threads(len(cores))
