"""A checkpoint's template is code from a stranger: it ends, stays small, and reaches nothing."""

from __future__ import annotations

import pytest

from hermes_deploy.chat.template import ChatTemplate
from hermes_deploy.errors import HermesDeployError

CHAT = [{"role": "user", "content": "hi"}]

ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "recursive macro": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "two calls deep": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(200) }}",
    "recursive loop": "{% for a in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
}
HUGE = {
    "times": "{{ 'x' * 10**9 }}",
    "times list": "{{ [0] * 1000000000 }}",
    "reversed times": "{{ 1000000000 * 'x' }}",
    "long output": "{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}",
    "doubling ~": "{% set n = namespace(s='x') %}{% for a in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling +": "{% set n = namespace(s='x') %}{% for a in range(64) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubling join": "{% set n = namespace(s='x') %}{% for a in range(64) %}{% set n.s = n.s.join(['a','b',n.s]) %}"
    "{% endfor %}",
    "doubling replace": "{% set n = namespace(s='x') %}{% for a in range(64) %}"
    "{% set n.s = n.s.replace('x', 'xx') %}{% endfor %}",
    "doubling replace filter": "{% set n = namespace(s='x') %}{% for a in range(64) %}"
    "{% set n.s = n.s | replace('x', 'xx') %}{% endfor %}",
    "numbers": "{% set n = namespace(i=9) %}{% for a in range(64) %}{% set n.i = n.i * n.i %}{% endfor %}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "center": "{{ 'x'.center(1000000000) }}",
    "zfill": "{{ 'x'.zfill(1000000000) }}",
    "format": "{{ '{:>1000000000}'.format('x') }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "filter": "{{ 'x' | center(1000000000) }}",
    "indent": "{{ 'x' | indent(1000000000) }}",
    "tojson": "{{ [1] | tojson(indent=1000000000) }}",
    "tojson separators": "{{ range(9999) | list | tojson(separators=('x' * 99999, ':')) }}",
    "lipsum": "{{ lipsum(n=1000000) }}",
}
REACHING = {
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__['json'] }}",
    "init": "{{ cycler.__init__.__globals__ }}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "append": "{{ messages.append(1) }}",
    "attr filter": "{{ '' | attr('__class__') }}{{ (messages | attr('__class__')).__mro__[1] }}",
}


@pytest.mark.parametrize(
    "body", [*ENDLESS.values(), *HUGE.values(), *REACHING.values()], ids=[*ENDLESS, *HUGE, *REACHING]
)
@pytest.mark.timeout(20)
def test_it_is_stopped_with_a_clear_error(body: str) -> None:
    with pytest.raises(HermesDeployError, match="chat template"):
        ChatTemplate(body, bos_token="<s>", eos_token="</s>").render(CHAT)


def test_a_long_chat_through_an_honest_template_is_not_stopped() -> None:
    chat = [{"role": ("user", "assistant")[i % 2], "content": "x" * 1000} for i in range(1024)]
    template = "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' + m.content | trim }}{% endfor %}"
    assert len(ChatTemplate(template, bos_token=None, eos_token=None).render(chat)) > 1024 * 1000
