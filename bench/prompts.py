"""The prompts of the engine benchmarks: a fixed list, 40 to 115 tokens each.

A *sheet* is one set of them. Each begins with the sheet's and the prompt's own number, so that no
two prompts of a run share a first block: what is measured is never an engine's prefix cache.
"""

_SUBJECTS = (
    "the slow bends of a river in flat country",
    "how bread rises overnight in a cold kitchen",
    "a lighthouse keeper who counts the passing ships",
    "why leaves change their colour in autumn",
    "the work of a watchmaker in a mountain village",
    "how a bridge carries the weight of a train",
    "the first snow of the year in a harbour town",
    "what bees do on a day of heavy rain",
)
_REQUESTS = (
    ("Write a short and plain account of it for a reader who has never thought about it before."),
    (
        "Explain it step by step, give an example from daily life for every step, and say at "
        "the end what most people get wrong about it."
    ),
    (
        "Tell it as a letter to an old friend who moved abroad many years ago. Begin with the"
        " weather, then come to the matter itself, describe what can be seen, heard and "
        "smelled, mention a person who knows more about it than the writer does, and close "
        "with a question."
    ),
    (
        "List what is needed, what happens first, what happens next and what is left in the "
        "end. Then compare it with something else that is better known, say in which respects"
        " the two are alike and in which they differ, name one thing about it that can be "
        "measured and one that cannot, and finish with a sentence that a child of ten years "
        "would understand without any help from a grown-up, a dictionary or a picture."
    ),
)


def sheet(number: int, count: int) -> list[str]:
    """Return ``count`` prompts that no other sheet has."""
    return [f"Sheet {number}, line {line}. {_text(line)}\n\n" for line in range(count)]


def long_prompt(number: int, num_words: int) -> str:
    """Return one prompt of about so many words."""
    text = f"Sheet {number}. "
    line = number
    while text.count(" ") < num_words:
        text += _text(line) + " "
        line += 1
    return " ".join(text.split()[:num_words])


def _text(line: int) -> str:
    # Neighbours differ in length, so that every small set has short and long ones.
    request = _REQUESTS[line % len(_REQUESTS)]
    subject = _SUBJECTS[line // len(_REQUESTS) % len(_SUBJECTS)]
    return f"The subject is {subject}. {request}"
