"""A checkpoint's Jinja chat template, run on untrusted messages: same bytes as transformers, bounded work.

The template itself is untrusted too. jinja2's immutable sandbox keeps it from Python's internals but
bounds neither loops nor sizes, so here every loop step and call is counted against a budget, every
text that is put together is measured, and methods and filters that pad to a width are not offered.
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
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hermes_deploy.errors import CheckpointError, RequestError

MAX_STEPS = 1 << 20
MAX_TEXT = 8 << 20
_MAX_INDENT = 16
_MAX_BITS = 1024
_WIDE_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate"})
_WIDE_FILTERS = ("center", "format", "indent", "wordwrap", "pprint", "urlize", "xmlattr", "filesizeformat", "random")
_FAULTS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)

_steps_left: ContextVar[list[int]] = ContextVar("steps_left")


class ChatTemplate:
    """`render(messages, ...)` -> text. Compiles once; safe to use from several threads."""

    def __init__(self, source: str, *, bos_token: str | None, eos_token: str | None) -> None:
        """Raises CheckpointError when `source` is not a template that can be run here."""
        # A token that is not there is undefined in the template (renders as nothing), not the word None.
        tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._tokens = {name: text for name, text in tokens.items() if text is not None}
        environment = _Environment()
        try:
            self._template = environment.from_string(environment.count_loops(source))
        except (jinja2.TemplateError, RecursionError) as error:
            raise CheckpointError(f"the chat template cannot be used: {error}") from None

    def render(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        """Raises RequestError: INVALID_ARGUMENT when the template refuses the messages, INTERNAL when it fails."""
        token = _steps_left.set([MAX_STEPS])
        try:
            pieces = self._template.generate(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
            )
            return "".join(_within(pieces, MAX_TEXT))
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

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        for name in _WIDE_FILTERS:
            del self.filters[name]
        replace: Callable[..., Any] = self.filters["replace"]
        self.filters |= {
            "tojson": _tojson,
            "replace": jinja2.pass_eval_context(lambda ev, s, *a, **k: replace(ev, _replaceable(s, *a, **k), *a, **k)),
            "counted": _counted,
            "joined": _joined,
        }
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def count_loops(self, source: str) -> nodes.Template:
        """The syntax tree with every loop and every ~ replaced by its measured form."""
        tree = self.parse(source)
        for loop in list(tree.find_all(nodes.For)):
            if loop.recursive:
                raise jinja2.TemplateError("recursive loops are not allowed")
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
        _measure_concatenation(tree)
        tree.set_environment(self)
        return tree

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


def _measure_concatenation(node: nodes.Node) -> None:
    for child in node.iter_child_nodes():
        _measure_concatenation(child)
    for field, value in node.iter_fields():
        if isinstance(value, nodes.Concat):
            setattr(node, field, _measured(value))
        elif isinstance(value, list):
            value[:] = [_measured(item) if isinstance(item, nodes.Concat) else item for item in value]


def _measured(concat: nodes.Concat) -> nodes.Filter:
    items = nodes.List(concat.nodes, lineno=concat.lineno)
    return nodes.Filter(items, "joined", [], [], None, None, lineno=concat.lineno)


def _step() -> None:
    left = _steps_left.get()
    left[0] -= 1
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


def _joined(items: list[Any]) -> str:
    return "".join(_within(map(str, items), MAX_TEXT))


def _replaceable(text: object, old: Any = "", new: Any = "", *_: Any, **__: Any) -> str:
    plain = str(text)
    _check_size(len(plain) + plain.count(str(old)) * len(str(new)))
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
