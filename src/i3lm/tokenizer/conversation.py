r"""Conversations as text: one definition in Python and one as a chat template, which agree.

`<bos>[INST]hello[/INST]hi there[INST]how are you?[/INST]fine<eos>`: contents are stripped, a system
prompt stands before the first user content with a blank line between, and special tokens that
somebody typed are broken by a zero-width space (U+200B) after their first character.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from i3lm.errors import UserError
from i3lm.tokenizer.rule import SPECIAL_TOKENS

_ROLES = ("system", "user", "assistant")
_NO_USER = "the conversation has no user message; begin it with one"
_ROLE = "has no known role; use system, user or assistant"
_CONTENT = "has no text; give its content as one string"
_ORDER = (
    "is out of turn; after an optional first system message, user and assistant alternate, "
    "the user first"
)
_ANSWERED = "the last message is the assistant's already; end with a user message to get a reply"
_BROKEN = [(token, f"{token[0]}\u200b{token[1:]}") for token in SPECIAL_TOKENS]


def turns(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> list[str]:
    """Return the contents between the tags: user and assistant in turn, the user first.

    UserError where the messages are no conversation, with the sentences of the template.
    """
    roles = [m.get("role") if isinstance(m, Mapping) else None for m in messages]
    if all(role == "system" for role in roles):
        raise UserError(_NO_USER)
    contents: list[str] = []
    system = ""
    for number, (role, message) in enumerate(zip(roles, messages, strict=True), 1):
        if role not in _ROLES:
            raise UserError(f"message {number} {_ROLE}")
        content = message.get("content")
        if not isinstance(content, str):
            raise UserError(f"message {number} {_CONTENT}")
        if role == "system" and number == 1:
            system = content.strip() + "\n\n"
            continue
        if role != _ROLES[1 + len(contents) % 2]:
            raise UserError(f"message {number} {_ORDER}")
        contents.append(_break((system + content.strip()).strip()))
        system = ""
    if add_generation_prompt and len(contents) % 2 == 0:
        raise UserError(_ANSWERED)
    return contents


def _break(content: str) -> str:
    if "[" in content or "<" in content:
        for token, broken in _BROKEN:
            content = content.replace(token, broken)
    return content


def _quote(text: str) -> str:
    return "'" + text.replace("'", "\\'").replace("\u200b", "\\u200b") + "'"


_REPLACE = "".join(f".replace({_quote(token)}, {_quote(broken)})" for token, broken in _BROKEN)

CHAT_TEMPLATE = f"""\
{{#- A conversation: <bos>[INST]user[/INST]assistant[INST]user[/INST]assistant<eos>
    Special tokens inside contents are broken by a zero-width space. An answer ends with the
    next user's [INST], or with <eos>: both are the assistant's to say. -#}}
{{%- macro plain(text) -%}}
    {{{{- text{_REPLACE} -}}}}
{{%- endmacro -%}}
{{%- if messages | rejectattr('role', 'equalto', 'system') | list | length == 0 -%}}
    {{{{- raise_exception({_quote(_NO_USER)}) -}}}}
{{%- endif -%}}
{{%- set state = namespace(turn='user', system='', begins=true) -%}}
{{{{- '<bos>' -}}}}
{{%- for message in messages -%}}
    {{%- if message.role not in ['system', 'user', 'assistant'] -%}}
        {{{{- raise_exception('message ' ~ loop.index ~ ' ' ~ {_quote(_ROLE)}) -}}}}
    {{%- elif message.content is not string -%}}
        {{{{- raise_exception('message ' ~ loop.index ~ ' ' ~ {_quote(_CONTENT)}) -}}}}
    {{%- elif message.role == 'system' and loop.first -%}}
        {{%- set state.system = (message.content | trim) ~ '\\n\\n' -%}}
    {{%- elif message.role != state.turn -%}}
        {{{{- raise_exception('message ' ~ loop.index ~ ' ' ~ {_quote(_ORDER)}) -}}}}
    {{%- elif message.role == 'user' -%}}
        {{%- if state.begins -%}}
            {{{{- '[INST]' -}}}}
            {{%- set state.begins = false -%}}
        {{%- endif -%}}
        {{{{- plain((state.system ~ (message.content | trim)) | trim) ~ '[/INST]' -}}}}
        {{%- set state.turn = 'assistant' -%}}
        {{%- set state.system = '' -%}}
    {{%- else -%}}
        {{%- generation -%}}
            {{{{- plain(message.content | trim) -}}}}
            {{{{- '<eos>' if loop.last else '[INST]' -}}}}
        {{%- endgeneration -%}}
        {{%- set state.turn = 'user' -%}}
    {{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt and state.turn == 'user' -%}}
    {{{{- raise_exception({_quote(_ANSWERED)}) -}}}}
{{%- endif -%}}
"""
