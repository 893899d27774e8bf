# SPDX-License-Identifier: Apache-2.0
"""The platform vLLM gets from us, held against vLLM's own resolver."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
import vllm.platforms as vllm_platforms
from vllm.config import VllmConfig
from vllm.platforms.cpu import CpuPlatform
from vllm.platforms.interface import PlatformEnum

import vllm_axion
from vllm_axion import compat
from vllm_axion.platform import CONFIG_KEY, AxionPlatform, compute_slot_mapping


def test_vllm_takes_our_platform_and_still_sees_a_cpu() -> None:
    assert vllm_platforms.resolve_current_platform_cls_qualname() == compat.PLATFORM_CLASS
    platform = vllm_platforms.current_platform
    assert isinstance(platform, AxionPlatform)
    assert isinstance(platform, CpuPlatform)
    assert platform.is_cpu()
    assert platform._enum is PlatformEnum.CPU


def test_the_base_is_the_class_vllms_own_resolver_would_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compat.cpu_platform_class() is CpuPlatform
    monkeypatch.setattr(vllm_platforms, "_is_amd_zen_cpu", lambda: True)
    monkeypatch.setitem(sys.modules, "zentorch", types.ModuleType("zentorch"))
    assert compat.cpu_platform_class().__name__ == "ZenCpuPlatform"


def test_the_base_is_the_cpu_platform_where_vllm_would_choose_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_platforms, "vllm_version_matches_substr", lambda part: False)
    assert vllm_platforms.cpu_platform_plugin() is None
    assert compat.cpu_platform_class() is CpuPlatform


@pytest.mark.parametrize("accelerator", compat.ACCELERATORS)
def test_inert_where_an_accelerator_is_active(accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {**vllm_platforms.builtin_platform_plugins, accelerator: lambda: "some.Platform"}
    monkeypatch.setattr(vllm_platforms, "builtin_platform_plugins", found)
    assert vllm_axion.platform_plugin() is None


def test_an_accelerator_whose_detection_fails_is_not_active(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise OSError("no driver")

    found = {**vllm_platforms.builtin_platform_plugins, "cuda": fail}
    monkeypatch.setattr(vllm_platforms, "builtin_platform_plugins", found)
    assert vllm_axion.platform_plugin() == compat.PLATFORM_CLASS


def _install_other_plugin(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"other_platform_{folder.name.replace('-', '_')}"
    (folder / f"{name}.py").write_text(f"def plugin():\n    {body}\n")
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[vllm.platform_plugins]\nother = {name}:plugin\n")
    monkeypatch.syspath_prepend(folder)


def test_inert_where_another_platform_plugin_is_active(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install_other_plugin(tmp_path, "return 'other.Platform'", monkeypatch)
    assert vllm_axion.platform_plugin() is None
    assert vllm_platforms.resolve_current_platform_cls_qualname() == "other.Platform"


@pytest.mark.parametrize(
    "body",
    [
        "return None",
        "raise RuntimeError('broken')",
        "import vllm_axion_no_such_module",
        # asks whether we are active, as we ask it
        "import vllm_axion; return None if vllm_axion.platform_plugin() else None",
    ],
)
def test_active_beside_a_platform_plugin_that_is_not(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install_other_plugin(tmp_path, body, monkeypatch)
    assert vllm_axion.platform_plugin() == compat.PLATFORM_CLASS
    assert vllm_platforms.resolve_current_platform_cls_qualname() == compat.PLATFORM_CLASS


def test_gives_way_to_a_plugin_that_gives_way_to_us_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "import vllm_axion; return None if vllm_axion.platform_plugin() else 'polite.Platform'"
    _install_other_plugin(tmp_path, body, monkeypatch)
    chosen = vllm_platforms.resolve_current_platform_cls_qualname()
    assert chosen in ("polite.Platform", compat.PLATFORM_CLASS)  # one of the two, and no endless recursion


def test_a_plugin_that_vllm_plugins_leaves_out_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install_other_plugin(tmp_path, "return 'other.Platform'", monkeypatch)
    monkeypatch.setenv("VLLM_PLUGINS", "axion")
    assert vllm_platforms.resolve_current_platform_cls_qualname() == compat.PLATFORM_CLASS


def test_the_entry_point_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise RuntimeError("bug")

    monkeypatch.setattr(compat, "activate_platform", fail)
    assert vllm_axion.platform_plugin() is None


def test_importing_the_package_imports_neither_vllm_nor_torch() -> None:
    code = "import sys, vllm_axion; print(sorted({'vllm', 'torch', 'pydantic', 'typer'} & set(sys.modules)))"
    assert _run(code) == "[]"


# --- configuration ---


def test_an_engine_of_our_server_keeps_its_worker_in_its_own_process() -> None:
    config = VllmConfig(additional_config={CONFIG_KEY: {"executor": "uni"}})
    assert config.parallel_config.distributed_executor_backend == "uni"


def test_a_worker_class_of_the_server_is_left_alone() -> None:
    from vllm.config import ParallelConfig

    parallel = ParallelConfig(worker_cls="some.Worker", distributed_executor_backend="uni")
    config = VllmConfig(parallel_config=parallel, additional_config={CONFIG_KEY: {"executor": "uni"}})
    assert config.parallel_config.worker_cls == "some.Worker"
    assert config.parallel_config.distributed_executor_backend == "uni"


@pytest.mark.parametrize("additional", [{}, {"other": {"executor": "uni"}}, {CONFIG_KEY: {}}])
def test_without_our_servers_mark_a_configuration_is_stock(
    additional: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def key_values(config: Any) -> dict[str, Any]:
        compilation = config.compilation_config
        return {
            "parallel": {k: str(v) for k, v in vars(config.parallel_config).items() if "port" not in k},
            "cache": {k: str(v) for k, v in vars(config.cache_config).items()},
            "compilation": (compilation.mode, compilation.backend, compilation.custom_ops),
        }

    ours = VllmConfig(additional_config=additional)
    monkeypatch.setattr(vllm_platforms, "_current_platform", CpuPlatform())
    for module in [m for name, m in list(sys.modules.items()) if name.startswith("vllm.")]:
        if isinstance(vars(module).get("current_platform"), AxionPlatform):
            monkeypatch.setattr(module, "current_platform", CpuPlatform())
    stock = VllmConfig(additional_config=additional)
    assert key_values(ours) == key_values(stock)


def test_a_vllm_without_cpu_kernels_is_refused_before_an_engine_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = compat.VllmFlavour("0.32.0", "cuda", "vllm")
    monkeypatch.setattr(compat, "vllm_flavour", lambda: cuda)
    with pytest.raises(ValueError, match=r"vLLM 0\.32\.0 is the CUDA build and has no CPU kernels"):
        VllmConfig()


# --- compilation ---

_LAYER_NORM = """
import sys, torch
{prepare}
from vllm.model_executor.models.commandr import layer_norm_func
from vllm.v1.sample.ops.logprobs import batched_count_greater_than
hidden, weight = torch.randn(3, 16, dtype=torch.bfloat16), torch.ones(16)
made = layer_norm_func(hidden, weight, 1e-5)
expected = torch.nn.functional.layer_norm(hidden.float(), (16,), weight, eps=1e-5).bfloat16()
torch.testing.assert_close(made, expected)
batched_count_greater_than(torch.randn(2, 8), torch.zeros(2, 1))
print("torch._inductor.compile_fx" in sys.modules)
"""


def test_coheres_layer_norm_and_log_probabilities_run_no_inductor() -> None:
    assert _run(_LAYER_NORM.format(prepare="")) == "False"


def test_the_models_forward_pass_keeps_vllms_compile_backend() -> None:
    assert AxionPlatform.simple_compile_backend == "eager"
    assert AxionPlatform.get_compile_backend() == CpuPlatform.get_compile_backend() == "inductor"


# --- AMX ---

_AMX_PERMISSION = """
import ctypes
import vllm.platforms
def may_use_tiles():
    permitted = ctypes.c_uint64()
    arch_prctl, get_permitted = 158, 0x1022  # x86-64 Linux: ARCH_GET_XCOMP_PERM; bits 17 and 18 are the tiles
    assert ctypes.CDLL(None, use_errno=True).syscall(arch_prctl, get_permitted, ctypes.byref(permitted)) == 0
    return permitted.value >> 17 & 3 == 3
