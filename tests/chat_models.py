"""Small tokenizers with the chat templates of well-known families, a byte a token.

The templates are written here in the manner of those families, and reduced to what matters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers
import transformers
from tokenizers import processors

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# As reasoning models have it: thoughts of earlier turns are dropped, and a new turn begins with one.
THINK = (
    "{% for m in messages %}{% set text = m.content %}"
    "{% if m.role == 'assistant' %}{% set text = text.split('</think>')[-1] %}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ text }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}"
    "<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = {
    "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama3": [
        *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
        *("<|eom_id|>", "<|eot_id|>"),
    ],
    "think": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"],
    "plain": ["<s>", "</s>"],
}
BYTES = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def save_tokenizer(
    folder: Path,
    special: Sequence[str],
    *,
    template: str | None = None,
    bos: str | None = None,
    eos: str | None = None,
    adds: str = "$A",
    named: object = None,
    words: Sequence[str] = (),
) -> Path:
    """A byte-level tokenizer whose special tokens come first, from id 0 on; returns `folder`.

    Args:
        folder: where to.
        special: the special tokens.
        template: the chat template.
        bos, eos: of the special tokens.
        adds: what is put around every text, as `tokenizers` writes it: "<s> $A </s>".
        named: `eos_token_id` of generation_config.json.
        words: added tokens that are not special, behind the bytes.
    """
    vocabulary = {token: i for i, token in enumerate([*special, *BYTES])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(
        [tokenizers.AddedToken(token, special=True, normalized=False) for token in special]
    )
    made.add_tokens([tokenizers.AddedToken(word, special=False, normalized=False) for word in words])
    if adds != "$A":
        ends = [(token, vocabulary[token]) for token in adds.split() if token != "$A"]
        made.post_processor = processors.TemplateProcessing(adds, special_tokens=ends)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos, eos_token=eos)
    fast.chat_template = template
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    if named is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    return folder


def llama3(folder: Path) -> Path:
    """Llama 3 Instruct: the model names [end of text, end of message, end of turn], in this order."""
    return save_tokenizer(
        *(folder, SPECIAL["llama3"]),
        template=LLAMA3,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        adds="<|begin_of_text|> $A",
        named=[1, 4, 5],
    )


def chatml_on_a_base(folder: Path, template: str = CHATML) -> Path:
    """ChatML on a base model, whose only end token is the end of a text."""
    return save_tokenizer(folder, SPECIAL["chatml"], template=template, eos="<|endoftext|>", named=0)


def thinking(folder: Path, template: str = THINK) -> Path:
    """A reasoning model with `<think>` and `</think>` as special tokens (ids 3 and 4)."""
    return save_tokenizer(folder, SPECIAL["think"], template=template, eos="<|im_end|>", named=[2, 0])
