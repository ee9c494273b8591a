"""A checkpoint's Jinja chat template, run on untrusted messages: same bytes as transformers, bounded work.

The template itself is untrusted too. jinja2's immutable sandbox keeps it from Python's internals but
bounds neither loops nor sizes, so here every loop step and call is counted against a budget, every
text that is put together is measured, and methods and filters that pad to a width are not offered.

What the template writes itself (its text, its constants, the token variables, the names of the roles)
is `TracedText`, so that the rendered prompt says of each character whether a message brought it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hermes_deploy.chat.messages import ROLES
from hermes_deploy.chat.traced_text import TracedText, joined
from hermes_deploy.errors import CheckpointError, RequestError

MAX_STEPS = 1 << 20
MAX_TEXT = 8 << 20
_MAX_INDENT = 16
_MAX_BITS = 1024
_WIDE_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate"})
_WIDE_FILTERS = ("center", "format", "indent", "wordwrap", "pprint", "urlize", "xmlattr", "filesizeformat", "random")
_FAULTS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)

# Some templates make a control token out of the role's name: '<|' + role + '|>'.
_ROLES = {role: TracedText(role) for role in ROLES}

_steps_left: ContextVar[list[int]] = ContextVar("steps_left")


class ChatTemplate:
    """`render(messages, ...)` -> text. Compiles once; safe to use from several threads."""

    def __init__(self, source: str, *, bos_token: str | None, eos_token: str | None) -> None:
        """Raises CheckpointError when `source` is not a template that can be run here."""
        # A token that is not there is undefined in the template (renders as nothing), not the word None.
        tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._tokens = {name: TracedText(text) for name, text in tokens.items() if text is not None}
        environment = _Environment()
        try:
            self._template = environment.from_string(environment.prepare(source))
        except (jinja2.TemplateError, RecursionError) as error:
            raise CheckpointError(f"the chat template cannot be used: {error}") from None

    def render(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool = True) -> TracedText:
        """The prompt, which knows its own characters from those of the messages' content.

        Raises RequestError: INVALID_ARGUMENT when the template refuses the messages, INTERNAL when it fails.
        """
        token = _steps_left.set([MAX_STEPS])
        try:
            pieces = self._template.generate(
                messages=[{**message, "role": _ROLES.get(message["role"], message["role"])} for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
            )
            return joined(_within(pieces, MAX_TEXT))
        except _Refused as error:
            raise RequestError(f"the model's chat template refuses these messages: {error}") from None
        except _FAULTS as error:
            raise RequestError(
                f"the model's chat template failed: {type(error).__name__}: {error}", code="INTERNAL"
            ) from None
        finally:
            _steps_left.reset(token)


class _Refused(jinja2.TemplateError):
    """The template called raise_exception."""


class _Generation(Extension):
    """{% generation %} marks what a model learns in training; when answering it is only its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(joined)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self._own_texts: dict[str, TracedText] = {}
        for name in _WIDE_FILTERS:
            del self.filters[name]
        replace: Callable[..., Any] = self.filters["replace"]
        self.filters |= {
            "tojson": _tojson,
            "replace": jinja2.pass_eval_context(lambda ev, s, *a, **k: replace(ev, _replaceable(s, *a, **k), *a, **k)),
            "counted": _counted,
            "joined": _joined,
            "join": _join,
            "own": jinja2.pass_context(lambda _, text: self._own_texts[text]),
        }
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def prepare(self, source: str) -> nodes.Template:
        """The syntax tree with every loop and every ~ in its measured form, and every text traced."""
        tree = self.parse(source)
        for loop in list(tree.find_all(nodes.For)):
            if loop.recursive:
                raise jinja2.TemplateError("recursive loops are not allowed")
            loop.iter = _filtered(loop.iter, "counted")
        _exchange(tree, self._exchanged)
        tree.set_environment(self)
        return tree

    def _exchanged(self, node: object) -> object:
        if isinstance(node, nodes.Concat):
            return _filtered(nodes.List(node.nodes, lineno=node.lineno), "joined")
        if isinstance(node, nodes.TemplateData) or (isinstance(node, nodes.Const) and isinstance(node.value, str)):
            text = node.data if isinstance(node, nodes.TemplateData) else node.value
            self._own_texts.setdefault(text, TracedText(text))
            # "own" looks at the context, so jinja does not fold it into a plain constant
            return _filtered(nodes.Const(text, lineno=node.lineno), "own")
        return node

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _WIDE_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """jinja2 would offer its own safe form of str.format, which pads to any width; here there is none."""

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _step()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            if __obj.__name__ == "replace":
                _replaceable(owner, *args, **kwargs)
            elif __obj.__name__ == "join" and args:
                args = (list(_within(map(str, args[0]), MAX_TEXT, len(owner))),)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _step()
        if operator == "**":
            raise jinja2.TemplateError("** is not allowed")
        if operator == "%" and isinstance(left, str):
            raise jinja2.TemplateError("formatting with % is not allowed")
        if operator == "*" and not (isinstance(left, int | float) and isinstance(right, int | float)):
            size, times = (len(right), left) if isinstance(left, int) else (len(left), right)
            _check_size(size * max(0, times))
        if operator == "*" and isinstance(left, int) and isinstance(right, int):
            _check_number(left.bit_length() + right.bit_length())
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _check_size(len(left) + len(right))
        return super().call_binop(context, operator, left, right)