before = may_use_tiles()
import vllm._custom_ops
print(before, may_use_tiles())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not torch.cpu._is_amx_tile_supported(), reason="this CPU has no AMX tiles"
)
def test_the_first_request_of_a_small_model_is_no_illegal_instruction_on_amx() -> None:
    assert _run(_AMX_PERMISSION) == "False True"


# --- slot mapping ---


def test_slot_mapping_is_block_times_size_plus_offset() -> None:
    import vllm._custom_ops  # noqa: F401  # loads vLLM's C++ operators

    size = 4
    block_table = torch.tensor([[7, 2, 0], [5, 0, 0]], dtype=torch.int32)
    query_start = torch.tensor([0, 6, 8], dtype=torch.int32)
    positions = torch.tensor([0, 1, 2, 3, 4, 5, 2, 3])
    slots = torch.full((10,), -7)
    compute_slot_mapping(8, 10, query_start, positions, block_table, 3, slots, size)
    expected = [28, 29, 30, 31, 8, 9, 22, 23]
    assert slots[:8].tolist() == expected


def test_vllm_cpus_own_slot_mapping_is_left_in_place() -> None:
    code = """
from vllm.platforms import current_platform
current_platform.register_triton_kernel_overrides()
from vllm.v1.worker.block_table import ComputeSlotMappingKernel
print(ComputeSlotMappingKernel.kernel.func.__module__)
"""
    assert _run(code) == "vllm.utils.cpu_triton_utils"


def _run(code: str) -> str:
    """Last line printed by a fresh Python."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()[-1]
