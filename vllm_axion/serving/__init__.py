# SPDX-License-Identifier: Apache-2.0
"""The multi-model server: many vLLM engines behind one OpenAI-compatible address."""
