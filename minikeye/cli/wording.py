"""Messages as users of the command line need them: the library's name Python arguments, theirs are flags."""

import re

# What a message says -> what to type. Only what cannot be the name of a key in a checkpoint's file.
FLAGS = {
    r"\b(device|backend|attention)=['\"]?([\w:]+)['\"]?": r"--\1 \2",
    r"\bdtype=torch\.(\w+)": r"--dtype \1",
    r"\bstreaming=True\b": "--streaming",
    r"\bmax_new_tokens\b": "--max-new-tokens",
    r"\bcheckpoint=FOLDER\b": "--checkpoint FOLDER",
    r"\btools among\b": "--tools among",
    r"\bthe tool look\b": "--tools look",
    r"\bstart again with reset\(\)": "start again with /reset",
}


def say(text: str) -> None:
    """A piece of an answer, as it comes."""
    print(text, end="", flush=True)


def in_flags(error: BaseException) -> str:
    """The error's message with flags for arguments; the name of the error where it has no message."""
    text = str(error) or type(error).__name__
    for python, flag in FLAGS.items():
        text = re.sub(python, flag, text)
    if isinstance(error, MemoryError):
        text = re.sub(r"at most ([\d,]+) tokens", lambda m: f"--max-context {m[1].replace(',', '')}", text)
    return text
