# SPDX-License-Identifier: Apache-2.0
"""vLLM plug-in for CPU-only machines: many models behind one OpenAI-compatible server.

vLLM imports this module in every process it starts, so it holds the two entry-point hooks and nothing heavy.
"""

__version__ = "0.1.0"

__all__ = ["__version__", "platform_plugin", "register"]


def platform_plugin() -> str | None:
    """Entry point `vllm.platform_plugins`: the platform class to use, or None to stay out of the way.

    Called by vLLM's platform resolver, possibly several times a process. Never raises: an exception here
    would be swallowed by vLLM and leave the user with a platform nobody asked for.
    """
    try:
        from vllm_axion import compat

        return compat.activate_platform()
    except Exception:
        import logging

        logging.getLogger("vllm_axion").warning("vllm-axion stays inactive: its start failed", exc_info=True)
        return None


def register() -> None:
    """Entry point `vllm.general_plugins`: runs in API, engine and model-inspection processes, maybe twice."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm_axion import compat

        compat.define_missing_torchvision_operators()
