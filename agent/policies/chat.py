"""Messages to tokens, once and forwards only.

A conversation is never re-tokenised: the opening is rendered through the model's chat template, and
each later message is rendered alone, as the text that the template puts between two replies. So the
ids a policy sampled stay exactly where they were.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kg.errors import PolicyUnavailableError, UsageError

_MARK = "\u241etwmark\u241e"


def does_not_load(folder: Path, error: Exception) -> PolicyUnavailableError:
    """A model folder that a library rejects, as an error with the library's first line."""
    cause = str(error).strip().split("\n")[0]
    return PolicyUnavailableError(
        f"the model in {folder} does not load: {cause}", "agent models pull NAME --force"
    )


class ChatTemplate:
    """A tokenizer with a chat template.

    Args:
        tokenizer: a transformers tokenizer.

    Raises:
        UsageError: the tokenizer has no chat template, or one that rewrites earlier messages.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError(
                f"the model '{tokenizer.name_or_path}' has no chat template",
                "use an instruction-tuned model",
            )
        self.tokenizer = tokenizer
        self._special = re.compile(
            "|".join(
                re.escape(text)
                for text in sorted(_special_strings(tokenizer), key=len, reverse=True)
            )
        )
        self._between: dict[str, tuple[str, str]] = {}

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate:
        """The template of a model folder.

        Raises:
            PolicyUnavailableError: its tokenizer does not load.
            UsageError: as the class.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # tokenizers, json and transformers each raise their own
            raise does_not_load(folder, error) from error
        return cls(tokenizer)

    @property
    def eos_id(self) -> int:
        """The token that ends a reply."""
        return int(self.tokenizer.eos_token_id)

    def opening(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()
    ) -> list[int]:
        """Token ids of a conversation up to the point where the policy replies."""
        text = self._render(messages, tools)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def between(self, role: str, content: str, last_id: int | None = None) -> list[int]:
        """Token ids from the end of a reply, through one more message, to the next reply.

        Args:
            role: role of the message, `user` or `tool`.
            content: its text, already neutralised.
            last_id: the last id of the reply; an end-of-turn token is not written twice.
        """
        before, after = self._frame(role)
        ids = list(self.tokenizer(before + content + after, add_special_tokens=False)["input_ids"])
        return ids[1:] if last_id == self.eos_id and ids[:1] == [self.eos_id] else ids

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, no special tokens added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def neutralise(self, text: str) -> str:
        """Break every special-token string in foreign text, so that it stays text."""
        return self._special.sub(lambda match: _broken(match.group()), text)

    def _render(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()
    ) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=True,
            )
        )

    def _frame(self, role: str) -> tuple[str, str]:
        """The text that the template writes before and after a message of `role` behind a reply."""
        if role not in self._between:
            start = [{"role": "user", "content": "q"}]
            reply = {"role": "assistant", "content": f"a{_MARK}"}
            text = self._render([*start, reply, {"role": role, "content": f"{_MARK}{_MARK}"}])
            if text.count(_MARK) != 3:
                name = self.tokenizer.name_or_path
                raise UsageError(
                    f"the chat template of '{name}' has no role '{role}' or drops text"
                )
            _, before, _, after = text.split(_MARK)
            self._between[role] = (before, after)
        return self._between[role]


def _broken(special: str) -> str:
    """A special token's text as plain text that still reads the same, such as `[ INST]`."""
    return special.replace("<", "\u2039") if "<" in special else f"{special[0]} {special[1:]}"


def _special_strings(tokenizer: Any) -> list[str]:
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*tokenizer.all_special_tokens, *added, "<|im_start|>", "<|im_end|>"})
