"""Chat templates: the dialect of transformers, in a sandbox."""

from __future__ import annotations

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from octavo.errors import InvalidRequestError, ModelError
from octavo.models.chat_template import ChatTemplate

MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "<b>1 & 2</b> é"},
    {"role": "assistant", "content": "3"},
]
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}\n"
    "{% for m in rest %}\n"
    "    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate.') }}"
    "{% endif %}\n"
    "    {% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}\n"
    "    {% else %}{% generation %}{{ ' ' + m['content'] + eos_token }}{% endgeneration %}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}!{% endif %}{% if tools %}{{ tools | tojson }}{% endif %}"
)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("variables", [{}, {"tools": [{"name": "f", "description": "<é>"}]}])
@pytest.mark.parametrize(
    "source", [LLAMA2, "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m }}{% endfor %}"]
)
def test_prompts_are_those_of_transformers(source, prompt, variables):
    ours = ChatTemplate(source, SPECIAL).render(MESSAGES, prompt, variables)
    theirs, _ = render_jinja_template(
        [MESSAGES], chat_template=source, add_generation_prompt=prompt, **SPECIAL, **variables
    )
    assert ours == theirs[0]


def test_a_template_that_refuses_says_why_in_its_own_words():
    with pytest.raises(InvalidRequestError, match="Roles must alternate") as error:
        ChatTemplate(LLAMA2, SPECIAL).render([MESSAGES[2]])
    assert (error.value.param, error.value.code) == ("messages", "chat_template")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages[0].__class__.__init__.__globals__ }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ messages[7].content }}",
        "{{ 1 // 0 }}",
    ],
)
def test_a_template_cannot_reach_out_of_its_sandbox_or_bring_down_the_engine(source):
    with pytest.raises(InvalidRequestError, match="does not take these messages"):
        ChatTemplate(source, {}).render(MESSAGES)


def test_messages_and_prompt_cannot_be_replaced_by_variables():
    template = ChatTemplate("{{ messages | length }}{{ add_generation_prompt }}{{ x }}", {})
    assert template.render(MESSAGES, False, {"messages": [], "add_generation_prompt": True, "x": 5}) == "3False5"


def test_a_template_that_is_no_jinja_is_the_models_fault():
    with pytest.raises(ModelError, match="not valid Jinja"):
        ChatTemplate("{% for %}", {})
