#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Starts the multi-model server: `multi_model_server.py --host 0.0.0.0 --port 8082 --config config.json`.

The same server as `vllm-axion serve CONFIG` and `vllm serve --multi-model CONFIG`; takes every flag of `vllm
serve`.
"""

import sys

from vllm_axion.serving.command_line import serve_from_config_flag

if __name__ == "__main__":
    serve_from_config_flag(sys.argv[1:], prog="multi_model_server.py")
