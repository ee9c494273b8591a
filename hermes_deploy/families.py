"""What a model family needs beyond its checkpoint. A new family is one record here.

The checkpoint's own chat template and generation_config are the truth; a family adds the stop
tokens that checkpoints forget to name, and sampling defaults.
"""

from __future__ import annotations

from dataclasses import dataclass

ARCHITECTURES = ("MistralForCausalLM", "LlamaForCausalLM")
"""Decoder blocks that `graphs/` builds. Llama's block without bias and scaling equals Mistral's."""


@dataclass(frozen=True)
class Family:
    """`marker`: text that the family's chat template always holds; first match in FAMILIES wins.

    `stop_tokens`: token texts that end an answer where the tokenizer has them.
    `template`: fallback Jinja template for checkpoints that carry none ("" = a template is required).
    """

    name: str
    title: str
    marker: str
    stop_tokens: tuple[str, ...]
    template: str = ""
    temperature: float = 0.7
    top_p: float = 0.95


_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="chatml",
            title="ChatML: Nous-Hermes-2, OpenHermes, NeuralHermes, SmolLM2-Instruct",
            marker="<|im_start|>",
            stop_tokens=("<|im_end|>", "</s>", "<|endoftext|>"),
            template=_CHATML,
        ),
        Family(
            name="mistral-instruct",
            title="Mistral Instruct and Mistral NeMo Instruct",
            marker="[INST]",
            stop_tokens=("</s>",),
        ),
        Family(
            name="zephyr",
            title="Zephyr",
            marker="<|assistant|>",
            stop_tokens=("</s>",),
        ),
    )
}
