"""Makes a policy, small enough for a CPU, with one token for each character that it knows; warms it up.

Shared by the tasks that the project makes itself. Left out on purpose: all that `examples/train_sft.py` is
for; the warm-up here stands for what a user has done before.
"""

from collections.abc import Sequence
from pathlib import Path

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def save_policy(
    folder: Path, characters: str, seed: int, *, hidden: int, layers: int, heads: int, positions: int
) -> None:
    """Save a Hugging Face Llama with random weights, and its tokenizer, which puts `<s>` first.

    Args:
        folder: is made.
        characters: what it reads and writes.
        seed: of the weights.
        hidden, layers, heads, positions: its sizes; the inner layers are 8/3 as wide as `hidden`.
    """
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    tokens = [*SPECIAL, *characters]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")  # one token per character
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=positions, **names)
    fast.save_pretrained(folder)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=positions,
        vocab_size=len(tokens),
        initializer_range=0.08,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)


def warm_up(
    folder: Path, texts: Sequence[tuple[str, bool]], seed: int, *, epochs: int, lr: float, batch: int
) -> None:
    """Train the policy in a folder on texts, from their first character to the last.

    Args:
        folder: of the policy; it is written over.
        texts: each with whether it has come to its end, so that the end token is learnt behind it.
        seed: of the order.
        epochs, lr, batch: AdamW's passes, rate and batch size.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    torch.manual_seed(seed)
    ended = [text + tokenizer.eos_token if has_ended else text for text, has_ended in texts]
    rows = tokenizer(ended, padding=True, padding_side="right", return_tensors="pt")
    tokens, mask = rows["input_ids"], rows["attention_mask"]
    labels = tokens.masked_fill(mask == 0, -100)
    for _ in range(epochs):
        for chosen in torch.randperm(len(tokens)).split(batch):
            optimizer.zero_grad()
            model(tokens[chosen], attention_mask=mask[chosen], labels=labels[chosen]).loss.backward()
            optimizer.step()
    model.save_pretrained(folder)
