"""What a model family needs beyond its checkpoint. A new family is one record here.

The checkpoint's own chat template and generation_config are the truth; a family adds the stop
tokens that checkpoints forget to name, and the sampling that its publisher recommends.
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
    `temperature` and what follows: what a request gets that does not say, where the checkpoint does not
    say either; 0, 1, 0, 1 and 1 of the last five turn each off.
    """

    name: str
    title: str
    marker: str
    stop_tokens: tuple[str, ...]
    temperature: float
    template: str = ""
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0


_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_CHATML_STOPS = ("<|im_end|>", "</s>", "<|endoftext|>")

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        # SmolLM2-135M/360M/1.7B-Instruct's model cards: temperature=0.2, top_p=0.9
        Family(
            name="smollm2",
            title="SmolLM2-Instruct (ChatML)",
            marker="named SmolLM",  # its system message when none is given
            stop_tokens=_CHATML_STOPS,
            temperature=0.2,
            top_p=0.9,
        ),
        # the inference code of Nous-Hermes-2-Mistral-7B-DPO's model card: temperature=0.8, repetition_penalty=1.1;
        # those of OpenHermes-2.5 and NeuralHermes recommend nothing else
        Family(
            name="chatml",
            title="ChatML: Nous-Hermes-2, OpenHermes, NeuralHermes",
            marker="<|im_start|>",
            stop_tokens=_CHATML_STOPS,
            template=_CHATML,
            temperature=0.8,
            repetition_penalty=1.1,
        ),
        # Mistral-Nemo-Instruct-2407's model card: "requires smaller temperatures. We recommend to use a temperature
        # of 0.3". Its template writes [INST] without the space that follows it in the 7B's.
        Family(
            name="mistral-nemo",
            title="Mistral NeMo Instruct, and others with Mistral's V3-Tekken template",
            marker='"[INST]" +',
            stop_tokens=("</s>",),
            temperature=0.3,
        ),
        # Mistral's API: default temperature 0.7 for open-mistral-7b, top_p 1; the model cards recommend nothing
        Family(
            name="mistral-instruct",
            title="Mistral Instruct",
            marker="[INST]",
            stop_tokens=("</s>",),
            temperature=0.7,
        ),
        # zephyr-7b-alpha and -beta's model cards: temperature=0.7, top_k=50, top_p=0.95
        Family(
            name="zephyr",
            title="Zephyr",
            marker="<|assistant|>",
            stop_tokens=("</s>",),
            temperature=0.7,
            top_k=50,
            top_p=0.95,
        ),
    )
}