def _exchange(node: nodes.Node, exchanged: Callable[[object], object]) -> None:
    """Puts `exchanged(child)` in the place of every node below `node`, the innermost first."""
    for child in node.iter_child_nodes():
        _exchange(child, exchanged)
    for field, value in node.iter_fields():
        setattr(node, field, [exchanged(item) for item in value] if isinstance(value, list) else exchanged(value))


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _step(times: int = 1) -> None:
    left = _steps_left.get()
    left[0] -= times
    if left[0] < 0:
        raise jinja2.TemplateError(f"it takes more than {MAX_STEPS} steps")


def _check_size(size: float) -> None:
    if size > MAX_TEXT:
        raise jinja2.TemplateError(f"it makes a value of more than {MAX_TEXT} characters")


def _check_number(bits: int) -> None:
    if bits > _MAX_BITS:
        raise jinja2.TemplateError(f"it makes a number of more than {_MAX_BITS} bits")


def _within(pieces: Iterable[str], limit: int, between: int = 0) -> Iterator[str]:
    size = 0
    for piece in pieces:
        size += len(piece) + between
        if size > limit:
            _check_size(size)
        yield piece


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _step()
        yield item


def _joined(items: list[Any]) -> TracedText:
    return joined(_within(map(str, items), MAX_TEXT))


@jinja2.pass_environment
def _join(
    environment: jinja2.Environment, value: Iterable[Any], d: Any = "", attribute: str | int | None = None
) -> TracedText:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    between = str(d)
    return joined(_within(map(str, value), MAX_TEXT, len(between)), between)


def _replaceable(text: object, old: Any = "", new: Any = "", *_: Any, **__: Any) -> str:
    plain = str(text)
    times = plain.count(str(old))
    _check_size(len(plain) + times * len(str(new)))
    if isinstance(plain, TracedText):
        _step(times)  # it is replaced in Python, one by one
    return plain


def _raise_exception(message: str) -> None:
    raise _Refused(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """json.dumps without the escaping of HTML that jinja2's own filter does; chat models expect it so."""
    if indent is not None and (type(indent) is not int or indent > _MAX_INDENT):
        raise jinja2.TemplateError(f"tojson with an indent of {indent!r}; at most {_MAX_INDENT}")
    if separators is not None and any(len(text) > _MAX_INDENT for text in separators):
        raise jinja2.TemplateError(f"tojson with separators of more than {_MAX_INDENT} characters")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
