"""Rendered prompts are byte for byte those of transformers' apply_chat_template."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.chat.template import ChatTemplate
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.checkpoints.sentencepiece_file import read_sentencepiece
from hermes_deploy.errors import CheckpointError, RequestError
from hermes_deploy.families import FAMILIES
from tests.chat.conftest import MISTRAL_DATA, files_of
from tests.fixtures.tiny import CHATML as TINY_CHATML

# The models' own templates, as their publishers give them.
MISTRAL_V1 = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
MISTRAL_V2 = MISTRAL_V1.replace("eos_token + ' ' }}", "eos_token}}")
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
# Every construct that newer templates use: namespaces, slices, filters, macros, loop controls, tests.
BROAD = """{{- bos_token }}
{%- set ns = namespace(system='', count=0) %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- macro turn(role, text) %}{{ '<|im_start|>' ~ role ~ '\\n' ~ text ~ '<|im_end|>' }}{% endmacro %}
{%- if ns.system %}{{ turn('system', ns.system) }}{% endif %}
{%- for message in messages if message.content is not none %}
    {%- if tools is not none and loop.first %}{{ tools | tojson(indent=4) }}{% endif %}
    {%- if message.content == 'skip' %}{% continue %}{% endif %}
    {%- set ns.count = ns.count + 1 %}
    {{- turn(message.role, message['content'].replace('a', 'A').strip()) + '\\n' }}
    {%- generation %}{{ message | tojson }}{% endgeneration %}
    {{- loop.index ~ '/' ~ loop.length ~ (',' if not loop.last else '') ~ (loop.previtem is defined) }}
{%- endfor %}
{{ ns.count }} {{ unknown_token }} {{ messages | map(attribute='role') | join('-') }} {{ '%s' }} {{ [1, 2] + [3] }}
{%- for i in range(3) %}{{ i * 2 }}{% else %}none{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

CHATS = {
    "question": [{"role": "user", "content": "What is <b>1 & 2</b>?"}],
    "turns": [
        {"role": "user", "content": " été 😀 "},
        {"role": "assistant", "content": "Oui.\n"},
        {"role": "user", "content": "日本\n\n{{ not_a_template }}"},
    ],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "skip"},
        {"role": "user", "content": "'quoted' \"text\" banana"},
    ],
}


Render = Callable[..., str]


@pytest.fixture(scope="module")
def reference() -> Render:
    """transformers' own rendering: (template, chat, tokens) -> text."""
    from transformers import PreTrainedTokenizerFast

    def render(template: str, chat: list[dict[str, str]], **tokens: str) -> str:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()), chat_template=template, **tokens)
        rendered: str = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return rendered

    return render


def ours(template: str, chat: list[dict[str, str]], **tokens: str) -> str:
    return ChatTemplate(template, **{"bos_token": None, "eos_token": None, **tokens}).render(chat)


TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
ANY_CHAT = {
    "chatml": FAMILIES["chatml"].template,
    "tiny": TINY_CHATML,
    "zephyr": ZEPHYR,
    "broad": BROAD,
}
CASES = [
    *((template, chat) for template in ANY_CHAT.values() for chat in CHATS.values()),
    # These two take no system message; a test below looks at that.
    *((template, CHATS[chat]) for template in (MISTRAL_V1, MISTRAL_V2) for chat in ("question", "turns")),
]


@pytest.mark.parametrize(("template", "chat"), CASES)
def test_a_prompt_equals_the_one_of_transformers(template: str, chat: list[dict[str, str]], reference: Render) -> None:
    assert ours(template, chat, **TOKENS) == reference(template, chat, **TOKENS)


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
def test_the_demos_prompt_equals_the_one_of_transformers(
    chat: list[dict[str, str]], demo: Checkpoint, smollm2: ChatTokenizer, reference: Render
) -> None:
    assert smollm2.render(chat) == reference(demo.tokenizer.chat_template, chat)


def test_a_chat_that_the_model_does_not_know_is_refused_in_the_templates_words() -> None:
    with pytest.raises(RequestError, match=r"chat template refuses these messages: Conversation roles must"):
        ours(MISTRAL_V2, CHATS["system"], **TOKENS)


def test_a_token_that_the_model_lacks_renders_as_nothing(reference: Render) -> None:
    template = "{{ bos_token }}|{{ eos_token }}|{% if bos_token is defined %}yes{% endif %}"
    chat = CHATS["question"]
    assert ours(template, chat, eos_token="</s>") == reference(template, chat, eos_token="</s>") == "|</s>|"


def test_the_prompt_begins_with_one_begin_of_text_token() -> None:
    data = read_sentencepiece(MISTRAL_DATA / "tokenizer.model.v1")
    # As in the published tokenizer.json: a post-processor that would add a second one.
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    ids = ChatTokenizer(files_of(json.dumps(data), MISTRAL_V2)).encode_chat(CHATS["question"])
    assert ids[0] == 1
    assert ids.count(1) == 1


def test_null_content_renders_as_empty_text(smollm2: ChatTokenizer) -> None:
    chat: list[dict[str, Any]] = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None}]
    assert "<|im_start|>assistant\n<|im_end|>" in smollm2.render(chat)


def test_a_template_that_is_not_jinja_is_a_checkpoint_error() -> None:
    with pytest.raises(CheckpointError, match="chat template cannot be used"):
        ours("{% for %}", CHATS["question"])
