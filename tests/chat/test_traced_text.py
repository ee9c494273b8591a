"""TracedText is a str in every respect, and of each character it knows who wrote it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_deploy.chat.template import ChatTemplate
from hermes_deploy.chat.traced_text import TracedText, joined, own_runs

Letters = list[tuple[str, bool]]
letters = st.lists(st.tuples(st.sampled_from("ab <|>ß\n"), st.booleans()), max_size=12)
words = st.text("ab <|>ß\n", max_size=3)


def text_of(pairs: Letters) -> TracedText:
    return TracedText("".join(letter for letter, _ in pairs), bytes(own for _, own in pairs))


def letters_of(text: str) -> Letters:
    own = {i for start, end in own_runs(text) for i in range(start, end)}
    return [(letter, i in own) for i, letter in enumerate(str(text))]


@given(letters)
def test_what_was_put_in_is_what_is_known(pairs: Letters) -> None:
    assert letters_of(text_of(pairs)) == pairs
    assert letters_of(str(text_of(pairs))) == pairs


@given(letters, letters, words)
def test_adding_and_joining_keep_count(left: Letters, right: Letters, plain: str) -> None:
    nobodys = [(letter, False) for letter in plain]
    assert letters_of(text_of(left) + text_of(right)) == left + right
    assert letters_of(text_of(left) + plain) == left + nobodys
    assert letters_of(plain + text_of(left)) == nobodys + left
    assert letters_of(joined([text_of(left), plain, text_of(right)])) == left + nobodys + right
    assert letters_of(text_of(left).join([text_of(right), plain, plain])) == [*right, *left, *nobodys, *left, *nobodys]


@given(letters, st.slices(12))
def test_a_cut_keeps_count(pairs: Letters, cut: slice) -> None:
    assert letters_of(text_of(pairs)[cut]) == pairs[cut]
    assert [letters_of(text_of(pairs)[i]) for i in range(-len(pairs), len(pairs))] == [
        [pairs[i]] for i in range(-len(pairs), len(pairs))
    ]


@given(letters, st.one_of(st.none(), words))
def test_stripping_keeps_count(pairs: Letters, chars: str | None) -> None:
    text = text_of(pairs)
    plain = "".join(letter for letter, _ in pairs)
    start = len(plain) - len(plain.lstrip(chars))
    assert text.strip(chars) == plain.strip(chars)
    assert letters_of(text.lstrip(chars)) == pairs[start:]
    assert letters_of(text.rstrip(chars)) == pairs[: len(plain.rstrip(chars))]
    assert letters_of(text.strip(chars)) == pairs[start : start + len(plain.strip(chars))]


@given(letters, words, letters, st.integers(-1, 3))
def test_replacing_keeps_count(pairs: Letters, old: str, new: Letters, count: int) -> None:
    replaced = text_of(pairs).replace(old, text_of(new), count)
    plain = "".join(letter for letter, _ in pairs)
    assert replaced == plain.replace(old, text_of(new), count)
    if not old:
        return
    expected, at, left = [], 0, count
    while at < len(plain):
        if left and plain.startswith(old, at):
            expected += new
            at, left = at + len(old), left - 1
        else:
            expected.append(pairs[at])
            at += 1
    assert letters_of(replaced) == expected


@given(letters)
def test_letter_case_keeps_count_where_the_length_stays(pairs: Letters) -> None:
    plain = "".join(letter for letter, _ in pairs)
    changes: list[Callable[[str], str]] = [str.upper, str.lower, str.capitalize]
    for change in changes:
        changed = getattr(text_of(pairs), change.__name__)()
        assert changed == change(plain)
        # "ß" in capitals is two letters: then nobody wrote anything
        known = [own for _, own in pairs] if len(changed) == len(plain) else [False] * len(changed)
        assert [own for _, own in letters_of(changed)] == known


TEMPLATES = {
    "text": "A{{ c }}B",
    "constants": "{{ 'A' + c }}{{ 'B' }}",
    "tilde": "{{ 'A' ~ c ~ 'B' }}",
    "format of the whole": "{{ (' A' + c + 'B ') | trim }}{{ (' ' + c).strip()[99:] }}",
    "a variable": "{% set a = 'A' %}{{ a ~ c }}{% set b %}B{% endset %}{{ b }}",
    "a namespace": "{% set n = namespace(t='A') %}{% set n.t = n.t + c %}{{ n.t ~ 'B' }}",
    "a macro": "{% macro m(x) %}A{{ x }}{% endmacro %}{{ m(c) }}B",
    "a call block": "{% macro m() %}A{{ caller() }}B{% endmacro %}{% call m() %}{{ c }}{% endcall %}",
    "a filter block": "{% filter trim %} A{{ c }}B {% endfilter %}",
    "a list": "{{ ['A', c, 'B'] | join }}",
    "a method": "{{ ''.join(['A', c, 'B']) }}",
    "a map": "{{ {'a': 'A', 'c': c, 'b': 'B'}.values() | map('string') | join('') }}",
    "a replacement": "{{ 'A#B'.replace('#', c) }}",
    "a filter that replaces": "{{ 'A#B' | replace('#', c) }}",
    "a condition": "{{ 'A' if c else 'x' }}{{ c }}{% if c %}B{% endif %}",
    "a default": "{{ nothing | default('A') }}{{ c }}{{ loop_less or 'B' }}",
    "capitals": "{{ 'a' | upper }}{{ c }}{{ 'b'.upper() }}",
    "tokens": "{{ bos_token }}{{ c }}{{ eos_token }}",
    "a loop": "{% for m in messages %}A{{ m['content'] }}{{ loop.cycle('B', 'C') }}{% endfor %}",
    "a joiner": "{% set j = joiner('B') %}A{{ j() }}{{ c }}{{ j() }}",
    "a generation": "{% generation %}A{{ c }}{% endgeneration %}B",
    "a loop with else": "{% for m in [] %}{% else %}A{{ c }}B{% endfor %}",
}


@pytest.mark.parametrize("body", TEMPLATES.values(), ids=TEMPLATES)
def test_of_a_prompt_it_is_known_what_the_template_wrote(body: str) -> None:
    template = ChatTemplate("{% set c = messages[0].content %}" + body, bos_token="A", eos_token="B")
    prompt = template.render([{"role": "user", "content": "AB<>"}])
    assert letters_of(prompt) == [("A", True), *((letter, False) for letter in "AB<>"), ("B", True)]


def test_the_names_of_roles_are_the_templates_words() -> None:
    template = ChatTemplate("{{ '<|' + messages[0].role + '|>' }}", bos_token=None, eos_token=None)
    assert list(own_runs(template.render([{"role": "user", "content": ""}]))) == [(0, 8)]


@pytest.mark.parametrize(
    "body", ["{{ messages | tojson }}", "{{ messages[0].content }}", "{{ messages[0].content | upper }}"]
)
def test_what_a_message_brought_is_never_the_templates(body: str) -> None:
    template = ChatTemplate("{% set c = messages[0].content %}" + body, bos_token=None, eos_token=None)
    assert list(own_runs(template.render([{"role": "user", "content": "<|im_end|>"}]))) == []


def test_a_date_can_still_be_written() -> None:
    prompt = ChatTemplate("{{ strftime_now('%Y') }}", bos_token=None, eos_token=None).render(
        [{"role": "user", "content": ""}]
    )
    assert prompt.isdigit()
