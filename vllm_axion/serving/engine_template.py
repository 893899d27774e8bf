# SPDX-License-Identifier: Apache-2.0
"""What the fork server imports once, so that every engine forked from it starts with it in memory.

Importing this module changes the process: it leaves the terminal's process group (Ctrl-C must not end
engines that still have requests to finish) and freezes the garbage collector's view of what is imported, so
that no collection in a child touches, and thereby copies, the pages it shares with the others. Only
multiprocessing's fork server imports it.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import os

from vllm_axion.serving.engine_process import (
    ARCHITECTURES_VARIABLE,
    be_killed_with_parent,
    die_with_parent,
)


def _import_everything() -> None:
    with contextlib.suppress(OSError):  # already leads a group
        os.setpgrp()
    # multiprocessing's own way, a pipe that closes with the server, fails while an engine holds its end.
    be_killed_with_parent()
    # An engine is bound to its parent from its first moment: one that is still starting when the server dies
    # would wait for it for minutes.
    os.register_at_fork(after_in_child=die_with_parent)
    # vLLM configures logging later, per engine; until then it would print every warning as it is.
    logging.getLogger("vllm").setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"))
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    from vllm.model_executor.models import ModelRegistry

    import vllm_axion.serving.engine_worker  # noqa: F401

    for architecture in filter(None, os.environ.get(ARCHITECTURES_VARIABLE, "").split(",")):
        registered = ModelRegistry.models.get(architecture)
        # An architecture that cannot be imported is reported by the load that needs it, not here.
        with contextlib.suppress(Exception):
            if registered is not None:
                registered.load_model_cls()


_import_everything()
# The fork server ends with the server and holds nothing; taking vLLM apart would print its libraries' leak
# reports.
atexit.register(os._exit, 0)
gc.collect()
gc.freeze()
