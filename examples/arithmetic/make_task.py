"""Makes the quickstart's task: additions such as `417+38=`, and an untrained policy small enough for a CPU.

Nothing is downloaded. The first number has up to --digits digits, the second up to one fewer. No addition
is in a file twice or in two files, not even with its numbers swapped:

    sft.jsonl         {"prompt": "417+38=", "response": "455"}    what the starting policy learns from
    dev.jsonl         {"text": "417+38=", "answer": "455"}        to tell when it has learnt enough
    train.jsonl       the same                                    prompts of the rejection sampling
    validation.jsonl  the same                                    held out, to measure by
    policy_start/     a Hugging Face Llama of 0.3 million random weights with one token per character
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

SIZES = {"sft.jsonl": 20_000, "dev.jsonl": 500, "train.jsonl": 8_000, "validation.jsonl": 1_000}
TOKENS = ["<pad>", "<s>", "</s>", "<unk>", *"0123456789+="]


def additions(digits: int, seed: int) -> Iterator[tuple[str, str]]:
    """Endless distinct additions, as question and answer."""
    rng, seen = random.Random(seed), set()
    while True:
        a, b = rng.randrange(10**digits), rng.randrange(10 ** (digits - 1))
        if frozenset((a, b)) not in seen:
            seen.add(frozenset((a, b)))
            yield f"{a}+{b}=", str(a + b)


def save_policy(folder: Path, seed: int) -> None:
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")  # one token per character
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder)
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": len(TOKENS)}
    config = LlamaConfig(**sizes, **ids, max_position_embeddings=64, initializer_range=0.08)
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--digits", type=int, default=3, choices=range(3, 10), help="of the first number")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    problems = additions(args.digits, args.seed)
    for name, size in SIZES.items():
        keys = ("prompt", "response") if name == "sft.jsonl" else ("text", "answer")
        with (args.out / name).open("w") as file:
            for _ in range(size):
                file.write(json.dumps(dict(zip(keys, next(problems), strict=True))) + "\n")
    save_policy(args.out / "policy_start", args.seed)


if __name__ == "__main__":
    main()
