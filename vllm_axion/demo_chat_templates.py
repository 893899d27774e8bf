# SPDX-License-Identifier: Apache-2.0
"""Chat templates of the demo experts, each in the shape its real family uses.

Every template takes a system (or developer) message, any number of turns, and a message's content either as a
string or as a list of parts; Qwen's, Mistral's and Phi's also take `tools` and past tool calls.
"""

# Turns a message's content into text whatever its form. A macro and not an inline loop: vLLM looks for a loop
# over `message.content` to decide that a template wants parts, and text-only models do better with strings.
_TEXT_OF = """\
{%- macro text_of(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- elif content is iterable -%}
        {%- for part in content -%}
            {%- if part.type == 'text' -%}{{- part.text -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
"""

PHI = (
    _TEXT_OF
    + """\
{%- for message in messages -%}
    {%- set role = 'system' if message.role == 'developer' else message.role -%}
    {{- '<|' ~ role ~ '|>' ~ text_of(message.content) -}}
    {%- if role == 'system' and tools and loop.first -%}
        {{- '<|tool|>' ~ (tools | tojson) ~ '<|/tool|>' -}}
    {%- endif -%}
    {%- if message.tool_calls -%}
        {%- set calls = message.tool_calls | map(attribute='function') | list -%}
        {{- '<|tool_call|>' ~ (calls | tojson) ~ '<|/tool_call|>' -}}
    {%- endif -%}
    {{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""
)

# The system text joins the first user turn, so that a conversation's prefix stays the same from turn to turn.
MISTRAL = (
    _TEXT_OF
    + """\
{{- bos_token -}}
{%- set state = namespace(system='', tools_due=tools is defined and tools) -%}
{%- for message in messages -%}
    {%- if message.role in ['system', 'developer'] -%}
        {%- set state.system = state.system ~ text_of(message.content) ~ '\\n\\n' -%}
    {%- elif message.role == 'user' -%}
        {%- if state.tools_due -%}
            {{- '[AVAILABLE_TOOLS] ' ~ (tools | tojson) ~ '[/AVAILABLE_TOOLS]' -}}
            {%- set state.tools_due = false -%}
        {%- endif -%}
        {{- '[INST] ' ~ state.system ~ text_of(message.content) ~ '[/INST]' -}}
        {%- set state.system = '' -%}
    {%- elif message.role == 'assistant' -%}
        {%- if message.tool_calls -%}
            {{- '[TOOL_CALLS] [' -}}
            {%- for call in message.tool_calls -%}
                {%- set called = call.function -%}
                {{- {'name': called.name, 'arguments': called.arguments, 'id': call.id} | tojson -}}
                {{- '' if loop.last else ', ' -}}
            {%- endfor -%}
            {{- ']' ~ eos_token -}}
        {%- else -%}
            {{- ' ' ~ text_of(message.content) ~ eos_token -}}
        {%- endif -%}
    {%- elif message.role == 'tool' -%}
        {{- '[TOOL_RESULTS] ' -}}
        {{- {'content': text_of(message.content), 'call_id': message.tool_call_id} | tojson -}}
        {{- '[/TOOL_RESULTS]' -}}
    {%- endif -%}
{%- endfor -%}
"""
)

QWEN = (
    _TEXT_OF
    + """\
{%- set system = namespace(text='') -%}
{%- for message in messages if message.role in ['system', 'developer'] -%}
    {%- set system.text = system.text ~ ('\\n\\n' if system.text else '') ~ text_of(message.content) -%}
{%- endfor -%}
{%- if tools -%}
    {%- set system.text = system.text ~ ('\\n\\n' if system.text else '')
        ~ 'These functions may be called:\\n<tools>\\n' -%}
    {%- for tool in tools -%}
        {%- set system.text = system.text ~ (tool | tojson) ~ '\\n' -%}
    {%- endfor -%}
    {%- set system.text = system.text ~ '</tools>\\nA call is one JSON object with name and arguments '
        ~ 'between <tool_call> and </tool_call>.' -%}
{%- endif -%}
{%- if system.text -%}
    {{- '<|im_start|>system\\n' ~ system.text ~ '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages if message.role not in ['system', 'developer'] -%}
    {%- if message.role == 'tool' -%}
        {{- '<|im_start|>user\\n<tool_response>\\n' ~ text_of(message.content) ~ '\\n</tool_response>' -}}
    {%- else -%}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ text_of(message.content) -}}
        {%- for call in message.tool_calls or [] -%}
            {{- '\\n<tool_call>\\n' -}}
            {{- {'name': call.function.name, 'arguments': call.function.arguments} | tojson -}}
            {{- '\\n</tool_call>' -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
)

# An inline loop over the parts on purpose: vLLM then hands over parts, and an image keeps its place.
GEMMA = """\
{{- bos_token -}}
{%- set pending = namespace(system='') -%}
{%- for message in messages -%}
    {%- if message.role in ['system', 'developer'] -%}
        {%- if message.content is string -%}
            {%- set pending.system = pending.system ~ (message.content | trim) ~ '\\n\\n' -%}
        {%- else -%}
            {%- for part in message.content if part.type == 'text' -%}
                {%- set pending.system = pending.system ~ (part.text | trim) ~ '\\n\\n' -%}
            {%- endfor -%}
        {%- endif -%}
    {%- else -%}
        {{- '<start_of_turn>' ~ ('model' if message.role == 'assistant' else 'user') ~ '\\n' -}}
        {%- if message.role != 'assistant' -%}
            {{- pending.system -}}
            {%- set pending.system = '' -%}
        {%- endif -%}
        {%- if message.content is string -%}
            {{- message.content | trim -}}
        {%- elif message.content is iterable -%}
            {%- for part in message.content -%}
                {%- if part.type == 'image' -%}
                    {{- '<start_of_image>' -}}
                {%- elif part.type == 'text' -%}
                    {{- part.text | trim -}}
                {%- endif -%}
            {%- endfor -%}
        {%- endif -%}
        {{- '<end_of_turn>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""

COHERE = (
    _TEXT_OF
    + """\
{{- bos_token -}}
{%- set marks = {'system': '<|SYSTEM_TOKEN|>', 'developer': '<|SYSTEM_TOKEN|>', 'user': '<|USER_TOKEN|>',
                 'assistant': '<|CHATBOT_TOKEN|>', 'tool': '<|SYSTEM_TOKEN|>'} -%}
{%- for message in messages -%}
    {{- '<|START_OF_TURN_TOKEN|>' ~ marks[message.role] -}}
    {{- text_of(message.content) ~ '<|END_OF_TURN_TOKEN|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' -}}
{%- endif -%}
"""
)
