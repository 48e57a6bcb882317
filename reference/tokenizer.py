"""The tokenizer: byte-level BPE over letter runs, single digits, white space and punctuation runs.

A word must get the same tokens in a schema, in a request and in the JSON of a call, or copying has to be learnt
several times; hence no token ever joins a word with the space or the quote beside it.

    python -m reference.tokenizer OUT
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from reference.chat import ADDED_TOKENS, END, PAD, SPECIAL_TOKENS, TEMPLATE
from reference.tasks import MAKERS
from reference.tasks import make as make_task
from reference.tools import make as make_tool
from reference.words import SYLLABLES, lexicon

VOCAB_SIZE = 5120
TOOL_KINDS = ("tool_simple", "tool_multiple", "tool_parallel", "tool_irrelevance", "long_tools")


def corpus(seed: int = 1) -> list[str]:
    """Texts with the frequencies that BPE should see: each lexicon word often enough to be one token."""
    rng = random.Random(seed)
    names = lexicon()
    texts = []
    for _ in range(300):
        for kind in TOOL_KINDS:
            r = make_tool(rng, kind, names)
            texts.append(r.prompt() + r.answer())
        for kind in MAKERS:
            r = make_task(rng, kind, names)
            texts.append(r.prompt() + r.answer())
    texts += [" ".join(names)] * 400
    texts += [" ".join(SYLLABLES)] * 2000
    texts += ["Catalogue code of it? Capital of it? Who owns it?"] * 500
    return texts


def build(out: Path) -> None:
    """Train and save the tokenizer with its chat template."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    pattern = Regex(r"[A-Za-z]+|[0-9]|[^A-Za-z0-9\s]+ ?|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(ADDED_TOKENS),
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in ADDED_TOKENS])
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(out)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
