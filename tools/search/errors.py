"""What can go wrong with an index, as errors a person can act on."""

from __future__ import annotations

from kg.errors import ToolUnavailableError, UsageError


class SearchIndexCorruptError(ToolUnavailableError):
    """The index folder is damaged, unfinished or not an index: exit code 6."""


class SearchIndexMismatchError(UsageError):
    """The index was made with other settings or another embedder than asked for: exit code 2."""


class EmbedderUnavailableError(ToolUnavailableError):
    """The sentence-transformers folder is missing or does not load: exit code 6."""


class SearchIndexWriteError(ToolUnavailableError):
    """The index could not be written (a full disk, no permission): exit code 6."""
